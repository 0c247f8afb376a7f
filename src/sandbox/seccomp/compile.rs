//! From a policy to a whole filter, by libseccomp. Runs in the worker.

use std::fs::File;
use std::io::{self, Seek};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::bpf::{self, Filter, Instruction};
use super::{Answer, Policy, SeccompError};

/// libseccomp's value for a binary tree over the call numbers: about nine
/// comparisons a call, where a list takes as many as there are calls.
const BINARY_TREE: u32 = 2;

/// What libseccomp 2.5 cannot say, and what must not depend on the version
/// that is installed.
const PROLOGUE: [Instruction; 6] = [
    Instruction::new(bpf::LD_ABS, bpf::ARCH),
    Instruction::jump(bpf::JEQ_K, bpf::AUDIT_ARCH_X86_64, 1, 0),
    Instruction::new(bpf::RET_K, bpf::RET_KILL_PROCESS),
    Instruction::new(bpf::LD_ABS, bpf::NR),
    Instruction::jump(bpf::JGT_K, bpf::NEWEST_CALL, 0, 1),
    Instruction::new(bpf::RET_K, bpf::RET_ERRNO | libc::ENOSYS as u32),
];

/// Compiles a policy into a filter that stands alone: a foreign architecture
/// kills the process, a number above the newest known is ENOSYS.
pub fn compile(policy: &Policy) -> Result<Filter, SeccompError> {
    let mut context = ScmpFilterContext::new(action(Answer::Errno(policy.refusal)))?;
    context.add_arch(ScmpArch::X8664)?;
    context.set_act_badarch(ScmpAction::KillProcess)?;
    context.set_ctl_optimize(BINARY_TREE)?;
    for (&number, rules) in &policy.rules {
        let call = ScmpSyscall::from_raw_syscall(number as i32);
        for rule in rules {
            let args: Vec<_> = rule
                .args
                .iter()
                .map(|m| ScmpArgCompare::new(m.index.into(), ScmpCompareOp::MaskedEqual(m.mask), m.value))
                .collect();
            context.add_rule_conditional_exact(action(rule.answer), call, &args)?;
        }
    }
    Filter::new(&PROLOGUE, &export(&context).map_err(SeccompError::Export)?)
}

fn action(answer: Answer) -> ScmpAction {
    match answer {
        Answer::Allow => ScmpAction::Allow,
        Answer::Errno(errno) => ScmpAction::Errno(errno.into()),
    }
}

/// libseccomp writes a program to a descriptor only.
fn export(context: &ScmpFilterContext) -> std::io::Result<Vec<u8>> {
    let mut file = File::from(memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC)?);
    context.export_bpf(&file).map_err(std::io::Error::other)?;
    file.rewind()?;
    let mut program = Vec::new();
    io::copy(&mut file, &mut program)?;
    Ok(program)
}
