//! Holds what the layout promises, by reading the sources as text: starts no process, needs no root.
//!
//! ```text
//! cli ──> trigger ──> lambda ──> zygote ──> sandbox ──> the crate hosier_zygote
//!   each may use all to its right; settings and stats are plain data, used by all
//! ```
//!
//! Each rule is a function from text to complaints, so that it can be shown a text that breaks it.

use std::fs;
use std::path::{Path, PathBuf};

/// A part of the worker and what it may use, beside itself and the crate below.
const FLOORS: [(&str, &[&str]); 7] = [
    ("cli", &["trigger", "lambda", "zygote", "sandbox", "settings", "stats"]),
    ("trigger", &["lambda", "zygote", "sandbox", "settings", "stats"]),
    ("lambda", &["zygote", "sandbox", "settings", "stats"]),
    ("zygote", &["sandbox", "settings", "stats"]),
    ("sandbox", &["settings", "stats"]),
    // Settings hold the sandbox's limits, which are plain data too.
    ("settings", &["sandbox"]),
    ("stats", &[]),
];

/// Unmaintained or unsound; `deny.toml` says what is used in their place.
const FORBIDDEN_CRATES: [&str; 5] = ["bincode", "serde_yaml", "serde_yml", "clone3", "capctl"];

/// Code that meets what a sandbox wrote. It goes through `sandbox::foreign`: by descriptor.
const MEETS_STRANGERS: [&str; 6] = [
    "src/lambda/code.rs",
    "src/lambda/packages/",
    "src/lambda/tree.rs",
    "src/sandbox/command.rs",
    "src/sandbox/foreign/",
    "src/sandbox/spawner/",
];

/// Calls that follow a link, wait for a FIFO, or change whatever a path leads to.
const BY_PATH: [&str; 17] = [
    "File::create(",
    "File::create_new(",
    "File::open(",
    "File::options(",
    "OpenOptions::new(",
    "chown(",
    "fs::canonicalize(",
    "fs::copy(",
    "fs::hard_link(",
    "fs::metadata(",
    "fs::read(",
    "fs::read_dir(",
    "fs::read_link(",
    "fs::read_to_string(",
    "fs::set_permissions(",
    "fs::write(",
    "lchown(",
];

/// Files among them that may call some of these, and the directory that they do it on: one
/// that no sandbox can write.
const OWN_DIRECTORIES: [(&str, &[&str], &str); 9] = [
    (
        "src/lambda/code.rs",
        &["fs::read_dir(", "File::open("],
        "the versions' directory, code before it is compiled",
    ),
    (
        "src/lambda/packages/mod.rs",
        &["fs::read_dir(", "fs::read(", "File::open(", "File::options("],
        "the store, its locks, descriptions that the worker wrote",
    ),
    (
        "src/lambda/packages/digests.rs",
        &["fs::read_dir(", "fs::read_link("],
        "entries of the store: settled, and read-only wherever a sandbox sees them",
    ),
    ("src/lambda/packages/entries.rs", &["fs::read(", "fs::read_dir("], "descriptions that the worker wrote"),
    ("src/lambda/packages/step.rs", &["File::open("], "an install's own directory, to lock it"),
    ("src/lambda/packages/operator.rs", &["fs::read_to_string("], "pip's configuration on the host"),
    ("src/lambda/packages/tools.rs", &["fs::metadata(", "fs::set_permissions("], "the operator's tools"),
    (
        "src/lambda/tree.rs",
        &["fs::read_dir(", "fs::read_link(", "fs::set_permissions(", "OpenOptions::new("],
        "the registry, and copies that the worker made",
    ),
    ("src/sandbox/foreign/aside.rs", &["fs::read_dir("], "names in the worker's own directories"),
];

const POLICIES: [&str; 3] = ["installer.json", "leaf.json", "zygote.json"];

#[test]
fn every_source_file_says_what_it_is_for() {
    let files = sources();
    assert!(files.len() > 10, "only {} source files were found", files.len());
    assert_none(files.iter().flat_map(|(path, text)| opening(path, text)));
}

#[test]
fn imports_go_down_only() {
    assert_none(sources().iter().flat_map(|(path, text)| imports(path, text)));
}

#[test]
fn no_forbidden_crate_is_used() {
    let manifests = ["Cargo.toml", "Cargo.lock", "zygote/Cargo.toml", "zygote/module/Cargo.toml"];
    let manifests = manifests.map(|path| (path.to_owned(), read(&root().join(path))));
    assert_none(manifests.iter().flat_map(|(path, text)| forbidden_dependencies(path, text)));
    assert_none(sources().iter().flat_map(|(path, text)| forbidden_paths(path, text)));
}

