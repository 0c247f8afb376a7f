//! What is said over the sockets, by both ends: this file is the wire.
//!
//! ```text
//! worker  ── ToZygote / FromZygote ──  zygote     seqpacket, one message a packet
//! worker  ── frames ─────────────────  leaf       stream: header, then payload
//! ```
//!
//! Nothing that comes from a zygote or a leaf is trusted: the worker checks
//! sizes and kinds here, and a wrong word ends that sandbox.

use std::fmt;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// Which wire this is: the worker and the interpreter's module are built apart, and one
/// of another build would misread the other's messages. FNV-1a of this file.
pub const WIRE: u32 = {
    let (text, mut hash, mut at) = (include_bytes!("wire.rs"), 0x811c_9dc5_u32, 0);
    while at < text.len() {
        hash = (hash ^ text[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
};

/// Bytes of one control message, at most.
pub const MAX_MESSAGE: usize = 128 * 1024;
/// Bytes of the head of a frame (headers, paths), at most.
pub const MAX_HEAD: usize = 256 * 1024;
/// Bytes of a body, at most.
pub const MAX_BODY: usize = 6 * 1024 * 1024;

/// The steps of a start, in order. They name errors, latencies and rows of the docs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Only one thread may exist before a fork.
    Threads,
    /// `clone3` into namespaces and a control group.
    Fork,
    /// The user namespace's id maps.
    Ids,
    /// The user namespace's quotas, and the rlimits that go with them.
    Quotas,
    /// The child writes itself into its v1 control groups.
    Cgroups,
    /// The control group namespace, rooted where the child now is.
    CgroupNamespace,
    /// A `/proc` of the new pid namespace.
    Proc,
    /// The prepared root and what is mounted below it.
    Root,
    /// The old root is left behind.
    Pivot,
    Hostname,
    /// `lo` comes up, in a network namespace that is new or was made ahead of need.
    Loopback,
    /// Standard streams; every other descriptor is closed.
    Descriptors,
    /// Attaching the code and its packages.
    Code,
    Rlimits,
    /// The unprivileged ids.
    Identity,
    Capabilities,
    NoNewPrivs,
    /// The seccomp filter.
    Filter,
    /// `execve` of the interpreter or installer.
    Exec,
    /// What was asked for could not be understood.
    Message,
    /// Moving a zygote's memory into a memfd.
    Solidify,
    /// The listening socket of a sandbox's outlet is made and handed to the worker.
    Outlet,
}

/// A step that failed, as it crosses from the process where it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub step: Step,
    pub errno: i32,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = Errno::from_raw(self.errno);
        write!(f, "step {:?}: {errno:?} ({})", self.step, errno.desc())
    }
}

impl std::error::Error for Failure {}

/// Names the step of a failed call.
pub trait At<T> {
    /// # Errors
    /// The step and the call's errno.
    fn at(self, step: Step) -> Result<T, Failure>;
}

impl<T> At<T> for crate::sys::Result<T> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure { step, errno: error.errno as i32 })
    }
}

/// Which `/proc` a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcView {
    /// All of it, of its own pid namespace: a zygote, for its children's mounts depend on it.
    Full,
    /// `subset=pid`: a leaf.
    Pids,
}

/// The walls around a process. Descriptors come with the message, in this
/// order: root, one for each of `targets`, the v2 control group if
/// `into_cgroup`, one for each of the `tasks`, the network namespace if `into_net`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// `CLONE_NEW*` flags.
    pub namespaces: i32,
    /// Unshare a control group namespace once inside the groups.
    pub cgroup_namespace: bool,
    /// A directory where the new root can be attached before it is entered.
    pub staging: String,
    pub proc: ProcView,
    /// Where the mounts go, relative to the root.
    pub targets: Vec<String>,
    pub into_cgroup: bool,
    /// v1 control groups to join.
    pub tasks: u8,
    /// The host name, where the UTS namespace is new.
    pub hostname: Option<String>,
    /// Bring `lo` up, where the network namespace is new.
    pub loopback: bool,
    /// Enter a network namespace that was made ahead of need, `lo` up, and that nobody was in.
    pub into_net: bool,
}

/// What a process gives up before foreign code runs in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    pub uid: u32,
    pub gid: u32,
    /// Open descriptors, at most.
    pub files: u64,
    /// A ready seccomp program, empty where the operator switched seccomp off.
    pub filter: Vec<u8>,
}

/// What a zygote imports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imports {
    /// Directories for `sys.path`.
    pub path: Vec<String>,
    /// Modules to import, in order.
    pub modules: Vec<String>,
    /// Objects are made immortal, where the interpreter has such.
    pub immortal: bool,
    pub gc_freeze: bool,
    /// See [`crate::solidify`].
    pub solidify: bool,
    /// It is to be one function's alone: a [`Snapshot`] follows over its own socket.
    pub private: bool,
}

/// A function that a snapshot node becomes, up to its first request. It goes to the new
/// node and not through its parent, whose memory is in the leaves of other functions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Entry file, relative to `/handler`.
    pub file: String,
    pub env: Vec<(String, String)>,
    /// An event as JSON text, with which the handler is called once.
    pub warmup: Option<String>,
}

/// What a zygote is asked. Descriptors: the child's socket, its log, then those of [`Walls`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum ToZygote {
    /// Fork a leaf, which then waits for [`Specialize`].
    Fork { walls: Walls },
    /// Fork a child zygote.
    Grow { walls: Walls, imports: Imports },
}

/// What a zygote answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum FromZygote {
    /// It stands: the first word of every zygote.
    Ready(Ready),
    /// The child exists; its pidfd comes along.
    Forked,
    Failed(Failure),
}

