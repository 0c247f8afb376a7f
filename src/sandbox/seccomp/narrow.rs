//! The short filter that makes a forked leaf of a zygote: what the zygote may
//! and the leaf may not. Runs in the worker; written by hand because its
//! length is a price that every cold start pays.
//!
//! ```text
//! load the call number
//! ONE ARGUMENT   jeq prctl, ioctl      -> its block below
//! OTHER ANSWERS  jeq clone3            -> ENOSYS
//! LONE CALLS     jeq setns, unshare... -> EPERM
//! RUNS           jgt last -> next, jge first -> EPERM
//! ONE WINDOW     32 neighbours as the bits of one word: set -> EPERM
//! allow
//! a block for each of the calls with an argument
//! ```
//!
//! A number that the zygote refuses anyway with the same answer is *free*:
//! this filter may say either, which lengthens the runs. A number that the
//! zygote's filter does not know is not free: its ENOSYS must stay.

use super::bpf::{self, Filter, Instruction, NEWEST_CALL};
use super::{Answer, Match, Policy, Rule, SeccompError};

/// What this filter has to do about one call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Task {
    Keep,
    Free,
    Refuse(u16),
    /// Refuse all but these values of the low half of an argument.
    Only(u8, Vec<u32>),
    /// Refuse these values of the low half of an argument.
    AllBut(u8, Vec<u32>),
}

/// Builds the filter that, on top of the zygote's, leaves exactly the leaf's.
pub fn narrow(zygote: &Policy, leaf: &Policy) -> Result<Filter, SeccompError> {
    let refusal = leaf.refusal;
    let tasks = (0..=NEWEST_CALL).map(|n| task(zygote, leaf, n)).collect::<Result<Vec<_>, _>>()?;
    Assembly::of(&tasks, refusal).link(refusal)
}

fn task(zygote: &Policy, leaf: &Policy, number: u32) -> Result<Task, SeccompError> {
    let unsupported = || SeccompError::Narrow { number };
    let (wide, small) = (zygote.rules_of(number), leaf.rules_of(number));
    // No rule is in a policy twice, so order is all in which equal rules differ.
    let inside = |a: &[Rule], b: &[Rule]| a.iter().all(|rule| b.contains(rule));
    let unconditional =
        |rules: &[Rule]| matches!(rules, [Rule { answer: Answer::Allow, args }] if args.is_empty());
    Ok(match (wide, small) {
        ([], []) if zygote.refusal == leaf.refusal => Task::Free,
        ([], _) => return Err(unsupported()),
        (_, []) => Task::Refuse(leaf.refusal),
        _ if inside(wide, small) && inside(small, wide) => Task::Keep,
        (_, [Rule { answer: Answer::Errno(errno), args }]) if args.is_empty() => Task::Refuse(*errno),
        _ if unconditional(wide) => {
            let (index, values) = values_of(small).ok_or_else(unsupported)?;
            Task::Only(index, values)
        }
        _ if inside(small, wide) => {
            let (index, all) = values_of(wide).ok_or_else(unsupported)?;
            let (_, kept) = values_of(small).ok_or_else(unsupported)?;
            Task::AllBut(index, all.into_iter().filter(|value| !kept.contains(value)).collect())
        }
        _ => return Err(unsupported()),
    })
}

/// The values, if the rules allow just some of the low half of one argument.
fn values_of(rules: &[Rule]) -> Option<(u8, Vec<u32>)> {
    const LOW_HALF: u64 = u32::MAX as u64;
    let one = |rule: &Rule| match (rule.answer, rule.args.as_slice()) {
        (Answer::Allow, &[Match { index, mask: LOW_HALF, value }]) => Some((index, value as u32)),
        _ => None,
    };
    let found = rules.iter().map(one).collect::<Option<Vec<_>>>()?;
    let index = found.first()?.0;
    found.iter().all(|(i, _)| *i == index).then(|| (index, found.into_iter().map(|(_, v)| v).collect()))
}

/// Where a conditional jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Allow,
    Errno(u16),
    /// The block of the call with this number.
    Block(u32),
    /// The instruction with this index.
    At(usize),
}

/// The program while its jumps still have names.
#[derive(Default)]
struct Assembly {
    code: Vec<(Instruction, To, To)>,
    /// Where the block of each call with an argument begins.
    blocks: Vec<(u32, usize)>,
}

impl Assembly {
    fn of(tasks: &[Task], refusal: u16) -> Self {
        let mut program = Self::default();
        program.plain(bpf::LD_ABS, bpf::NR);
        for (number, task) in (0..).zip(tasks) {
            match *task {
                Task::Only(..) | Task::AllBut(..) => {
                    program.jump(bpf::JEQ_K, number, To::Block(number), To::Next)
                }
                Task::Refuse(errno) if errno != refusal => {
                    program.jump(bpf::JEQ_K, number, To::Errno(errno), To::Next);
                }
                _ => {}
            }
        }
        program.refuse(tasks, refusal);
        for (number, task) in (0..).zip(tasks) {
            match task {
                Task::Only(index, values) => {
                    program.block(number, *index, values, To::Allow, To::Errno(refusal))
                }
                Task::AllBut(index, values) => {
                    program.block(number, *index, values, To::Errno(refusal), To::Allow)
                }
                _ => {}
            }
        }
        program
    }

