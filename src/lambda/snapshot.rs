//! What a function says of a snapshot node: in its `ol.yaml`, else in its
//! `pyproject.toml`. Plain data; read in the worker and by `hosier deploy`.
//!
//! ```text
//! snapshot: true                     its module is imported ahead of need
//! snapshot: {warmup: {"n": 1}}       and called once with this event
//! ```

use std::fmt;
use std::path::Path;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::config::ConfigError;

const PYPROJECT_FILE: &str = "pyproject.toml";
/// The largest one that is read, in bytes.
const PYPROJECT_LIMIT_BYTES: u64 = 256 << 10;
/// The longest warm-up event as JSON, in bytes: it goes to a zygote in one message.
const WARMUP_LIMIT_BYTES: usize = 32 << 10;

/// Whether a function asks for a snapshot node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SnapshotConfig {
    /// It does not say: no.
    #[default]
    Unsaid,
    Off,
    /// It does, and perhaps for a call with this event before the snapshot.
    On {
        warmup: Option<Value>,
    },
}

impl SnapshotConfig {
    pub fn is_on(&self) -> bool {
        matches!(self, SnapshotConfig::On { .. })
    }

    /// The warm-up event as JSON text.
    pub fn warmup(&self) -> Option<String> {
        match self {
            SnapshotConfig::On { warmup } => warmup.as_ref().map(Value::to_string),
            SnapshotConfig::Unsaid | SnapshotConfig::Off => None,
        }
    }

    /// # Errors
    /// Its event is too long.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        match self.warmup() {
            Some(event) if event.len() > WARMUP_LIMIT_BYTES => Err(ConfigError::BadValue {
                key: "snapshot.warmup".to_owned(),
                value: format!("{} bytes", event.len()),
                allowed: "an event of at most 32768 bytes of JSON",
            }),
            _ => Ok(()),
        }
    }

    /// What `[tool.hosier]` in the `pyproject.toml` of `dir` says.
    ///
    /// # Errors
    /// The file cannot be read, or its table has an unknown key or a value that is not possible.
    pub(super) fn of_pyproject(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(PYPROJECT_FILE);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() <= PYPROJECT_LIMIT_BYTES => {}
            _ => return Ok(Self::Unsaid),
        }
        let bytes = std::fs::read(&path)?;
        let text = String::from_utf8_lossy(&bytes);
        // Most files are other tools' alone: whether those like them is not asked here.
        if !text.contains("hosier") {
            return Ok(Self::Unsaid);
        }
        let wrong = |error: toml::de::Error| ConfigError::Project(error.message().to_owned());
        let project: Project = toml::from_str(&text).map_err(wrong)?;
        let said = project.tool.hosier.snapshot;
        said.check()?;
        Ok(said)
    }
}

/// The part of a `pyproject.toml` that is ours.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Project {
    tool: Tools,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Tools {
    hosier: Ours,
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
struct Ours {
    snapshot: SnapshotConfig,
}

impl Serialize for SnapshotConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SnapshotConfig::Unsaid | SnapshotConfig::Off => serializer.serialize_bool(false),
            SnapshotConfig::On { warmup: None } => serializer.serialize_bool(true),
            SnapshotConfig::On { warmup: Some(event) } => {
                serializer.collect_map(std::iter::once(("warmup", event)))
            }
        }
    }
}

impl<'de> Deserialize<'de> for SnapshotConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Said)
    }
}

struct Said;

impl<'de> Visitor<'de> for Said {
    type Value = SnapshotConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`snapshot` to be true, false or {warmup: EVENT}")
    }

    fn visit_bool<E: de::Error>(self, on: bool) -> Result<SnapshotConfig, E> {
        Ok(if on { SnapshotConfig::On { warmup: None } } else { SnapshotConfig::Off })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SnapshotConfig, A::Error> {
        let mut warmup = None;
        while let Some(key) = map.next_key::<String>()? {
            if key != "warmup" {
                return Err(de::Error::unknown_field(&key, &["warmup"]));
            }
            if warmup.replace(map.next_value()?).is_some() {
                return Err(de::Error::duplicate_field("warmup"));
            }
        }
        Ok(SnapshotConfig::On { warmup })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Blame;
    use super::super::config::FunctionConfig;
    use super::*;
    use crate::sandbox::Limits;

    fn loaded(files: &[(&str, &str)]) -> Result<SnapshotConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        FunctionConfig::load(dir.path()).map(|config| config.snapshot)
    }

    #[test]
    fn a_snapshot_is_asked_for_with_or_without_a_warm_up_event() {
        for (text, on, warmup, shown) in [
            ("", false, None, "false"),
            ("snapshot: false", false, None, "false"),
            ("snapshot: true", true, None, "true"),
            ("snapshot: {}", true, None, "true"),
            (
                "snapshot: {warmup: {x: [1, a]}}",
                true,
                Some(r#"{"x":[1,"a"]}"#),
                r#"{"warmup":{"x":[1,"a"]}}"#,
            ),
            ("snapshot: {warmup: 3}", true, Some("3"), r#"{"warmup":3}"#),
        ] {
            let config = FunctionConfig::parse(text).unwrap();
            assert_eq!(config.snapshot.is_on(), on, "{text}");
            assert_eq!(config.snapshot.warmup().as_deref(), warmup, "{text}");
            assert_eq!(config.to_json(Limits::default())["snapshot"].to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_named() {
        let long = format!("snapshot: {{warmup: {}}}", "x".repeat(WARMUP_LIMIT_BYTES));
        for (text, part) in [
            ("snapshot: yes please", "snapshot"),
            ("snapshot: [true]", "snapshot"),
            ("snapshot: {warm_up: 1}", "warm_up"),
            (long.as_str(), "snapshot.warmup"),
        ] {
            let error = FunctionConfig::parse(text).unwrap_err();
            assert!(error.to_string().contains(part), "{text}: {error}");
            assert_eq!(error.blame(), Blame::Function);
        }
    }

    #[test]
    fn pyproject_speaks_where_ol_yaml_is_silent() {
        let project = |text| ("pyproject.toml", text);
        let on = SnapshotConfig::On { warmup: None };
        assert_eq!(loaded(&[project("[tool.hosier]\nsnapshot = true\n")]).unwrap(), on);
        assert_eq!(
            loaded(&[project("[tool.hosier]\nsnapshot = {warmup = {x = 1}}\n")]).unwrap().warmup().unwrap(),
            r#"{"x":1}"#
        );
        let both = [project("[tool.hosier]\nsnapshot = true\n"), ("ol.yaml", "snapshot: false\n")];
        assert_eq!(loaded(&both).unwrap(), SnapshotConfig::Off);
        assert_eq!(loaded(&[project("[tool.other\n")]).unwrap(), SnapshotConfig::Unsaid);
        let wrong = loaded(&[project("[tool.hosier]\nsnap = true\n")]).unwrap_err();
        assert!(
            wrong.to_string().contains("pyproject.toml") && wrong.to_string().contains("snap"),
            "{wrong}"
        );
    }
}
