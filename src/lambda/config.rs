//! A function's own settings: its `ol.yaml`, checked once. Plain data; read in
//! the worker and by `hosier deploy`.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::Blame;
use super::snapshot::SnapshotConfig;
use crate::sandbox::{Limits, PartialLimits};

/// The file's name in a function's directory.
pub const CONFIG_FILE: &str = "ol.yaml";

/// The text in the place of a value of `environment`: it may be a secret.
const HIDDEN: &str = "(hidden)";

/// The largest one that is read, in bytes.
const SIZE_LIMIT_BYTES: u64 = 64 << 10;

/// A function's settings. The default is that of a function without `ol.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionConfig {
    pub triggers: Triggers,
    pub environment: BTreeMap<String, String>,
    /// False: a fresh sandbox for each invocation.
    #[serde(rename = "reuse-sandbox")]
    pub reuse_sandbox: bool,
    pub limits: PartialLimits,
    /// Asks for a zygote of its own with the handler imported.
    pub snapshot: SnapshotConfig,
}

impl Default for FunctionConfig {
    fn default() -> Self {
        Self {
            triggers: Triggers::default(),
            environment: BTreeMap::new(),
            reuse_sandbox: true,
            limits: PartialLimits::default(),
            snapshot: SnapshotConfig::default(),
        }
    }
}

/// What calls the function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Triggers {
    pub http: Vec<HttpTrigger>,
    pub cron: Vec<CronTrigger>,
    pub kafka: Vec<KafkaTrigger>,
}

impl Default for Triggers {
    fn default() -> Self {
        Self { http: vec![HttpTrigger { method: "*".to_owned() }], cron: Vec::new(), kafka: Vec::new() }
    }
}

/// An HTTP method that may call the function; `*` is all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpTrigger {
    pub method: String,
}

/// A schedule in cron's five fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CronTrigger {
    pub schedule: String,
}

/// A Kafka consumer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaTrigger {
    pub bootstrap_servers: Vec<String>,
    pub topics: Vec<String>,
    #[serde(default)]
    pub auto_offset_reset: Option<String>,
}

/// Where a function's code begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the function's directory.
    pub file: String,
    pub kind: EntryKind,
}

/// What of the entry file is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// A function `f`, else an object `app`; the runtime looks.
    Discover,
    /// The WSGI callable of this name.
    Wsgi(String),
    /// The ASGI callable of this name.
    Asgi(String),
}

/// A function's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{CONFIG_FILE} cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("{CONFIG_FILE} is larger than {SIZE_LIMIT_BYTES} bytes")]
    TooLarge,
    #[error("{CONFIG_FILE}: {0}")]
    Syntax(String),
    #[error("pyproject.toml: [tool.hosier]: {0}")]
    Project(String),
    #[error("{CONFIG_FILE}: {key} = {value:?} is not possible; allowed: {allowed}")]
    BadValue { key: String, value: String, allowed: &'static str },
    #[error(
        "{CONFIG_FILE}: limits.{key} = {value} is more than this worker gives a function: at most {most}; \
         ask for less, or raise max_limits.{key} in hosier.toml"
    )]
    TooMuch { key: &'static str, value: u32, most: u32 },
}

impl ConfigError {
    pub fn blame(&self) -> Blame {
        match self {
            ConfigError::Read(_) => Blame::Worker,
            _ => Blame::Function,
        }
    }
}

