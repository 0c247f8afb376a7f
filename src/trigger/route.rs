//! From a method and a path to what is asked for. Pure.
//!
//! ```text
//! any    /run/NAME[/more]            GET   /status  /stats  /debug
//! POST   /registry/NAME              GET   /registry/  /registry/NAME/config
//! DELETE /registry/NAME              GET   /pid (own socket only)
//! ```
//!
//! The path is cut at its slashes as it came; only then is a name decoded, once:
//! `%2F` in a name is a slash *in the name*, which no name may have, and `%252e`
//! is `%2e`, which none may be.

use std::borrow::Cow;

use hyper::Method;

use super::status::Refusal;
use crate::lambda::{BadName, FunctionName};

/// Where a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Door {
    /// The port: anyone who reaches it, and whom [`super::access`] lets in for more than a call.
    Tcp,
    /// The worker's own Unix socket: root on this machine.
    Own,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route<'a> {
    /// `rest` is percent-encoded as it came, and empty or begins with a slash.
    Run {
        name: FunctionName,
        rest: &'a str,
    },
    Status,
    Stats,
    Debug,
    Pid,
    Store(FunctionName),
    Remove(FunctionName),
    List,
    Config(FunctionName),
}

const READ: &str = "GET, HEAD";

/// # Errors
/// The path is unknown, its name is none, or the method does not fit it.
pub(super) fn route<'a>(door: Door, method: &Method, path: &'a str) -> Result<Route<'a>, Refusal> {
    let refuse = |allow| Refusal::WrongMethod { method: method.to_string(), allow };
    let read = |route| match *method {
        Method::GET | Method::HEAD => Ok(route),
        _ => Err(refuse(READ)),
    };
    if let Some(rest) = path.strip_prefix("/run/") {
        let (name, rest) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let name = decode_name(name)?;
        return match *method {
            // CONNECT asks for a tunnel, which hyper would open on a 2xx.
            Method::CONNECT => Err(refuse("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")),
            _ => Ok(Route::Run { name, rest }),
        };
    }
    if let Some(rest) = path.strip_prefix("/registry/").or((path == "/registry").then_some("")) {
        return match rest.split_once('/') {
            None if rest.is_empty() => read(Route::List),
            None => registry(method, decode_name(rest)?).ok_or_else(|| refuse("POST, DELETE")),
            Some((name, "config")) => read(Route::Config(decode_name(name)?)),
            Some(_) => Err(unknown(path)),
        };
    }
    match path {
        "/status" => read(Route::Status),
        "/stats" => read(Route::Stats),
        "/debug" => read(Route::Debug),
        "/pid" if door == Door::Own => read(Route::Pid),
        _ => Err(unknown(path)),
    }
}

fn registry<'a>(method: &Method, name: FunctionName) -> Option<Route<'a>> {
    match *method {
        Method::POST => Some(Route::Store(name)),
        Method::DELETE => Some(Route::Remove(name)),
        _ => None,
    }
}

fn unknown(path: &str) -> Refusal {
    /// Enough of the path to recognise it; an answer should not echo kilobytes.
    const SHOWN_CHARS: usize = 100;
    Refusal::UnknownPath { path: path.chars().take(SHOWN_CHARS).collect() }
}

fn decode_name(raw: &str) -> Result<FunctionName, BadName> {
    /// The longest name, each character encoded; past it nothing is decoded or echoed.
    const LONGEST_RAW: usize = 3 * 128;
    if raw.len() > LONGEST_RAW {
        return Err(BadName(format!("{}...", raw.chars().take(16).collect::<String>())));
    }
    FunctionName::new(&decode(raw).ok_or_else(|| BadName(raw.to_owned()))?)
}

/// Decodes `%XX` once; `None` if one is malformed or the result is no UTF-8.
fn decode(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.contains('%') {
        return Some(Cow::Borrowed(raw));
    }
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = Vec::with_capacity(raw.len());
    let mut bytes = raw.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => digit(bytes.next())? << 4 | digit(bytes.next())?,
            other => other,
        });
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(method: &str, path: &str) -> u16 {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        match route(Door::Tcp, &method, path) {
            Ok(_) => 200,
            Err(refusal) => refusal.into_response().status().as_u16(),
        }
    }

    #[test]
    fn a_name_is_decoded_once_and_then_checked() {
        for bad in ["..", "%2e%2e", ".%2E", "a%2Fb", "a%00", "%252e", "%", "%g0", "a%2", "%ff", "", "a b"] {
            assert_eq!(at("GET", &format!("/run/{bad}")), 400, "{bad:?}");
        }
        assert_eq!(at("GET", &format!("/run/{}", "%41".repeat(128))), 200);
        assert_eq!(at("GET", &format!("/run/{}", "%41".repeat(129))), 400);
        let hello = FunctionName::new("hello").expect("a name");
        let run = Route::Run { name: hello, rest: "/a%2Fb/" };
        assert_eq!(route(Door::Tcp, &Method::GET, "/run/h%65llo/a%2Fb/").expect("a route"), run);
    }

    #[test]
    fn a_known_path_refuses_other_methods_and_an_unknown_one_is_not_found() {
        for path in
            ["/", "/run", "/nothing", "/pid", "/registry/a/b", "/registry/a/config/", "//run/a", "*", ""]
        {
            assert_eq!(at("GET", path), 404, "{path:?}");
        }
        for path in ["/status", "/stats", "/debug", "/registry/", "/registry", "/registry/a/config"] {
            assert_eq!((at("GET", path), at("POST", path)), (200, 405), "{path:?}");
        }
        assert_eq!((at("POST", "/registry/a"), at("DELETE", "/registry/a")), (200, 200));
        assert_eq!(at("GET", "/registry/a"), 405);
        assert_eq!((at("BREW", "/run/a"), at("CONNECT", "/run/a")), (200, 405));
    }

    #[test]
    fn the_pid_is_told_at_the_own_door_only() {
        assert_eq!(route(Door::Own, &Method::GET, "/pid").expect("a route"), Route::Pid);
        assert!(route(Door::Tcp, &Method::GET, "/pid").is_err());
    }
}
