//! The picture that `thumbnail` made: out of base64, into a file.

use std::path::{Path, PathBuf};

use super::DemoError;
use super::measure::Measured;
use crate::cli::CliError;

const NAME: &str = "hosier-thumbnail.png";
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Saves it into `dir`; its path.
///
/// # Errors
/// There is none, or it cannot be written.
pub fn save(measured: &[Measured], dir: &Path) -> Result<PathBuf, CliError> {
    let text = measured.iter().find_map(|one| one.cold.body.get("png_base64")?.as_str());
    let png = text.and_then(decode).filter(|png| png.starts_with(SIGNATURE)).ok_or(DemoError::NoPicture)?;
    let path = dir.canonicalize().unwrap_or_else(|_| dir.to_owned()).join(NAME);
    std::fs::write(&path, png).map_err(|source| CliError::File { path: path.clone(), source })?;
    Ok(path)
}

/// Standard base64 with its padding (RFC 4648, section 4).
fn decode(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut held) = (0u32, 0u32);
    for digit in digits.bytes() {
        let value = ALPHABET.iter().position(|known| *known == digit)?;
        bits = (bits << 6) | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_with_and_without_padding() {
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(decode(text).unwrap(), bytes.as_bytes(), "{text}");
        }
        assert_eq!(decode("+/+/").unwrap(), [0xfb, 0xff, 0xbf]);
        assert!(decode("a b").is_none());
    }
}