impl FunctionConfig {
    /// Reads `ol.yaml` of the function in `dir`; without one, the default. Where it says
    /// nothing of a snapshot, `pyproject.toml` may.
    ///
    /// # Errors
    /// It cannot be read, is no YAML, has an unknown key, or a value that is not possible.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(CONFIG_FILE);
        let mut config = match std::fs::metadata(&path) {
            Ok(meta) if meta.len() > SIZE_LIMIT_BYTES => return Err(ConfigError::TooLarge),
            Ok(_) => Self::parse(&std::fs::read_to_string(&path)?)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(error.into()),
        };
        if config.snapshot == SnapshotConfig::Unsaid {
            config.snapshot = SnapshotConfig::of_pyproject(dir)?;
        }
        Ok(config)
    }

    /// # Errors
    /// As [`FunctionConfig::load`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::Options { with_snippet: false, ..serde_saphyr::Options::default() };
        let config: Option<Self> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| ConfigError::Syntax(error.to_string()))?;
        let config = config.unwrap_or_default();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |key: &str, value: &str, allowed| {
            Err(ConfigError::BadValue { key: key.to_owned(), value: value.to_owned(), allowed })
        };
        for HttpTrigger { method } in &self.triggers.http {
            if method != "*" && (method.is_empty() || !method.bytes().all(|b| b.is_ascii_alphabetic())) {
                return bad("triggers.http.method", method, "an HTTP method, or \"*\" for all");
            }
        }
        for CronTrigger { schedule } in &self.triggers.cron {
            if schedule.split_whitespace().count() != 5 {
                return bad("triggers.cron.schedule", schedule, "cron's five fields, as \"*/5 * * * *\"");
            }
        }
        for (name, value) in &self.environment {
            if name.is_empty() || name.contains(['=', '\0']) {
                return bad("environment", name, "names without = and NUL");
            }
            if value.contains('\0') {
                return bad(&format!("environment.{name}"), HIDDEN, "text without NUL");
            }
        }
        if self.limits.swappiness > 100 {
            return bad("limits.swappiness", &self.limits.swappiness.to_string(), "0 to 100");
        }
        self.snapshot.check()?;
        self.entry().map(|_| ())
    }

    /// Checks that no limit is beyond what the operator gives a function.
    ///
    /// # Errors
    /// [`ConfigError::TooMuch`] names the first that is.
    pub fn check_limits(&self, most: &Limits) -> Result<(), ConfigError> {
        let asked = &self.limits;
        let pairs = [
            ("procs", asked.procs, most.procs),
            ("mem_mb", asked.mem_mb, most.mem_mb),
            ("cpu_percent", asked.cpu_percent, most.cpu_percent),
            ("swappiness", asked.swappiness, most.swappiness),
            ("runtime_sec", asked.runtime_sec, most.runtime_sec),
        ];
        match pairs.into_iter().find(|(_, asked, most)| asked > most) {
            Some((key, value, most)) => Err(ConfigError::TooMuch { key, value, most }),
            None => Ok(()),
        }
    }

    /// Where the code begins: `f.py`, or as `OL_ENTRY_FILE`, `OL_WSGI_ENTRY`
    /// and `OL_ASGI_ENTRY` say.
    ///
    /// # Errors
    /// The file is none that ends in `.py` inside the directory, or the name is none of Python's.
    pub fn entry(&self) -> Result<Entry, ConfigError> {
        let file = self.environment.get("OL_ENTRY_FILE").map_or("f.py", String::as_str);
        let inside =
            Path::new(file).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !file.ends_with(".py") || !inside {
            return Err(ConfigError::BadValue {
                key: "environment.OL_ENTRY_FILE".to_owned(),
                value: HIDDEN.to_owned(),
                allowed: "a file of the function that ends in .py",
            });
        }
        let named = |key: &str| match self.environment.get(key) {
            Some(name) if is_identifier(name) => Ok(Some(name.clone())),
            Some(_) => Err(ConfigError::BadValue {
                key: format!("environment.{key}"),
                value: HIDDEN.to_owned(),
                allowed: "the name of a callable in the entry file",
            }),
            None => Ok(None),
        };
        let kind = match (named("OL_WSGI_ENTRY")?, named("OL_ASGI_ENTRY")?) {
            (Some(name), _) => EntryKind::Wsgi(name),
            (None, Some(name)) => EntryKind::Asgi(name),
            (None, None) => EntryKind::Discover,
        };
        Ok(Entry { file: file.to_owned(), kind })
    }

    /// Whether this HTTP method may call the function.
    pub fn allows(&self, method: &str) -> bool {
        self.triggers.http.iter().any(|on| on.method == "*" || on.method.eq_ignore_ascii_case(method))
    }

    /// The methods that may, as OpenLambda's 405 lists them.
    pub fn allowed_list(&self) -> String {
        let names: Vec<_> = self.triggers.http.iter().map(|on| on.method.to_ascii_uppercase()).collect();
        names.join(" ")
    }

    /// What `GET /registry/NAME/config` answers: all keys, limits as they are
    /// applied by a worker whose own are `worker`. Values of `environment`, which may be
    /// secrets, are not shown.
    pub fn to_json(&self, worker: Limits) -> serde_json::Value {
        let mut value = serde_json::json!(self);
        for hidden in value["environment"].as_object_mut().into_iter().flat_map(|all| all.values_mut()) {
            *hidden = HIDDEN.into();
        }
        value["limits"] = serde_json::json!(self.limits.or(worker));
        value
    }
}

fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c == '_' || c.is_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_contract_is_read() {
        let config = FunctionConfig::parse(
            "triggers:\n  http: [{method: get}, {method: POST}]\n  cron: [{schedule: '*/5 * * * *'}]\n  \
             kafka: [{bootstrap_servers: [a:9092], topics: [t], auto_offset_reset: latest}]\n\
             environment: {PORT: 8080, ON: true, OL_ENTRY_FILE: src/app.py, OL_ASGI_ENTRY: web}\n\
             reuse-sandbox: false\nlimits: {procs: 3, mem_mb: 0, runtime_sec: 9}\nsnapshot: true\n",
        )
        .unwrap();
        assert!(config.allows("GET") && config.allows("post") && !config.allows("PUT"));
        assert_eq!(config.allowed_list(), "GET POST");
        assert_eq!(
            (config.environment["PORT"].as_str(), config.environment["ON"].as_str()),
            ("8080", "true")
        );
        assert!(!config.reuse_sandbox && config.snapshot.is_on());
        let limits = config.limits.or(Limits::default());
        assert_eq!((limits.procs, limits.mem_mb, limits.runtime_sec), (3, 50, 9));
        let entry = config.entry().unwrap();
        assert_eq!(entry, Entry { file: "src/app.py".to_owned(), kind: EntryKind::Asgi("web".to_owned()) });
        assert_eq!(config.to_json(Limits::default())["limits"]["mem_mb"], 50);
        assert_eq!(config.to_json(Limits::default())["reuse-sandbox"], false);
        assert_eq!(config.to_json(Limits::default())["environment"]["PORT"], HIDDEN);
    }

    #[test]
    fn a_function_without_settings_takes_every_method() {
        for text in ["", "# only a comment\n", "{}", "triggers: {cron: []}"] {
            let config = FunctionConfig::parse(text).unwrap();
            assert!(config.allows("PATCH") && config.reuse_sandbox, "{text:?}");
            assert_eq!(config.entry().unwrap().kind, EntryKind::Discover);
        }
        assert!(!FunctionConfig::parse("triggers: {http: []}").unwrap().allows("GET"));
    }

    #[test]
    fn an_error_names_the_key() {
        for (text, part) in [
            ("reuse_sandbox: true", "reuse_sandbox"),
            ("limits: {memory: 3}", "memory"),
            ("limits: {procs: -3}", "line 1"),
            ("triggers: {http: [{path: /x}]}", "path"),
            ("triggers: {http: [{method: 'G T'}]}", "triggers.http.method"),
            ("triggers: {cron: [{schedule: daily}]}", "schedule"),
            ("environment: {'a=b': x}", "a=b"),
            ("environment: {OL_WSGI_ENTRY: 'os.system'}", "OL_WSGI_ENTRY"),
            ("a: [", "line"),
        ] {
            let error = FunctionConfig::parse(text).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.blame(), Blame::Function);
        }
    }

    #[test]
    fn a_limit_beyond_the_operators_is_refused_by_name() {
        let most = Limits { procs: 100, mem_mb: 512, cpu_percent: 200, swappiness: 60, runtime_sec: 60 };
        for (text, key) in [
            ("procs: 101", "procs"),
            ("mem_mb: 1000000", "mem_mb"),
            ("cpu_percent: 201", "cpu_percent"),
            ("swappiness: 61", "swappiness"),
            ("runtime_sec: 61", "runtime_sec"),
        ] {
            let error = FunctionConfig::parse(&format!("limits: {{{text}}}")).unwrap().check_limits(&most);
            let error = error.unwrap_err();
            assert!(error.to_string().contains(&format!("max_limits.{key}")), "{error}");
            assert_eq!(error.blame(), Blame::Function);
        }
        let fits = "limits: {procs: 100, mem_mb: 512, cpu_percent: 200, swappiness: 60, runtime_sec: 60}";
        for text in [fits, "", "limits: {mem_mb: 0}"] {
            FunctionConfig::parse(text).unwrap().check_limits(&most).unwrap();
        }
    }

    #[test]
    fn an_entry_file_stays_inside_the_function() {
        for file in ["../f.py", "/etc/f.py", "f.sh", "a/../../f.py", "./f.py"] {
            let text = format!("environment: {{OL_ENTRY_FILE: {file}}}");
            assert!(FunctionConfig::parse(&text).is_err() == (file != "./f.py"), "{file}");
        }
    }

    #[test]
    fn aliases_do_not_blow_up() {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for n in 1..12 {
            let one = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", vec![one; 9].join(","));
        }
        assert!(FunctionConfig::parse(&text).is_err());
    }
}