/// What a zygote tells of itself when its imports are done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Time that the imports took, in µs.
    pub import_us: u64,
    /// Directories below `/packages` that modules were loaded from: the closure as imported.
    pub loaded: Vec<String>,
    /// Modules that could not be imported, and why.
    pub failed: Vec<(String, String)>,
    /// Why it must not fork, where it knows that itself: its own handler failed it.
    pub unfit: Option<String>,
    /// Objects that it made immortal.
    pub immortal: u64,
    /// Threads after the imports; more than one makes the node unfit.
    pub threads: u32,
    /// What solidifying did, if it was asked for and worked.
    pub solid: Option<Solid>,
    /// Why it did not work.
    pub not_solid: Option<Failure>,
}

/// What solidifying did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Solid {
    /// Mappings that were moved, and writable ones that were left alone.
    pub moved: u32,
    pub left: u32,
    /// Bytes that were copied.
    pub bytes: u64,
    /// How long it took, in µs.
    pub took_us: u64,
}

/// What a blank does while it waits: all that no function need be known for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare {
    pub confinement: Confinement,
    pub prefault: Prefault,
}

/// Turns a waiting leaf into one of a function, once. Descriptors: one for each of `targets`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Specialize {
    /// None for a blank: the worker attaches what it needs.
    pub targets: Vec<String>,
    /// What it gives up, unless it did that at its birth or while it waited.
    pub confinement: Option<Confinement>,
    pub handler: Handler,
}

/// Pages that follow each other, by number (address / 4096).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRange {
    pub page: u64,
    pub count: u32,
}

/// Pages that a blank populates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefault {
    pub read: Vec<PageRange>,
    pub write: Vec<PageRange>,
}

/// The code to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handler {
    pub function: String,
    /// The entry file below `/handler`.
    pub file: String,
    /// Directories for `sys.path`.
    pub path: Vec<String>,
    /// The environment, beyond what every function's has.
    pub env: Vec<(String, String)>,
}

/// The head of an invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: Vec<(String, String)>,
}

/// The head of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// When it began to load its handler, `CLOCK_MONOTONIC` in ns; in the first answer.
    pub specialized_ns: u64,
    /// What this call cost inside the leaf, in µs; the import only in the first answer.
    pub import_us: u32,
    pub exec_us: u32,
    /// The handler's module could not be loaded: the sandbox is of no further use.
    pub broken: bool,
    /// Modules that were imported before the first call and are not the zygote's; in the first answer.
    pub imported: Vec<String>,
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// To a leaf: [`Specialize`], with descriptors. The first [`Kind::Invoke`] follows at
    /// once, and the leaf reads both before anything of the function runs: one that
    /// ended without having read them (`ECONNRESET`) has done nothing.
    Specialize = 1,
    /// To a leaf: [`Request`] and body.
    Invoke = 2,
    /// From a leaf: it stands behind its walls and waits. No payload; `id` is the time.
    Born = 3,
    /// From a leaf: [`Failure`]; it ends.
    Failed = 4,
    /// From a leaf: [`Response`] and body.
    Answer = 5,
    /// To a leaf, before [`Kind::Specialize`]: [`Prepare`].
    Prepare = 6,
    /// From a leaf that was told to prepare: it has given up everything. No payload. The
    /// worker asks the kernel whether that is true.
    Confined = 7,
}

/// A frame's first bytes. The payload is a head of `head` bytes, then a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub head: u32,
    pub body: u32,
    /// The request it belongs to, as the worker numbered it; in [`Kind::Born`], when
    /// that was: `CLOCK_MONOTONIC` in ns.
    pub id: u64,
}

/// A header that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    #[error("a frame of unknown kind {0}")]
    Kind(u32),
    #[error("a frame of {0} bytes")]
    Size(u64),
}

impl Header {
    pub const SIZE: usize = 20;

    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0..4].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.head.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    /// # Errors
    /// The kind is unknown or a size beyond its bound.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, BadFrame> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let kind = match word(0) {
            1 => Kind::Specialize,
            2 => Kind::Invoke,
            3 => Kind::Born,
            4 => Kind::Failed,
            5 => Kind::Answer,
            6 => Kind::Prepare,
            7 => Kind::Confined,
            other => return Err(BadFrame::Kind(other)),
        };
        let (head, body) = (word(4), word(8));
        if head as usize > MAX_HEAD || body as usize > MAX_BODY {
            return Err(BadFrame::Size(u64::from(head) + u64::from(body)));
        }
        let id = u64::from(word(12)) | u64::from(word(16)) << 32;
        Ok(Self { kind, head, body, id })
    }
}

/// # Panics
/// Never: the types of this file always encode.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).unwrap_or_default()
}

/// # Errors
/// The bytes are no such message.
pub fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_its_encoding() {
        let header = Header { kind: Kind::Answer, head: 7, body: 9, id: u64::MAX - 5 };
        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn a_frame_beyond_its_bound_is_refused_before_it_is_read() {
        let header = Header { kind: Kind::Answer, head: 0, body: u32::MAX, id: 1 };
        assert!(matches!(Header::decode(&header.encode()), Err(BadFrame::Size(_))));
        assert!(matches!(Header::decode(&[0xff; Header::SIZE]), Err(BadFrame::Kind(_))));
    }

    #[test]
    fn garbage_is_no_message() {
        assert!(decode::<FromZygote>(&[0xff; 64]).is_err());
        assert!(decode::<Response>(&[0xff; 3]).is_err());
    }
}
