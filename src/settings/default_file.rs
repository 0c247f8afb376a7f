//! The file that `hosier init` writes: every key, documented, commented out
//! at its default.

use super::keys::KEYS;
use super::raw::Raw;

/// The text of a fresh `hosier.toml`.
pub fn default_file() -> String {
    let defaults = toml::Value::try_from(Raw::default()).unwrap_or(toml::Value::Boolean(false));
    let mut out = String::from(
        "# The settings of this Hosier worker. Each key is shown at its default: take the # away\n\
         # to change it. `hosier up -o key=value,section.key=value` overrides it for one run.\n\n",
    );
    let mut section = "";
    for key in KEYS {
        let (here, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if here != section {
            section = here;
            out += &format!("\n[{section}]\n");
        }
        for line in key.doc.lines() {
            out += &format!("# {line}\n");
        }
        if let Some(value) = lookup(&defaults, key.path) {
            out += &format!("#{name} = {value}\n");
        }
    }
    out
}

fn lookup<'a>(value: &'a toml::Value, path: &str) -> Option<&'a toml::Value> {
    path.split('.').try_fold(value, |value, part| value.get(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_file_with_every_comment_sign_taken_away_says_the_defaults() {
        let text: String = default_file()
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let read: Raw = toml::from_str(&text).unwrap();
        assert_eq!(toml::Value::try_from(read).unwrap(), toml::Value::try_from(Raw::default()).unwrap());
    }

    #[test]
    fn every_key_that_can_be_written_is_documented_and_its_default_fits() {
        fn leaves(prefix: &str, value: &toml::Value, out: &mut Vec<String>) {
            match value {
                toml::Value::Table(table) => {
                    table.iter().for_each(|(name, value)| leaves(&format!("{prefix}{name}."), value, out))
                }
                _ => out.push(prefix.trim_end_matches('.').to_owned()),
            }
        }
        let defaults = toml::Value::try_from(Raw::default()).unwrap();
        let mut written = Vec::new();
        leaves("", &defaults, &mut written);
        let mut listed: Vec<_> = KEYS.iter().map(|key| key.path.to_owned()).collect();
        written.sort();
        listed.sort();
        assert_eq!(written, listed);
        for key in KEYS {
            assert!(key.allowed.fits(lookup(&defaults, key.path).unwrap()), "{}", key.path);
        }
    }
}
