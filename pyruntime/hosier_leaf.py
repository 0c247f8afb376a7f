"""A leaf: becomes one function, once, and answers one request at a time. Runs
unprivileged, as pid 1 of its own namespace.

    specialize ──▶ load the handler ──▶ ( next request ──▶ call ──▶ answer ──▶ reap )*
"""

import gc
import json
import os
import random
import sys
import time
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location

import hosier_native as native

HANDLER = "/handler"
OURS = "/hosier"
TEXT = [("content-type", "text/plain; charset=utf-8")]
JSON = [("content-type", "application/json")]


def main():
    """Never returns: the process ends when the worker hangs up."""
    start = time.perf_counter_ns()
    function, file, path, env = native.specialize()
    specialized = time.perf_counter_ns()
    settle(path, env)
    handler, broken = load(file)
    imported = time.perf_counter_ns()
    # Waiting for the worker's word is no work: the clock of `specialize` is the worker's.
    first = (0, (imported - specialized) // 1000)
    del start
    while True:
        number, head, body = native.next_request()
        begun = time.perf_counter_ns()
        status, headers, content = call(handler, body) if broken is None else (500, TEXT, broken)
        times = (*first, (time.perf_counter_ns() - begun) // 1000)
        flush()
        native.answer(number, status, headers, content, times, broken is not None)
        first = (0, 0)
        native.reap()


def settle(path, env):
    """Makes this process the function's own: its environment, its path, its randomness."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir("/host")
    # The same order whichever node it was forked from: as in any Python, packages
    # come after the standard library.
    others = (entry for entry in sys.path if entry not in path and entry != OURS)
    sys.path[:] = [HANDLER, *others, *path, OURS]
    reseed()
    gc.enable()


def reseed():
    """A fork copies the state of every generator; siblings must not repeat each other."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def load(file):
    """The handler, or the text that says why there is none."""
    try:
        name = file.rsplit("/", 1)[-1][: -len(".py")]
        where = os.path.join(HANDLER, file)
        spec = spec_from_file_location(name, where, loader=SourceFileLoader(name, where))
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return entry_point(module), None
    except BaseException:
        return None, traceback.format_exc().encode("utf-8", "replace")


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
        return 500, TEXT, traceback.format_exc().encode("utf-8", "replace")[: native.MAX_BODY]


def flush():
    """What the function printed belongs to this request's log."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def fresh():
    """The way of a leaf without a zygote: a new interpreter."""
    native.born()
    main()


if __name__ == "__main__":
    fresh()
