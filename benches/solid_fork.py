"""What a fork costs in a solid interpreter with pandas, and in a plain one: the fork alone, without walls.

    cargo build --release && target/release/hosier init && target/release/hosier deploy demo/stats
    python3 benches/solid_fork.py target/release/libhosier_native.so default-hosier/packages

Each round starts one process of either kind, which forks 200 children that end at once. Prints the medians
of the rounds in microseconds: until the fork returns, and until the child is gone.
"""

import gc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROUNDS = 5
FORKS = 200
FIRST = 20  # not counted


def main(module, packages):
    took = {"plain": [], "solid": []}
    for _ in range(ROUNDS):
        for kind, rounds in took.items():
            run = [sys.executable, "-I", "-S", __file__, module, packages, kind]
            alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(run, env=alone, check=True, capture_output=True, text=True)
            rounds.append([float(number) for number in done.stdout.split()])
    for at, what in enumerate(["fork returns", "child gone"]):
        plain, solid = (median([round[at] for round in took[kind]]) for kind in ("plain", "solid"))
        print(f"{what:13} plain {plain:5.0f} µs   solid {solid:5.0f} µs   ratio {solid / plain:.2f}")


def measure(module, packages, kind):
    sys.path.extend(str(files) for files in Path(packages).resolve().glob("*/files"))
    native = load(module)
    import pandas  # noqa: F401  what is forked

    gc.disable()
    gc.collect()
    gc.freeze()
    if kind == "solid":
        native.solidify_now()
    forks = [fork(native) for _ in range(FIRST + FORKS)][FIRST:]
    print(*(median(column) for column in zip(*forks)))


def fork(native):
    begun = time.perf_counter_ns()
    child = native.fork_now(0)
    if child == 0:
        os._exit(0)
    returned = time.perf_counter_ns()
    os.waitpid(child, 0)
    return (returned - begun) / 1000, (time.perf_counter_ns() - begun) / 1000


def load(module):
    loader = importlib.machinery.ExtensionFileLoader("hosier_native", os.path.abspath(module))
    spec = importlib.util.spec_from_file_location("hosier_native", module, loader=loader)
    native = importlib.util.module_from_spec(spec)
    loader.exec_module(native)
    return native


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else measure(*sys.argv[1:])
