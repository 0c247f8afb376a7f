//! The store with a runner that is no sandbox: a plain process, for what does
//! not depend on walls. The sandbox around it is tested with the sandbox floor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::lambda::requirements::PythonVersion;
use crate::sandbox::{Command, Ended, Limits, Outcome};

/// The directory of [`python`]'s entries in a store.
pub(super) const ABI: &str = "cpython-311-x86_64-linux-gnu";

/// An interpreter by the last part of its version.
pub(super) fn python(minor: u32) -> Interpreter {
    let version = PythonVersion { major: 3, minor, micro: 2 };
    Interpreter { version, abi: Abi::from_suffix(&format!(".cpython-3{minor}-x86_64-linux-gnu.so")).unwrap() }
}

/// Plays the four steps: counts what it unpacks, and writes a module where it is told to.
#[derive(Debug, Default)]
pub(super) struct Scripted {
    pub(super) runs: AtomicUsize,
    /// Whether the index is out of reach.
    pub(super) offline: std::sync::atomic::AtomicBool,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Runner for Scripted {
    async fn run(&self, command: Command) -> Result<Outcome, RunError> {
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        let shown =
            |target: &str| command.binds.iter().find(|bind| bind.target == target).unwrap().source.clone();
        let (input, out) = (shown("/input"), shown("/out"));
        let done = |output: &str| Ok(Outcome { ended: Ended::Exited(0), output: output.to_owned() });
        if command.argv.iter().any(|part| part == "compile") {
            if self.offline.load(Ordering::SeqCst) {
                let output = "error: Failed to fetch: https://h/simple/".to_owned();
                return Ok(Outcome { ended: Ended::Exited(1), output });
            }
            let wanted = fs::read_to_string(input.join("requirements.txt")).unwrap();
            if wanted.contains("missing==") {
                let output = "there is no version of missing".to_owned();
                return Ok(Outcome { ended: Ended::Exited(1), output });
            }
            let lock: String =
                wanted.lines().map(|line| package(line.split_once("==").unwrap_or((line, "3.0")))).collect();
            fs::write(out.join("pylock.toml"), lock).map_err(RunError::new)?;
            return done("");
        }
        if command.argv.iter().any(|part| part.ends_with("hosier_fetch.py")) {
            let job: serde_json::Value =
                serde_json::from_slice(&fs::read(input.join("job.json")).unwrap()).unwrap();
            let mut result = serde_json::Map::new();
            for file in job["files"].as_array().unwrap() {
                let name = file["name"].as_str().unwrap();
                fs::write(out.join(name), "a wheel").map_err(RunError::new)?;
                result.insert(name.to_owned(), serde_json::json!({ "size": 7 }));
            }
            fs::write(out.join("result.json"), serde_json::to_vec(&result).unwrap())
                .map_err(RunError::new)?;
            return done("");
        }
        self.runs.fetch_add(1, Ordering::SeqCst);
        let wheel = command.argv.last().cloned().unwrap_or_default();
        let name = wheel.rsplit('/').next().unwrap().split('-').next().unwrap().to_owned();
        if name == "hangs" {
            std::future::pending::<()>().await;
        }
        if name == "nosandbox" {
            return Err(RunError::new("no cgroup"));
        }
        let out = out.join("files");
        fs::create_dir(&out).map_err(RunError::new)?;
        fs::write(out.join(format!("{name}.py")), "x = 1").map_err(RunError::new)?;
        if name == "evil" {
            std::os::unix::fs::symlink("/etc/shadow", out.join("leak")).map_err(RunError::new)?;
        }
        let info = out.join(format!("{name}-1.dist-info"));
        fs::create_dir(&info).map_err(RunError::new)?;
        fs::write(info.join("RECORD"), format!("{name}.py,,\n")).map_err(RunError::new)?;
        fs::write(info.join("METADATA"), "Name: x\nRequires-Dist: Other_Thing>=1\n")
            .map_err(RunError::new)?;
        done("")
    }
}

/// A wheel of a lock; `wrong` is said to have the digest of something else.
fn package((name, version): (&str, &str)) -> String {
    let digest = if name == "wrong" {
        ", hashes = { sha256 = \"".to_owned() + &"0".repeat(64) + "\" }"
    } else {
        String::new()
    };
    format!(
        "[[packages]]\nname = \"{name}\"\nversion = \"{version}\"\n\
         wheels = [{{ url = \"https://h/{name}-{version}-py3-none-any.whl\"{digest} }}]\n"
    )
}

fn store<R: Runner>(dir: &Path, uv: &Path, runner: Arc<R>) -> Packages<R> {
    store_of(dir, uv, runner, python(11))
}

pub(super) fn store_of<R: Runner>(dir: &Path, uv: &Path, runner: Arc<R>, python: Interpreter) -> Packages<R> {
    let installer = Installer {
        dir: "/nowhere".into(),
        uv: Some(uv.to_owned()),
        python: "/usr/bin/python3".into(),
        limits: Limits { runtime_sec: 300, ..Limits::default() },
        space: Space { mib: 1024, inodes: 100_000 },
        build: BuildPolicy::All,
        operator: Operator::from_host(None, &[]),
        transfer_mib: 1024,
    };
    Packages::open(dir, python, installer, 2, runner, Arc::new(Stats::default())).unwrap()
}

pub(super) fn wanted(texts: &[&str]) -> Requirements {
    texts.iter().map(|text| (text.parse().unwrap(), Hashes::default())).collect()
}

/// The one entry that an install of one package came to.
pub(super) fn only(installed: &Installed) -> Pin {
    let pins: Vec<_> = installed.pins.iter().collect();
    assert_eq!(pins.len(), 1, "{installed:?}");
    pins[0].clone()
}

pub(super) fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_installed_once_however_many_ask_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let asked = wanted(&["a==1", "b==1", "c==1", "d==1"]);
    let mut asking = JoinSet::new();
    // Two stores on one directory: `hosier deploy` beside a worker.
    for n in 0..8 {
        let store = store(dir.path(), Path::new("/bin/true"), runner.clone());
        let asked = asked.clone();
        asking.spawn(async move {
            if n % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            store.install(&asked, Depth::Times, Arc::new(())).await
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(runner.runs.load(Ordering::SeqCst), 4);
    assert_eq!(entries(&dir.path().join(ABI)), [".locks", "a==1", "b==1", "c==1", "d==1"]);
    let store = store(dir.path(), Path::new("/bin/true"), runner.clone());
    let pin = only(&store.install(&wanted(&["a==1"]), Depth::Times, Arc::new(())).await.unwrap());
    assert_eq!(store.top_level(&pin).unwrap(), ["a"]);
    assert_eq!(store.requires(&pin).unwrap(), ["other-thing"]);
    assert_eq!(entries(&dir.path().join(ABI).join("a==1")), [pin.entry().unwrap().to_string()]);
    assert_eq!(entries(store.files(&pin).parent().unwrap()), ["files", "meta.json", "record.json"]);
    assert!(store.files(&pin).join("a.py").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_runs_a_bounded_number_of_installers() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let store = store(dir.path(), Path::new("/bin/true"), runner.clone());
    let many: Vec<_> = (0..8).map(|n| format!("p{n}==1")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    store.install(&wanted(&many), Depth::Times, Arc::new(())).await.unwrap();
    assert_eq!(runner.most_at_once.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_the_pin_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Path::new("/bin/true"), Arc::new(Scripted::default()));
    for (pin, part, blame) in [
        ("missing==9", "the newest is 3.0", Blame::Function),
        ("nosandbox==1", "no cgroup", Blame::Worker),
        ("evil==1", "leak: leaves", Blame::Function),
        // The worker hashes for itself, whatever the fetcher says.
        ("wrong==1", "its sha256 is", Blame::Worker),
    ] {
        let error = store.install(&wanted(&["ok==1", pin]), Depth::Times, Arc::new(())).await.unwrap_err();
        assert!(error.to_string().contains(pin) && error.to_string().contains(part), "{error}");
        assert_eq!(error.blame(), blame);
        assert_eq!(entries(&dir.path().join(ABI)), [".locks", "ok==1"]);
    }
    assert!(matches!(store.top_level(&"evil==1".parse().unwrap()), Err(PackageError::Missing(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_that_is_given_up_leaves_nothing_and_can_be_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Path::new("/bin/true"), Arc::new(Scripted::default()));
    let asked = wanted(&["hangs==1"]);
    let given_up =
        tokio::time::timeout(Duration::from_millis(200), store.install(&asked, Depth::Times, Arc::new(())))
            .await;
    assert!(given_up.is_err());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(entries(&dir.path().join(ABI)), [".locks"]);
}

#[test]
fn what_a_dead_installer_left_is_removed_and_what_a_live_one_does_is_not() {
    let dir = tempfile::tempdir().unwrap();
    for staging in [".staging-dead==1", ".staging-live==1"] {
        fs::create_dir_all(dir.path().join(ABI).join(staging).join("files")).unwrap();
    }
    fs::create_dir(dir.path().join(ABI).join(LOCKS)).unwrap();
    let live = lock(&dir.path().join(ABI).join(LOCKS), &"live==1".parse().unwrap(), FlockArg::LockExclusive)
        .unwrap();
    store(dir.path(), Path::new("/bin/true"), Arc::new(Scripted::default()));
    assert_eq!(entries(&dir.path().join(ABI)), [".locks", ".staging-live==1"]);
    drop(live);
}

/// Runs the command as a plain process, with the sandbox's paths put back.
struct Plain;

impl Runner for Plain {
    async fn run(&self, command: Command) -> Result<Outcome, RunError> {
        let real = |text: &str| {
            let bind = command.binds.iter().find(|bind| text.starts_with(&bind.target));
            bind.map_or(text.to_owned(), |b| format!("{}{}", b.source.display(), &text[b.target.len()..]))
        };
        let argv: Vec<_> = command.argv.iter().map(|text| real(text)).collect();
        let env: Vec<_> = command.env.iter().map(|(name, value)| (name.clone(), real(value))).collect();
        let ran = tokio::task::spawn_blocking(move || {
            std::process::Command::new(&argv[0]).args(&argv[1..]).env_clear().envs(env).output()
        });
        let ran = ran.await.map_err(RunError::new)?.map_err(RunError::new)?;
        let output = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
        Ok(Outcome { ended: Ended::Exited(ran.status.code().unwrap_or(-1)), output })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_packages_come_from_the_index_with_ready_bytecode() {
    let dir = tempfile::tempdir().unwrap();
    let uv = ensure_uv(dir.path(), None, Path::new("/usr/bin/python3")).unwrap();
    let packages = dir.path().join("packages");
    let store = store(&packages, &uv, Arc::new(Plain));
    let real = wanted(&[
        "six==1.16.0",
        "pandas==2.2.3",
        "numpy==2.1.0",
        "pytz==2024.1",
        "python-dateutil==2.9.0.post0",
        "tzdata==2024.1",
    ]);
    let installed = store.install(&real, Depth::Times, Arc::new(())).await.unwrap();
    let pandas = installed.pins.iter().find(|pin| pin.name() == "pandas").unwrap().clone();
    assert_eq!(store.top_level(&pandas).unwrap(), ["pandas"]);
    assert_eq!(store.requires(&pandas).unwrap(), ["numpy", "python-dateutil", "pytz", "tzdata"]);
    let cached =
        fs::read_dir(store.files(&pandas).join("pandas/__pycache__")).unwrap().next().unwrap().unwrap();
    // PEP 552: flags 1 are "by hash, and unchecked".
    assert_eq!(fs::read(cached.path()).unwrap()[4..8], [1, 0, 0, 0]);
    let path: Vec<_> = installed.pins.iter().map(|pin| store.files(pin).display().to_string()).collect();
    let import = std::process::Command::new("/usr/bin/python3")
        .args(["-s", "-c", "import pandas; print(pandas.__version__)"])
        .env("PYTHONPATH", path.join(":"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&import.stdout), "2.2.3\n");
    for (pin, part) in
        [("six==99.0.0", "the newest is 1."), ("no-such-package-hosier==1.0", "no package of that name")]
    {
        let error = store.install(&wanted(&[pin]), Depth::Times, Arc::new(())).await.unwrap_err().to_string();
        assert!(error.contains(pin) && error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn without_uv_only_an_install_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Path::new("/nowhere/uv"), Arc::new(Scripted::default()));
    store.install(&Requirements::new(), Depth::Times, Arc::new(())).await.unwrap();
    let error = store.install(&wanted(&["a==1"]), Depth::Times, Arc::new(())).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/uv"), "{error}");
}
