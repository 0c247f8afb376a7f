def f(event):
    return {"hello": event.get("name", "world")}
