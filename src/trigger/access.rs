//! Decides who is let in to all that is not a call. Pure; asked by the handler, in the worker.
//!
//! ```text
//! own socket ─────────────────────────────────────────────────────▶ in
//! port ─▶ a call, /status, /stats? ──yes──────────────────────────▶ in
//!            └─no─▶ Host ours? ──▶ page ours? ──▶ token, or open? ─▶ in
//!                      403            403             401
//! ```
//!
//! Host comes first: after DNS rebinding a page of somebody else's has the worker's address under its own name, and
//! its browser holds both for one origin. A token is no cookie, so no browser adds it by itself; an open worker has
//! Host and Origin alone, and lets in no page at all, since every page at its address was made by a function.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use hyper::http::uri::Authority;

use super::status::Refusal;
use super::token::Token;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The port of an authority that names none, in HTTP.
const HTTP_PORT: u16 = 80;

/// What the port asks of a client that wants more than a call.
#[derive(Debug, Clone, Default)]
pub enum Admin {
    /// No client is let in: the worker's own socket alone answers.
    #[default]
    Closed,
    /// A client that shows the token is let in.
    Token(Token),
    /// Every client that reaches the port is let in.
    Open,
}

/// Who is let in at the port, and the names under which it may be addressed.
#[derive(Debug, Clone, Default)]
pub struct Access {
    admin: Admin,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    port: u16,
}

impl Access {
    /// Returns the access to a port that listens on `bound`, and that clients may also address as `name`.
    pub fn new(admin: Admin, name: &str, bound: &[SocketAddr]) -> Self {
        let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        addresses.extend(bound.iter().map(SocketAddr::ip));
        let names = vec!["localhost".to_owned(), name.to_ascii_lowercase()];
        let port = bound.first().map_or(0, SocketAddr::port);
        Self { admin, names, addresses, port }
    }

    /// Decides on a request at the port for what is not public.
    ///
    /// # Errors
    /// Returns [`Refusal::Foreign`] if the request was meant for another host or comes from a page of another
    /// origin, and [`Refusal::NotLetIn`] if it does not show the token.
    pub(super) fn check(&self, target: Option<&Authority>, headers: &HeaderMap) -> Result<(), Refusal> {
        self.check_host(target, headers)?;
        self.check_page(headers)?;
        match &self.admin {
            Admin::Open => Ok(()),
            Admin::Token(token) if shown(headers).is_some_and(|shown| token.is(shown)) => Ok(()),
            Admin::Token(_) | Admin::Closed => {
                Err(Refusal::NotLetIn { shown: headers.contains_key(AUTHORIZATION) })
            }
        }
    }

    /// Checks that the request was meant for this worker: `Host`, and the authority of an absolute target, which
    /// goes before `Host` (RFC 9112, 3.2.2). Several of them are all looked at: software differs in which counts.
    fn check_host(&self, target: Option<&Authority>, headers: &HeaderMap) -> Result<(), Refusal> {
        let mut hosts = headers.get_all(HOST).iter().peekable();
        if hosts.peek().is_none() {
            return Err(self.foreign("foreign-host", "Host", ""));
        }
        let foreign = hosts.map(text).chain(target.map(Authority::as_str)).find(|host| !self.is_ours(host));
        foreign.map_or(Ok(()), |host| Err(self.foreign("foreign-host", "Host", host)))
    }

    /// Checks that no page of another origin sends the request; in an open worker, that no page does. A browser
    /// names the page's origin in `Origin` or, for what it fetches without, the relation in `Sec-Fetch-Site`.
    fn check_page(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let pages = !matches!(self.admin, Admin::Open);
        for origin in headers.get_all(ORIGIN).iter().map(text) {
            if !(pages && origin.strip_prefix("http://").is_some_and(|host| self.is_ours(host))) {
                return Err(self.foreign("foreign-origin", "Origin", origin));
            }
        }
        for site in headers.get_all(SEC_FETCH_SITE).iter().map(text) {
            if !(site == "none" || pages && site == "same-origin") {
                return Err(self.foreign("foreign-origin", "Sec-Fetch-Site", site));
            }
        }
        Ok(())
    }

    /// Whether `authority` is this worker's port under one of its names. Behind a wildcard every address is ours: an
    /// address needs no resolver, so none can be rebound to us.
    fn is_ours(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') || authority.port_u16().unwrap_or(HTTP_PORT) != self.port {
            return false;
        }
        let host = authority.host().to_ascii_lowercase();
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(ip) => self.addresses.iter().any(|ours| *ours == ip || ours.is_unspecified()),
            Err(_) => self.names.iter().any(|name| name == host.strip_suffix('.').unwrap_or(&host)),
        }
    }

    fn foreign(&self, kind: &'static str, header: &'static str, value: &str) -> Refusal {
        /// Enough of a value to recognise it; an answer should not echo kilobytes.
        const SHOWN_CHARS: usize = 100;
        Refusal::Foreign { kind, header, value: value.chars().take(SHOWN_CHARS).collect(), port: self.port }
    }
}

/// Whether everyone who reaches the port may ask for `path`. All that is not listed here is the operator's.
pub(super) fn is_public(path: &str) -> bool {
    path.starts_with("/run/") || matches!(path, "/status" | "/stats")
}

/// The token that a request shows, if it shows one.
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token.trim_ascii())
}

