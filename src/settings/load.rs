//! Reads the settings file and the overrides, and checks each key that they
//! name against the list of keys.

use std::path::{Path, PathBuf};

use super::keys::{self, Allowed};
use super::raw::Raw;

/// The settings cannot be used. Says where, which key, what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: is not TOML: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("{origin}: no setting is named {key}{}", did_you_mean(near))]
    UnknownKey { origin: String, key: String, near: Vec<&'static str> },
    #[error("{origin}: {key} = {value} is not possible; allowed: {allowed}")]
    BadValue { origin: String, key: String, value: String, allowed: String },
    #[error("-o {text}: write key=value, several with commas between")]
    BadOverride { text: String },
}

fn did_you_mean(near: &[&str]) -> String {
    match near {
        [] => "; `hosier init` writes a file that lists all".to_owned(),
        near => format!("; did you mean {}?", near.join(" or ")),
    }
}

/// What the file and then the overrides say, and notes on keys without effect.
pub(super) fn raw(path: &Path, overrides: &[String]) -> Result<(Raw, Vec<String>), SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(SettingsError::Read { path: path.to_owned(), source }),
    };
    let syntax = |error: toml::de::Error| SettingsError::Syntax {
        path: path.to_owned(),
        message: error.to_string().trim_end().to_owned(),
    };
    let mut table: toml::Table = text.parse().map_err(syntax)?;
    let mut notes = Vec::new();
    check_table(&path.display().to_string(), "", &table, &mut notes)?;
    for text in overrides.iter().flat_map(|text| split(text)) {
        apply(text, &mut table, &mut notes)?;
    }
    let raw = Raw::deserialize_from(table).map_err(syntax)?;
    Ok((raw, notes))
}

impl Raw {
    fn deserialize_from(table: toml::Table) -> Result<Self, toml::de::Error> {
        toml::Value::Table(table).try_into()
    }
}

/// Checks what the file names, section by section.
fn check_table(
    origin: &str,
    prefix: &str,
    table: &toml::Table,
    notes: &mut Vec<String>,
) -> Result<(), SettingsError> {
    for (name, value) in table {
        let path = format!("{prefix}{name}");
        let section = format!("{path}.");
        let is_section = keys::KEYS.iter().any(|key| key.path.starts_with(&section));
        match (keys::find(&path), value) {
            (Some(key), value) if key.allowed.fits(value) => note(key, origin, notes),
            (Some(key), value) => return Err(bad(origin, &path, &value.to_string(), key.allowed)),
            (None, toml::Value::Table(inner)) if is_section => check_table(origin, &section, inner, notes)?,
            (None, value) if is_section => {
                return Err(SettingsError::BadValue {
                    origin: origin.to_owned(),
                    key: path.clone(),
                    value: value.to_string(),
                    allowed: format!("a section, [{path}]"),
                });
            }
            (None, _) => return Err(unknown(origin, &path)),
        }
    }
    Ok(())
}

/// Puts one `key=value` over what the table says.
fn apply(text: &str, table: &mut toml::Table, notes: &mut Vec<String>) -> Result<(), SettingsError> {
    let Some((path, value)) = text.split_once('=') else {
        return Err(SettingsError::BadOverride { text: text.to_owned() });
    };
    let (path, value) = (path.trim(), value.trim());
    let key = keys::find(path).ok_or_else(|| unknown("-o", path))?;
    let value = key.allowed.read(value).ok_or_else(|| bad("-o", path, value, key.allowed))?;
    note(key, "-o", notes);
    let mut parts = path.split('.').peekable();
    let mut here = table;
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            here.insert(part.to_owned(), value);
            break;
        }
        // The path is a known key's and the file was checked: this is a section.
        let section = here.entry(part).or_insert_with(|| toml::Table::new().into());
        let toml::Value::Table(inner) = section else { return Err(unknown("-o", path)) };
        here = inner;
    }
    Ok(())
}

