"""Runs in the guest: looks at the kernel, then uses Hosier as a user does.

    init ── guest.py ── hosier init, deploy, up -d, down
                └────── HTTP to 127.0.0.1:5000

One line a check on the console: `SMOKE ok NAME facts`, or `SMOKE fail NAME why`; the last is
`SMOKE done`. A failed check does not stop those that come after it.
"""

import ctypes
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

HOSIER = "/usr/local/bin/hosier"
WORKER = "/w"
URL = "http://127.0.0.1:5000"
CGROUPS = "/sys/fs/cgroup"

# Emulation is twenty times slower than the machine, and the machine may be busy.
COMMAND_S = 90
CALL_S = 60
GONE_S = 10

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
CLONE_INTO_CGROUP = 0x2_0000_0000
SYS_clone3 = 435
libc = ctypes.CDLL(None, use_errno=True)


def main():
    say("boot", f"{time.clock_gettime(time.CLOCK_BOOTTIME):.1f} s from the kernel's start to here")
    for check in KERNEL:
        run(check)
    if os.path.exists(HOSIER):
        before = Census()
        for check in WORKER_CHECKS:
            run(check, before)
    print("SMOKE done", flush=True)


def run(check, *args):
    name = check.__name__
    subprocess.run(["dmesg", "-c"], stdout=subprocess.DEVNULL)  # only what this check brings is of interest
    began = time.monotonic()
    try:
        facts = check(*args)
    except Exception as error:  # whatever it was, the line says it
        print("SMOKE fail", name, " ".join(f"{type(error).__name__}: {error}".split()), flush=True)
        context()
    else:
        say(name, f"{facts or ''} [{time.monotonic() - began:.2f} s]")


def say(name, facts):
    print("SMOKE ok", name, " ".join(str(facts).split()), flush=True)


def context():
    """What a reader of a failed check wants next: the worker's log and the kernel's."""
    for directory, _, files in os.walk(WORKER):
        for log in files:
            if log.endswith((".out", ".log", ".err")):
                tail(log, open(f"{directory}/{log}", errors="replace").read())
    tail("dmesg", subprocess.run(["dmesg"], capture_output=True, text=True).stdout)


def tail(name, text):
    for line in text.splitlines()[-15:]:
        print(f"  {name}: {line}", flush=True)


def check(holds, why):
    if not holds:
        raise AssertionError(why)


# --- the kernel -----------------------------------------------------------------------------------


def kernel():
    return f"{os.uname().release}, python {sys.version.split()[0]}"


def cgroup_v2_only():
    filesystems = [line.split(" - ")[1].split()[0] for line in open("/proc/self/mountinfo")]
    check("cgroup" not in filesystems, "a v1 hierarchy is mounted")
    controllers = open(f"{CGROUPS}/cgroup.controllers").read().split()
    check({"memory", "cpu", "pids"} <= set(controllers), f"controllers: {controllers}")
    return f"{' '.join(controllers)}; this process is in {open('/proc/self/cgroup').read().strip()}"


def pivot_root():
    """A real root, and private: an initramfs would refuse with EINVAL."""

    def child():
        call(libc.unshare, CLONE_NEWNS)
        mount(None, "/", None, 0x4000 | 0x40000)  # MS_REC | MS_PRIVATE
        mount("tmpfs", "/tmp", "tmpfs")
        call(libc.syscall, 155, b"/tmp", b"/tmp")  # x86_64: pivot_root

    in_child(child)


def overlay():
    """With the lower on ext4 and the upper on tmpfs, as a sandbox with a writable root has it."""

    def child():
        call(libc.unshare, CLONE_NEWNS)
        mount(None, "/", None, 0x4000 | 0x40000)
        mount("tmpfs", "/tmp", "tmpfs")
        for name in ("upper", "work", "merged"):
            os.mkdir(f"/tmp/{name}")
        mount("overlay", "/tmp/merged", "overlay", 0, "lowerdir=/usr,upperdir=/tmp/upper,workdir=/tmp/work")
        open("/tmp/merged/bin/new", "w").close()
        check(os.path.exists("/tmp/upper/bin/new"), "a write did not reach the upper")
        check(not os.path.exists("/usr/bin/new"), "a write reached the lower")

    in_child(child)


