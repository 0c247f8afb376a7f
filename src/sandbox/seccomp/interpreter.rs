//! What the kernel does with a filter, for the tests: it runs the programs of
//! [`super`] on a made-up call.

use super::Filter;
use super::bpf;

/// The call that a filter is asked about.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    pub number: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    pub fn new(number: u32, args: [u64; 6]) -> Self {
        Self { number, arch: bpf::AUDIT_ARCH_X86_64, args }
    }

    fn word(&self, offset: u32) -> u32 {
        match offset {
            bpf::NR => self.number,
            bpf::ARCH => self.arch,
            16..=60 => {
                let arg = self.args[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
            _ => panic!("a filter reads offset {offset}"),
        }
    }
}

/// The answer of one filter.
pub fn run(filter: &Filter, call: Call) -> u32 {
    let program: Vec<&[u8]> = filter.as_bytes().chunks_exact(8).collect();
    let (mut a, mut x, mut at) = (0u32, 0u32, 0usize);
    let mut memory = [0u32; 16];
    loop {
        let i = program[at];
        let code = u16::from_ne_bytes([i[0], i[1]]);
        let (jt, jf) = (usize::from(i[2]), usize::from(i[3]));
        let k = u32::from_ne_bytes([i[4], i[5], i[6], i[7]]);
        let branch = |taken: bool| if taken { jt } else { jf };
        at += 1;
        match code {
            bpf::LD_ABS => a = call.word(k),
            bpf::LD_IMM => a = k,
            0x60 => a = memory[k as usize],
            0x02 => memory[k as usize] = a,
            0x54 => a &= k,
            bpf::RSH_X => a >>= x % 32,
            bpf::TAX => x = a,
            0x05 => at += k as usize,
            bpf::JEQ_K => at += branch(a == k),
            bpf::JGT_K => at += branch(a > k),
            bpf::JGE_K => at += branch(a >= k),
            bpf::JSET_K => at += branch(a & k != 0),
            bpf::RET_K => return k,
            _ => panic!("instruction {code:#x} is not one that a filter of ours has"),
        }
    }
}

/// The answer of a process's filters, newest last: the strictest action, and
/// of equally strict ones the newest filter's (`seccomp_run_filters`).
pub fn run_all(filters: &[&Filter], call: Call) -> u32 {
    let action = |answer: u32| (answer & 0xffff_0000) as i32;
    filters
        .iter()
        .rev()
        .map(|filter| run(filter, call))
        .reduce(|strictest, next| if action(next) < action(strictest) { next } else { strictest })
        .expect("at least one filter")
}
