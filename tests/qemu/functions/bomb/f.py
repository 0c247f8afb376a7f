def f(event):
    # Written, not only reserved: the limit counts pages.
    hoard = [b"\x01" * (1 << 20) for _ in range(event.get("mib", 0))]
    return {"mib": len(hoard)}
