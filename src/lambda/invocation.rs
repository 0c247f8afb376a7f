//! What crosses between the trigger and the lambda floor: one invocation, its
//! answer, and what can go wrong with it. Plain data.

use std::time::Duration;

use bytes::Bytes;

/// One call of a function.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The function's name, already checked (see `FunctionName`).
    pub function: super::FunctionName,
    /// The HTTP method, upper case.
    pub method: String,
    /// The rest of the path after `/run/NAME`, percent-encoded as it came; may be empty.
    pub path: String,
    /// The query without its `?`; may be empty.
    pub query: String,
    /// Header names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

/// How the sandbox that answered came to be (`X-Hosier-Start`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A new interpreter, no zygote.
    Fresh,
    /// Forked from a zygote on the request's path.
    Forked,
    /// Forked ahead of need, specialized on the path.
    Blank,
    /// Forked from the function's own snapshot node.
    Snapshot,
    /// It was paused.
    Unpaused,
    /// It was running and idle.
    Warm,
}

impl Start {
    pub fn as_str(self) -> &'static str {
        match self {
            Start::Fresh => "fresh",
            Start::Forked => "forked",
            Start::Blank => "blank",
            Start::Snapshot => "snapshot",
            Start::Unpaused => "unpaused",
            Start::Warm => "warm",
        }
    }
}

/// What the steps of one answer cost, in the order they were taken. The names
/// are `queue`, `node`, `fork`, `cgroup`, `specialize`, `import`, `exec`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Timings(pub Vec<(&'static str, Duration)>);

/// A function's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    pub start: Start,
    pub timings: Timings,
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// Who sent the request.
    Caller,
    /// Who wrote the function.
    Function,
    /// Nobody: the worker is full.
    Capacity,
    /// The worker, or the machine below it.
    Worker,
}

/// Why an invocation has no answer of the function's own.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    #[error("no function is named {0}; deploy it with `hosier deploy PATH -n {0}`")]
    UnknownFunction(String),
    /// OpenLambda's wording, newline included.
    #[error("HTTP method not allowed. Sent: {sent}, Allowed: [{allowed}]\n")]
    MethodNotAllowed { sent: String, allowed: String },
    #[error("the queue of {function} is full ({limit} requests); try again later")]
    QueueFull { function: String, limit: usize },
    #[error("{function} has more to do than can begin within {bound:?}; nothing ran, try again later")]
    QueueSlow { function: String, bound: Duration },
    #[error("no sandbox is free ({limit} are in use); raise max_sandboxes or try again later")]
    NoSandbox { limit: usize },
    #[error("{function} cannot be made ready: {reason}")]
    NotReady { function: String, reason: String },
    #[error("{function} used more than its {limit_mib} MiB of memory and was ended")]
    OutOfMemory { function: String, limit_mib: u32 },
    #[error("{function} ran longer than its {limit_s} s and was ended")]
    TimedOut { function: String, limit_s: u32 },
    #[error("the process of {function} ended before it answered")]
    Died { function: String },
    #[error("{function} broke the protocol ({what}) and was ended")]
    Protocol { function: String, what: String },
    #[error("the worker could not start a sandbox: {0}")]
    Sandbox(String),
    #[error("the worker is stopping")]
    Stopping,
}
