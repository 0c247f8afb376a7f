"""A snapshot: one function's module, imported in a zygote that is that function's
alone. `prepare` runs in the zygote, `restore` in each leaf, once it is confined.

    prepare: settle ──▶ load ──▶ warm-up call ──▶ hooks, last first ──▶ fit to fork?
    restore: directory, collector as they were ──▶ hooks, first first ──▶ requests

What `prepare` sets is what a leaf of the same function would have: the module
must not be able to tell where it is imported, but for what no zygote can give
(docs/design/0006-snapshot-nodes.md).
"""

import gc
import json
import os
import sys

import hosier_leaf

HOOKS = "snapshot_restore_py"
SOCKET = 3
REASON = 500
ONE_THREAD = ("JE_ARROW_MALLOC_CONF",)


class Snapshot:
    """What a leaf takes over."""

    def __init__(self, handler, cwd, collects, hidden, threads):
        self.handler, self.cwd, self.collects = handler, cwd, collects
        self.hidden, self.threads = hidden, threads

    def restore(self):
        """The handler, or the text that says why there is none."""
        for key in self.hidden:
            if key not in os.environ:  # else the module set it since
                os.unsetenv(key)
        hosier_leaf.allow_threads(self.threads)
        try:
            os.chdir(self.cwd)
        except OSError:  # it was below the node's own /tmp
            os.chdir("/host")
        if self.collects:
            gc.enable()
        try:
            for func, args, kwargs in registered("get_after_restore"):
                func(*args, **kwargs)
            return self.handler, None
        except BaseException:
            return None, hosier_leaf.format_exc()


def prepare(path, file, env, warmup):
    """Makes this zygote the function's own. Why it must not fork, else None."""
    me = os.getpid()
    hidden = surround(path, env)
    handler, broken = hosier_leaf.load(hosier_leaf.new_module(file))
    end_if_child(me)
    if broken is not None:
        return f"its handler could not be imported: {last_line(broken)}"
    if warmup is not None:
        reason = attempt("its warm-up call failed", me, lambda: handler(json.loads(warmup)))
        if reason is not None:
            return reason
    reason = attempt("a hook before the snapshot failed", me, before_snapshot) or left_open()
    threads = [(key, value) for key, value in env if key in hosier_leaf.THREADS]
    hosier_leaf.snapshot = Snapshot(handler, directory(), gc.isenabled(), hidden, threads)
    gc.disable()
    return reason


def surround(path, env):
    """Gives the module a leaf's surroundings, but for more threads: those, a leaf gets.
    What else keeps native libraries from starting any stays, though `os.environ` does not
    show it: its names."""
    limits = {key: os.environ[key] for key in ONE_THREAD if key in os.environ}
    hosier_leaf.usual_surroundings()
    hosier_leaf.settle(path, [(key, value) for key, value in env if key not in hosier_leaf.THREADS])
    hidden = [key for key in limits if key not in os.environ]
    for key in hidden:
        os.putenv(key, limits[key])
    return hidden


def end_if_child(me):
    """A child that the function forked came back from its code: it is no zygote.
    What was printed goes out now, not once more in each leaf."""
    hosier_leaf.flush()
    if os.getpid() != me:
        os._exit(0)


def before_snapshot():
    for func, args, kwargs in reversed(list(registered("get_before_snapshot"))):
        func(*args, **kwargs)


def registered(which):
    """The hooks that the function or its packages registered, with whichever module
    of the name they found."""
    return getattr(sys.modules.get(HOOKS), which, list)()


def attempt(what, me, step):
    reason = None
    try:
        step()
    except BaseException as error:  # SystemExit as well
        reason = f"{what}: {type(error).__name__}: {error}"[:REASON]
    end_if_child(me)
    return reason


def last_line(traceback):
    return traceback.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:REASON]


def left_open():
    """A leaf is born without its zygote's descriptors, and a number that the module
    still uses would soon be another file's."""
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            if int(number) > SOCKET:
                names.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # the one that listed them
            pass
    if not names:
        return None
    return f"its import left {', '.join(names)} open: close it in a hook before the snapshot"[:REASON]


def directory():
    try:
        return os.getcwd()
    except OSError:
        return "/host"
