//! The instructions of a filter, as the kernel takes them. Runs in the worker.

use std::sync::Arc;

use super::SeccompError;

/// The newest call that the policies know (`set_mempolicy_home_node`). A
/// number above it is answered ENOSYS, as by a kernel that lacks it, so that
/// libc falls back to an older call (`fchmodat2` to `fchmod`); EPERM would be
/// taken for the file's. x32 numbers (bit 30) are above it too. Raise it only
/// with a decision about every call in between.
pub(super) const NEWEST_CALL: u32 = 450;

pub(super) const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;

/// Offsets in the kernel's `struct seccomp_data`.
pub(super) const NR: u32 = 0;
pub(super) const ARCH: u32 = 4;
/// The low half of an argument, on a little-endian machine.
pub(super) const fn arg_low(index: u8) -> u32 {
    16 + 8 * index as u32
}

/// `linux/bpf_common.h`: the operations that we generate ourselves.
pub(super) const LD_ABS: u16 = 0x20;
pub(super) const LD_IMM: u16 = 0x00;
pub(super) const RSH_X: u16 = 0x7c;
pub(super) const TAX: u16 = 0x07;
pub(super) const JEQ_K: u16 = 0x15;
pub(super) const JGT_K: u16 = 0x25;
pub(super) const JGE_K: u16 = 0x35;
pub(super) const JSET_K: u16 = 0x45;
pub(super) const RET_K: u16 = 0x06;

/// `linux/seccomp.h`
pub(super) const RET_KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const RET_ERRNO: u32 = 0x0005_0000;
pub(super) const RET_ALLOW: u32 = 0x7fff_0000;

/// The kernel's `BPF_MAXINSNS`.
const MAX_INSTRUCTIONS: usize = 4096;

/// The kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

impl Instruction {
    pub const SIZE: usize = 8;

    pub const fn new(code: u16, k: u32) -> Self {
        Self { code, jt: 0, jf: 0, k }
    }

    /// A conditional jump over `jt` or `jf` instructions.
    pub const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Self {
        Self { code, jt, jf, k }
    }

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [c0, c1, self.jt, self.jf, k0, k1, k2, k3]
    }
}

/// A compiled filter: an array of `struct sock_filter`, ready for
/// `seccomp(SECCOMP_SET_MODE_FILTER)`. Cloning it shares the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(Arc<[u8]>);

impl Filter {
    /// `own` runs first, then what libseccomp `exported`: jumps are relative,
    /// so a program may be put in front of another.
    pub(super) fn new(own: &[Instruction], exported: &[u8]) -> Result<Self, SeccompError> {
        let mut bytes: Vec<u8> = own.iter().flat_map(|i| i.to_bytes()).collect();
        bytes.extend_from_slice(exported);
        let instructions = bytes.len() / Instruction::SIZE;
        if instructions > MAX_INSTRUCTIONS {
            return Err(SeccompError::TooLong { instructions });
        }
        Ok(Self(bytes.into()))
    }

    /// The program in the kernel's layout, eight bytes an instruction.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many instructions it has, which is what installing it costs.
    #[allow(clippy::len_without_is_empty)] // The kernel refuses an empty one; there is none.
    pub fn len(&self) -> usize {
        self.0.len() / Instruction::SIZE
    }
}
