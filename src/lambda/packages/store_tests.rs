//! The store with a runner that is no sandbox: a plain process, for what does
//! not depend on walls. The sandbox around it is tested with the sandbox floor.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::sandbox::{Ended, Limits};

const PYTHON: PythonVersion = PythonVersion { major: 3, minor: 11, micro: 2 };

/// Plays `uv`: counts runs, and writes a module where it is told to.
#[derive(Debug, Default)]
struct Scripted {
    runs: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
}

impl Runner for Scripted {
    async fn run(&self, command: Command) -> Result<Outcome, RunError> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_at_once.fetch_max(now, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(30)).await;
        self.at_once.fetch_sub(1, Ordering::SeqCst);
        let pin = command.argv.last().cloned().unwrap_or_default();
        if pin.starts_with("hangs") {
            std::future::pending::<()>().await;
        }
        if pin.starts_with("nosandbox") {
            return Err(RunError::new("no cgroup"));
        }
        if pin.starts_with("missing==") {
            return Ok(Outcome { ended: Ended::Exited(1), output: "there is no version of missing".into() });
        }
        if pin == "missing" {
            return Ok(Outcome { ended: Ended::Exited(0), output: " + missing==3.0".into() });
        }
        let out = command.binds.iter().find(|bind| bind.writable).map(|bind| bind.source.join("files"));
        let out = out.unwrap_or_default();
        let name = pin.split('=').next().unwrap_or_default().to_owned();
        fs::write(out.join(format!("{name}.py")), "x = 1").map_err(RunError::new)?;
        if pin.starts_with("evil") {
            std::os::unix::fs::symlink("/etc/shadow", out.join("leak")).map_err(RunError::new)?;
        }
        let info = out.join(format!("{name}-1.dist-info"));
        fs::create_dir(&info).map_err(RunError::new)?;
        fs::write(info.join("RECORD"), format!("{name}.py,,\n")).map_err(RunError::new)?;
        fs::write(info.join("METADATA"), "Name: x\nRequires-Dist: Other_Thing>=1\n")
            .map_err(RunError::new)?;
        Ok(Outcome { ended: Ended::Exited(0), output: String::new() })
    }
}

fn store<R: Runner>(dir: &Path, uv: &Path, runner: Arc<R>) -> Packages<R> {
    let installer = Installer {
        dir: "/nowhere".into(),
        uv: Some(uv.to_owned()),
        python: "/usr/bin/python3".into(),
        limits: Limits { runtime_sec: 300, ..Limits::default() },
        operator: Operator::from_host(None, &[]),
        transfer_mib: 1024,
    };
    Packages::open(dir, PYTHON, installer, 2, runner, Arc::new(Stats::default())).unwrap()
}

fn pins(texts: &[&str]) -> Pins {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_is_installed_once_however_many_ask_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let wanted = pins(&["a==1", "b==1", "c==1", "d==1"]);
    let mut asking = JoinSet::new();
    // Two stores on one directory: `hosier deploy` beside a worker.
    for n in 0..8 {
        let store = store(dir.path(), Path::new("/bin/true"), runner.clone());
        let wanted = wanted.clone();
        asking.spawn(async move {
            if n % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            store.install(&wanted, Arc::new(())).await
        });
    }
    while let Some(done) = asking.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(runner.runs.load(Ordering::SeqCst), 4);
    assert_eq!(entries(dir.path()), [".locks", "a==1", "b==1", "c==1", "d==1"]);
    let store = store(dir.path(), Path::new("/bin/true"), runner.clone());
    let pin = "a==1".parse().unwrap();
    assert_eq!(store.top_level(&pin).unwrap(), ["a"]);
    assert_eq!(store.requires(&pin).unwrap(), ["other-thing"]);
    assert_eq!(entries(&dir.path().join("a==1")), ["files", "meta.json"]);
    assert!(store.files(&pin).join("a.py").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_runs_a_bounded_number_of_installers() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let store = store(dir.path(), Path::new("/bin/true"), runner.clone());
    let many: Vec<_> = (0..8).map(|n| format!("p{n}==1")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    store.install(&pins(&many), Arc::new(())).await.unwrap();
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
    ] {
        let error = store.install(&pins(&["ok==1", pin]), Arc::new(())).await.unwrap_err();
        assert!(error.to_string().contains(pin) && error.to_string().contains(part), "{error}");
        assert_eq!(error.blame(), blame);
        assert_eq!(entries(dir.path()), [".locks", "ok==1"]);
    }
    assert!(matches!(store.top_level(&"evil==1".parse().unwrap()), Err(PackageError::Missing(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_that_is_given_up_leaves_nothing_and_can_be_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Path::new("/bin/true"), Arc::new(Scripted::default()));
    let wanted = pins(&["hangs==1"]);
    let given_up =
        tokio::time::timeout(Duration::from_millis(200), store.install(&wanted, Arc::new(()))).await;
    assert!(given_up.is_err());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(entries(dir.path()), [".locks"]);
}

#[test]
fn what_a_dead_installer_left_is_removed_and_what_a_live_one_does_is_not() {
    let dir = tempfile::tempdir().unwrap();
    for staging in [".staging-dead==1", ".staging-live==1"] {
        fs::create_dir_all(dir.path().join(staging).join("files")).unwrap();
    }
    fs::create_dir(dir.path().join(LOCKS)).unwrap();
    let live = lock(&dir.path().join(LOCKS), &"live==1".parse().unwrap(), FlockArg::LockExclusive).unwrap();
    store(dir.path(), Path::new("/bin/true"), Arc::new(Scripted::default()));
    assert_eq!(entries(dir.path()), [".locks", ".staging-live==1"]);
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
    let real = pins(&[
        "six==1.16.0",
        "pandas==2.2.3",
        "numpy==2.1.0",
        "pytz==2024.1",
        "python-dateutil==2.9.0.post0",
        "tzdata==2024.1",
    ]);
    store.install(&real, Arc::new(())).await.unwrap();
    let pandas: Pin = "pandas==2.2.3".parse().unwrap();
    assert_eq!(store.top_level(&pandas).unwrap(), ["pandas"]);
    assert_eq!(store.requires(&pandas).unwrap(), ["numpy", "python-dateutil", "pytz", "tzdata"]);
    let cached =
        fs::read_dir(store.files(&pandas).join("pandas/__pycache__")).unwrap().next().unwrap().unwrap();
    // PEP 552: flags 1 are "by hash, and unchecked".
    assert_eq!(fs::read(cached.path()).unwrap()[4..8], [1, 0, 0, 0]);
    let path: Vec<_> = real.iter().map(|pin| store.files(pin).display().to_string()).collect();
    let import = std::process::Command::new("/usr/bin/python3")
        .args(["-s", "-c", "import pandas; print(pandas.__version__)"])
        .env("PYTHONPATH", path.join(":"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&import.stdout), "2.2.3\n");
    for (pin, part) in
        [("six==99.0.0", "the newest is 1."), ("no-such-package-hosier==1.0", "no package of that name")]
    {
        let error = store.install(&pins(&[pin]), Arc::new(())).await.unwrap_err().to_string();
        assert!(error.contains(pin) && error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn without_uv_only_an_install_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path(), Path::new("/nowhere/uv"), Arc::new(Scripted::default()));
    store.install(&Pins::new(), Arc::new(())).await.unwrap();
    let error = store.install(&pins(&["a==1"]), Arc::new(())).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/uv"), "{error}");
}
