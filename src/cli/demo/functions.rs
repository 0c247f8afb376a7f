//! The functions of `demo/`, carried in the program so that it needs no source tree.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::CliError;

/// A function of the demo.
pub struct Function {
    pub name: &'static str,
    /// What it is called with.
    pub event: &'static str,
    files: &'static [(&'static str, &'static str)],
}

macro_rules! file {
    ($path:literal, $name:literal) => {
        ($name, include_str!(concat!("../../../demo/", $path, "/", $name)))
    };
}

pub const ALL: [Function; 3] = [
    Function { name: "hello", event: r#"{"name": "Ada"}"#, files: &[file!("hello", "f.py")] },
    Function {
        name: "stats",
        event: r#"{"by": "month"}"#,
        files: &[file!("stats", "f.py"), file!("stats", "ol.yaml"), file!("stats", "requirements.txt")],
    },
    Function {
        name: "thumbnail",
        event: r#"{"size": 128}"#,
        files: &[
            file!("thumbnail", "f.py"),
            file!("thumbnail", "ol.yaml"),
            file!("thumbnail", "requirements.txt"),
        ],
    },
];

/// A name under which a function is deployed.
pub struct Deployed {
    pub name: String,
    function: &'static Function,
    reuse: bool,
}

impl Function {
    /// The function as a user has it, and a copy that gets a new sandbox for
    /// each call, so that a cold start can be had at will.
    pub fn deployed(&'static self) -> [Deployed; 2] {
        [
            Deployed { name: self.warm(), function: self, reuse: true },
            Deployed { name: self.cold(), function: self, reuse: false },
        ]
    }

    pub fn warm(&self) -> String {
        format!("demo-{}", self.name)
    }

    pub fn cold(&self) -> String {
        format!("demo-{}-cold", self.name)
    }

    /// The packages that it pins, as the store names them.
    pub fn pins(&self) -> impl Iterator<Item = &'static str> {
        let requirements = self.files.iter().find(|(name, _)| *name == "requirements.txt");
        let lines = requirements.map_or("", |(_, text)| text).lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
    }
}

impl Deployed {
    /// Writes its files below `dir`; the directory to deploy.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn write(&self, dir: &Path) -> Result<PathBuf, CliError> {
        let source = dir.join(&self.name);
        let file = |source| CliError::File { path: dir.join(&self.name), source };
        fs::create_dir_all(&source).map_err(file)?;
        for (name, text) in self.function.files {
            fs::write(source.join(name), text).map_err(file)?;
        }
        if !self.reuse {
            let path = source.join("ol.yaml");
            let settings = fs::read_to_string(&path).unwrap_or_default();
            fs::write(path, settings + "reuse-sandbox: false\n").map_err(file)?;
        }
        Ok(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_without_the_comments() {
        let pins = |name: &str| ALL.iter().find(|function| function.name == name).unwrap().pins().count();
        assert_eq!((pins("hello"), pins("stats"), pins("thumbnail")), (0, 7, 2));
    }
}
