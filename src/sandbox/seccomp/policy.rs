//! The policy files: Docker's schema, as much of it as we use, turned once
//! into checked rules by system call number. Runs in the worker.
//!
//! What is not understood is refused, never skipped: a rule that a reader
//! believes in and no filter has is worse than none.

use std::collections::BTreeMap;

use libseccomp::{ScmpArch, ScmpSyscall};
use serde::Deserialize;

use super::SeccompError;

/// What the kernel is to answer a call with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Allow,
    Errno(u16),
}

/// A condition: `argument[index] & mask == value`. Arguments that the kernel
/// reads as 32 bits must be compared under a 32-bit mask, or a caller dodges
/// the rule with garbage in the upper half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    pub index: u8,
    pub mask: u64,
    pub value: u64,
}

/// One alternative for a call: it applies if every condition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub answer: Answer,
    pub args: Vec<Match>,
}

/// A checked policy. A call has either one rule without conditions or any
/// number of rules with them; a call that no rule covers fails with `refusal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub(super) refusal: u16,
    pub(super) rules: BTreeMap<u32, Vec<Rule>>,
}

impl Policy {
    /// Reads and checks a policy file.
    pub fn parse(json: &str) -> Result<Self, SeccompError> {
        let raw: RawPolicy = serde_json::from_str(json)?;
        if raw.architectures != ["SCMP_ARCH_X86_64"] {
            return Err(SeccompError::Architecture);
        }
        let default = answer(raw.default_action, raw.default_errno_ret, "the default")?;
        let Answer::Errno(refusal) = default else { return Err(SeccompError::NotAnAllowList) };
        let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
        for raw in raw.syscalls {
            for call in &raw.names {
                let rule = raw.check(call)?;
                let of_call = rules.entry(number_of(call)?).or_default();
                // Of rules that overlap libseccomp keeps one and does not say which.
                let alone = rule.args.is_empty() || of_call.iter().any(|r| r.args.is_empty());
                if of_call.contains(&rule) || rule.answer == default || (alone && !of_call.is_empty()) {
                    return Err(SeccompError::Overlap { call: call.clone() });
                }
                of_call.push(rule);
            }
        }
        Ok(Self { refusal, rules })
    }

    /// The rules of one call; none means that it is refused.
    pub(super) fn rules_of(&self, number: u32) -> &[Rule] {
        self.rules.get(&number).map_or(&[], Vec::as_slice)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawPolicy {
    default_action: RawAction,
    default_errno_ret: Option<u32>,
    architectures: Vec<String>,
    syscalls: Vec<RawRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawRule {
    names: Vec<String>,
    action: RawAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<RawArg>,
    comment: String,
}

/// With `MaskedEq`, Docker's schema keeps the mask in `value`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawArg {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: RawOp,
}

#[derive(Deserialize, Clone, Copy)]
enum RawAction {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
}

#[derive(Deserialize, Clone, Copy)]
enum RawOp {
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

impl RawRule {
    fn check(&self, call: &str) -> Result<Rule, SeccompError> {
        if self.comment.trim().is_empty() {
            return Err(SeccompError::NoReason { call: call.to_owned() });
        }
        let args = self.args.iter().map(|a| a.check(call)).collect::<Result<_, _>>()?;
        Ok(Rule { answer: answer(self.action, self.errno_ret, call)?, args })
    }
}

impl RawArg {
    fn check(&self, call: &str) -> Result<Match, SeccompError> {
        let (mask, value) = match self.op {
            RawOp::Eq => (u64::MAX, self.value),
            RawOp::MaskedEq => (self.value, self.value_two),
        };
        if self.index > 5 || mask == 0 || value & !mask != 0 {
            return Err(SeccompError::Argument { call: call.to_owned(), index: self.index });
        }
        Ok(Match { index: self.index, mask, value })
    }
}

/// The largest error number that the kernel can return.
const MAX_ERRNO: u32 = 4095;

fn answer(action: RawAction, errno: Option<u32>, call: &str) -> Result<Answer, SeccompError> {
    match (action, errno) {
        (RawAction::Allow, None) => Ok(Answer::Allow),
        (RawAction::Errno, None) => Ok(Answer::Errno(libc::EPERM as u16)),
        (RawAction::Errno, Some(errno @ 1..=MAX_ERRNO)) => Ok(Answer::Errno(errno as u16)),
        (_, Some(errno)) => Err(SeccompError::Errno { call: call.to_owned(), errno }),
    }
}

/// A name without a number here (a call of another architecture) gets a
/// negative one from libseccomp.
fn number_of(call: &str) -> Result<u32, SeccompError> {
    ScmpSyscall::from_name_by_arch(call, ScmpArch::X8664)
        .ok()
        .and_then(|found| u32::try_from(found.as_raw_syscall()).ok())
        .filter(|number| *number <= super::bpf::NEWEST_CALL)
        .ok_or_else(|| SeccompError::UnknownCall { call: call.to_owned() })
}
