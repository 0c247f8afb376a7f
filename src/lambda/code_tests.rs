//! Versions with a runner that is no sandbox: a plain process on the same
//! files. The sandbox around it is tested with the sandbox floor.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::sandbox::Outcome;

/// Compiles in a plain process; `ended` is what it claims.
struct Plain(Result<Ended, &'static str>);

impl Runner for Plain {
    async fn run(&self, command: Command) -> Result<Outcome, RunError> {
        let ended = self.0.map_err(RunError::new)?;
        let code = &command.binds[0].source;
        let mut argv = command.argv.clone();
        *argv.last_mut().unwrap() = code.display().to_string();
        std::process::Command::new(&argv[0]).args(&argv[1..]).env_clear().output().map_err(RunError::new)?;
        Ok(Outcome { ended, output: String::new() })
    }
}

struct House {
    dir: tempfile::TempDir,
    name: FunctionName,
    versions: Versions<Plain>,
}

impl House {
    fn new(ended: Result<Ended, &'static str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("registry"), Bounds::default()).unwrap();
        fs::create_dir(dir.path().join("registry/hello")).unwrap();
        let compiler = Compiler {
            python: "/usr/bin/python3".into(),
            terms: Terms {
                python: PythonVersion { major: 3, minor: 11, micro: 2 },
                most: Limits { mem_mb: 64, ..Limits::default() },
            },
            limits: Limits::default(),
        };
        let code = dir.path().join("code");
        let versions =
            Versions::open(&code, registry, compiler, Bounds::default(), Arc::new(Plain(ended))).unwrap();
        Self { dir, name: FunctionName::new("hello").unwrap(), versions }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join("registry/hello").join(file), text).unwrap();
    }

    async fn prepare(&self) -> Result<Version, CodeError> {
        let prepared = self.versions.prepare(&self.name).await;
        let left: Vec<_> = fs::read_dir(self.dir.path().join("code")).unwrap().collect();
        assert!(left.iter().all(|entry| entry.as_ref().unwrap().file_name() == "hello"), "{left:?}");
        prepared
    }
}

#[tokio::test]
async fn a_version_is_made_once_for_each_content() {
    let house = House::new(Ok(Ended::Exited(0)));
    house.write("f.py", "def f(event): return 1");
    house.write("requirements.txt", "six==1.16.0");
    let first = house.prepare().await.unwrap();
    assert!(first.dir.join("f.py").is_file());
    assert_eq!(first.declared.requirements.len(), 1);
    let cached = fs::read_dir(first.dir.join("__pycache__")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read(&cached).unwrap()[4..8], [1, 0, 0, 0], "not an unchecked hash");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&first.dir), mode(&cached)), (0o755, 0o644));
    assert_eq!(house.prepare().await.unwrap(), first);
    house.write("f.py", "def f(event): return 2");
    let second = house.prepare().await.unwrap();
    assert!(second.dir != first.dir && first.dir.is_dir());
    house.versions.prune(&house.name, &[&second.digest]).unwrap();
    assert!(second.dir.is_dir() && !first.dir.exists());
    house.versions.prune(&house.name, &[]).unwrap();
    assert!(!second.dir.parent().unwrap().exists());
}

#[tokio::test]
async fn an_error_of_syntax_or_of_the_compiler_is_not_one_of_the_deploy() {
    for ended in [Ended::Exited(1), Ended::OutOfMemory, Ended::TimedOut, Ended::Signaled(9)] {
        let house = House::new(Ok(ended));
        house.write("f.py", "def f(event: return");
        assert!(house.prepare().await.unwrap().dir.join("f.py").is_file());
    }
}

