"""A leaf: becomes one function, once, and answers one request at a time. Runs
unprivileged, as pid 1 of its own namespace.

    specialize ──▶ load the handler ──▶ ( next request ──▶ call ──▶ answer ──▶ reap )*
"""

import _frozen_importlib_external as loading
import gc
import json
import marshal
import os
import sys
import time
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType

import hosier_native as native

HANDLER = "/handler"
OURS = "/hosier"
PACKAGES = "/packages/"
# How many are looked at.
NEW_MODULES = 256
REHEARSALS = 20
# The entry file of most functions.
USUAL = "f.py"
# What every function has; the worker adds to it and has the last word.
COMMON = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "USER": "sandbox",
    "LOGNAME": "sandbox",
}
# "1" from birth on, and sent only where it is another. A library that is loaded later reads it; one that the
# zygote loaded has to be told.
THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
TEXT = [("content-type", "text/plain; charset=utf-8")]
JSON = [("content-type", "application/json")]

# What the zygote prepared, if it is its function's own.
snapshot = None


def main():
    """Never returns: the process ends when the worker hangs up."""
    leave_the_zygote()
    usual = new_module(USUAL)
    inherited = len(sys.modules)
    file, path, env = native.specialize()
    specialized = time.perf_counter_ns()
    if snapshot is None:
        settle(path, env)
        handler, broken = load(usual if file == USUAL else new_module(file))
    else:
        handler, broken = snapshot.restore()
    end_if_child(broken is None)
    imported = time.perf_counter_ns()
    # Before the first call: what a handler imports only when it is called is not for its node to import.
    new = imported_since(inherited) if broken is None else []
    # Waiting for the worker's word is no work: the clock of `specialize` is the worker's.
    import_us = (imported - specialized) // 1000
    number, head, body = native.next_request()
    while True:
        begun = time.perf_counter_ns()
        status, headers, content = call(handler, body) if broken is None else (500, TEXT, broken)
        times = (import_us, (time.perf_counter_ns() - begun) // 1000)
        flush()
        end_if_child(status == 200)
        import_us = 0
        # It comes back with the next request.
        number, head, body = native.answer(number, status, headers, content, times, broken is not None, new)
        new = []


def rehearse():
    """Runs what every start runs, in a zygote and without effect: the interpreter rewrites
    code that ran some times into a faster form (PEP 659), and every leaf inherits it."""
    path, inherited = list(sys.path), len(sys.modules)
    for _ in range(REHEARSALS):
        settle([], [("HOSIER_FUNCTION", "")])
        bytecode(__file__)
        call(lambda event: event, b"{}")
        flush()
        imported_since(inherited)
    sys.path[:] = path
    del os.environ["HOSIER_FUNCTION"]
    gc.disable()


def leave_the_zygote():
    """What no function need be known for: a blank does it while it waits."""
    if snapshot is None:
        usual_surroundings()


def usual_surroundings():
    """Environment and directory, as every function finds them."""
    # Plain loops: `clear` and `update` of a mapping run through code of the
    # standard library that touches twice the pages, and each is a copy here.
    for key in list(os.environ):
        if key not in THREADS:
            del os.environ[key]
    for key, value in COMMON.items():
        os.environ[key] = value
    os.chdir("/host")


def settle(path, env):
    """Makes this process the function's own: its environment, its path."""
    for key, value in env:
        os.environ[key] = value
        if key == "TZ":
            time.tzset()  # the C library has read it already
    allow_threads([(key, value) for key, value in env if key in THREADS])
    # The same order whichever node it was forked from: as in any Python, packages
    # come after the standard library.
    others = (entry for entry in sys.path if entry not in path and entry != OURS)
    sys.path[:] = [HANDLER, *others, *path, OURS]
    gc.enable()


def allow_threads(wanted):
    """Lets libraries have the threads that their variables say, those that the zygote loaded too."""
    for key, value in wanted:
        os.environ[key] = value
    if wanted and "hosier_zygote" in sys.modules:
        import hosier_threads

        hosier_threads.allow(os.environ)


def new_module(file):
    """The handler's module before its code has run: a blank makes the usual one ahead."""
    directory, base = os.path.split(os.path.join(HANDLER, file))
    name = base[: -len(".py")]
    loader = SourceFileLoader(name, os.path.join(directory, base))
    module = ModuleType(name)
    module.__file__, module.__loader__, module.__package__ = loader.path, loader, ""
    # By hand: `spec_from_file_location` looks for what is known already.
    module.__spec__ = ModuleSpec(name, loader, origin=loader.path)
    module.__spec__.has_location = True
    module.__cached__ = f"{directory}/__pycache__/{name}.{sys.implementation.cache_tag}.pyc"
    return module


def load(module):
    """The handler, or the text that says why there is none."""
    try:
        sys.modules[module.__name__] = module
        exec(bytecode(module.__cached__) or module.__loader__.get_code(module.__name__), module.__dict__)
        return entry_point(module), None
    except BaseException:
        return None, format_exc()


def bytecode(cached):
    """The code that was compiled when the function was stored, if it is this interpreter's
    and never to be checked against its source. The loader would look at the source first."""
    content = native.read_code(cached)
    unchecked = content[:8] == loading.MAGIC_NUMBER + b"\1\0\0\0"
    return marshal.loads(memoryview(content)[16:]) if unchecked else None


def format_exc():
    """The exception at hand as text. A leaf without a zygote imports what that takes only now."""
    import traceback

    return traceback.format_exc().encode("utf-8", "replace")


def imported_since(count):
    """The modules of packages that this leaf had to import itself: a node may do it
    for the next."""
    if len(sys.modules) <= count + 1:  # the handler's own
        return []
    try:
        new = list(sys.modules.items())[count:][:NEW_MODULES]
        files = ((name, getattr(module, "__file__", None)) for name, module in new if isinstance(name, str))
        return [name for name, file in files if isinstance(file, str) and file.startswith(PACKAGES)]
    except BaseException:  # the handler may have put anything there
        return []


def entry_point(module):
    handler = getattr(module, "f", None)
    if not callable(handler):
        raise AttributeError(f"{module.__name__}.py defines no function f(event)")
    return handler


def call(handler, body):
    """Runs `f(event)`: its result is JSON, an exception is its traceback."""
    try:
        event = json.loads(body) if body else {}
    except ValueError as error:
        message = json.dumps({"error": f"the body is not JSON: {error}", "reason": "bad-json"})
        return 400, JSON, message.encode()
    try:
        content = json.dumps(handler(event)).encode()
        if len(content) > native.MAX_BODY:
            raise ValueError(f"the answer has {len(content)} bytes; at most {native.MAX_BODY} are allowed")
        return 200, JSON, content
    except BaseException:
        # SystemExit as well: a handler must not end its sandbox by accident.
        return 500, TEXT, format_exc()[: native.MAX_BODY]


def end_if_child(well):
    """A child that the function forked came back from its code: it must neither
    answer nor take requests, which are pid 1's."""
    if os.getpid() != 1:
        os._exit(0 if well else 1)


def flush():
    """What the function printed belongs to this request's log."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # the stream may be the handler's own
            pass


def fresh():
    """The way of a leaf without a zygote: a new interpreter."""
    native.born()
    main()


if __name__ == "__main__":
    fresh()
