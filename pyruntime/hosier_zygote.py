"""A zygote: imports, then forks whenever the worker asks. Runs as root of its
own user namespace, with one thread.

    main ──▶ serve_forks ─┬─ in a child zygote: import, serve again
                          └─ in a leaf: hosier_leaf.main, never to return
"""

import gc
import random  # noqa: F401  for leaves: many handlers want it, and it reseeds itself after a fork
import sys
import time
import traceback  # noqa: F401  for leaves: none has to import it when it fails

import hosier_leaf
import hosier_native
import hosier_snapshot
import hosier_unique


def main(immortal, freeze, solidify):
    # Collections write to every object's header, and written pages are no
    # longer shared. Leaves switch it on again.
    gc.disable()
    hosier_leaf.rehearse()
    imports = ([], [], immortal, freeze, None, solidify)
    while imports is not None:
        *what, solidify = imports
        imports = hosier_native.serve_forks(*become(*what), solidify)
    hosier_unique.renew()
    hosier_leaf.main()


def become(path, modules, immortal, freeze, handler):
    """Imports what this node is for; what came of it. A handler makes it the node of
    one function."""
    # Ours stays last: a package may have a module of one of our names.
    others = [entry for entry in sys.path if entry not in path and entry != hosier_leaf.OURS]
    sys.path[:] = [*others, *path, hosier_leaf.OURS]
    failed = []
    start = time.perf_counter_ns()
    for module in modules:
        try:
            __import__(module)
        except BaseException as error:  # a package may raise anything, SystemExit included
            failed.append((module, f"{type(error).__name__}: {error}"[:500]))
    unfit = None if handler is None else hosier_snapshot.prepare(path, *handler)
    took = (time.perf_counter_ns() - start) // 1000
    hosier_unique.forget()
    gc.collect()
    made = hosier_native.immortalize() if immortal else 0
    if freeze:
        gc.freeze()
    return took, loaded(), failed[:100], unfit, made


def loaded():
    """The packages that modules really came from, dependencies included."""
    found = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.startswith(hosier_leaf.PACKAGES):
            found.add(file[len(hosier_leaf.PACKAGES):].split("/", 1)[0])
    return sorted(found)

