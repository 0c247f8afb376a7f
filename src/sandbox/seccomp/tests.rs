//! What the filters answer, on every call and on every argument that a rule
//! looks at, by a small interpreter of the kernel's programs.

use std::collections::BTreeSet;

use super::interpreter::{Call, run, run_all};
use super::*;

const ALLOWED: u32 = bpf::RET_ALLOW;
const REFUSED: u32 = bpf::RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = bpf::RET_ERRNO | libc::ENOSYS as u32;

fn policies() -> [Policy; 3] {
    [LEAF, ZYGOTE, INSTALLER].map(|json| Policy::parse(json).unwrap())
}

/// What the policy says, read without any compiler.
fn answer_of(policy: &Policy, call: Call) -> u32 {
    if call.number > bpf::NEWEST_CALL {
        return UNKNOWN;
    }
    let holds = |m: &Match| call.args[usize::from(m.index)] & m.mask == m.value;
    let rule = policy.rules_of(call.number).iter().find(|rule| rule.args.iter().all(holds));
    match rule.map_or(Answer::Errno(policy.refusal), |rule| rule.answer) {
        Answer::Allow => ALLOWED,
        Answer::Errno(errno) => bpf::RET_ERRNO | u32::from(errno),
    }
}

/// For each argument of a call: every value that some policy looks for, its
/// neighbours, and the same with every bit flipped that a comparison could
/// miss; then all combinations.
fn calls_to(number: u32) -> Vec<Call> {
    let mut of_arg: [BTreeSet<u64>; 6] = Default::default();
    for policy in policies() {
        for m in policy.rules_of(number).iter().flat_map(|rule| &rule.args) {
            // Three compared arguments are too many for all of them.
            let three = policy.rules_of(number).iter().any(|rule| rule.args.len() > 2);
            let bits = if three { vec![3, 7, 8, 31, 32] } else { (0..64).collect() };
            let values = &mut of_arg[usize::from(m.index)];
            values.extend([0, u64::MAX, m.value, m.value + 1]);
            values.extend(bits.iter().map(|bit| m.value ^ (1 << bit)));
        }
    }
    let mut all = vec![[0u64; 6]];
    for (index, values) in of_arg.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
        let put = |args: &[u64; 6], value: u64| {
            let mut args = *args;
            args[index] = value;
            args
        };
        all = all.iter().flat_map(|args| values.iter().map(move |v| put(args, *v))).collect();
    }
    all.into_iter().map(|args| Call::new(number, args)).collect()
}

fn number(name: &str) -> u32 {
    libseccomp::ScmpSyscall::from_name(name).unwrap().as_raw_syscall() as u32
}

#[test]
fn a_compiled_filter_says_what_its_policy_says() {
    let Filters { leaf, zygote, installer, .. } = Filters::builtin().unwrap();
    for (policy, filter) in policies().iter().zip([leaf, zygote, installer]) {
        for call in (0..500).flat_map(calls_to) {
            assert_eq!(run(&filter, call), answer_of(policy, call), "{call:x?}");
        }
    }
}

#[test]
fn a_zygotes_filter_and_the_narrow_one_are_a_leafs_filter() {
    let Filters { leaf, zygote, narrow, .. } = Filters::builtin().unwrap();
    let mut told_apart = 0;
    for call in (0..500).chain([0x4000_0000, 0x4000_0009, u32::MAX]).flat_map(calls_to) {
        assert_eq!(run_all(&[&zygote, &narrow], call), run(&leaf, call), "{call:x?}");
        told_apart += u32::from(run(&zygote, call) != run(&leaf, call));
    }
    assert!(told_apart > 20, "without the narrow filter the two differ in {told_apart} calls");
}

#[test]
fn a_foreign_architecture_kills_the_process_under_both_filters() {
    let Filters { leaf, zygote, narrow, installer } = Filters::builtin().unwrap();
    for arch in [0x4000_0003, 0xC000_00B7] {
        let call = Call { arch, ..Call::new(0, [0; 6]) };
        for answer in [run(&leaf, call), run(&installer, call), run_all(&[&zygote, &narrow], call)] {
            assert_eq!(answer, bpf::RET_KILL_PROCESS);
        }
    }
}

#[test]
fn a_number_that_nobody_knows_is_answered_as_by_an_older_kernel() {
    let Filters { leaf, zygote, narrow, installer } = Filters::builtin().unwrap();
    for number in [451, 452, 1000, 0x4000_0000, u32::MAX] {
        let call = Call::new(number, [0; 6]);
        for answer in [run(&leaf, call), run(&installer, call), run_all(&[&zygote, &narrow], call)] {
            assert_eq!(answer, UNKNOWN, "{number}");
        }
    }
    let clone3 = Call::new(number("clone3"), [0; 6]);
    assert_eq!([run(&leaf, clone3), run(&installer, clone3)], [UNKNOWN; 2]);
    assert_eq!(run(&zygote, clone3), ALLOWED);
}

#[test]
fn what_no_sandbox_may_do_no_policy_allows() {
    let never = "mount chroot open_tree mount_setattr fspick ptrace process_vm_readv process_vm_writev pidfd_getfd \
        kcmp bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key \
        request_key splice vmsplice tee memfd_secret modify_ldt adjtimex clock_adjtime clock_settime settimeofday \
        setdomainname name_to_handle_at open_by_handle_at fanotify_init quotactl quotactl_fd acct swapon swapoff \
        reboot kexec_load kexec_file_load init_module finit_module delete_module iopl ioperm syslog lookup_dcookie \
        process_madvise set_mempolicy migrate_pages move_pages uselib vhangup";
    let only_zygotes =
        "umount2 pivot_root fsopen fsmount fsconfig move_mount unshare setns sethostname seccomp";
    let [leaf, zygote, installer] = policies();
    for name in never.split_whitespace() {
        for policy in [&leaf, &zygote, &installer] {
            assert_eq!(policy.rules_of(number(name)), [], "{name}");
        }
    }
    for name in only_zygotes.split_whitespace() {
        assert_eq!([leaf.rules_of(number(name)), installer.rules_of(number(name))], [&[], &[]], "{name}");
    }
    for name in ["setuid", "setgid", "setresuid", "setresgid", "setgroups", "capset"] {
        assert_eq!(leaf.rules_of(number(name)), [], "{name}");
    }
}

