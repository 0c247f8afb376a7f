//! Trees as an attacker leaves them, on the real kernel. As root.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::fcntl::openat;
use nix::sys::stat::mkdirat;
use nix::unistd::mkfifo;

use super::*;

const BOUNDS: Bounds = Bounds { entries: 1000, bytes: 1 << 20, depth: 32 };

/// Number of nested directories that ended `remove_dir_all`, and the process with it.
const DEEP: usize = 30_000;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Nests `depth` directories below `path`, a file in the last; its path is longer than `PATH_MAX`.
fn nest(path: &Path, depth: usize) {
    let mut at: OwnedFd = fs::File::open(path).unwrap().into();
    for _ in 0..depth {
        mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
        at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
    }
    create_file(at.as_fd(), "last", 0o600).unwrap();
}

/// A directory in memory, where there is one: on a disk each directory is a block to write.
fn quick_directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open_descriptors() -> u64 {
    fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

#[test]
fn a_deep_tree_is_removed_with_few_descriptors_and_little_stack() {
    let dir = quick_directory();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    nest(&tree, DEEP);
    // Sixteen descriptors and no more; a test is a process of its own.
    let limit = open_descriptors() - 1 + 16;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit).unwrap();
    let small = std::thread::Builder::new().stack_size(256 * 1024);
    let removed = small.spawn(move || remove(&tree).map(|()| tree.exists())).unwrap().join().unwrap();
    assert!(!removed.unwrap());
}

#[test]
fn a_wide_tree_is_removed_with_a_bounded_list_of_names() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    for name in 0..300 {
        fs::create_dir_all(tree.join(format!("{name}/a/b"))).unwrap();
        fs::write(tree.join(format!("{name}/a/{}", "n".repeat(255))), "x").unwrap();
        fs::set_permissions(tree.join(name.to_string()), fs::Permissions::from_mode(0o000)).unwrap();
    }
    remove(&tree).unwrap();
    assert!(!tree.exists());
    remove(&tree).unwrap();
    remove(&dir.path().join("never/there")).unwrap();
}

#[test]
fn no_link_is_followed_when_a_tree_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    fs::create_dir(&tree).unwrap();
    symlink(&outside, tree.join("to-a-directory")).unwrap();
    symlink(outside.join("precious"), tree.join("to-a-file")).unwrap();
    remove(&tree).unwrap();
    symlink(&outside, &tree).unwrap();
    remove(&tree).unwrap();
    assert!(!tree.is_symlink() && outside.join("precious").exists());
}

