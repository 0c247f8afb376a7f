//! Records against real files: each kind of damage is named, and what is none is not taken for one.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use super::*;

/// An entry with a record of it, and the record's digest.
fn entry() -> (tempfile::TempDir, Sha256) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("files/a/__pycache__")).unwrap();
    fs::write(dir.path().join("files/a/__init__.py"), "x = 1\n").unwrap();
    fs::write(dir.path().join("files/a/__pycache__/__init__.cpython-311.pyc"), "bytecode").unwrap();
    symlink("a/__init__.py", dir.path().join("files/link")).unwrap();
    let record = Record::of(dir.path()).unwrap();
    record.write(dir.path()).unwrap();
    (dir, record.digest(false))
}

fn both(dir: &tempfile::TempDir, content: &Sha256) -> [Result<(), Damage>; 2] {
    [Depth::Times, Depth::Whole].map(|depth| check(dir.path(), content, depth))
}

/// Puts another content of the same size and the same time of modification in place.
fn forge(path: &Path, text: &str) {
    let before = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, text).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
}

#[test]
fn what_is_as_it_was_recorded_is_sound() {
    let (dir, content) = entry();
    assert_eq!(both(&dir, &content), [Ok(()), Ok(())]);
}

#[test]
fn each_damage_is_found_and_its_file_is_named() {
    type Harm = fn(&Path);
    let harms: [(Harm, &str, &str); 9] = [
        (|files| fs::write(files.join("a/__init__.py"), "x = 2\n").unwrap(), "a/__init__.py", "content"),
        (|files| forge(&files.join("a/__init__.py"), "x = 3\n"), "a/__init__.py", "content"),
        (|files| fs::write(files.join("a/__init__.py"), "x").unwrap(), "a/__init__.py", "1 bytes, and 6"),
        (|files| fs::remove_file(files.join("a/__init__.py")).unwrap(), "a/__init__.py", "not there"),
        (|files| fs::write(files.join("a/new.py"), "").unwrap(), "a/new.py", "was not there"),
        (|files| fs::create_dir(files.join("z")).unwrap(), "z", "was not there"),
        (
            |files| {
                let path = files.join("a/__pycache__/__init__.cpython-311.pyc");
                File::options().write(true).open(path).unwrap().set_len(4).unwrap();
            },
            "a/__pycache__/__init__.cpython-311.pyc",
            "4 bytes, and 8",
        ),
        (
            |files| {
                fs::remove_file(files.join("link")).unwrap();
                symlink("/etc/passwd", files.join("link")).unwrap();
            },
            "link",
            "content",
        ),
        (
            |files| {
                fs::remove_file(files.join("link")).unwrap();
                nix::unistd::mkfifo(&files.join("link"), nix::sys::stat::Mode::S_IRWXU).unwrap();
            },
            "link",
            "neither a file",
        ),
    ];
    for (harm, file, part) in harms {
        let (dir, content) = entry();
        harm(&dir.path().join("files"));
        for checked in both(&dir, &content) {
            let damage = checked.unwrap_err();
            assert_eq!(damage.file, Path::new("files").join(file), "{damage}");
            assert!(damage.reason.contains(part), "{damage}");
        }
    }
}

#[test]
fn a_record_that_is_gone_cut_short_or_of_something_else_is_damage() {
    let (dir, content) = entry();
    let text = fs::read(dir.path().join(RECORD)).unwrap();
    fs::write(dir.path().join(RECORD), &text[..text.len() / 2]).unwrap();
    assert_eq!(
        both(&dir, &content).map(|checked| checked.unwrap_err().file),
        [RECORD, RECORD].map(PathBuf::from)
    );
    fs::remove_file(dir.path().join(RECORD)).unwrap();
    assert!(check(dir.path(), &content, Depth::Times).unwrap_err().reason.contains("not there"));
    // Files and record exchanged together: the entry's own description knows better.
    fs::write(dir.path().join("files/a/__init__.py"), "x = 2\n").unwrap();
    Record::of(dir.path()).unwrap().write(dir.path()).unwrap();
    assert_eq!(check(dir.path(), &content, Depth::Whole).unwrap_err().file, Path::new(RECORD));
}

#[test]
fn other_times_alone_are_no_damage_and_are_hashed_once() {
    let (dir, content) = entry();
    let path = dir.path().join("files/a/__init__.py");
    let past = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
    let before = fs::read(dir.path().join(RECORD)).unwrap();
    assert_eq!(check(dir.path(), &content, Depth::Times), Ok(()));
    let after = fs::read(dir.path().join(RECORD)).unwrap();
    assert_ne!(before, after, "the new times are recorded");
    assert_eq!(check(dir.path(), &content, Depth::Times), Ok(()));
    assert_eq!(fs::read(dir.path().join(RECORD)).unwrap(), after);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left");
}

#[test]
fn bytecode_makes_no_other_code() {
    let (dir, content) = entry();
    let code = Record::of(dir.path()).unwrap().digest(true);
    fs::write(dir.path().join("files/a/__pycache__/__init__.cpython-311.pyc"), "another").unwrap();
    let other = Record::of(dir.path()).unwrap();
    assert!(other.digest(true) == code && other.digest(false) != content);
}
