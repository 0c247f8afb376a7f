"""One process that imports packages as a node does, and then does what a node and its leaves do.

    plain   use
    solid   immortalize, solidify, fork N times: (use, exit), use, exit

Arguments: the module's file, where the packages are, plain or solid, how many forks, packages. A solid one
reads from stdin what a plain one said. Prints one line of JSON.
"""

import gc
import json
import os
import sys

from native import fork, load
from uses import IMPORTS, UNFINISHED, USES

# One child in so many ends as an interpreter does, the others as leaves do.
FINISHED = 20


def main():
    module, packages, mode, forks, *names = sys.argv[1:]
    sys.path[:0] = [packages]
    native = load(module)
    for name in names:
        for imported in IMPORTS.get(name, name).split():
            __import__(imported)
    said = {"threads": len(os.listdir("/proc/self/task"))}
    gc.collect()
    if mode == "solid":
        said["immortal"] = native.immortalize()
    gc.freeze()
    gc.disable()
    finish = UNFINISHED.isdisjoint(names)
    if mode == "solid":
        said["moved"], said["left"], said["bytes"] = native.solidify_now()
        expected = json.load(sys.stdin)["uses"]
        said["differs"] = differences(native, names, int(forks), expected, finish)
    said["uses"] = use(names, 0)
    print(json.dumps(said), flush=True)
    if not finish:
        os._exit(0)


def use(names, first):
    """In another order each time: what one package does must not be what another needs."""
    turn = first % len(names)
    return {name: USES[name]() for name in names[turn:] + names[:turn]}


def differences(native, names, forks, expected, finish):
    """What children say that is not what an unsolidified process says, or how they end."""
    found = []
    for number in range(forks):

        def work():
            gc.enable()
            return use(names, number)

        said = fork(native, work, sys.exit if finish and number % FINISHED == 0 else os._exit)
        if said != expected:
            found.append([number, said])
    return found


main()
