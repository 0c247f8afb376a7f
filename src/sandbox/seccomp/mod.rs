//! The seccomp filters of the three kinds of process, compiled once. Runs in
//! the worker before anything is started; the processes that install a filter
//! only ever see its bytes.
//!
//! ```text
//! seccomp/leaf.json ------ Policy -- compile --> leaf       (a leaf with no zygote's filter)
//! seccomp/zygote.json ---- Policy -- compile --> zygote --.  inherited by every fork, free
//!                 both ------------- narrow ---> narrow --'  what a forked leaf adds: short
//! seccomp/installer.json - Policy -- compile --> installer
//! ```
//!
//! The kernel runs all filters of a process and takes the strictest answer, so
//! `zygote` and `narrow` together are `leaf`: the tests here hold that for
//! every call and for the arguments that a rule looks at.

mod bpf;
mod compile;
mod narrow;
mod policy;

#[cfg(test)]
mod interpreter;

pub use bpf::Filter;
pub use compile::compile;
pub use narrow::narrow;
pub use policy::{Answer, Match, Policy, Rule};

const LEAF: &str = include_str!("../../../seccomp/leaf.json");
const ZYGOTE: &str = include_str!("../../../seccomp/zygote.json");
const INSTALLER: &str = include_str!("../../../seccomp/installer.json");

/// Every filter that the worker hands out.
#[derive(Debug, Clone)]
pub struct Filters {
    /// The whole policy of a leaf, for one that inherits nothing.
    pub leaf: Filter,
    /// What a zygote installs when it starts.
    pub zygote: Filter,
    /// What a package installation runs under.
    pub installer: Filter,
    /// What a leaf that a zygote forked adds to the filter it inherited.
    pub narrow: Filter,
}

impl Filters {
    /// Compiles the policies that are built into the program: about 10 ms, once.
    pub fn builtin() -> Result<Self, SeccompError> {
        let leaf = Policy::parse(LEAF)?;
        let zygote = Policy::parse(ZYGOTE)?;
        Ok(Self {
            narrow: narrow(&zygote, &leaf)?,
            leaf: compile(&leaf)?,
            zygote: compile(&zygote)?,
            installer: compile(&Policy::parse(INSTALLER)?)?,
        })
    }
}

/// Why there is no filter: a fault of the policy or of the machine's
/// libseccomp, so always the worker's.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("the seccomp policy is not in the schema")]
    Schema(#[from] serde_json::Error),
    #[error("the seccomp policy must be for SCMP_ARCH_X86_64 alone")]
    Architecture,
    #[error("the seccomp policy allows by default: only allow-lists are taken")]
    NotAnAllowList,
    #[error("no such system call on x86-64: {call}")]
    UnknownCall { call: String },
    #[error("a rule for {call} carries no reason")]
    NoReason { call: String },
    #[error("the answer of a rule for {call} is not an errno: {errno}")]
    Errno { call: String, errno: u32 },
    #[error("a rule for {call} compares argument {index} in a way that can never match")]
    Argument { call: String, index: u8 },
    #[error("the rules for {call} contradict or repeat each other")]
    Overlap { call: String },
    #[error("libseccomp could not build the filter")]
    Build(#[from] libseccomp::error::SeccompError),
    #[error("could not read the filter back from libseccomp")]
    Export(#[source] std::io::Error),
    #[error("the filter has {instructions} instructions, more than the kernel takes or a jump reaches")]
    TooLong { instructions: usize },
    #[error(
        "system call {number} cannot be narrowed: only extra calls, and extra values of one 32-bit argument, can"
    )]
    Narrow { number: u32 },
}

#[cfg(test)]
mod tests;