#[test]
fn a_leafs_arguments_are_looked_at() {
    let leaf = Filters::builtin().unwrap().leaf;
    let ask = |name: &str, args: &[u64]| {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        run(&leaf, Call::new(number(name), all))
    };
    let cloexec = 0x80000;
    for (name, args, answer) in [
        ("socket", &[1, 5 | cloexec, 0][..], ALLOWED),
        ("socket", &[2, 1 | cloexec, 6], ALLOWED),
        ("socket", &[10, 2, 17], ALLOWED),
        ("socket", &[0x1_0000_0002, 1, 0], ALLOWED), // the kernel reads 32 bits of it
        ("socket", &[2, 3, 1], REFUSED),
        ("socket", &[2, 2, 1], REFUSED),
        ("socket", &[2, 1, 262], REFUSED),
        ("socket", &[2, 5, 0], REFUSED),
        ("socket", &[16, 3, 0], REFUSED),
        ("socket", &[17, 3, 0], REFUSED),
        ("socket", &[38, 5, 0], REFUSED),
        ("socket", &[40, 1, 0], REFUSED),
        ("socketpair", &[1, 1], ALLOWED),
        ("socketpair", &[2, 1], REFUSED),
        ("clone", &[0x3d0f00], ALLOWED),
        ("clone", &[0x1_1000_0000], REFUSED),
        ("ioctl", &[0, 0x5401], ALLOWED),
        ("ioctl", &[0, 0x5412], REFUSED), // TIOCSTI
        ("ioctl", &[0, 0x1_0000_5412], REFUSED),
        ("prctl", &[15], ALLOWED),
        ("prctl", &[22], REFUSED), // PR_SET_SECCOMP
        ("sendto", &[3, 0, 0, 0x4000], ALLOWED),
        ("sendto", &[3, 0, 0, 0x4001], REFUSED),
        ("sendmsg", &[3, 0, 1], REFUSED),
        ("sendmmsg", &[3, 0, 1, 1], REFUSED),
        ("prlimit64", &[0, 7], ALLOWED),
        ("prlimit64", &[1, 7], REFUSED),
        ("mknod", &[0, 0o010644], ALLOWED),
        ("mknod", &[0, 0o020644], REFUSED),
        ("mknodat", &[0, 0, 0o140644], ALLOWED),
        ("mknodat", &[0, 0, 0o060644], REFUSED),
        ("personality", &[0xffff_ffff], ALLOWED),
        ("personality", &[0x0040000], REFUSED),
    ] {
        assert_eq!(ask(name, args), answer, "{name} {args:x?}");
    }
}

/// The longer it is, the longer the kernel checks, translates and copies it.
#[test]
fn the_filter_that_every_cold_start_installs_is_short() {
    let Filters { narrow, leaf, zygote, installer } = Filters::builtin().unwrap();
    println!(
        "narrow {} leaf {} zygote {} installer {}",
        narrow.len(),
        leaf.len(),
        zygote.len(),
        installer.len()
    );
    assert!(narrow.len() <= 34, "{} instructions", narrow.len());
}

fn refusal_of(syscalls: &str) -> SeccompError {
    let head = r#""defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"]"#;
    Policy::parse(&format!("{{{head}, \"syscalls\": [{syscalls}]}}")).unwrap_err()
}

#[test]
fn a_rule_that_is_not_understood_is_refused() {
    let rule = |names: &str, rest: &str| {
        format!(r#"{{"names": {names}, "action": "SCMP_ACT_ALLOW", "comment": "why", {rest}}}"#)
    };
    use SeccompError as E;
    assert!(matches!(refusal_of(&rule(r#"["read"]"#, r#""includes": {}"#)), E::Schema(_)));
    assert!(matches!(
        refusal_of(r#"{"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": " "}"#),
        E::NoReason { .. }
    ));
    assert!(matches!(refusal_of(&rule(r#"["raed"]"#, r#""args": []"#)), E::UnknownCall { .. }));
    assert!(matches!(refusal_of(&rule(r#"["recv"]"#, r#""args": []"#)), E::UnknownCall { .. }));
    assert!(matches!(refusal_of(&rule(r#"["read", "read"]"#, r#""args": []"#)), E::Overlap { .. }));
    assert!(matches!(refusal_of(&rule(r#"["read"]"#, r#""errnoRet": 5"#)), E::Errno { .. }));
    let never = r#""args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]"#;
    assert!(matches!(refusal_of(&rule(r#"["read"]"#, never)), E::Argument { .. }));
    let other = r#""args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GT"}]"#;
    assert!(matches!(refusal_of(&rule(r#"["read"]"#, other)), E::Schema(_)));
}

#[test]
fn a_leaf_that_may_what_its_zygote_may_not_cannot_be_narrowed() {
    let [leaf, zygote, installer] = policies();
    assert!(matches!(narrow(&leaf, &zygote), Err(SeccompError::Narrow { .. })));
    assert!(matches!(narrow(&zygote, &installer), Err(SeccompError::Narrow { .. })));
}
