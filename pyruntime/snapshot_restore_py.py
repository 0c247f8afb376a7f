"""Hooks around a snapshot, named and ordered as in AWS's package of this name. A
function's module imports it; where the function pinned that package, it finds
the pinned one first.

    before the snapshot   last registered first     once, in the snapshot node
    after the restore     first registered first    in each leaf, before its first request

Where no snapshot is taken, no hook runs.
"""

_before_snapshot = []
_after_restore = []


def register_before_snapshot(func, *args, **kwargs):
    """Calls `func(*args, **kwargs)` before the snapshot; also a decorator."""
    _before_snapshot.append((func, args, kwargs))
    return func


def register_after_restore(func, *args, **kwargs):
    """Calls `func(*args, **kwargs)` after each restore; also a decorator."""
    _after_restore.append((func, args, kwargs))
    return func


def get_before_snapshot():
    """What is registered: (function, arguments, keyword arguments) each."""
    return _before_snapshot


def get_after_restore():
    """What is registered: (function, arguments, keyword arguments) each."""
    return _after_restore
