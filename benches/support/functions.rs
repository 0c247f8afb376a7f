//! The functions of `benches/functions`, and copies of them under other names: a
//! function has one instance, so many instances are many functions.

use std::path::{Path, PathBuf};

use super::worker::Worker;

/// A function of `benches/functions`.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    pub name: &'static str,
    /// It has a zygote of its own packages.
    pub packages: bool,
}

pub const NOOP: Function = Function { name: "noop", packages: false };
/// A small call of numpy and pandas: what users feel is the start.
pub const PANDAS: Function = Function { name: "pandas", packages: true };
pub const PILLOW: Function = Function { name: "pillow", packages: true };
/// A call of pandas that takes longer than its start.
pub const GROUPBY: Function = Function { name: "groupby", packages: true };

const ALL: [Function; 4] = [NOOP, PANDAS, PILLOW, GROUPBY];

/// Lines of `ol.yaml`: a new sandbox for each call.
pub const ONCE: &str = "reuse-sandbox: false\n";
const SNAPSHOT: &str = "reuse-sandbox: false\nsnapshot: true\n";

/// All of them, or those that `HOSIER_BENCH_FUNCTIONS=noop,pandas` names.
pub fn chosen() -> Vec<Function> {
    let names = std::env::var("HOSIER_BENCH_FUNCTIONS").unwrap_or_default();
    let wanted = |function: &Function| names.is_empty() || names.split(',').any(|name| name == function.name);
    ALL.into_iter().filter(wanted).collect()
}

impl Function {
    pub fn source(self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/functions").join(self.name)
    }

    /// The copy that gets a new sandbox for each call.
    pub fn once(self) -> String {
        format!("{}-once", self.name)
    }

    /// The same, from a zygote that has its handler imported.
    pub fn snapshot(self) -> String {
        format!("{}-snapshot", self.name)
    }

    /// Its packages, as the store names them.
    pub fn pins(self) -> Vec<String> {
        let text = std::fs::read_to_string(self.source().join("requirements.txt")).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    }

    /// Stores it with its packages, as it is and in its copies for cold starts.
    pub fn deploy(self, home: &Worker) {
        eprintln!("deploying {}", self.name);
        home.ok(&["deploy", &self.source().to_string_lossy(), "-n", self.name]);
        self.copy(home, &self.once(), ONCE);
        self.copy(home, &self.snapshot(), SNAPSHOT);
    }

    /// Puts a copy into the registry, with these lines more in its `ol.yaml`. Its
    /// packages are in the store already.
    pub fn copy(self, home: &Worker, name: &str, more: &str) {
        let target = home.path().join("registry").join(name);
        std::fs::create_dir_all(&target).unwrap();
        let entries = std::fs::read_dir(self.source()).unwrap().flatten();
        for file in entries.map(|entry| entry.path()).filter(|path| path.is_file()) {
            std::fs::copy(&file, target.join(file.file_name().unwrap())).unwrap();
        }
        let settings = target.join("ol.yaml");
        let text = std::fs::read_to_string(&settings).unwrap_or_default();
        std::fs::write(settings, text + more).unwrap();
    }

    /// So many copies; their names.
    pub fn copies(self, home: &Worker, count: usize, more: &str) -> Vec<String> {
        let names: Vec<_> = (0..count).map(|number| format!("{}-{number:04}", self.name)).collect();
        names.iter().for_each(|name| self.copy(home, name, more));
        names
    }
}
