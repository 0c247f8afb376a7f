//! `hosier demo` as a user runs it, with packages from the real index: what it
//! says, what it saves, and that nothing is left, however it ends.

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

const PICTURE: &str = "hosier-thumbnail.png";

/// A place to be in, and one for temporary files.
struct Scratch {
    here: tempfile::TempDir,
    temporary: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let dir = || tempfile::Builder::new().prefix("hosier-test-").tempdir().unwrap();
        Self { here: dir(), temporary: dir() }
    }

    fn demo(&self, args: &[&str]) -> Command {
        let mut demo = Command::new(support::HOSIER);
        demo.arg("demo").args(args).current_dir(self.here.path()).env("TMPDIR", self.temporary.path());
        demo.stdout(Stdio::piped()).stderr(Stdio::piped());
        demo
    }

    /// Expects that no process, mount, cgroup or file of a demo in `dir` is left.
    fn census(&self, dir: &Path, group: &str) {
        support::wait_until("nothing is left", Duration::from_secs(5), || {
            processes(dir).is_empty() && cgroups(group).is_empty()
        });
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*dir.to_string_lossy()), "{mounts}");
        let files: Vec<_> = std::fs::read_dir(self.temporary.path()).unwrap().flatten().collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

#[test]
fn a_demo_prints_its_table_saves_its_picture_and_leaves_nothing() {
    let scratch = Scratch::new();
    let demo = scratch.demo(&[]).spawn().unwrap();
    let dir = scratch.temporary.path().join(format!("hosier-demo-{}", demo.id()));
    // Its name is a hash of a path that is gone afterwards.
    let group = group_of(&dir);
    let output = demo.wait_with_output().unwrap();
    let (table, progress) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{progress}");
    for function in ["hello", "stats", "thumbnail"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("{function:10}first forked"))), "{table}");
    }
    let calls = |words: &[&str]| {
        let same = |line: &&str| line.split_whitespace().take(words.len()).eq(words.iter().copied());
        table.lines().filter(same).count()
    };
    assert_eq!(
        (calls(&["cold", "blank"]) + calls(&["cold", "forked"]), calls(&["warm", "warm"])),
        (3, 3),
        "{table}"
    );
    for words in ["specialize", "hello: hello, Ada", "stats: 8759 hourly readings", "517 x 606 to 109 x 128"]
    {
        assert!(table.contains(words), "{words} in {table}");
    }
    let picture = scratch.here.path().join(PICTURE);
    assert!(table.contains(&*picture.to_string_lossy()), "{table}");
    assert!(std::fs::read(picture).unwrap().starts_with(b"\x89PNG\r\n\x1a\n"));
    scratch.census(&dir, &group);
}

#[test]
fn an_interrupted_demo_stops_its_worker_and_leaves_nothing() {
    let scratch = Scratch::new();
    let mut demo = scratch.demo(&["--json"]).spawn().unwrap();
    let dir = scratch.temporary.path().join(format!("hosier-demo-{}", demo.id()));
    let mut progress = BufReader::new(demo.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(progress.any(|line| line.contains("calling stats")), "it never came to the second function");
    // The proof that the census would see it.
    let group = group_of(&dir);
    assert!(!processes(&dir).is_empty() && !cgroups(&group).is_empty());
    interrupt(&demo);
    let said: Vec<_> = progress.collect();
    let status = demo.wait().unwrap();
    assert!(!status.success() && said.iter().any(|line| line.contains("interrupted")), "{status}: {said:?}");
    scratch.census(&dir, &group);
}

fn interrupt(demo: &Child) {
    kill(Pid::from_raw(demo.id() as i32), Signal::SIGINT).unwrap();
}

/// The name of a worker directory's control groups, as `cli/place.rs` makes it.
fn group_of(dir: &Path) -> String {
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    format!("hosier-{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
}

fn processes(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let cmdlines = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    let running = cmdlines.map(|cmdline| cmdline.replace('\0', " "));
    running.filter(|cmdline| cmdline.contains(&*dir.to_string_lossy())).collect()
}

fn cgroups(group: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(group) {
                found.push(entry.path().display().to_string());
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(entry.path());
            }
        }
    }
    found
}