#[test]
fn every_rule_of_a_policy_has_a_reason() {
    for name in POLICIES {
        assert_none(unexplained(name, &read(&root().join("seccomp").join(name))));
    }
    let others = files_below(&root().join("seccomp"), "json");
    assert_eq!(others.len(), POLICIES.len(), "a policy that no test reads: {others:?}");
}

/// A path that a sandbox may have replaced leads anywhere on the host.
#[test]
fn what_strangers_wrote_is_not_touched_by_path() {
    let files = sources();
    for place in MEETS_STRANGERS {
        assert!(
            files.iter().any(|(path, _)| path.starts_with(place)),
            "{place} is not there: the rule holds nothing"
        );
    }
    assert_none(files.iter().flat_map(|(path, text)| by_path(path, text)));
    assert_none(files.iter().flat_map(|(path, text)| recursion(path, text)));
}

/// The proof that the checks above can fail: each is shown a text that breaks it, and one that does not.
#[test]
fn the_checks_notice_what_they_forbid() {
    assert_eq!(opening("src/sandbox/a.rs", "// A comment.\n//! Late.\n").len(), 1);
    assert_eq!(opening("src/sandbox/a.rs", "//!\n").len(), 1);
    assert!(opening("src/sandbox/a.rs", "//! Says it.\n").is_empty());

    let broken = [
        ("src/sandbox/a.rs", "use crate::zygote::Tree;"),
        ("src/sandbox/a.rs", "fn f() { crate::lambda::g() }"),
        ("src/sandbox/a.rs", "use super::super::zygote::Tree;"),
        ("src/sandbox/a.rs", "mod tests { use super::super::super::cli; }"),
        ("src/sandbox/mod.rs", "use super::cli;"),
        ("src/sandbox/mod.rs", "use super::{stats::Stats, cli};"),
        ("src/zygote/a.rs", "use crate::{\n    sandbox::Plan,\n    lambda::{Name, Answer},\n};"),
        ("src/lambda/a.rs", "use crate :: trigger::Server;"),
        ("src/lambda/a.rs", "use crate::*;"),
        ("src/stats.rs", "use crate::sandbox::Limits;"),
        ("src/main.rs", "use hosier::lambda::Function;"),
        ("src/attic/mod.rs", "//! Belongs to no floor."),
        ("zygote/src/lib.rs", "use hosier::sandbox::Plan;"),
    ];
    for (path, text) in broken {
        assert_eq!(imports(path, text).len(), 1, "{path}: {text}");
    }
    let sound = [
        ("src/sandbox/a.rs", "//! crate::lambda is above.\nuse crate::sandbox::Plan; // not crate::zygote"),
        ("src/sandbox/a.rs", "const NAME: &str = \"crate::lambda\";\nuse super::limits::Limits;"),
        ("src/zygote/a.rs", "use crate::{sandbox::{Plan, lambda}, stats::Stats};\nuse hosier_zygote::sys;"),
        ("src/cli/a.rs", "use crate::trigger::Server;\npub(crate) fn f() {}"),
        ("src/settings.rs", "use crate::sandbox::Limits;"),
        ("src/main.rs", "hosier::cli::main()"),
        ("zygote/src/lib.rs", "use crate::lambda; /* use hosier::sandbox; */"),
    ];
    for (path, text) in sound {
        assert!(imports(path, text).is_empty(), "{:?}", imports(path, text));
    }

    assert_eq!(forbidden_dependencies("Cargo.toml", "[dependencies]\nserde_yaml = \"0.9\"\n").len(), 1);
    assert_eq!(forbidden_dependencies("Cargo.toml", "yaml = { package = \"serde_yml\" }\n").len(), 1);
    assert_eq!(forbidden_dependencies("Cargo.lock", "name = \"bincode\"\nversion = \"1.3.3\"\n").len(), 1);
    assert!(forbidden_dependencies("Cargo.toml", "# bincode\nserde = \"1\"\n").is_empty());
    assert_eq!(forbidden_paths("src/a.rs", "use capctl::caps;").len(), 1);
    assert!(forbidden_paths("src/a.rs", "// clone3::Clone3\nlet n = libc::SYS_clone3;").is_empty());

    for text in
        ["fn f() { std::fs::write(p, b) }", "use std::fs;\nfn f() { fs :: copy(a, b); }", "lchown(p, o, g)"]
    {
        assert_eq!(by_path("src/lambda/packages/new.rs", text).len(), 1, "{text}");
        assert_eq!(by_path("src/sandbox/command.rs", text).len(), 1, "{text}");
        assert!(by_path("src/cli/up.rs", text).is_empty(), "{text}");
    }
    assert_eq!(by_path("src/lambda/code.rs", "File::open(p); fs::read_dir(p); fs::write(p, b)").len(), 1);
    let tests_may = "fn f() {}\n#[cfg(test)]\nmod tests { fn g() { fs::write(p, b) } }";
    assert!(by_path("src/sandbox/command.rs", tests_may).is_empty());
    assert!(by_path("src/sandbox/command.rs", "// fs::write(p)\nfchown(fd, o); offs::write(x)").is_empty());
    assert_eq!(recursion("src/cli/up.rs", "std::fs::remove_dir_all(p)").len(), 1);
    assert!(recursion("src/cli/up.rs", "// not remove_dir_all(p)").is_empty());

    let policy = |rule: &str| format!(r#"{{"syscalls": [{{"names": ["read"]{rule}}}]}}"#);
    assert_eq!(unexplained("a.json", &policy("")).len(), 1);
    assert_eq!(unexplained("a.json", &policy(r#", "comment": " ""#)).len(), 1);
    assert_eq!(unexplained("a.json", r#"{"syscalls": []}"#).len(), 1);
    assert!(unexplained("a.json", &policy(r#", "comment": "bytes of an open file""#)).is_empty());
}

/// The first line is `//!` and words.
fn opening(path: &str, text: &str) -> Vec<String> {
    let first = text.lines().next().unwrap_or_default();
    match first.strip_prefix("//!").map(str::trim) {
        Some(words) if !words.is_empty() => vec![],
        _ => vec![format!("{path}: does not open with `//!` and what it is for")],
    }
}

/// Each name at the root of its crate that `text` uses, against [`FLOORS`].
fn imports(path: &str, text: &str) -> Vec<String> {
    let code = squeezed(text);
    let complain = |what: &str| format!("{path}: {what}");
    if path.starts_with("zygote/") {
        let above = roots_used(&code, "hosier::");
        return above.iter().map(|name| complain(&format!("uses hosier::{name}, which is above"))).collect();
    }
    if path == "src/main.rs" {
        let used = roots_used(&code, "hosier::").into_iter().filter(|name| name != "cli");
        return used.map(|name| complain(&format!("uses {name}; the program is in cli"))).collect();
    }
    if path == "src/lib.rs" {
        return vec![];
    }
    let module: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    let module = module.strip_suffix(&["mod"]).unwrap_or(&module);
    let Some((floor, below)) = FLOORS.iter().find(|(floor, _)| *floor == module[0]) else {
        return vec![complain("belongs to no floor; give it one, or add it to FLOORS")];
    };
    let is_floor = |name: &str| FLOORS.iter().any(|(floor, _)| *floor == name);
    let mut used = roots_used(&code, "crate::");
    // As many `super` as the file is deep lead to the root of the crate.
    let up = "super::".repeat(module.len());
    used.extend(roots_used(&code, &up).into_iter().filter(|name| is_floor(name)));
    let wrong = used.into_iter().filter(|name| name != floor && !below.contains(&name.as_str()));
    wrong.map(|name| complain(&format!("{floor} may not use {name}"))).collect()
}

/// A dependency's name, or the package behind its name.
fn forbidden_dependencies(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().replace(' ', ""));
    let uses = |line: &str, name: &str| {
        let dashed = name.replace('_', "-");
        [name, &dashed].iter().any(|name| {
            line.starts_with(&format!("{name}="))
                || line.starts_with(&format!("{name}."))
                || line.contains(&format!("package=\"{name}\""))
                || line == format!("name=\"{name}\"")
        })
    };
    lines
        .flat_map(|line| FORBIDDEN_CRATES.into_iter().filter(move |name| uses(&line, name)))
        .map(|name| format!("{path}: depends on {name}; deny.toml says what to use"))
        .collect()
}

fn forbidden_paths(path: &str, text: &str) -> Vec<String> {
    let code = squeezed(text);
    let used = FORBIDDEN_CRATES.into_iter().filter(|name| {
        let starts = [format!("{name}::"), format!("use {name};"), format!("use {name} as")];
        starts.iter().any(|start| whole(&code, start).next().is_some())
    });
    used.map(|name| format!("{path}: uses {name}; deny.toml says what to use")).collect()
}

/// Calls by path in code that meets what a sandbox wrote, but those of [`OWN_DIRECTORIES`].
fn by_path(path: &str, text: &str) -> Vec<String> {
    if !MEETS_STRANGERS.iter().any(|place| path.starts_with(place)) {
        return vec![];
    }
    let code = worker_code(path, text);
    let own =
        OWN_DIRECTORIES.iter().find(|(file, _, _)| *file == path).map_or(&[][..], |(_, calls, _)| calls);
    let used = BY_PATH.iter().filter(|call| !own.contains(call) && whole(&code, call).next().is_some());
    used.map(|call| {
        format!("{path}: calls {call}…) by path; use sandbox::foreign, or say in OWN_DIRECTORIES why not")
    })
    .collect()
}

/// The remover of the standard library recurses: a deep tree ends the process.
fn recursion(path: &str, text: &str) -> Vec<String> {
    match worker_code(path, text).contains("remove_dir_all(") {
        true => vec![format!("{path}: calls remove_dir_all, which recurses; use sandbox::foreign::remove")],
        false => vec![],
    }
}

/// The code of a file without its tests.
fn worker_code(path: &str, text: &str) -> String {
    if path.ends_with("tests.rs") {
        return String::new();
    }
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    squeezed(&text[..end])
}

/// Docker's schema: each rule of `syscalls` has a `comment`.
fn unexplained(name: &str, text: &str) -> Vec<String> {
    let policy: serde_json::Value = match serde_json::from_str(text) {
        Ok(policy) => policy,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let Some(rules) = policy["syscalls"].as_array().filter(|rules| !rules.is_empty()) else {
        return vec![format!("{name}: has no rules in `syscalls`")];
    };
    let silent = rules.iter().filter(|rule| rule["comment"].as_str().is_none_or(|why| why.trim().is_empty()));
    silent.map(|rule| format!("{name}: no comment says why: {}", rule["names"])).collect()
}

/// The first names after `prefix`: of `crate::{a::b, c}` they are `a` and `c`.
fn roots_used(code: &str, prefix: &str) -> Vec<String> {
    let mut names = vec![];
    for at in whole(code, prefix) {
        let mut rest = &code[at + prefix.len()..];
        // A longer chain of `super` starts in a module within the file.
        while let Some(shorter) = rest.strip_prefix("super::") {
            rest = shorter;
        }
        let Some(group) = rest.strip_prefix('{') else {
            names.push(leading_name(rest));
            continue;
        };
        let mut depth = 0;
        let items = group[..group_end(group)].split(|c: char| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        names.extend(items.filter(|item| !item.is_empty()).map(leading_name));
    }
    names
}

/// Where the brace closes that was open before `group`.
fn group_end(group: &str) -> usize {
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return at;
        }
    }
    group.len()
}

/// The identifier that `code` starts with, or the star.
fn leading_name(code: &str) -> String {
    if code.starts_with('*') {
        return "*".to_owned();
    }
    code.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Where `start` occurs and is not the tail of a longer name.
fn whole<'a>(code: &'a str, start: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(start).map(|(at, _)| at).filter(|at| {
        let before = code[..*at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// The code without comments and the insides of string literals, and without space around `::` and braces.
fn squeezed(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            'r' if rest.starts_with("r#\"") => {
                rest.find("\"#").filter(|end| *end > 2).map_or(3, |end| end + 2)
            }
            '"' => string_len(rest),
            // A quote that is a character, such as '"', opens no string.
            '\'' if rest.starts_with("'\"'") => 3,
            '\'' if rest.starts_with("'\\\"'") => 4,
            _ => {
                code.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    let mut words = code.split_whitespace().collect::<Vec<_>>().join(" ");
    for mark in ["::", "{", "}", ","] {
        words = words.replace(&format!(" {mark}"), mark).replace(&format!("{mark} "), mark);
    }
    words
}

/// The length of the string literal that `text` starts with, quotes included.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Every `.rs` file of the worker and of the crate below it, by its path from the top.
fn sources() -> Vec<(String, String)> {
    let files = ["src", "zygote"].into_iter().flat_map(|dir| files_below(&root().join(dir), "rs"));
    files.map(|path| (relative(&path), read(&path))).collect()
}

fn files_below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    for path in entries.map(|entry| entry.expect("a directory can be listed to its end").path()) {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                found.extend(files_below(&path, extension));
            }
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_none(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
