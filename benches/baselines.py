"""What a start costs without Hosier, measured in one plain interpreter that has imported
the same: a bare fork, and multiprocessing's forkserver. Reads a word a line, answers a
JSON object a line: the microseconds until the answer is read, and until the child is gone.

    fork        os.fork(), the handler's first call, the answer through a pipe
    forkserver  a process of a forkserver that has preloaded the same

PYTHONPATH names this directory, the handler's, and the packages.
"""

import json
import multiprocessing
import os
import sys
import time

import f

EVENT = {}


def main():
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["baselines"])
    kinds = {"fork": fork, "forkserver": lambda: forkserver(forks)}
    for line in sys.stdin:
        answered, gone = kinds[line.strip()]()
        print(json.dumps({"answered_us": answered / 1000, "gone_us": gone / 1000}), flush=True)


def fork():
    begun = time.perf_counter_ns()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.write(write, json.dumps(f.f(EVENT)).encode())
        os._exit(0)
    os.close(write)
    check(os.read(read, 1 << 16))
    answered = time.perf_counter_ns()
    os.waitpid(child, 0)
    gone = time.perf_counter_ns()
    os.close(read)
    return answered - begun, gone - begun


def forkserver(forks):
    begun = time.perf_counter_ns()
    read, write = forks.Pipe(duplex=False)
    process = forks.Process(target=answer, args=(write,))
    process.start()
    write.close()
    check(read.recv_bytes())
    answered = time.perf_counter_ns()
    process.join()
    return answered - begun, time.perf_counter_ns() - begun


def answer(write):
    write.send_bytes(json.dumps(f.f(EVENT)).encode())


def check(content):
    assert json.loads(content) is not None, content