#[tokio::test]
async fn what_cannot_run_leaves_nothing_and_says_why() {
    let house = House::new(Ok(Ended::Exited(0)));
    house.write("main.py", "");
    let error = house.prepare().await.unwrap_err();
    assert!(error.to_string().contains("no f.py (there is main.py)"), "{error}");
    assert_eq!(error.blame(), Blame::Function);
    for (file, text, part) in [
        ("requirements.txt", "numpy", "requirements.txt:1"),
        ("ol.yaml", "colour: red", "colour"),
        ("ol.yaml", "limits: {mem_mb: 65}", "max_limits.mem_mb"),
    ] {
        house.write(file, text);
        assert!(house.prepare().await.unwrap_err().to_string().contains(part));
        house.write(file, "");
    }
    symlink("/etc/passwd", house.dir.path().join("registry/hello/f.py")).unwrap();
    assert!(house.prepare().await.unwrap_err().to_string().contains("f.py: leaves"));
    assert!(!house.dir.path().join("code/hello").exists());

    let house = House::new(Err("no cgroup"));
    house.write("f.py", "");
    let error = house.prepare().await.unwrap_err();
    assert_eq!((error.to_string().contains("no cgroup"), error.blame()), (true, Blame::Worker));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_a_time_make_one_version() {
    let house = Arc::new(House::new(Ok(Ended::Exited(0))));
    house.write("f.py", "x = 1");
    let both = [house.clone(), house.clone()]
        .map(|house| tokio::spawn(async move { house.versions.prepare(&house.name).await.unwrap() }));
    let [one, two] = both;
    assert_eq!(one.await.unwrap(), two.await.unwrap());
    house.prepare().await.unwrap();
}

#[test]
fn only_what_can_run_is_stored() {
    let house = House::new(Ok(Ended::Exited(0)));
    let source = tempfile::tempdir().unwrap();
    let registry = &house.versions.registry;
    let store = || store_dir(registry, &house.name, source.path(), &house.versions.compiler.terms);
    fs::write(source.path().join("f.py"), "x = 1").unwrap();
    fs::write(source.path().join("requirements.txt"), "six").unwrap();
    assert!(store().unwrap_err().to_string().contains("requirements.txt:1"));
    assert!(!house.dir.path().join("registry/hello.tar.gz").exists());
    fs::write(source.path().join("requirements.txt"), "six==1.16.0").unwrap();
    assert_eq!(store().unwrap().requirements.len(), 1);
    assert_eq!(fs::read_dir(house.dir.path().join("registry")).unwrap().count(), 1);
}

#[tokio::test]
async fn the_head_of_the_entry_file_is_read_and_nothing_behind_it() {
    let house = House::new(Ok(Ended::Exited(0)));
    for (source, imported, taken) in [
        (
            "import a.b, c as d\nfrom e.f import g, h as i\n",
            vec!["a", "a.b", "c", "e", "e.f"],
            vec!["e.f.g", "e.f.h"],
        ),
        (
            "'A text.'\nfrom __future__ import annotations\nimport a\n",
            vec!["__future__", "a"],
            vec!["__future__.annotations"],
        ),
        ("# no text\nimport a\nX = 1\nimport b\n", vec!["a"], vec![]),
        ("try:\n    import a\nexcept ImportError:\n    import b\n", vec![], vec![]),
        ("if True:\n    import a\n", vec![], vec![]),
        ("from a import *\nfrom . import b\nimport c\n", vec!["a"], vec![]),
        ("import a\n'no text'\nimport b\n", vec!["a"], vec![]),
        ("import a\ndef f(event: return\n", vec![], vec![]),
        ("", vec![], vec![]),
    ] {
        house.write("f.py", source);
        let json = serde_json::json!({ "imported": imported, "taken": taken }).to_string();
        assert_eq!(house.prepare().await.unwrap().head, Head::parse(json.as_bytes()), "{source}");
        // A version that is there already says the same.
        assert_eq!(house.prepare().await.unwrap().head, Head::parse(json.as_bytes()), "{source}");
    }
    house.write(
        "f.py",
        &format!("import {}\n", (0..9_000).map(|n| format!("m{n}")).collect::<Vec<_>>().join(", ")),
    );
    assert!(house.prepare().await.unwrap().head != Head::default());
}

#[tokio::test]
async fn what_files_of_a_function_say_of_its_head_is_not_heard() {
    for path in [HEAD.to_owned(), format!("{HEAD}/x")] {
        let house = House::new(Ok(Ended::Exited(0)));
        let said = house.dir.path().join("registry/hello").join(&path);
        fs::create_dir_all(said.parent().unwrap()).unwrap();
        fs::write(&said, r#"{"imported": ["evil"]}"#).unwrap();
        house.write("f.py", "import a\n");
        assert_eq!(house.prepare().await.unwrap().head, Head::parse(br#"{"imported": ["a"]}"#), "{path}");
    }
}
