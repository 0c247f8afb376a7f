//! Archives that mean harm, and some that do not.

use super::*;

/// Builds a gzipped archive by raw headers, so that hostile names are kept.
struct Hostile(tar::Builder<GzEncoder<Vec<u8>>>);

impl Hostile {
    fn new() -> Self {
        Self(tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast())))
    }

    fn raw(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o7777);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.raw(EntryType::Regular, name, "", content)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.raw(EntryType::Symlink, name, target, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap().finish().unwrap()
    }

    fn unpack(self) -> (tempfile::TempDir, Result<(), String>) {
        unpack_bytes(&self.bytes(), Bounds { bytes: 1 << 20, entries: 50, depth: 5 })
    }
}

/// Unpacks into `into/` of a fresh directory; what is beside it must stay.
fn unpack_bytes(bytes: &[u8], bounds: Bounds) -> (tempfile::TempDir, Result<(), String>) {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("into");
    fs::create_dir(&into).unwrap();
    let result = unpack(bytes, &into, "hello", bounds).map_err(|error| error.to_string());
    let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["into"], "something was written outside");
    (dir, result)
}

fn read(dir: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(dir.path().join("into").join(path)).unwrap()
}

#[test]
fn a_plain_archive_and_one_with_its_folder_unpack_the_same() {
    for prefix in ["", "./", "hello/", "./hello/"] {
        let archive = Hostile::new()
            .file(&format!("{prefix}f.py"), b"def f(e): return e")
            .file(&format!("{prefix}a/b/c.txt"), b"deep")
            .link(&format!("{prefix}a/l"), "../f.py")
            .raw(EntryType::Link, &format!("{prefix}h.py"), &format!("{prefix}f.py"), b"");
        let (dir, result) = archive.unpack();
        assert_eq!(result, Ok(()), "{prefix}");
        assert_eq!(read(&dir, "a/l"), "def f(e): return e");
        assert_eq!(read(&dir, "h.py"), "def f(e): return e");
        assert_eq!(read(&dir, "a/b/c.txt"), "deep");
    }
}

#[test]
fn a_folder_of_another_name_or_with_a_neighbour_stays() {
    let (dir, result) = Hostile::new().file("src/f.py", b"1").unpack();
    assert!(result.is_ok() && read(&dir, "src/f.py") == "1");
    let (dir, result) = Hostile::new().file("hello/f.py", b"1").file("x", b"2").unpack();
    assert!(result.is_ok() && read(&dir, "hello/f.py") == "1");
    let (dir, result) = Hostile::new().file("hello/hello/f.py", b"1").unpack();
    assert!(result.is_ok() && read(&dir, "hello/f.py") == "1");
}

#[test]
fn modes_owners_and_setuid_bits_do_not_come_along() {
    use std::os::unix::fs::MetadataExt;
    let (dir, _) = Hostile::new().file("d/f.py", b"1").unpack();
    let mode = |path: &str| fs::metadata(dir.path().join("into").join(path)).unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("d/f.py")), (0o755, 0o755));
}

#[test]
fn what_leaves_is_refused_by_name() {
    for name in ["/etc/x", "../x", "a/../../x", "a/../x", "..", "hello/../../x"] {
        let (_dir, result) = Hostile::new().file(name, b"x").unpack();
        let error = result.unwrap_err();
        assert!(error.contains(name) && error.contains("leaves"), "{name}: {error}");
    }
    for (name, target) in
        [("l", "/etc/passwd"), ("l", ".."), ("l", "../into/../x"), ("a/l", "../../x"), ("hello/l", "../x")]
    {
        let (_dir, result) = Hostile::new().link(name, target).unpack();
        assert!(result.unwrap_err().contains("leaves"), "{name} -> {target}");
    }
    let (_dir, result) = Hostile::new().raw(EntryType::Link, "h", "/etc/passwd", b"").unpack();
    assert!(result.unwrap_err().contains("leaves"));
}

