def f(event):
    while event.get("forever"):
        pass
    return {"looped": False}