/// A header's text; one that is no text is nobody's name.
fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or("\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn status(access: &Access, target: &str, lines: &[&str]) -> u16 {
        let mut headers = HeaderMap::new();
        for (name, value) in lines.iter().map(|line| line.split_once(": ").expect("a header")) {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let target = (!target.is_empty()).then(|| target.parse::<Authority>().expect("an authority"));
        let checked = access.check(target.as_ref(), &headers);
        checked.map_or_else(|refusal| refusal.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn each_client_is_let_in_or_refused_as_the_table_says() {
        let bound: [SocketAddr; 1] = ["10.0.0.7:5000".parse().expect("an address")];
        let admins = [Admin::Token(Token::of(SECRET)), Admin::Open, Admin::Closed];
        let [token, open, closed] = admins.map(|admin| Access::new(admin, "Worker.Example", &bound));
        let key = format!("Authorization: Bearer {SECRET}");
        // (target's authority, headers beside the token, with the token, without it, in an open worker)
        let rows: [(&str, &[&str], u16, u16, u16); 24] = [
            ("", &["Host: 10.0.0.7:5000"], 200, 401, 200),
            ("", &["Host: localhost:5000"], 200, 401, 200),
            ("", &["Host: LocalHost.:5000"], 200, 401, 200),
            ("", &["Host: worker.example:5000"], 200, 401, 200),
            ("", &["Host: 127.0.0.1:5000"], 200, 401, 200),
            ("", &["Host: [::1]:5000"], 200, 401, 200),
            ("localhost:5000", &["Host: localhost:5000"], 200, 401, 200),
            ("", &["Host: localhost:5000", "Sec-Fetch-Site: none"], 200, 401, 200),
            // A page of the worker's own address was made by a function.
            ("", &["Host: localhost:5000", "Origin: http://127.0.0.1:5000"], 200, 401, 403),
            ("", &["Host: localhost:5000", "Sec-Fetch-Site: same-origin"], 200, 401, 403),
            ("", &[], 403, 403, 403),
            ("", &["Host: "], 403, 403, 403),
            ("", &["Host: localhost"], 403, 403, 403),
            ("", &["Host: localhost:5001"], 403, 403, 403),
            ("", &["Host: 10.0.0.8:5000"], 403, 403, 403),
            ("", &["Host: elsewhere.example:5000"], 403, 403, 403),
            ("", &["Host: localhost:5000@elsewhere.example:5000"], 403, 403, 403),
            ("", &["Host: elsewhere.example@localhost:5000"], 403, 403, 403),
            ("", &["Host: localhost:5000", "Host: elsewhere.example:5000"], 403, 403, 403),
            ("elsewhere.example:5000", &["Host: localhost:5000"], 403, 403, 403),
            ("", &["Host: localhost:5000", "Origin: null"], 403, 403, 403),
            ("", &["Host: localhost:5000", "Origin: http://localhost:5001"], 403, 403, 403),
            ("", &["Host: localhost:5000", "Origin: https://localhost:5000"], 403, 403, 403),
            ("", &["Host: localhost:5000", "Sec-Fetch-Site: same-site"], 403, 403, 403),
        ];
        for (target, headers, with, without, opened) in rows {
            let keyed = [headers, &[key.as_str()]].concat();
            let found = (
                status(&token, target, &keyed),
                status(&token, target, headers),
                status(&open, target, headers),
            );
            assert_eq!(found, (with, without, opened), "{target:?} {headers:?}");
            assert!(status(&closed, target, &keyed) >= 401, "{target:?} {headers:?}");
        }
        let anything: [SocketAddr; 1] = ["[::]:80".parse().expect("an address")];
        let wildcard = Access::new(Admin::Open, "::", &anything);
        for (host, expected) in [("192.168.1.9", 200), ("[fe80::1]:80", 200), ("elsewhere.example", 403)] {
            assert_eq!(status(&wildcard, "", &[&format!("Host: {host}")]), expected, "{host}");
        }
    }

    #[test]
    fn only_the_whole_token_once_as_bearer_opens() {
        let access =
            Access::new(Admin::Token(Token::of(SECRET)), "", &["127.0.0.1:5000".parse().expect("one")]);
        let ask = |lines: &[&str]| status(&access, "", &[&["Host: localhost:5000"], lines].concat());
        let with = |prefix: &str| format!("Authorization: {prefix}{SECRET}");
        for good in [with("Bearer "), with("bearer   ")] {
            assert_eq!(ask(&[&good]), 200, "{good}");
        }
        for bad in [
            with(""),
            with("Bearer"),
            with("Basic "),
            with("Bearer x"),
            with("Bearer ") + "0",
            "Authorization: Bearer ".into(),
        ] {
            assert_eq!(ask(&[&bad]), 401, "{bad}");
        }
        assert_eq!(ask(&[&with("Bearer "), &with("Bearer ")]), 401);
    }

    #[test]
    fn calls_and_counts_are_public_and_nothing_else_is() {
        for path in ["/run/a", "/run/a/registry", "/run/", "/status", "/stats"] {
            assert!(is_public(path), "{path}");
        }
        for path in [
            "/",
            "/run",
            "/debug",
            "/registry",
            "/registry/a",
            "/v1/x",
            "/status/",
            "//run/a",
            "/RUN/a",
            "/run%2fa",
            "",
        ] {
            assert!(!is_public(path), "{path}");
        }
    }
}