    /// The calls that are refused whatever their arguments are; the rest is allowed.
    fn refuse(&mut self, tasks: &[Task], refusal: u16) {
        let refused = |n: u32| tasks.get(n as usize) == Some(&Task::Refuse(refusal));
        // Refusing these does no harm: they are refused already, or have left by a jump above.
        let harmless = |n: u32| n <= NEWEST_CALL && tasks.get(n as usize) != Some(&Task::Keep);
        let window = best_window(refused, harmless);
        let outside = |n: &u32| !window.is_some_and(|base| (base..base + 32).contains(n));
        for (first, last) in runs((0..=NEWEST_CALL).filter(|n| refused(*n)).filter(outside), harmless) {
            if first == last {
                self.jump(bpf::JEQ_K, first, To::Errno(refusal), To::Next);
            } else {
                let after = To::At(self.code.len() + 2);
                self.jump(bpf::JGT_K, last, after, To::Next);
                self.jump(bpf::JGE_K, first, To::Errno(refusal), To::Next);
            }
        }
        match window {
            Some(base) => self.window((base..base + 32).filter(|n| refused(*n)).collect(), refusal),
            None => self.jump(bpf::JEQ_K, 0, To::Allow, To::Allow), // in any case
        }
    }

    /// The two bounds come first, and without arithmetic: the kernel answers a
    /// call without running its filters if by comparisons of the number alone
    /// they all allow it. A shift takes its distance modulo 32.
    fn window(&mut self, numbers: Vec<u32>, refusal: u16) {
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return };
        self.jump(bpf::JGT_K, *last, To::Allow, To::Next);
        self.jump(bpf::JGE_K, *first, To::Next, To::Allow);
        self.plain(bpf::TAX, 0);
        self.plain(bpf::LD_IMM, numbers.iter().fold(0, |word, n| word | 1 << (n % 32)));
        self.plain(bpf::RSH_X, 0);
        self.jump(bpf::JSET_K, 1, To::Errno(refusal), To::Allow);
    }

    fn block(&mut self, number: u32, index: u8, values: &[u32], matched: To, otherwise: To) {
        self.blocks.push((number, self.code.len()));
        self.plain(bpf::LD_ABS, bpf::arg_low(index));
        for (at, value) in values.iter().enumerate() {
            let last = at + 1 == values.len();
            self.jump(bpf::JEQ_K, *value, matched, if last { otherwise } else { To::Next });
        }
    }

    fn plain(&mut self, code: u16, k: u32) {
        self.code.push((Instruction::new(code, k), To::Next, To::Next));
    }

    fn jump(&mut self, code: u16, k: u32, yes: To, no: To) {
        self.code.push((Instruction::new(code, k), yes, no));
    }

    /// Puts the answers at the end and turns names into distances.
    fn link(self, refusal: u16) -> Result<Filter, SeccompError> {
        let end = self.code.len();
        let mut answers = vec![To::Allow, To::Errno(refusal)];
        for &(_, yes, _) in &self.code {
            if matches!(yes, To::Errno(_)) && !answers.contains(&yes) {
                answers.push(yes);
            }
        }
        let place = |from: usize, to: To| -> Result<u8, SeccompError> {
            let target = match to {
                To::Next => Some(from + 1),
                To::At(at) => Some(at),
                To::Block(number) => self.blocks.iter().find(|b| b.0 == number).map(|b| b.1),
                To::Allow | To::Errno(_) => answers.iter().position(|a| *a == to).map(|at| end + at),
            };
            let distance = target.and_then(|target| u8::try_from(target - from - 1).ok());
            distance.ok_or(SeccompError::TooLong { instructions: end + answers.len() })
        };
        let mut program = Vec::with_capacity(end + answers.len());
        for (at, (instruction, yes, no)) in self.code.iter().enumerate() {
            program.push(Instruction { jt: place(at, *yes)?, jf: place(at, *no)?, ..*instruction });
        }
        program.extend(answers.iter().map(|answer| match answer {
            To::Errno(errno) => Instruction::new(bpf::RET_K, bpf::RET_ERRNO | u32::from(*errno)),
            _ => Instruction::new(bpf::RET_K, bpf::RET_ALLOW),
        }));
        Filter::new(&program, &[])
    }
}

/// How many instructions more the window takes than a plain end does.
const WINDOW_COST: usize = 5;

/// Where 32 neighbours are best replaced by one word, if anywhere: the lowest
/// number of the window that saves most.
fn best_window(refused: impl Fn(u32) -> bool, harmless: impl Fn(u32) -> bool) -> Option<u32> {
    let cost = |from: u32| {
        let numbers = (from..from + 32).filter(|n| refused(*n));
        runs(numbers, &harmless).iter().map(|(first, last)| if first == last { 1 } else { 2 }).sum::<usize>()
    };
    let best = (0..=NEWEST_CALL).rev().max_by_key(|from| cost(*from))?;
    (cost(best) > WINDOW_COST).then_some(best)
}

/// Joins numbers (ascending) between which only harmless ones lie.
fn runs(numbers: impl Iterator<Item = u32>, harmless: impl Fn(u32) -> bool) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if (*last..number).all(&harmless) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}
