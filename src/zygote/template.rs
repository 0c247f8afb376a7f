//! The operator's tree file. Pure: text in, data out. Runs in the worker.
//!
//! ```text
//! {"packages": [], "children": [
//!     {"packages": ["numpy==2.1.0"], "children": [ {"packages": ["pandas"]} ]} ]}
//! ```
//!
//! A node without a version is a template: it is grown once for each version
//! that functions pin. Other keys are ignored, as OpenLambda's files have some.

use serde::Deserialize;

use super::{Pins, normalize};

/// The deepest tree: pid namespaces nest at most 32 deep, and the spawner, a
/// leaf and what the worker itself runs in take some.
const MAX_DEPTH: usize = 16;
const MAX_NODES: usize = 4_096;

/// One node of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Template {
    pub packages: Vec<Wanted>,
    pub children: Vec<Template>,
}

/// A package that a node imports; any version if none is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: String,
    pub version: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the import cache tree is not JSON of the form {{\"packages\": […], \"children\": […]}}: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the import cache tree names {0:?}: write a package as name or name==version")]
    Package(String),
    #[error("the import cache tree is deeper than {MAX_DEPTH} nodes: pid namespaces nest at most 32 deep")]
    TooDeep,
    #[error("the import cache tree has more than {MAX_NODES} nodes")]
    TooLarge,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    children: Vec<Raw>,
}

impl Template {
    /// # Errors
    /// The text is no tree, or one that is too deep.
    pub fn parse(json: &str) -> Result<Self, TemplateError> {
        let mut left = MAX_NODES;
        check(serde_json::from_str(json)?, 0, &mut left)
    }

    /// The pins that this node needs, if `pins` has all of them.
    pub fn matched(&self, pins: &Pins) -> Option<Pins> {
        self.packages
            .iter()
            .map(|wanted| {
                let fits = |version: &str| wanted.version.as_deref().is_none_or(|asked| asked == version);
                pins.iter().find(|pin| pin.name() == wanted.name && fits(pin.version())).cloned()
            })
            .collect()
    }
}

fn check(raw: Raw, depth: usize, left: &mut usize) -> Result<Template, TemplateError> {
    if depth > MAX_DEPTH {
        return Err(TemplateError::TooDeep);
    }
    *left = left.checked_sub(1).ok_or(TemplateError::TooLarge)?;
    let packages = raw.packages.iter().map(|text| wanted(text)).collect::<Result<_, _>>()?;
    let children =
        raw.children.into_iter().map(|child| check(child, depth + 1, left)).collect::<Result<_, _>>()?;
    Ok(Template { packages, children })
}

fn wanted(text: &str) -> Result<Wanted, TemplateError> {
    let bad = || TemplateError::Package(text.to_owned());
    let (name, version) = match text.split_once("==") {
        Some((name, version)) => (name, Some(version.trim().to_ascii_lowercase())),
        None => (text, None),
    };
    let name = normalize(name.trim()).ok_or_else(bad)?;
    if version.as_deref() == Some("") {
        return Err(bad());
    }
    Ok(Wanted { name, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(texts: &[&str]) -> Pins {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn other_keys_of_a_node_are_ignored() {
        let tree =
            Template::parse(r#"{"packages": [], "id": 7, "children": [{"packages": ["NumPy==2.1.0"]}]}"#);
        assert_eq!(tree.unwrap().children[0].packages[0].name, "numpy");
    }

    #[test]
    fn a_node_without_a_version_takes_the_one_that_is_pinned() {
        let node = Template::parse(r#"{"packages": ["numpy"]}"#).unwrap();
        assert_eq!(node.matched(&pins(&["numpy==1.26.4", "six==1.16.0"])), Some(pins(&["numpy==1.26.4"])));
        assert_eq!(node.matched(&pins(&["six==1.16.0"])), None);
    }

    #[test]
    fn a_node_with_a_version_takes_no_other() {
        let node = Template::parse(r#"{"packages": ["numpy==2.1.0"]}"#).unwrap();
        assert_eq!(node.matched(&pins(&["numpy==1.26.4"])), None);
    }

    #[test]
    fn a_tree_deeper_than_pid_namespaces_nest_is_refused() {
        let deep =
            |levels: usize| format!("{}{{}}{}", r#"{"children": ["#.repeat(levels), "]}".repeat(levels));
        assert!(Template::parse(&deep(16)).is_ok());
        assert!(matches!(Template::parse(&deep(17)), Err(TemplateError::TooDeep)));
        assert!(Template::parse("[").is_err());
        assert!(matches!(Template::parse(r#"{"packages": ["a=="]}"#), Err(TemplateError::Package(_))));
    }
}