def user_namespace():
    def child():
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        call(libc.unshare, CLONE_NEWUSER | CLONE_NEWNS)

    in_child(child)
    return f"unprivileged too, at most {open('/proc/sys/user/max_user_namespaces').read().strip()}"


def clone_into_cgroup():
    path = f"{CGROUPS}/probe"
    os.mkdir(path)
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls,
        # set_tid, set_tid_size, cgroup
        args = (ctypes.c_uint64 * 11)(CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
        pid = call(libc.syscall, SYS_clone3, ctypes.byref(args), ctypes.sizeof(args))
        if pid == 0:
            os._exit(0 if open("/proc/self/cgroup").read().strip() == "0::/probe" else 1)
        check(os.waitpid(pid, 0)[1] == 0, "the child was born elsewhere")
        os.close(directory)
    finally:
        os.rmdir(path)


def cgroup_kill_then_reuse():
    """Not a demand: whether a cgroup that was killed may be used again differs between kernels."""
    path = f"{CGROUPS}/probe"
    os.mkdir(path)
    try:
        open(f"{path}/cgroup.kill", "w").write("1")
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        args = (ctypes.c_uint64 * 11)(CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, directory)
        pid = call(libc.syscall, SYS_clone3, ctypes.byref(args), ctypes.sizeof(args))
        if pid == 0:
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        os.close(directory)
        return "a child born after cgroup.kill " + ("lives" if status == 0 else f"ends with status {status}")
    finally:
        os.rmdir(path)


KERNEL = [kernel, cgroup_v2_only, pivot_root, overlay, user_namespace, clone_into_cgroup, cgroup_kill_then_reuse]


def call(function, *args):
    result = function(*args)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{errno.errorcode.get(code, code)}")
    return result


def mount(source, target, kind, flags=0, data=None):
    text = [value and value.encode() for value in (source, target, kind, data)]
    call(libc.mount, text[0], text[1], text[2], ctypes.c_ulong(flags), text[3])


def in_child(body):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
        except BaseException as error:
            os.write(writer, repr(error).encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        why = pipe.read()
    os.waitpid(pid, 0)
    check(not why, why)


# --- the worker -----------------------------------------------------------------------------------


class Census:
    """Processes, cgroup directories and mounts of the whole machine: nothing else runs on it."""

    def __init__(self):
        self.processes = set(processes())
        self.cgroups = {path for path, _, _ in os.walk(CGROUPS)}
        self.mounts = {line.split(" ")[4] for line in open("/proc/self/mountinfo")}

    def left(self, before):
        left = [f"process {pid} {name}" for pid, name in set(processes()) - before.processes]
        left += [f"cgroup {path}" for path in self.cgroups - before.cgroups]
        left += [f"mount {path}" for path in self.mounts - before.mounts]
        return sorted(left)


def processes():
    """Every process but the kernel's own threads (2 and its children)."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            name, _, rest = open(f"/proc/{pid}/stat").read().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if pid != "2" and rest.split()[1] != "2":
            yield int(pid), name


def nothing_left(before):
    began = time.monotonic()
    while left := Census().left(before):
        check(time.monotonic() - began < GONE_S, f"left after {GONE_S} s: {', '.join(left)}")
        time.sleep(0.05)
    return f"nothing left after {time.monotonic() - began:.2f} s"


def hosier(*args):
    # To a file: a detached worker that kept a pipe would keep us waiting for its end.
    with open("/run/hosier.out", "w+") as out:
        code = subprocess.run([HOSIER, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=COMMAND_S).returncode
        out.seek(0)
        check(code == 0, f"hosier {' '.join(args)} ended with {code}: {out.read()[-800:]}")


def post(name, event=None):
    """POST with a body, else GET: (status, headers, body). An answer of 500 is an answer."""
    body = None if event is None else json.dumps(event).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{URL}/run/{name}", body), timeout=CALL_S) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read()


def expect(name, event, value):
    status, headers, body = post(name, event)
    check(status == 200, f"{name} answered {status}: {body[:300]!r}")
    check(json.loads(body) == value, f"{name} answered {body[:300]!r}")
    return headers


def worker_pid():
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(CALL_S)
        connection.connect(f"{WORKER}/worker/hosier.sock")
        connection.sendall(b"GET /pid HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
        answer = connection.makefile("rb").read()
    head, _, body = answer.partition(b"\r\n\r\n")
    check(b" 200 " in head.splitlines()[0], f"/pid answered {answer[:200]!r}")
    return int(body)


def init(_):
    hosier("init", "-p", WORKER)


def deploy(_):
    for name in ("hello", "bomb", "loop", "writes"):
        hosier("deploy", "-p", WORKER, f"/smoke/functions/{name}", "-n", name)


def up(_):
    hosier("up", "-d", "-p", WORKER)
    with urllib.request.urlopen(f"{URL}/status", timeout=CALL_S) as answer:
        check(answer.read() == b"ready\n", "/status is not ready")


def cold_call(_):
    headers = expect("hello", {"name": "Ada"}, {"hello": "Ada"})
    start = headers["X-Hosier-Start"]
    check(start == "forked", f"X-Hosier-Start: {start}")
    return headers["Server-Timing"]


def warm_call(_):
    headers = expect("hello", None, {"hello": "world"})
    start = headers["X-Hosier-Start"]
    check(start in ("warm", "unpaused"), f"X-Hosier-Start: {start}")
    return headers["Server-Timing"]


def memory_bomb(_):
    """Its limit is 50 MiB."""
    status, _, body = post("bomb", {"mib": 200})
    check(status in (500, 502), f"answered {status}: {body[:300]!r}")
    json.loads(body)
    expect("bomb", {"mib": 1}, {"mib": 1})
    expect("hello", {"name": "Bob"}, {"hello": "Bob"})
    return f"{status} {body.decode()}, then 200"


def endless_loop(_):
    """It may run for 3 s."""
    status, _, body = post("loop", {"forever": True})
    check(status == 504, f"answered {status}: {body[:300]!r}")
    json.loads(body)
    expect("loop", {}, {"looped": False})
    return f"{status} {body.decode()}, then 200"


def killed_under_load(before):
    stop = threading.Event()
    answers = []

    def load(name, event):
        while not stop.is_set():
            try:
                answers.append(post(name, event)[0])
            except (OSError, http.client.HTTPException):  # refused, cut off: the worker is gone
                stop.wait(0.05)

    threads = [threading.Thread(target=load, args=work) for work in
               (("hello", {"name": "load"}), ("bomb", {"mib": 10}), ("loop", {"forever": True}))]
    for thread in threads:
        thread.start()
    try:
        time.sleep(2)
        os.kill(worker_pid(), signal.SIGKILL)
        killed = len(answers)
        facts = nothing_left(before)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    check(200 in answers[:killed], f"no load: {answers[:10]}")
    return f"{killed} answers, then {facts}"


def up_again(before):
    up(before)
    headers = expect("hello", {"name": "Eve"}, {"hello": "Eve"})
    return f"X-Hosier-Start: {headers['X-Hosier-Start']}"


def down(before):
    hosier("down", "-p", WORKER)
    return nothing_left(before)


def writable_root(before):
    """An id-mapped ext4 below an overlay: 6.1 can."""
    hosier("up", "-d", "-p", WORKER, "-o", "sandbox.rootfs=rw")
    expect("writes", {"paths": ["/etc/x", "/usr/local/x"]}, {"/etc/x": True, "/usr/local/x": True})
    check(not os.path.exists("/usr/local/x"), "a write reached the host")
    return down(before)


WORKER_CHECKS = [init, deploy, up, cold_call, warm_call, memory_bomb, endless_loop, killed_under_load, up_again, down,
                 writable_root]


if __name__ == "__main__":
    main()
