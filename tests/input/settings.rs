//! Settings: refused, without effect, and what those with effect do.

use std::time::Duration;

use crate::support::{Worker, wait_until};
use crate::*;

#[test]
fn a_setting_that_cannot_be_is_refused_in_the_file_and_on_the_command_line() {
    let worker = Worker::new();
    for (section, key, value, parts) in [
        ("", "worker_prot", "1", &["worker_prot", "did you mean worker_port"][..]),
        ("", "worker_port", "\"x\"", &["worker_port", "0 to 65535"]),
        ("", "worker_port", "70000", &["worker_port = 70000", "0 to 65535"]),
        ("limits", "mem_mb", "-1", &["limits.mem_mb = -1"]),
        ("sandbox", "rootfs", "\"maybe\"", &["sandbox.rootfs", "\\\"ro\\\" or \\\"rw\\\""]),
        (
            "sandbox.namespaces",
            "pid",
            "false",
            &["sandbox.namespaces.pid = false", "no sandbox stands without it"],
        ),
        ("sandbox", "colour", "1", &["sandbox.colour"]),
    ] {
        let unescape = |part: &&str| part.replace("\\\"", "\"");
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        write_settings(&worker, &format!("{header}{key} = {value}\n"));
        let said = fails(&worker, &["up"]);
        assert!(parts.iter().map(unescape).all(|part| said.contains(&part)), "{said}");
        assert!(said.contains("hosier.toml"), "{said}");
        write_settings(&worker, "");
        let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        let said = fails(&worker, &["up", "-o", &format!("{path}={}", value.trim_matches('"'))]);
        assert!(said.contains(&path) && said.contains("-o"), "{said}");
    }
    worker.census();
}

#[test]
fn a_setting_without_effect_is_taken_and_said() {
    let mut worker = Worker::new();
    write_settings(&worker, "sock_base_path = \"x\"\n[features]\nreuse_cgroups = false\n");
    let args = ["up", "-d", "-o", "worker_port=0,trace.memory=true,features.downsize_paused_mem=false"];
    let output = worker.hosier(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    for key in ["sock_base_path", "features.reuse_cgroups", "trace.memory", "features.downsize_paused_mem"] {
        assert!(said.contains(&format!("{key} is accepted and has no effect")), "{key} in {said}");
    }
    worker.ok(&["down"]);
    // Logs off: what functions print goes nowhere.
    worker.deploy("prints", &[("f.py", "def f(event):\n    print('printed')\n")]);
    worker.up(&["log_output=false"]);
    worker.result("prints", "");
    worker.down();
    assert_eq!(worker.function_log("prints"), "");
    worker.up(&[]);
    worker.result("prints", "");
    wait_until("the log is written", Duration::from_secs(5), || worker.function_log("prints") == "printed\n");
    worker.down();
}

const LOOKS: &str = "import os
def f(event):
    seen = {kind: os.readlink('/proc/self/ns/' + kind) for kind in ('ipc', 'uts', 'cgroup', 'net', 'mnt', 'pid', 'user')}
    status = dict(line.rstrip('\\n').split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)
    tmp = os.statvfs('/tmp')
    return dict(seen, seccomp=status['Seccomp'], bytes=tmp.f_blocks * tmp.f_frsize, inodes=tmp.f_files)
";

#[test]
fn each_setting_of_a_sandbox_reaches_it() {
    let mut worker = Worker::new();
    worker.deploy("looks", &[("f.py", LOOKS)]);
    let host = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let kinds = ["ipc", "uts", "cgroup", "net", "mnt", "pid", "user"];
    for (option, shared, key, value) in [
        ("", "", "seccomp", serde_json::json!("2")),
        ("features.enable_seccomp=false", "", "seccomp", "0".into()),
        ("sandbox.namespaces.ipc=false", "ipc", "ipc", host("ipc").into()),
        ("sandbox.namespaces.uts=false", "uts", "uts", host("uts").into()),
        ("sandbox.namespaces.cgroup=false", "cgroup", "cgroup", host("cgroup").into()),
        ("sandbox.namespaces.net=false", "net", "net", host("net").into()),
        ("sandbox.network=host", "net", "net", host("net").into()),
        ("sandbox.tmp_mb=3", "", "bytes", (3 << 20).into()),
        ("sandbox.tmp_inodes=100", "", "inodes", 100.into()),
    ] {
        worker.up(&[option]);
        let seen = worker.result("looks", "");
        assert_eq!(seen[key], value, "{option}: {seen}");
        for kind in kinds.into_iter().filter(|kind| *kind != shared) {
            assert_ne!(seen[kind], host(kind), "{option}: {kind} of the host's in {seen}");
        }
        worker.down();
    }
}