#[test]
fn nothing_is_written_through_a_link() {
    let (_dir, result) = Hostile::new().link("d", "sub").file("d/f.py", b"x").unpack();
    assert!(result.unwrap_err().contains("where a file or link is"));
    let (_dir, result) = Hostile::new().link("f", "g").file("f", b"x").unpack();
    assert!(result.unwrap_err().contains("twice"));
    let (_dir, result) = Hostile::new().file("f", b"x").file("f/g", b"x").unpack();
    assert!(result.is_err());
    // A hard link to a link finds nothing: links are made last.
    let (_dir, result) = Hostile::new().link("f", "g").raw(EntryType::Link, "h", "f", b"").unpack();
    assert!(result.is_err());
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
        let (_dir, result) = Hostile::new().raw(kind, "dev", "", b"").unpack();
        assert!(result.is_err(), "{kind:?}");
    }
}

#[test]
fn an_archive_is_bounded_in_bytes_entries_and_depth() {
    let (_dir, result) = Hostile::new().file("zeros", &vec![0; (1 << 20) + 1]).unpack();
    assert!(result.unwrap_err().contains("zeros"));
    let many = (0..60).fold(Hostile::new(), |archive, n| archive.file(&format!("f{n}"), b""));
    assert!(many.unpack().1.unwrap_err().contains("f50"));
    assert!(Hostile::new().file("a/b/c/d/e/f", b"").unpack().1.unwrap_err().contains("directories"));
    // Hard links count by what they copy.
    let bomb = (0..30).fold(Hostile::new().file("f", &vec![0; 1 << 16]), |archive, n| {
        archive.raw(EntryType::Link, &format!("h{n}"), "f", b"")
    });
    assert!(bomb.unpack().1.is_err());
}

#[test]
fn a_long_name_of_many_megabytes_is_not_read() {
    let zeros = vec![b'a'; 32 << 20];
    let (_dir, result) = Hostile::new().raw(EntryType::GNULongName, "x", "", &zeros).file("f", b"").unpack();
    assert!(result.unwrap_err().contains("header is too long"));
}

#[test]
fn what_is_no_archive_or_is_cut_short_is_said() {
    let good = Hostile::new().file("f.py", &[7; 5000]).bytes();
    for bytes in [&b""[..], b"not gzip", &good[..good.len() / 2], &good[..20]] {
        let (_dir, result) = unpack_bytes(bytes, Bounds::default());
        assert!(result.is_err());
    }
    assert!(Hostile::new().unpack().1.unwrap_err().contains("empty"));
}

#[test]
fn packing_twice_gives_the_same_bytes_and_unpacks_to_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/__pycache__")).unwrap();
    fs::write(dir.path().join("a/f.py"), "1").unwrap();
    fs::write(dir.path().join(format!("{}.py", "n".repeat(200))), "2").unwrap();
    symlink("f.py", dir.path().join("a/l.py")).unwrap();
    let mut bytes = Vec::new();
    pack(dir.path(), &mut bytes, Bounds::default()).unwrap();
    fs::write(dir.path().join("a/f.py"), "1").unwrap();
    let mut again = Vec::new();
    pack(dir.path(), &mut again, Bounds::default()).unwrap();
    assert_eq!(bytes, again);
    let (out, result) = unpack_bytes(&bytes, Bounds::default());
    assert_eq!(result, Ok(()));
    assert_eq!(read(&out, "a/l.py"), "1");
    assert!(!out.path().join("into/a/__pycache__").exists());
}

#[test]
fn an_archive_with_any_byte_changed_ends_in_an_answer() {
    let archive = Hostile::new().file("hello/f.py", b"x").link("hello/l", "f.py").file(&"d/".repeat(3), b"");
    let plain = {
        let mut bytes = Vec::new();
        MultiGzDecoder::new(archive.bytes().as_slice()).read_to_end(&mut bytes).unwrap();
        bytes
    };
    let mut random = 7_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize
    };
    for _ in 0..500 {
        let mut bytes = plain.clone();
        let at = next() % bytes.len();
        bytes[at] = next() as u8;
        // Most changes fail the header's checksum: mend it, to get further.
        let header = at / 512 * 512;
        let mut mended = tar::Header::new_old();
        mended.as_mut_bytes().copy_from_slice(&bytes[header..header + 512]);
        mended.set_cksum();
        bytes[header..header + 512].copy_from_slice(mended.as_bytes());
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&bytes).unwrap();
        let (_dir, _either) =
            unpack_bytes(&gzip.finish().unwrap(), Bounds { bytes: 1 << 20, entries: 50, depth: 5 });
    }
}
