//! Entries of the store's older layout, `PKGS_DIR/numpy==2.1.0/{files,meta.json}`: no digests, no
//! word of the file that they were made of, none of the interpreter. Blocking; the worker's or the
//! command's process.
//!
//! ```text
//! fits this interpreter? ─ yes ─▶ RECORD's digests hold? ─ yes ─▶ recorded, moved to its new place
//!    │ no: stays for another one       │ no: stays
//!    └────────────── fetched anew ◀────┘
//! ```
//!
//! Such an entry serves requirements without hashes only, and gives way to one that was fetched.

use std::fs;
use std::io;
use std::path::Path;

use super::abi::Abi;
use super::contents::{self, Contents};
use super::digests::{Damage, Record};
use super::entries::{Entries, META, Meta};
use crate::lambda::requirements::{Pin, Sha256};
use crate::sandbox::foreign::Tree;

/// Size of an old description, in bytes.
const META_LIMIT_BYTES: u64 = 16 << 20;

/// Takes over the entry of `pin`, if there is one that can be; the pin of its new place. The caller
/// holds the pin's lock.
pub(super) fn take_over(pkgs_dir: &Path, entries: &Entries, abi: &Abi, pin: &Pin) -> Option<Pin> {
    let old = pkgs_dir.join(pin.to_string());
    // An older worker let a build write here: it is opened through no link, and waits for no FIFO.
    let tree = Tree::open(&old).ok()?;
    let text = tree.read_small(META, META_LIMIT_BYTES).ok().flatten()?;
    match examine(&old, &tree, abi, &text)
        .and_then(|(meta, record)| moved(&old, entries, pin, &meta, &record))
    {
        Ok(pin) => {
            tracing::info!(package = %pin, "a package of the store's older layout is taken over");
            Some(pin)
        }
        Err(damage) => {
            tracing::warn!(package = %pin, %damage, "a package of the store's older layout is fetched anew");
            None
        }
    }
}

/// Looks at all that can be known of an old entry.
fn examine(old: &Path, tree: &Tree, abi: &Abi, text: &[u8]) -> Result<(Meta, Record), Damage> {
    let contents: Contents =
        serde_json::from_slice(text).map_err(|error| Damage::new(META, error.to_string()))?;
    let record = Record::of(old)?;
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if let Some(foreign) = record.paths().find(|path| !abi.fits_file(&name(path))) {
        return Err(Damage::new(foreign, format!("it is not for {abi}")));
    }
    for info in record.paths().filter(|path| path.extension().is_some_and(|ending| ending == "dist-info")) {
        let read = |file: &str| {
            let path = info.join(file);
            contents::text(tree, &path).map_err(|error| Damage::new(path, error.to_string()))
        };
        let wheel = read("WHEEL")?;
        let mut tags = wheel.lines().filter_map(|line| line.strip_prefix("Tag:")).peekable();
        if tags.peek().is_some() && !tags.any(|tag| abi.fits_tag(tag)) {
            return Err(Damage::new(info, format!("its wheel is not for {abi}")));
        }
        let listed = read("RECORD")?;
        for (path, digest) in listed.lines().filter_map(contents::record_digest) {
            let leads_out = path.split('/').any(|part| part == "..");
            let holds = record.file(&path).is_some_and(|found| base64(&found) == digest);
            if !leads_out && !holds {
                return Err(Damage::new(path, "it is not as its own RECORD says"));
            }
        }
    }
    let content = record.digest(false);
    Ok((Meta::new(contents, None, Vec::new(), content), record))
}

/// Records an old entry and moves it to its new place.
fn moved(old: &Path, entries: &Entries, pin: &Pin, meta: &Meta, record: &Record) -> Result<Pin, Damage> {
    let pin = pin.of_entry(record.digest(true).entry());
    let target = entries.path(&pin);
    let io = |error: io::Error| Damage::new(META, error.to_string());
    let text = serde_json::to_vec(meta).map_err(|error| io(error.into()))?;
    let _ = fs::remove_file(old.join(super::digests::RECORD));
    record.write(old).map_err(io)?;
    // The new description last and at once: until then it is an old entry, afterwards a new one.
    let fresh = old.join(format!(".{META}"));
    let _ = fs::remove_file(&fresh);
    io::Write::write_all(&mut crate::lambda::tree::new_file(&fresh, false).map_err(io)?, &text)
        .map_err(io)?;
    fs::create_dir_all(target.parent().unwrap_or(&target)).map_err(io)?;
    fs::rename(&fresh, old.join(META)).map_err(io)?;
    fs::rename(old, &target).map_err(io)?;
    Ok(pin)
}

/// A digest as a wheel's RECORD has it: base 64 for URLs, without padding.
fn base64(digest: &Sha256) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in digest.bytes().chunks(3) {
        let bits = (0..3).fold(0u32, |bits, at| bits << 8 | u32::from(*group.get(at).unwrap_or(&0)));
        for at in 0..=group.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_written_as_record_has_it() {
        // Of no bytes, as `pip hash` and RECORD of an empty file have it.
        let empty: Sha256 =
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".parse().unwrap();
        assert_eq!(base64(&empty), "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU");
    }
}
