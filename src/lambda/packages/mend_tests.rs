//! What the store remembers: for which interpreter, of which file, and how every file of an entry
//! was. Real files; the runner of `store_tests` plays the installer.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use sha2::Digest;

use super::tests::{ABI, Scripted, entries, only, python, store_of, wanted};
use super::*;

fn store(dir: &Path, runner: &Arc<Scripted>) -> Packages<Scripted> {
    store_of(dir, Path::new("/bin/true"), runner.clone(), python(11))
}

async fn install(
    store: &Packages<Scripted>,
    wanted: &Requirements,
    depth: Depth,
) -> Result<Installed, PackageError> {
    store.install(wanted, depth, Arc::new(())).await
}

/// A package with the digest of what the runner fetches, or another one.
fn hashed(text: &str, is_right: bool) -> Requirements {
    let digest: [u8; 32] = sha2::Sha256::digest(if is_right { "a wheel" } else { "another" }).into();
    [(text.parse().unwrap(), [Sha256::from(digest)].into_iter().collect())].into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_interpreter_filled_is_not_served_to_another() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let asked = wanted(&["a==1"]);
    let mut paths = Vec::new();
    for minor in [11, 12, 11] {
        let store = store_of(dir.path(), Path::new("/bin/true"), runner.clone(), python(minor));
        paths.push(store.files(&only(&install(&store, &asked, Depth::Times).await.unwrap())));
    }
    assert_eq!(runner.runs.load(Ordering::SeqCst), 2, "once for each interpreter");
    assert!(paths[0] != paths[1] && paths[0] == paths[2], "{paths:?}");
    assert!(paths[0].starts_with(dir.path().join(ABI)));
    assert_eq!(entries(dir.path()), [ABI, &python(12).abi.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_the_requirement_does_not_accept_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let store = store(dir.path(), &runner);
    let error = install(&store, &hashed("a==1", false), Depth::Times).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Function);
    let error = error.to_string();
    assert!(error.contains("a==1") && error.contains("--generate-hashes"), "{error}");
    assert_eq!(entries(&dir.path().join(ABI)), [".locks"]);
    let right = only(&install(&store, &hashed("a==1", true), Depth::Times).await.unwrap());
    // What is there serves whoever asks for no digest, and not who asks for another.
    assert_eq!(only(&install(&store, &wanted(&["a==1"]), Depth::Times).await.unwrap()), right);
    assert_eq!(runner.runs.load(Ordering::SeqCst), 1);
    assert!(install(&store, &hashed("a==1", false), Depth::Times).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_entries_the_first_serves_who_names_none() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let packages = store(dir.path(), &runner);
    let first = only(&install(&packages, &wanted(&["a==1"]), Depth::Times).await.unwrap());
    // Another file of the same version, as a requirement with its digest brings it.
    let digest: [u8; 32] = sha2::Sha256::digest("another").into();
    let other = first.of_entry(Sha256::from(digest).entry());
    let (from, to) = [&first, &other].map(|pin| packages.0.entries.path(pin)).into();
    let copied = std::process::Command::new("cp").arg("-a").arg(&from).arg(&to).status().unwrap();
    assert!(copied.success());
    let mut meta = packages.0.entries.meta(&other).unwrap();
    meta.installed_ns += 1;
    meta.origin = Some(Origin { file: "a-1.tar.gz".to_owned(), sha256: digest.into() });
    fs::write(to.join(META), serde_json::to_vec(&meta).unwrap()).unwrap();
    assert_eq!(only(&install(&packages, &wanted(&["a==1"]), Depth::Times).await.unwrap()), first);
    assert_eq!(only(&install(&packages, &hashed("a==1", true), Depth::Times).await.unwrap()), first);
    assert_eq!(only(&install(&packages, &hashed("a==1", false), Depth::Times).await.unwrap()), other);
    assert!(other != first && other.to_string() == first.to_string());
    assert_eq!(runner.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_entry_is_set_aside_and_fetched_again() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let asked = wanted(&["a==1"]);
    let pin = only(&install(&store(dir.path(), &runner), &asked, Depth::Times).await.unwrap());
    let path = store(dir.path(), &runner).files(&pin).join("a.py");
    let harms: [&dyn Fn(); 3] =
        [&|| fs::write(&path, "x = 2").unwrap(), &|| fs::remove_file(&path).unwrap(), &|| {
            fs::remove_file(path.with_file_name("../meta.json")).unwrap()
        }];
    for (at, harm) in harms.iter().enumerate() {
        harm();
        // Another run of the worker: what it has not looked at it looks at.
        let store = store(dir.path(), &runner);
        let installed = install(&store, &asked, Depth::Times).await.unwrap();
        assert_eq!(installed.pins, [pin.clone()].into());
        assert_eq!(fs::read_to_string(&path).unwrap(), "x = 1");
        assert_eq!(runner.runs.load(Ordering::SeqCst), at + 2);
        // Without its description it is no entry, and nobody was served from it since.
        assert_eq!(installed.mended.len(), usize::from(at < 2));
        assert_eq!(install(&store, &asked, Depth::Times).await.unwrap().mended, []);
    }
    let aside = format!(".damaged-a==1-{}", pin.entry().unwrap());
    assert!(entries(&dir.path().join(ABI)).contains(&aside), "what runs may have it mounted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_that_shows_in_no_time_is_found_by_hashing() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let asked = wanted(&["a==1", "b==1"]);
    let packages = store(dir.path(), &runner);
    let installed = install(&packages, &asked, Depth::Times).await.unwrap();
    let pin = installed.pins.first().unwrap().clone();
    let (entry, path) = (packages.0.entries.path(&pin), packages.files(&pin).join("a.py"));
    fs::write(&path, "x = 2").unwrap();
    // The medium itself: the record has the times that the file has.
    let record = fs::read_to_string(entry.join("record.json")).unwrap();
    let mut rows: serde_json::Value = serde_json::from_str(&record).unwrap();
    let meta = fs::metadata(&path).unwrap();
    let row = rows.as_array_mut().unwrap().iter_mut().find(|row| row["path"] == "files/a.py").unwrap();
    row["modified_ns"] = (meta.mtime() * 1_000_000_000 + meta.mtime_nsec()).into();
    row["changed_ns"] = (meta.ctime() * 1_000_000_000 + meta.ctime_nsec()).into();
    fs::write(entry.join("record.json"), rows.to_string()).unwrap();

    let packages = store(dir.path(), &runner);
    assert_eq!(install(&packages, &asked, Depth::Times).await.unwrap().mended, []);
    assert_eq!(install(&packages, &asked, Depth::Whole).await.unwrap().mended, std::slice::from_ref(&pin));
    assert_eq!(fs::read_to_string(&path).unwrap(), "x = 1");
    assert_eq!(packages.verify(), (2, Vec::new()));
    fs::write(&path, "x = 3").unwrap();
    let (all, damaged) = packages.verify();
    assert_eq!((all, damaged.len(), &damaged[0].0), (2, 1, &pin));
    assert_eq!(damaged[0].1.file, Path::new("files/a.py"));
    assert!(!path.exists());
    assert_eq!(install(&packages, &asked, Depth::Times).await.unwrap(), installed);
    assert!(path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_fetched_again_says_so_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let asked = wanted(&["a==1"]);
    let packages = store(dir.path(), &runner);
    let pin = only(&install(&packages, &asked, Depth::Times).await.unwrap());
    fs::write(packages.files(&pin).join("a.py"), "x = 2").unwrap();
    runner.offline.store(true, Ordering::SeqCst);
    let packages = store(dir.path(), &runner);
    let error = install(&packages, &asked, Depth::Times).await.unwrap_err().to_string();
    for part in
        ["a==1 was damaged", "files/a.py: its content", "cannot be fetched again", "check the network"]
    {
        assert!(error.contains(part), "{error}");
    }
    runner.offline.store(false, Ordering::SeqCst);
    assert_eq!(only(&install(&packages, &asked, Depth::Times).await.unwrap()), pin);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_damages_for_ever_is_not_fetched_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let runner = Arc::new(Scripted::default());
    let (packages, asked) = (store(dir.path(), &runner), wanted(&["a==1"]));
    let pin = only(&install(&packages, &asked, Depth::Times).await.unwrap());
    let mut last = Ok(());
    for _ in 0..10 {
        fs::write(packages.files(&pin).join("a.py"), "x = 2").unwrap();
        last = install(&packages, &asked, Depth::Whole).await.map(drop);
        if last.is_err() {
            break;
        }
    }
    let error = last.unwrap_err().to_string();
    assert!(error.contains("6th time") && error.contains("check the disk"), "{error}");
    assert_eq!(runner.runs.load(Ordering::SeqCst), 6);
}

/// An entry of the older layout; `files` are below its `files`.
fn old(dir: &Path, pin: &str, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = dir.join(pin).join("files").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::write(dir.join(pin).join("meta.json"), r#"{"top_level":["old"],"requires":[]}"#).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_of_the_older_layout_is_taken_over_if_it_fits_and_refilled_otherwise() {
    let tag = |tag: &str| format!("Wheel-Version: 1.0\nTag: {tag}\n");
    let (fitting, foreign) = (tag("cp311-cp311-manylinux_2_17_x86_64"), tag("cp312-cp312-any"));
    let listed = "a.py,sha256=LXEWQrcmsEQBYnyp-6wy9chTD7GQPMTbAiWHF5IaSIE,1\na-1.dist-info/RECORD,,\n";
    let pyc = "__pycache__/a.cpython-311.pyc";
    type Case<'a> = (&'a str, Vec<(&'a str, &'a str)>, bool);
    let cases: [Case; 7] = [
        ("plain", vec![("a.py", "x")], true),
        ("fits", vec![("a.py", "x"), (pyc, "b"), ("a-1.dist-info/WHEEL", &fitting)], true),
        ("other wheel", vec![("a.py", "x"), ("a-1.dist-info/WHEEL", &foreign)], false),
        ("other bytecode", vec![("a.py", "x"), ("__pycache__/a.cpython-312.pyc", "b")], false),
        ("other module", vec![("a.cpython-312-x86_64-linux-gnu.so", "x")], false),
        ("as listed", vec![("a.py", "x"), ("a-1.dist-info/RECORD", listed)], true),
        ("not as listed", vec![("a.py", "y"), ("a-1.dist-info/RECORD", listed)], false),
    ];
    for (what, files, taken) in cases {
        let dir = tempfile::tempdir().unwrap();
        let runner = Arc::new(Scripted::default());
        old(dir.path(), "a==1", &files);
        let packages = store(dir.path(), &runner);
        let pin = only(&install(&packages, &wanted(&["a==1"]), Depth::Whole).await.unwrap());
        assert_eq!(runner.runs.load(Ordering::SeqCst), usize::from(!taken), "{what}");
        assert_eq!(packages.top_level(&pin).unwrap(), [if taken { "old" } else { "a" }], "{what}");
        assert_eq!(dir.path().join("a==1").exists(), !taken, "{what}: what is another's stays");
        assert_eq!(only(&install(&packages, &wanted(&["a==1"]), Depth::Whole).await.unwrap()), pin);
        if !taken {
            continue;
        }
        // Nobody knows of which file it is: it serves nobody who asks for one, and then gives way.
        let fetched = only(&install(&packages, &hashed("a==1", true), Depth::Times).await.unwrap());
        assert!(fetched != pin && packages.top_level(&fetched).unwrap() == ["a"]);
        assert_eq!(only(&install(&packages, &wanted(&["a==1"]), Depth::Times).await.unwrap()), fetched);
    }
}
