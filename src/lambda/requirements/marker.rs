//! Environment markers (`; python_version < "3.9"`), for the base's Python on
//! Linux. Pure.
//!
//! ```text
//! or   = and ("or" and)*
//! and  = atom ("and" atom)*
//! atom = "(" or ")" | value operator value
//! ```

/// A CPython's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PythonVersion {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl PythonVersion {
    /// Reads `3.11.2`; what follows the third number is left out.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = numbers(text.trim()).into_iter();
        Some(Self { major: parts.next()?, minor: parts.next()?, micro: parts.next().unwrap_or(0) })
    }
}

/// How deep parentheses may nest.
const DEPTH_LIMIT: u32 = 16;

/// Whether the marker holds. Err says what of it is not understood.
pub fn holds(marker: &str, python: PythonVersion) -> Result<bool, String> {
    let tokens = tokens(marker)?;
    let mut reader = Reader { tokens: &tokens, python, depth: 0 };
    let value = reader.either()?;
    match reader.tokens.first() {
        None => Ok(value),
        Some(Token::Name(text) | Token::Sign(text) | Token::Text(text)) => {
            Err(format!("{text:?} is not expected there"))
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Name(String),
    Text(String),
    Sign(String),
}

fn tokens(mut text: &str) -> Result<Vec<Token>, String> {
    let mut out = Vec::new();
    loop {
        text = text.trim_start();
        let Some(first) = text.chars().next() else { return Ok(out) };
        let taken = match first {
            '(' | ')' => 1,
            '"' | '\'' => {
                let inner = &text[1..];
                let end = inner.find(first).ok_or("a quote is not closed")?;
                out.push(Token::Text(inner[..end].to_owned()));
                text = &inner[end + 1..];
                continue;
            }
            '<' | '>' | '=' | '!' | '~' => text.find(|c| !"<>=!~".contains(c)).unwrap_or(text.len()),
            c if c.is_ascii_alphanumeric() || c == '_' => {
                let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.');
                let end = end.unwrap_or(text.len());
                out.push(Token::Name(text[..end].to_owned()));
                text = &text[end..];
                continue;
            }
            other => return Err(format!("{other:?} is not expected there")),
        };
        out.push(Token::Sign(text[..taken].to_owned()));
        text = &text[taken..];
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    python: PythonVersion,
    depth: u32,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<Token, String> {
        let (first, rest) = self.tokens.split_first().ok_or("it ends too early")?;
        self.tokens = rest;
        Ok(first.clone())
    }

    fn take(&mut self, token: &Token) -> bool {
        let found = self.tokens.first() == Some(token);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }

    fn either(&mut self) -> Result<bool, String> {
        let mut value = self.both()?;
        while self.take(&Token::Name("or".to_owned())) {
            value |= self.both()?;
        }
        Ok(value)
    }

    fn both(&mut self) -> Result<bool, String> {
        let mut value = self.atom()?;
        while self.take(&Token::Name("and".to_owned())) {
            value &= self.atom()?;
        }
        Ok(value)
    }

    fn atom(&mut self) -> Result<bool, String> {
        if self.take(&Token::Sign("(".to_owned())) {
            self.depth += 1;
            if self.depth > DEPTH_LIMIT {
                return Err("its parentheses nest too deep".to_owned());
            }
            let value = self.either()?;
            self.depth -= 1;
            return match self.take(&Token::Sign(")".to_owned())) {
                true => Ok(value),
                false => Err("a parenthesis is not closed".to_owned()),
            };
        }
        let (left, left_is_version) = self.value()?;
        let operator = match self.next()? {
            Token::Sign(sign) => sign,
            Token::Name(name) if name == "in" => name,
            Token::Name(name) if name == "not" && self.take(&Token::Name("in".to_owned())) => {
                "not in".to_owned()
            }
            other => return Err(format!("{other:?} is no comparison")),
        };
        let (right, right_is_version) = self.value()?;
        match (operator.as_str(), left_is_version || right_is_version) {
            ("in", _) => Ok(right.contains(&left)),
            ("not in", _) => Ok(!right.contains(&left)),
            ("==", false) => Ok(left == right),
            ("!=", false) => Ok(left != right),
            (_, true) => compare(&left, &operator, &right),
            _ => Err(format!("{operator} does not compare texts")),
        }
    }

    /// A value, and whether it is a Python version.
    fn value(&mut self) -> Result<(String, bool), String> {
        let PythonVersion { major, minor, micro } = self.python;
        let text = match self.next()? {
            Token::Text(text) => text,
            Token::Name(name) => match name.as_str() {
                "python_version" => return Ok((format!("{major}.{minor}"), true)),
                "python_full_version" => return Ok((format!("{major}.{minor}.{micro}"), true)),
                "sys_platform" => "linux".to_owned(),
                "platform_system" => "Linux".to_owned(),
                "os_name" => "posix".to_owned(),
                "implementation_name" => "cpython".to_owned(),
                "platform_python_implementation" => "CPython".to_owned(),
                "platform_machine" => std::env::consts::ARCH.to_owned(),
                other => return Err(format!("{other} is not known here")),
            },
            Token::Sign(sign) => return Err(format!("{sign:?} is not expected there")),
        };
        Ok((text, false))
    }
}

fn compare(left: &str, operator: &str, right: &str) -> Result<bool, String> {
    let (mut a, mut b) = (numbers(left), numbers(right));
    if a.is_empty() || b.is_empty() {
        return Err(format!("{left:?} {operator} {right:?} does not compare versions"));
    }
    // `3.9.*` is a prefix.
    if right.ends_with(".*") {
        a.truncate(b.len());
    }
    let compatible = b[..b.len() - 1].to_vec();
    let len = a.len().max(b.len());
    let starts = a.starts_with(&compatible);
    a.resize(len, 0);
    b.resize(len, 0);
    Ok(match operator {
        "<" => a < b,
        "<=" => a <= b,
        ">" => a > b,
        ">=" => a >= b,
        "==" | "===" => a == b,
        "!=" => a != b,
        "~=" => a >= b && starts,
        _ => return Err(format!("{operator} is no comparison")),
    })
}

/// The leading numbers of a version.
fn numbers(text: &str) -> Vec<u32> {
    text.split('.')
        .map_while(|part| {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..digits].parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PYTHON: PythonVersion = PythonVersion { major: 3, minor: 11, micro: 2 };

    #[test]
    fn versions_compare_as_numbers() {
        for (marker, value) in [
            ("python_version < \"3.9\"", false),
            ("python_version >= '3.9'", true),
            ("'3.10' <= python_version", true),
            ("python_full_version == \"3.11.*\"", true),
            ("python_version ~= \"3.9\"", true),
            ("python_version ~= \"2.7\"", false),
            ("python_version != \"3.11\"", false),
            ("sys_platform == 'win32'", false),
            ("sys_platform == 'win32' or platform_system == 'Linux' and python_version > '3'", true),
            ("(sys_platform == 'win32' or os_name == 'posix') and python_version < '3'", false),
            ("'linux' in sys_platform", true),
            ("platform_machine not in 'arm64 s390x'", true),
        ] {
            assert_eq!(holds(marker, PYTHON), Ok(value), "{marker}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for marker in [
            "",
            "extra == 'x'",
            "python_version",
            "python_version <",
            "python_version < '3",
            "(os_name == 'posix'",
            "os_name < 'a'",
            "python_version % '3'",
            "os_name == 'posix' os_name",
            "python_version < 'three'",
            &"(".repeat(5000),
        ] {
            assert!(holds(marker, PYTHON).is_err(), "{marker:.40}");
        }
    }

    #[test]
    fn a_python_version_is_read_from_its_text() {
        assert_eq!(PythonVersion::parse("3.11.2+\n"), Some(PYTHON));
        assert_eq!(PythonVersion::parse("python"), None);
    }
}