#[test]
fn what_is_mounted_below_a_tree_stays_and_the_rest_goes() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
    fs::create_dir_all(tree.join("mounted")).unwrap();
    fs::create_dir_all(tree.join("other/x")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    mount(Some(&outside), &tree.join("mounted"), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    let error = remove(&tree).unwrap_err();
    assert!(matches!(error.wrong, Wrong::Mount), "{error}");
    assert!(error.path.ends_with("tree/mounted"), "{error}");
    assert!(outside.join("precious").exists() && !tree.join("other").exists());
    umount2(&tree.join("mounted"), MntFlags::MNT_DETACH).unwrap();
    remove(&tree).unwrap();
}

#[test]
fn a_tree_that_changes_while_it_is_removed_ends_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 0.. {
                let _ = fs::create_dir_all(tree.join(format!("{}/b/c", count % 7)));
                let _ = fs::rename(tree.join("1/b"), tree.join("2/moved"));
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
            }
        });
        for _ in 0..200 {
            let _ = remove(&tree);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    remove(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn modes_are_settled_and_set_id_bits_go() {
    let dir = tempfile::tempdir().unwrap();
    for (name, before) in [("secret", 0o600), ("closed", 0), ("tool", 0o4710), ("open", 0o666)] {
        fs::write(dir.path().join(name), "12345").unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(before)).unwrap();
    }
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::set_permissions(dir.path().join("sub"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("../open", dir.path().join("sub/link")).unwrap();
    fs::hard_link(dir.path().join("open"), dir.path().join("sub/again")).unwrap();
    let sum = Tree::open(dir.path()).unwrap().settle(BOUNDS).unwrap();
    assert_eq!(sum, Sum { entries: 7, bytes: 25 });
    let modes = ["secret", "closed", "tool", "open", "sub"].map(|name| mode(&dir.path().join(name)));
    assert_eq!(modes, [0o644, 0o644, 0o755, 0o644, 0o755]);
}

/// Each is what a build can leave, and none is touched, read or waited for.
#[test]
fn links_that_leave_fifos_sockets_and_foreign_names_are_refused_by_name() {
    let outside = tempfile::tempdir().unwrap();
    let precious = outside.path().join("precious");
    fs::write(&precious, "x").unwrap();
    fs::set_permissions(&precious, fs::Permissions::from_mode(0o600)).unwrap();
    type Attack<'a> = &'a dyn Fn(&Path);
    let attacks: [(&str, Attack<'_>); 6] = [
        ("which leaves the tree", &|at| symlink(&precious, at).unwrap()),
        ("which leaves the tree", &|at| symlink("../../..", at).unwrap()),
        ("is a FIFO", &|at| mkfifo(at, Mode::S_IRWXU).unwrap()),
        ("is a socket", &|at| drop(std::os::unix::net::UnixListener::bind(at).unwrap())),
        ("has another name outside", &|at| fs::hard_link(&precious, at).unwrap()),
        ("is a device", &|at| {
            let null = nix::libc::makedev(1, 3);
            nix::sys::stat::mknod(at, SFlag::S_IFCHR, Mode::S_IRWXU, null).unwrap();
        }),
    ];
    for (says, attack) in attacks {
        let dir = tempfile::Builder::new().tempdir_in(outside.path()).unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        attack(&dir.path().join("sub/culprit"));
        let error = Tree::open(dir.path()).unwrap().settle(BOUNDS).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("culprit") && text.contains(says), "{text}");
        assert!(error.wrong.is_foreign());
        assert_eq!(mode(&precious), 0o600, "{says}");
        let to = tempfile::tempdir().unwrap();
        let copied = Tree::open(dir.path()).unwrap().copy_into(&Tree::open(to.path()).unwrap(), BOUNDS);
        assert_eq!(copied.is_ok(), says.contains("another name"), "{says}: a copy has one name");
        remove(dir.path()).unwrap();
    }
}

#[test]
fn the_root_of_a_tree_may_be_no_link_and_nothing_below_is_reached_through_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    fs::write(dir.path().join("real/file"), "x").unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    assert!(Tree::open(&dir.path().join("link")).is_err());
    let tree = Tree::open(dir.path()).unwrap();
    assert!(tree.below("real").is_ok());
    for path in ["link", "../real", "/etc", "link/file"] {
        assert!(tree.below(path).is_err() && tree.open_file(path).is_err(), "{path}");
    }
    assert!(matches!(tree.below("link/..").unwrap_err().wrong, Wrong::Link));
}

#[test]
fn a_fifo_or_a_link_is_not_read_and_a_file_within_its_limit_is() {
    let dir = tempfile::tempdir().unwrap();
    mkfifo(&dir.path().join("pipe"), Mode::S_IRWXU).unwrap();
    symlink("/etc/passwd", dir.path().join("link")).unwrap();
    fs::write(dir.path().join("file"), "12345").unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    assert!(matches!(tree.read_small("pipe", 9).unwrap_err().wrong, Wrong::Kind("a FIFO")));
    assert!(matches!(tree.read_small("link", 9).unwrap_err().wrong, Wrong::Link));
    assert!(matches!(tree.read_small("file", 4).unwrap_err().wrong, Wrong::TooLarge { limit: 4 }));
    assert_eq!(tree.read_small("file", 5).unwrap().as_deref(), Some(&b"12345"[..]));
    assert!(tree.read_small("nothing", 5).unwrap().is_none());
    assert_eq!(tree.names(3).unwrap(), ["file", "link", "pipe"]);
    assert!(matches!(tree.names(2).unwrap_err().wrong, Wrong::TooMany { limit: 2 }));
}

#[test]
fn a_file_is_made_only_where_nothing_is() {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("host");
    symlink(&host, dir.path().join("meta.json")).unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    assert!(tree.create("meta.json", b"x").is_err() && !host.exists());
    nix::sys::stat::umask(Mode::from_bits_truncate(0o077));
    tree.create("other", b"x").unwrap();
    assert_eq!(
        (mode(&dir.path().join("other")), fs::read(dir.path().join("other")).unwrap()),
        (0o644, b"x".into())
    );
}

#[test]
fn a_walk_has_bounds_and_names_the_entry_that_breaks_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    fs::write(dir.path().join("a/b/file"), "12345").unwrap();
    let tree = Tree::open(dir.path()).unwrap();
    let with = |entries, bytes, depth| tree.measure(Bounds { entries, bytes, depth });
    assert_eq!(with(4, 5, 3).unwrap(), Sum { entries: 4, bytes: 5 });
    assert!(matches!(with(3, 5, 3).unwrap_err().wrong, Wrong::TooMany { limit: 3 }));
    assert!(matches!(with(4, 4, 3).unwrap_err().wrong, Wrong::TooLarge { limit: 4 }));
    let deep = with(4, 5, 2).unwrap_err();
    assert!(matches!(deep.wrong, Wrong::TooDeep { limit: 2 }));
    assert!(deep.path.ends_with("a/b/c"), "{deep}");
    nest(&dir.path().join("a"), 1000);
    let text = with(4000, 5, 900).unwrap_err().to_string();
    assert!(text.contains("more)") && text.len() < 600, "{text}");
}

#[test]
fn a_tree_of_any_depth_is_given_to_an_owner_and_links_are_not_followed() {
    let dir = quick_directory();
    let outside = tempfile::NamedTempFile::new().unwrap();
    symlink(outside.path(), dir.path().join("link")).unwrap();
    nest(dir.path(), 3000);
    let endless = Bounds { entries: 10_000, bytes: u64::MAX, depth: usize::MAX };
    Tree::open(dir.path()).unwrap().give(12345, endless).unwrap();
    let mut at: OwnedFd = fs::File::open(dir.path()).unwrap().into();
    for _ in 0..3000 {
        at = openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
    }
    assert_eq!(fstat(&at).unwrap().st_uid, 12345);
    let last = nix::sys::stat::fstatat(&at, "last", nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW).unwrap();
    assert_eq!((last.st_uid, last.st_gid), (12345, 12345));
    assert_eq!(fs::symlink_metadata(dir.path().join("link")).unwrap().uid(), 12345);
    assert_eq!(fs::metadata(outside.path()).unwrap().uid(), 0);
    // As the temporary directory itself would by a stack that may not suffice.
    remove(&dir.path().join("d")).unwrap();
}

#[test]
fn a_copy_has_the_contents_and_links_of_the_tree_and_modes_of_its_own() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let deep = (0..30).map(|level| format!("d{level}")).collect::<PathBuf>();
    fs::create_dir_all(from.path().join(&deep)).unwrap();
    fs::write(from.path().join(&deep).join("file"), "deep").unwrap();
    fs::write(from.path().join("tool"), "tool").unwrap();
    fs::set_permissions(from.path().join("tool"), fs::Permissions::from_mode(0o6711)).unwrap();
    symlink("d0/d1", from.path().join("link")).unwrap();
    let tree = Tree::open(from.path()).unwrap();
    let target = Tree::open(to.path()).unwrap();
    let sum = tree.copy_into(&target, BOUNDS).unwrap();
    assert_eq!(sum, Sum { entries: 33, bytes: 8 });
    assert_eq!(fs::read(to.path().join(&deep).join("file")).unwrap(), b"deep");
    assert_eq!((mode(&to.path().join("tool")), mode(&to.path().join("d0"))), (0o755, 0o755));
    assert_eq!(fs::read_link(to.path().join("link")).unwrap(), Path::new("d0/d1"));
    assert!(tree.copy_into(&target, BOUNDS).is_err(), "nothing is overwritten");
    // A hole of a terabyte is refused before a byte of it is read.
    fs::File::create(from.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let error = tree.copy_into(&Tree::open(fresh.path()).unwrap(), BOUNDS).unwrap_err();
    assert!(error.path.ends_with("hole") && matches!(error.wrong, Wrong::TooLarge { .. }), "{error}");
}

#[test]
fn what_is_set_aside_is_gone_at_once_and_removed_later() {
    let dir = quick_directory();
    let tree = dir.path().join("numpy==1.0");
    fs::create_dir(&tree).unwrap();
    nest(&tree, 2000);
    let aside = set_aside(&tree).unwrap();
    assert!(!tree.exists() && aside.exists() && is_trash(aside.file_name().unwrap()));
    assert!(!is_trash("numpy==1.0") && !is_trash(".staging-numpy==1.0"));
    fs::write(dir.path().join("kept"), "x").unwrap();
    sweep(dir.path());
    fs::create_dir(&tree).unwrap();
    remove_late(&tree).unwrap();
    assert!(!tree.exists());
    assert!(remove_late(&tree).is_ok(), "nothing there is fine");
    assert!(wait_until_removed(std::time::Duration::from_secs(20)));
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"]);
}

#[test]
fn an_error_shows_no_control_characters() {
    let dir = tempfile::tempdir().unwrap();
    let name = CString::new("\x1b[2Jname\nline").unwrap();
    mkfifo(name.as_c_str().to_str().map(|name| dir.path().join(name)).unwrap().as_path(), Mode::S_IRWXU)
        .unwrap();
    let text = Tree::open(dir.path()).unwrap().settle(BOUNDS).unwrap_err().to_string();
    assert!(text.contains("name") && !text.contains(char::is_control), "{text:?}");
}
