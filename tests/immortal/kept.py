"""What a node's objects are once they were made immortal, and what a leaf of it still can do.

Argument: the module's file. Prints one line of JSON.
"""

import gc
import io
import json
import os
import sys
import weakref

from native import fork, load

IMMORTAL = 1 << 31
GONE = []


class Data:
    """Says when it goes."""

    def __init__(self, name):
        self.name = name

    def __del__(self):
        GONE.append(self.name)


class Owner:
    def method(self):
        return "a constant of %s" % type(self).__name__

    @property
    def own(self):
        return self


def closure():
    cell = ("in a cell", 12345)
    return lambda: cell


LAMBDA = closure()
TEXT = "".join(["made ", "when imported"])
PAIR = (TEXT, 1 << 70)
BOUND = Owner().method
INSTANCE = Owner()
INSTANCE.kept = [Data("of an instance")]
INSTANCE.__dict__
LIST = [Data("of a list")]
DICT = {"key": Data("of a dict")}
SET = {Data("of a set")}
ALONE = Data("alone")
BUFFER = bytearray(64)
STREAM = io.BytesIO(b"stream")
# A dict of no namespace although a function of C refers to it.
GET = {"a": Data("of a method's dict")}.get

PARTS = {
    "module": sys.modules[__name__],
    "namespace": globals(),
    "class": Owner,
    "function": closure,
    "code": closure.__code__,
    "constants": Owner.method.__code__.co_consts,
    "lambda": LAMBDA,
    "cell": LAMBDA.__closure__[0],
    "tuple": PAIR,
    "text": TEXT,
    "number": PAIR[1],
    "property": Owner.__dict__["own"],
    "function of C": weakref.getweakrefcount,
    "method of C": str.__dict__["join"],
}
DATA = {
    "list": LIST,
    "dict": DICT,
    "set": SET,
    "instance": INSTANCE,
    "its dict": INSTANCE.__dict__,
    "bound method": BOUND,
    "bytearray": BUFFER,
    "stream": STREAM,
    "dict of a method": GET.__self__,
}


def immortal(objects):
    return sorted(name for name, value in objects.items() if sys.getrefcount(value) >= IMMORTAL)


def drops():
    """Each is the last name of its data."""
    global LIST, DICT, SET, ALONE, INSTANCE, GET
    DATA.clear()
    LIST = DICT = SET = ALONE = INSTANCE = GET = None
    return sorted(GONE)


def collects():
    gc.unfreeze()
    pair = [Data("of a cycle")]
    pair.append(pair)
    seen = weakref.WeakSet([pair[0]])
    del pair
    gc.enable()
    gc.collect()
    gc.collect()
    return [GONE, len(seen), Owner().method(), immortal(PARTS) == sorted(PARTS)]


def changes():
    """What the interpreter does in place where a count is 1."""
    text, pair = TEXT, PAIR
    text += "!"
    pair += (3,)
    assert sys.intern(TEXT) == "made when imported" == TEXT and PAIR[0] is TEXT
    Owner.later = staticmethod(lambda: LIST)
    LIST.append(Owner.later())
    globals().pop("BUFFER")
    view = STREAM.getbuffer()
    view[:1] = b"S"
    view.release()
    STREAM.write(b"gone")
    return [text, len(pair), len(LIST), STREAM.getvalue().decode(), list(zip("ab", "cd"))[1], Owner.__name__]


def main():
    native = load(sys.argv[1])
    before = immortal({**PARTS, **DATA})
    gc.collect()
    gc.disable()
    made = native.immortalize()
    again = native.immortalize()
    gc.freeze()
    said = {
        "made": made,
        "again": again,
        "before": before,
        "parts": immortal(PARTS),
        "data": immortal(DATA),
        "missing": sorted(PARTS.keys() - set(immortal(PARTS))),
        "drops": fork(native, drops),
        "collects": fork(native, collects),
        "changes": fork(native, changes),
        "ends": fork(native, changes, sys.exit),
        "after": len(LIST),
    }
    print(json.dumps(said), flush=True)
    os._exit(0)


main()