/// Splits at commas, but not within brackets, braces or quotes (a tree as text).
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut quoted, mut start, mut parts) = (0_u32, false, 0, Vec::new());
    for (at, char) in text.char_indices() {
        match char {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn note(key: &keys::Key, origin: &str, notes: &mut Vec<String>) {
    if key.inert {
        notes.push(format!("{origin}: {} is accepted and has no effect yet", key.path));
    }
}

fn unknown(origin: &str, key: &str) -> SettingsError {
    SettingsError::UnknownKey { origin: origin.to_owned(), key: key.to_owned(), near: keys::near_keys(key) }
}

fn bad(origin: &str, key: &str, value: &str, allowed: Allowed) -> SettingsError {
    SettingsError::BadValue {
        origin: origin.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
        allowed: allowed.what(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Build, Settings, Tree};
    use super::*;

    fn load(file: &str, overrides: &[&str]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosier.toml"), file).unwrap();
        let overrides: Vec<_> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Settings::load(dir.path(), &overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn a_directory_without_a_file_has_the_defaults() {
        let settings = Settings::load(Path::new("/nowhere"), &[]).unwrap();
        assert_eq!(settings.worker_port, 5000);
        assert_eq!(settings.registry, Path::new("/nowhere/registry"));
        assert_eq!(settings.limits.mem_mb, 50);
        assert_eq!(settings.installer_limits.runtime_sec, 300);
        assert_eq!(settings.import_cache_tree, Tree::Grown);
        assert!(settings.http.total_timeout.is_none() && settings.notes().is_empty());
    }

    #[test]
    fn an_override_goes_before_the_file_and_has_the_type_of_its_key() {
        let file = "worker_port = 1\n[limits]\nmem_mb = 90\nprocs = 20";
        let settings =
            load(file, &["worker_port=0,limits.mem_mb=70", "sandbox.rootfs=rw,sandbox.namespaces.net=false"]);
        let settings = settings.unwrap();
        assert_eq!((settings.worker_port, settings.limits.mem_mb, settings.limits.procs), (0, 70, 20));
        assert_eq!(settings.sandbox.rootfs, crate::settings::Rootfs::Writable);
        assert!(!settings.sandbox.namespaces.net && settings.sandbox.namespaces.pid);
    }

    #[test]
    fn places_of_installs_are_hosts_with_or_without_a_port() {
        let hosts = load("installer.hosts = \"files.corp  [fd00::1]:8443 10.0.0.7:80\"", &[])
            .unwrap()
            .installer
            .hosts;
        let texts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["files.corp:443", "[fd00::1]:8443", "10.0.0.7:80"]);
        for wrong in ["http://files.corp", "a,b", "10.0.0.0/8", "h:0", "*.corp"] {
            let error = load(&format!("installer.hosts = \"{wrong}\""), &[]).unwrap_err();
            assert!(error.contains("installer.hosts") && error.contains("HOST:PORT"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_tree_comes_as_a_path_as_text_or_as_a_table() {
        let tree = r#"{"packages": [], "children": [{"packages": ["a==1", "b==2"]}]}"#;
        let over = format!("import_cache_tree={tree},worker_port=9");
        assert_eq!(load("", &[&over]).unwrap().import_cache_tree, Tree::Text(tree.to_owned()));
        let table = load("import_cache_tree = {packages = [\"a==1\"]}", &[]).unwrap();
        assert_eq!(table.import_cache_tree, Tree::Text(r#"{"packages":["a==1"]}"#.to_owned()));
        assert!(matches!(
            load("import_cache_tree = \"t.json\"", &[]).unwrap().import_cache_tree,
            Tree::File(_)
        ));
        assert!(load("import_cache_tree = \"{not json\"", &[]).unwrap_err().contains("import_cache_tree"));
    }

    #[test]
    fn what_may_be_built_is_a_word_or_a_list_of_names() {
        for (text, over, build) in [
            ("", None, Build::All),
            ("[installer]\nbuild = false", None, Build::Never),
            ("[installer]\nbuild = [\"a\", \"B.c\"]", None, Build::Only(vec!["a".into(), "B.c".into()])),
            (
                "",
                Some("installer.build=[\"a\",\"b\"],worker_port=9"),
                Build::Only(vec!["a".into(), "b".into()]),
            ),
        ] {
            assert_eq!(load(text, over.as_slice()).unwrap().installer.build, build);
        }
        assert!(load("[installer]\nbuild = [\"no name\"]", &[]).unwrap_err().contains("installer.build"));
    }

    #[test]
    fn an_error_names_the_place_the_key_the_value_and_what_is_allowed() {
        for (file, over, parts) in [
            ("worker_prot = 1", "", vec!["hosier.toml", "worker_prot", "did you mean worker_port"]),
            ("worker_port = 70000", "", vec!["hosier.toml", "worker_port", "70000", "0 to 65535"]),
            ("limits = 3", "", vec!["limits = 3", "[limits]"]),
            ("[limits]\nmem = 3", "", vec!["limits.mem"]),
            ("x = [", "", vec!["hosier.toml", "is not TOML", "line 1"]),
            ("", "server_mode=sock", vec!["-o", "server_mode", "not served yet"]),
            ("", "registry=s3://bucket", vec!["registry", "not served yet"]),
            ("", "limit.mem_mb=3", vec!["did you mean limits.mem_mb"]),
            ("", "worker_port", vec!["key=value"]),
            ("", "worker_port=-1", vec!["worker_port = -1"]),
            ("", "features.enable_seccomp=1", vec!["true or false"]),
        ] {
            let error = load(file, &[over]).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }

    #[test]
    fn a_key_without_effect_is_accepted_and_noted() {
        let settings = load("[storage]\nroot = \"memory\"", &["trace.memory=true"]).unwrap();
        assert_eq!(settings.notes().len(), 2);
        assert!(settings.notes()[0].contains("storage.root"), "{:?}", settings.notes());
    }
}
