//! What a build leaves: much, links, FIFOs, nests, and lies about it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::index::{File, Index};
use crate::sources::{wheel, with_backend};
use crate::{deploy, refused, said, worker};

fn index(backends: &[&str]) -> Index {
    let numbered = backends.iter().enumerate();
    let files = numbered.map(|(n, backend)| with_backend("evil", &format!("{}.0", n + 1), "[]", backend));
    Index::new(files.map(|(name, content)| (name, File::from(content))).collect())
}

#[test]
fn a_build_that_writes_more_than_it_may_is_ended_and_says_which_setting() {
    let index = index(&[
        // Many files, each within the bound of one.
        "def look():\n    while True:\n        for n in range(10):\n            \
         with open('/out/%d' % n, 'ab') as file: file.write(bytes(1 << 20))\n",
        // Without a name.
        "def look():\n    files = []\n    while True:\n        files.append(open('/out/big', 'wb'))\n        \
         os.unlink('/out/big')\n        for _ in range(16): files[-1].write(bytes(1 << 20))\n",
        "def look():\n    for n in range(10 ** 6): os.mkdir('/out/%d' % n)\n",
        // Its own root is small, and memory is its own.
        "def look():\n    for n in range(10 ** 6):\n        \
         with open('/tmp/%d' % n, 'wb') as file: file.write(bytes(1 << 20))\n",
    ]);
    let settings = "[installer]\ndisk_mb = 40\ndisk_inodes = 1000\n";
    let worker = worker(&index, settings);
    for (pin, part) in [
        ("evil==1.0\n", "installer.disk_mb"),
        ("evil==2.0\n", "installer.disk_mb"),
        ("evil==3.0\n", "installer.disk_inodes"),
        ("evil==4.0\n", "No space left on device"),
    ] {
        let said = refused(&worker, pin);
        assert!(said.contains(pin.trim()) && said.contains(part), "{part} in {said}");
    }
}

#[test]
fn a_file_or_a_wheel_that_is_more_than_it_may_be_is_refused_and_says_which_setting() {
    let (file, content) = wheel("evil", "1.0", &[], "");
    let grow = "import io, sys, zipfile\nout = io.BytesIO(sys.stdin.buffer.read())\n\
                with zipfile.ZipFile(out, 'a') as new: new.writestr('big.bin', bytes(20 << 20))\n\
                sys.stdout.buffer.write(out.getvalue())\n";
    let content = piped(grow, &content);
    // Deflated it is small, and unpacked it is not.
    let script = "import io, sys, zipfile\nsource = zipfile.ZipFile(io.BytesIO(sys.stdin.buffer.read()))\n\
                  out = io.BytesIO()\nwith zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as new:\n    \
                  for name in source.namelist(): new.writestr(name.replace('1.0', '2.0'), source.read(name)\
                  .replace(b'Version: 1.0', b'Version: 2.0').replace(b'Wheel-Version: 2.0', b'Wheel-Version: 1.0'))\n\
                  sys.stdout.buffer.write(out.getvalue())\n";
    let small = piped(script, &content);
    assert!(small.len() < 1 << 20);
    let bomb = ("evil-2.0-py3-none-any.whl".to_owned(), File::from(small));
    let worker = worker(&Index::new(vec![(file, content.into()), bomb]), "[installer]\ndisk_mb = 16\n");
    for pin in ["evil==1.0\n", "evil==2.0\n"] {
        let said = refused(&worker, pin);
        assert!(said.contains(pin.trim()) && said.contains("installer.disk_mb"), "{said}");
    }
}

/// What a Python script makes of `input`.
fn piped(script: &str, input: &[u8]) -> Vec<u8> {
    let mut python = Command::new("/usr/bin/python3");
    let mut child =
        python.args(["-I", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn the_output_of_a_build_is_not_charged_to_its_memory() {
    let index = index(&["def look():\n    with open('/out/big', 'wb') as file:\n        \
                         for _ in range(150): file.write(bytes(1 << 20))\n    return 'built'\n"]);
    let worker = worker(&index, "[installer_limits]\nmem_mb = 100\n");
    let output = deploy(&worker, "a", "evil==1.0\n", "evil", &[]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn what_a_build_leaves_is_never_followed_nor_waited_for() {
    let canary = tempfile::NamedTempFile::new().unwrap();
    fs::write(canary.path(), "untouched").unwrap();
    let before = fs::metadata(canary.path()).unwrap();
    let link = format!("os.symlink({:?}, ", canary.path());
    let index = index(&[
        &format!(
            "def build_wheel(out, *_):\n    {link} out + '/evil-1.0-py3-none-any.whl')\n    \
             return 'evil-1.0-py3-none-any.whl'\n"
        ),
        "def build_wheel(out, *_):\n    os.mkfifo(out + '/evil-2.0-py3-none-any.whl')\n    \
         return 'evil-2.0-py3-none-any.whl'\n",
        &format!("def build_wheel(out, *_):\n    {link} '/out/result.json')\n    return wheel(out, 1)\n"),
        "def build_wheel(out, *_):\n    return wheel(out, 1, 'other-1.0-py3-none-any.whl')\n",
        "def build_wheel(out, *_):\n    return '../../../../etc/shadow'\n",
    ]);
    let worker = worker(&index, "");
    for (pin, part) in [
        ("evil==1.0\n", "is a link"),
        ("evil==2.0\n", "is a FIFO"),
        // Within the sandbox the link leads nowhere, or into it.
        ("evil==3.0\n", "it is installed from source and that failed"),
        ("evil==4.0\n", "is not one of evil==4.0"),
        ("evil==5.0\n", "shadow"),
    ] {
        let said = refused(&worker, pin);
        assert!(said.contains(pin.trim()) && said.contains(part), "{part} in {said}");
    }
    let after = fs::metadata(canary.path()).unwrap();
    assert_eq!(fs::read_to_string(canary.path()).unwrap(), "untouched");
    assert_eq!(
        (before.mode(), before.uid(), before.ctime_nsec()),
        (after.mode(), after.uid(), after.ctime_nsec())
    );
}

#[test]
fn a_nest_that_a_build_leaves_is_removed_and_ends_nobody() {
    let nest = "def look():\n    os.chdir('/out')\n    for _ in range(30000):\n        os.mkdir('d'); os.chdir('d')\n    \
                return 'built'\n";
    let index = index(&[nest, "def look():\n    return 'fine'\n"]);
    let mut worker = worker(&index, "");
    let said_of_nest = refused(&worker, "evil==1.0\n");
    assert!(
        said_of_nest.contains("evil==1.0") && said_of_nest.contains("installer.disk_mb"),
        "{said_of_nest}"
    );
    let output = deploy(&worker, "fine", "evil==2.0\n", "evil", &[]);
    assert!(output.status.success(), "{}", said(&output));
    worker.up(&[]);
    assert_eq!(worker.result("fine", ""), "fine");
    worker.down();
}
