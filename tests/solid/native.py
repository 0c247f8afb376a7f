"""The module under test, loaded from its file, and a fork of its kind."""

import importlib.util
import json
import os

NEW_PID_NAMESPACE = 0x20000000  # clone(2)


def load(file):
    spec = importlib.util.spec_from_file_location("hosier_native", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fork(native, work, leave=os._exit):
    """What `work` returns in a child that is, as a leaf is, pid 1 of a namespace of its own; its wait status
    where that is not 0."""
    reading, writing = os.pipe()
    if native.fork_now(NEW_PID_NAMESPACE) == 0:
        status = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        os.close(writing)
        leave(status)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read()
    status = os.waitpid(-1, 0)[1]
    return json.loads(text) if status == 0 else {"wait status": status}
