"""Takes of one kernel resource as much as it is asked for or gets, and keeps it.

A handler of a worker's function, and beside it a plain program of the host's root:
    exhaust.py RESOURCE COUNT
"""
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
SIGNAL = signal.SIGRTMIN + 1
F_SETPIPE_SZ = 1031
FDS_PER_PAIR = 100
WATCHED = 400
DEVICES = ["/dev/ptmx", "/dev/pts", "/dev/mqueue", "/sys/fs/bpf", "/dev/hugepages", "/dev/fuse", "/dev/kvm"]
kept, pipes = [], []


def checked(value):
    if value < 0:
        raise OSError(ctypes.get_errno(), "")
    return value


def inotify_instance(number):
    kept.append(checked(LIBC.inotify_init1(os.O_CLOEXEC)))


def inotify_watch(number):
    if not kept:
        inotify_instance(0)
    path = f"/tmp/watched-{os.getpid()}-{number}"
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY))
    try:
        checked(LIBC.inotify_add_watch(kept[0], path.encode(), 2))
    finally:
        if __name__ == "__main__":
            os.unlink(path)


def queued_signal(number):
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    checked(LIBC.sigqueue(os.getpid(), int(SIGNAL), ctypes.c_void_p(0)))


def timer(number):
    checked(LIBC.timer_create(1, None, ctypes.byref(ctypes.c_void_p())))


def pipe_pages(number):
    kept.append(os.pipe())
    fcntl.fcntl(kept[-1][1], F_SETPIPE_SZ, 1 << 20)


def descriptor_in_flight(number):
    if number % FDS_PER_PAIR == 0:
        kept.append(socket.socketpair())
    socket.send_fds(kept[-1][0], [b"x"], [0])


def descriptor(number):
    kept.append(os.open("/dev/null", os.O_RDONLY))


def process(number):
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    kept.append(child)


def locked_memory(number):
    kept.append(mmap.mmap(-1, 1 << 20))
    address = ctypes.addressof(ctypes.c_char.from_buffer(kept[-1]))
    checked(LIBC.mlock(ctypes.c_void_p(address), 1 << 20))


def epoll_watch(number):
    if number % WATCHED == 0:
        kept.append(checked(LIBC.epoll_create1(os.O_CLOEXEC)))
    if len(pipes) < WATCHED:
        pipes.append(os.pipe()[0])
    event = (ctypes.c_uint32 * 3)(1, 0, 0)
    checked(LIBC.epoll_ctl(kept[-1], 1, pipes[number % WATCHED], event))


def file_lock(number):
    kept.append(os.open(f"/tmp/locked-{os.getpid()}", os.O_CREAT | os.O_RDWR))
    fcntl.lockf(kept[-1], fcntl.LOCK_EX, 1, 2 * number)


def refused():
    """Each call answers at once where it is allowed; its errno."""
    calls = {
        "mq_open": 240, "shmget": 29, "semget": 64, "msgget": 68, "add_key": 248, "keyctl": 250, "bpf": 321,
        "perf_event_open": 298, "io_setup": 206, "io_uring_setup": 425, "fanotify_init": 300, "userfaultfd": 323,
    }
    outcomes = {}
    for name, number in calls.items():
        got = LIBC.syscall(number, 0, 0, 0, 0, 0)
        outcomes[name] = errno.errorcode[ctypes.get_errno()] if got < 0 else "OK"
    return {"calls": outcomes, "there": [path for path in DEVICES if os.path.exists(path)]}


def pin_streams(large=False):
    """Fills as many sockets over `lo` as there are descriptors; how many."""
    server = socket.create_server(("127.0.0.1", 9000), backlog=1024)

    def pair():
        one = socket.socket()
        if large:
            demand(one)
        one.connect(("127.0.0.1", 9000))
        other, _ = server.accept()
        if large:
            demand(other)
        return one, other

    return pin(pair, b"x" * 65536)


def pin_large_streams():
    return pin_streams(large=True)


def pin_datagrams():
    def single():
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        demand(one)
        one.bind(("127.0.0.1", 0))
        one.connect(one.getsockname())
        return (one,)

    return pin(single, b"x" * 60000)


def demand(end):
    for buffer in socket.SO_SNDBUF, socket.SO_RCVBUF:
        end.setsockopt(socket.SOL_SOCKET, buffer, 1 << 30)


def pin(make, chunk):
    try:
        while True:
            for end in make():
                end.setblocking(False)
                kept.append(end)
                fill(end, chunk)
    except OSError as error:
        assert error.errno == errno.EMFILE, error
    for end in kept:
        fill(end, chunk)
    return {"taken": len(kept)}


def fill(end, chunk):
    try:
        # Far beyond any buffer; datagrams that find no room vanish without an error.
        for _ in range(16):
            end.send(chunk)
    except OSError:
        pass


def take(resource, most):
    taken = 0
    try:
        while taken < most:
            globals()[resource](taken)
            taken += 1
    except OSError as error:
        return {"taken": taken, "errno": errno.errorcode[error.errno]}
    return {"taken": taken}


def f(event):
    if "run" in event:
        return globals()[event["run"]]()
    return take(event["take"], event["most"])


if __name__ == "__main__":
    print(json.dumps(take(sys.argv[1], int(sys.argv[2]))))
    for child in kept if sys.argv[1] == "process" else []:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
