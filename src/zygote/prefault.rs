//! Whether a blank populates the pages that its first request will touch. Runs in
//! the worker; pure.
//!
//! Populating takes a millisecond or two of a processor and makes the pages private.
//! Both are spent for nobody where starts come faster than blanks: the next one takes
//! this very blank, and touches what it needs as fast by itself. A machine that is busy
//! with other work is no reason: the pages are needed all the same, only later, on
//! somebody's path.

use std::fmt;

/// A blank's memory budget: this part of what its function may use.
const PART: u64 = 4;
const PAGE: u64 = 4096;

/// What is known when a blank stands behind its walls.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances {
    /// Starts of the node that found no blank while this one was being made.
    pub missed: u64,
    /// Pages that would be written, and with that private.
    pub written: u64,
    /// Memory that a function may use, in MiB.
    pub limit_mib: u32,
}

/// Why a blank populates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    Saturated,
    OverBudget { written_kib: u64, budget_kib: u64 },
}

/// # Errors
/// The reason why not.
pub fn worthwhile(now: Circumstances) -> Result<(), Skipped> {
    let budget_kib = (u64::from(now.limit_mib) << 10) / PART;
    let written_kib = now.written * (PAGE >> 10);
    if written_kib > budget_kib {
        return Err(Skipped::OverBudget { written_kib, budget_kib });
    }
    if now.missed > 0 {
        return Err(Skipped::Saturated);
    }
    Ok(())
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Saturated => write!(f, "starts found no blank meanwhile"),
            Self::OverBudget { written_kib, budget_kib } => {
                write!(f, "{written_kib} KiB of pages are more than a blank's {budget_kib} KiB")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Circumstances = Circumstances { missed: 0, written: 1_500, limit_mib: 50 };

    #[test]
    fn a_blank_that_nobody_waits_for_takes_its_time() {
        assert_eq!(worthwhile(QUIET), Ok(()));
    }

    #[test]
    fn a_blank_that_a_start_could_have_had_is_ready_at_once() {
        assert_eq!(worthwhile(Circumstances { missed: 1, ..QUIET }), Err(Skipped::Saturated));
    }

    #[test]
    fn a_blank_takes_no_more_than_a_quarter_of_what_its_function_may() {
        let small = Circumstances { limit_mib: 16, written: 1_024, ..QUIET };
        assert_eq!(worthwhile(small), Ok(()));
        let skipped = worthwhile(Circumstances { written: 1_025, ..small }).unwrap_err();
        assert_eq!(skipped.to_string(), "4100 KiB of pages are more than a blank's 4096 KiB");
    }
}
