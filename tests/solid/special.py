"""What solidify must leave as it is, looked at from both sides of a fork.

Argument: the module's file. Prints one line of JSON.
"""

import json
import mmap
import os
import sys

from native import fork, load

WIPE_ON_FORK, LOCKED = 18, 0x2000  # madvise(2), mmap(2): Python has no names for them
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def page(text, flags=0, advice=None):
    made = mmap.mmap(-1, mmap.PAGESIZE, flags=PRIVATE | flags)
    # Mappings that are alike grow together: a page between keeps this one apart.
    APART.append(mmap.mmap(-1, mmap.PAGESIZE, flags=PRIVATE, prot=mmap.PROT_READ))
    if advice is not None:
        made.madvise(advice)
    made[: len(text)] = text
    return made


APART = []


def kernel_page_flags(made):
    """The mapping's `VmFlags`, and what backs it."""
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(made))
    inside, found = False, []
    with open("/proc/self/smaps") as maps:
        for line in maps:
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                start, end = (int(part, 16) for part in head.split("-"))
                inside = start <= address < end
                found += line.split()[5:] if inside else []
            elif inside and head == "VmFlags:":
                found += line.split()[1:]
    return found


def main():
    native = load(sys.argv[1])
    plain, wiped, locked = page(b"plain"), page(b"wiped", advice=WIPE_ON_FORK), page(b"locked", LOCKED)
    private = page(b"mine")
    _moved, left, _bytes = native.solidify_now()
    said = {
        "left": left,
        "flags": {name: kernel_page_flags(made)
                  for name, made in (("plain", plain), ("wiped", wiped), ("locked", locked))},
        "parent": [bytes(made[:6]).decode() for made in (plain, wiped, locked, private)],
        "children": [],
    }
    for number in range(3):

        def child():
            seen = [bytes(made[:6]).decode() for made in (plain, wiped, locked, private)]
            private[:4] = b"his%d" % number
            wiped[:5] = b"again"
            return seen

        said["children"].append(fork(native, child))
    said["after"] = [bytes(made[:6]).decode() for made in (plain, wiped, locked, private)]
    said["too_many"] = too_many(native)
    print(json.dumps(said))


def too_many(native):
    """More mappings than a pass has room for: it says so, and the process goes on as it was."""
    both = mmap.PROT_READ | mmap.PROT_WRITE
    made = [mmap.mmap(-1, mmap.PAGESIZE, flags=PRIVATE, prot=prot)
            for _ in range(6500) for prot in (both, mmap.PROT_READ)]
    for number, writable in enumerate(made[::2]):
        writable[:2] = number.to_bytes(2, "big")
    try:
        native.solidify_now()
        error = None
    except OSError as raised:
        error = str(raised)
    content = all(writable[:2] == number.to_bytes(2, "big") for number, writable in enumerate(made[::2]))
    return [error, content, fork(native, lambda: made[2 * 77][1])]


main()
