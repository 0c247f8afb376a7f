//! Processes: `clone3`, pidfds, descriptors, threads.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::{Result, SysError, check};

/// What a new process starts with, beside a copy of this one.
#[derive(Debug, Default)]
pub struct CloneOptions<'a> {
    /// `CLONE_NEW*` flags.
    pub namespaces: libc::c_int,
    /// The v2 control group the child is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Which side of a fork returned.
pub enum Forked {
    /// In the parent; the pidfd is race-free, since the child is not reaped yet.
    Parent {
        pid: i32,
        pidfd: OwnedFd,
    },
    Child,
}

/// `fork()` into new namespaces and a control group, by raw `clone3`.
///
/// What glibc's `fork` does besides is done or not needed here: the child's thread
/// id is written where glibc keeps it (a stale one would make a recursive mutex
/// believe that another thread is its owner), the robust list is set again;
/// `pthread_atfork` handlers do not run, which is decided in `docs/design/`.
///
/// # Errors
/// As `clone3(2)`; `EACCES` where `cgroup.procs` is not the caller's.
///
/// The caller must have a single thread: the child may only use what no other
/// thread can have held locked.
pub fn fork_into(options: &CloneOptions<'_>) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    let tid_address = tid_address();
    let robust = robust_list();
    let mut flags = libc::CLONE_PIDFD as u64 | options.namespaces as u32 as u64;
    if tid_address != 0 {
        flags |= (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64;
    }
    let mut args = CloneArgs {
        flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: tid_address,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = options.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: `args` and the `pidfd` it points at live on this stack; no stack
    // is passed and CLONE_VM is not set, so the child continues on its own copy
    // of this one. `child_tid` is the address that the kernel itself keeps as
    // this thread's clear_child_tid, in memory of glibc that a copy of exists in the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    let pid = check("clone3", pid)?;
    if pid == 0 {
        set_robust_list(robust);
        return Ok(Forked::Child);
    }
    // SAFETY: the kernel wrote a fresh descriptor for the parent.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid: pid as i32, pidfd })
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` (clone3(2)), to the field that came last, `cgroup` (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Where glibc keeps this thread's id, or 0 if the kernel does not tell
/// (`CONFIG_CHECKPOINT_RESTORE` off).
fn tid_address() -> u64 {
    let mut address: u64 = 0;
    // SAFETY: the kernel writes one pointer-sized value to the given address.
    let done = unsafe { libc::prctl(libc::PR_GET_TID_ADDRESS, &raw mut address) };
    if done == 0 { address } else { 0 }
}

/// This thread's robust futex list: a child of raw `clone3` starts without one, and
/// glibc's, at the same address in the copy, is still the right one.
fn robust_list() -> (u64, libc::size_t) {
    let (mut head, mut len) = (0u64, 0);
    // SAFETY: reads into two locals; on failure they stay 0.
    unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut len) };
    (head, len)
}

fn set_robust_list((head, len): (u64, libc::size_t)) {
    if head != 0 {
        // SAFETY: registers an address that the parent had registered; the
        // child's memory is a copy of the parent's.
        unsafe { libc::syscall(libc::SYS_set_robust_list, head, len) };
    }
}

/// Waits for any child.
///
/// # Errors
/// `ECHILD` when there is none.
pub fn wait_any(block: bool) -> Result<Option<(i32, i32)>> {
    let mut status = 0;
    let flags = if block { 0 } else { libc::WNOHANG };
    loop {
        // SAFETY: the kernel writes one int to the given address.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        match pid {
            0 => return Ok(None),
            pid if pid > 0 => return Ok(Some((pid, status))),
            _ if Errno::last() == Errno::EINTR => {}
            _ => return Err(SysError { call: "waitpid", errno: Errno::last() }),
        }
    }
}

/// Whether the kernel reaps this process's children by itself (`SIGCHLD`
/// ignored) or leaves them to `wait`, as foreign code expects.
pub fn ignore_children(on: bool) {
    let action = if on { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler is installed, only one of the kernel's two own dispositions.
    unsafe { libc::signal(libc::SIGCHLD, action) };
}

/// Gives every signal its default action and unblocks all: what was ignored or
/// blocked stays so through `execve`, and a worker under `nohup` ignores SIGHUP.
pub fn default_signals() {
    // What the kernel takes: handler, flags, restorer, mask. Not through glibc, which
    // hides its own two signals, 32 and 33, although they can be inherited ignored as well.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel reads one `sigaction` of 32 bytes with a mask of 8; no
        // handler is installed. SIGKILL and SIGSTOP answer EINVAL and are default for ever.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Takes processor time that nobody else wants, mostly.
pub fn be_patient() {
    // SAFETY: integers only; raising one's own nice value is always allowed.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Sends SIGKILL to every process of this pid namespace but the caller. Only
/// pid 1 of a namespace may want this.
pub fn kill_all_others() {
    // SAFETY: no memory is passed. `-1` never reaches the caller itself.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// A pidfd of the process that has this number now.
///
/// # Errors
/// `ESRCH` where none has.
pub fn open_pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check("pidfd_open", unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    Ok(own(fd as RawFd))
}

/// Sends SIGKILL through a pidfd.
///
/// # Errors
/// `ESRCH` when the process is gone already.
pub fn kill_pidfd(pidfd: BorrowedFd<'_>) -> Result<()> {
    signal_pidfd(pidfd, libc::SIGKILL)
}

/// Sends a signal through a pidfd.
///
/// # Errors
/// `ESRCH` when the process is gone already.
pub fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> Result<()> {
    // SAFETY: no memory is passed; a null siginfo is allowed.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check("pidfd_send_signal", done).map(drop)
}

/// Closes every descriptor from `first` on.
///
/// # Errors
/// As `close_range(2)`.
pub fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: after a fork, in a process that keeps no owner of a higher
    // descriptor alive past this call (each caller ends in `exec`, a loop over
    // one named descriptor, or Python code that was told so).
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    check("close_range", done).map(drop)
}

/// Marks every descriptor from `first` on as close-on-exec.
///
/// # Errors
/// As `close_range(2)`.
pub fn cloexec_from(first: RawFd) -> Result<()> {
    // SAFETY: integers only; nothing is closed before an `execve`, which leaves no owner.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check("close_range", done).map(drop)
}

/// A copy at a number that no stream is placed over.
///
/// # Errors
/// As `fcntl(2)`.
pub fn out_of_the_way(fd: &OwnedFd) -> Result<OwnedFd> {
    let copied = nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(64));
    copied.map(own).map_err(|errno| SysError { call: "fcntl", errno })
}

/// Puts `fd` at `number`, inheritable if `inherit`.
///
/// # Errors
/// As `dup3(2)`.
pub fn place(fd: BorrowedFd<'_>, number: RawFd, inherit: bool) -> Result<()> {
    let done = if fd.as_raw_fd() == number {
        let flags = if inherit { 0 } else { libc::FD_CLOEXEC };
        // SAFETY: no memory is passed.
        unsafe { libc::fcntl(number, libc::F_SETFD, flags) }
    } else {
        let flags = if inherit { 0 } else { libc::O_CLOEXEC };
        // SAFETY: no memory is passed; whatever was at `number` is closed, which is the point.
        unsafe { libc::dup3(fd.as_raw_fd(), number, flags) }
    };
    check("dup3", done.into()).map(drop)
}

/// Takes ownership of an open descriptor by number.
///
/// # Panics
/// If `number` is negative.
pub fn own(number: RawFd) -> OwnedFd {
    assert!(number >= 0, "a descriptor's number");
    // SAFETY: the callers take over a descriptor that a documented hand-over
    // (`place`, an argument of the interpreter) put at this number for them.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Borrows a descriptor by number for as long as the process lives.
pub fn borrow(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: used for the control socket and the standard streams, which
    // stay open from their hand-over to the process's end.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// The threads of this process: the links of `/proc/self/task` less `.` and `..`.
///
/// # Errors
/// As `stat(2)`.
pub fn thread_count() -> Result<u64> {
    let stat = nix::sys::stat::stat(c"/proc/self/task").map_err(|errno| SysError { call: "stat", errno })?;
    Ok(stat.st_nlink.saturating_sub(2))
}

/// Ends this process at once: no destructor, no `atexit`.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns; ends only this process.
    unsafe { libc::_exit(code) }
}

/// Replaces this process by a program. Returns only if that failed.
///
/// `argv` and `envp` end with a null pointer each (built by [`CStringArray`]).
pub fn exec(program: &std::ffi::CStr, argv: &CStringArray, envp: &CStringArray) -> SysError {
    // SAFETY: both arrays are null-terminated and point into strings that they own.
    unsafe { libc::execve(program.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    SysError { call: "execve", errno: Errno::last() }
}

/// A null-terminated array of C strings, made before a fork for `execve` after it.
pub struct CStringArray {
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<std::ffi::CString>,
}

impl CStringArray {
    /// # Errors
    /// A string has a NUL inside.
    pub fn new<S: AsRef<str>>(
        strings: impl IntoIterator<Item = S>,
    ) -> std::result::Result<Self, std::ffi::NulError> {
        let strings: Vec<_> = strings
            .into_iter()
            .map(|s| std::ffi::CString::new(s.as_ref()))
            .collect::<std::result::Result<_, _>>()?;
        let mut pointers: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Ok(Self { pointers, _strings: strings })
    }
}
