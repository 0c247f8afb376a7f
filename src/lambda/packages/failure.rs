//! The reasons for which a package is not installed, and how they are read from
//! what `uv` said. Pure.

use crate::lambda::Blame;

/// Lines of a step's output that an error repeats.
const TAIL_LINES: usize = 12;
/// Bytes of them.
const TAIL_BYTES: usize = 2000;

/// A reason for which a package is not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("no package of that name is on the index; check the name")]
    NoSuchPackage,
    #[error("the index has no such version{}; pin one that it has", newest.as_ref().map(|v| format!(" (the newest is {v})")).unwrap_or_default())]
    NoSuchVersion { newest: Option<String> },
    #[error("that version has nothing for this Python and machine; pin another version")]
    NotForThisPython,
    #[error("the index cannot be reached; check the network, pip_mirror, proxy and certificates: {tail}")]
    Network { tail: String },
    #[error("{file} cannot be fetched; check the network, pip_mirror, proxy and certificates: {said}")]
    Fetch { file: String, said: String },
    #[error(
        "{file} is not the file that the index describes: {said}; try again, and if it stays so, ask whoever \
         runs the index"
    )]
    Digest { file: String, said: String },
    #[error(
        "{file}, which fits this Python and machine, has the sha256 {sha256}, and requirements.txt accepts \
         only others (--hash); compare them, then write the hashes anew: `uv pip compile --generate-hashes`"
    )]
    NotAccepted { file: String, sha256: String },
    #[error(
        "it comes only as source, and the setting installer.build does not let {name} be built; pin a version \
         with a wheel, or add {name:?} to installer.build"
    )]
    BuildRefused { name: String },
    #[error(
        "it is built from source, and what its build asks for cannot be had as wheels ({needs}); pin a version \
         with a wheel: {failure}"
    )]
    BuildRequirements { needs: String, failure: Box<Failure> },
    #[error("it is installed from source and that failed; pin a version with a wheel: {tail}")]
    Build { tail: String },
    #[error("the installer needed more than {mem_mib} MiB; raise installer_limits.mem_mb")]
    OutOfMemory { mem_mib: u32 },
    #[error("the installer needed more than {runtime_s} s; raise installer_limits.runtime_sec")]
    TimedOut { runtime_s: u32 },
    #[error(
        "the installer needed more disk than {mib} MiB or {inodes} files; raise installer.disk_mb or \
         installer.disk_inodes"
    )]
    OutOfDisk { mib: u32, inodes: u64 },
    #[error("the installer failed: {tail}")]
    Other { tail: String },
}

impl Failure {
    pub fn blame(&self) -> Blame {
        match self {
            Failure::NoSuchPackage | Failure::NoSuchVersion { .. } => Blame::Function,
            Failure::NotAccepted { .. } => Blame::Function,
            Failure::NotForThisPython | Failure::Build { .. } | Failure::BuildRefused { .. } => {
                Blame::Function
            }
            Failure::BuildRequirements { failure, .. } => failure.blame(),
            _ => Blame::Worker,
        }
    }

    /// Whether the same may be asked for each package alone with another answer.
    pub(super) fn is_of_one_package(&self) -> bool {
        !matches!(self, Failure::Network { .. } | Failure::OutOfMemory { .. } | Failure::TimedOut { .. })
    }
}

/// Reads `uv`'s message. Its wording is no interface: what is not known stays
/// readable in [`Failure::Other`].
pub(super) fn explain(output: &str) -> Failure {
    // uv breaks lines where it likes.
    let text = output.split_whitespace().collect::<Vec<_>>().join(" ");
    let says = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let tail = tail(output);
    if says(&["Failed to fetch", "error sending request", "Request failed after", "dns error"]) {
        Failure::Network { tail }
    } else if says(&["was not found in the package registry"]) {
        Failure::NoSuchPackage
    } else if says(&["there is no version of", "There is no version of"]) {
        Failure::NoSuchVersion { newest: None }
    } else if says(&["has no wheels with a matching", "has no usable wheels", "does not satisfy Python"]) {
        Failure::NotForThisPython
    } else if says(&["Failed to build", "Build backend"]) {
        Failure::Build { tail }
    } else {
        Failure::Other { tail }
    }
}

/// Returns the last lines of `output` that say something.
pub(super) fn tail(output: &str) -> String {
    let lines: Vec<_> = output.lines().filter(|line| !line.trim().is_empty()).collect();
    let text = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    let from = text.len().saturating_sub(TAIL_BYTES);
    let from = (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    // A build chose these bytes: none of them moves a terminal's cursor.
    text[from..].chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_failure_says_what_to_do() {
        let none = "error: No solution found when resolving dependencies\n  cause: Because there is no version of \
                    six==99.0.0 and you require six==99.0.0, we can conclude";
        assert_eq!(explain(none), Failure::NoSuchVersion { newest: None });
        let name = "  cause: Because nope was not found in the package\n  registry and you require nope==1.0";
        assert_eq!(explain(name), Failure::NoSuchPackage);
        let network = "error: Request failed after 1 retry in 2.0s\n  cause: Failed to fetch: https://x/simple/six/\n  \
                       cause: dns error";
        assert!(matches!(explain(network), Failure::Network { tail } if tail.ends_with("dns error")));
        let wheels = "cause: Because numpy==1.19.0 has no usable wheels and you require numpy==1.19.0";
        assert_eq!(explain(wheels), Failure::NotForThisPython);
        assert!(matches!(explain("  x Failed to build `a==1`\n"), Failure::Build { .. }));
        assert!(matches!(explain(""), Failure::Other { .. }));
        assert_eq!(explain(name).blame(), Blame::Function);
        assert_eq!(explain(network).blame(), Blame::Worker);
    }

    #[test]
    fn a_tail_is_bounded_and_moves_no_cursor() {
        assert_eq!(tail("a\n\n\u{1b}[2Jb\n"), "a\n[2Jb");
        let long = tail(&"ä".repeat(10_000));
        assert!(long.len() <= TAIL_BYTES && long.starts_with('ä'), "{}", long.len());
    }
}
