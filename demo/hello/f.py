"""Greets whoever the event names."""


def f(event):
    return {"message": f"hello, {event.get('name', 'world')}"}
