"""Gives a leaf back the threads that its zygote's libraries were kept from starting. Runs in a leaf that may have
more than one; the others never import this.

A library read its environment when the zygote loaded it, and was told 1. It is told again by the call that it
has for this, under the names that wheels give it.
"""

import ctypes

MAX_THREADS = 64

# Part of a library's file name, the variable that it would read, and what sets the number.
LIBRARIES = (
    ("openblas", "OPENBLAS_NUM_THREADS", (
        "openblas_set_num_threads",
        "openblas_set_num_threads64_",
        "scipy_openblas_set_num_threads",
        "scipy_openblas_set_num_threads64_",
    )),
    ("libgomp", "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    ("libomp", "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    ("libiomp", "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    ("mkl_rt", "MKL_NUM_THREADS", ("MKL_Set_Num_Threads",)),
)


def allow(environment):
    """Tells each library that is loaded already what `environment` says."""
    for path in loaded():
        name = path.rsplit("/", 1)[-1]
        for part, variable, setters in LIBRARIES:
            threads = number(environment.get(variable, "1"))
            if part in name and threads > 1:
                tell(path, setters, threads)


def loaded():
    """The shared libraries of this process."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if line.count("/") > 0}
    return sorted(path for path in paths if ".so" in path)


def number(text):
    """A function may ask for nonsense; then it has one."""
    return min(int(text), MAX_THREADS) if text.isascii() and text.isdigit() else 1


def tell(path, setters, threads):
    try:
        library = ctypes.CDLL(path)
    except OSError:  # mapped, but no library
        return
    for name in setters:
        setter = getattr(library, name, None)
        if setter is not None:
            setter.argtypes, setter.restype = [ctypes.c_int], None
            setter(threads)
            return
