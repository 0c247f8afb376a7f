//! The operator's own proxies: which one a place is reached through. Pure. Runs in the worker.
//!
//! A sandbox never sees any of this: it knows the outlet alone, and the outlet goes through these.

use std::fmt;
use std::net::IpAddr;

use super::policy::Place;
use super::socks::{Login, MAX_TEXT};

/// Ports of a proxy whose URL names none.
const HTTP_PORT: u16 = 80;
const SOCKS_PORT: u16 = 1080;

/// A proxy of the operator's.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub place: Place,
    pub(super) kind: ProxyKind,
}

/// Kind of a proxy, and what it is told if its URL names a user.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum ProxyKind {
    /// An HTTP proxy; a value of `Proxy-Authorization`.
    Http(Option<String>),
    /// A SOCKS 5 proxy, which looks names up itself or is told addresses.
    Socks { login: Option<Login>, looks_up: bool },
}

impl fmt::Debug for Proxy {
    /// Shows the place only: the rest is a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({})", self.place)
    }
}

/// A proxy setting that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{variable} is not used: installs go through an http, socks5 or socks5h proxy, http://USER:PASSWORD@HOST:PORT"
)]
pub struct BadProxy {
    pub variable: String,
}

/// The operator's proxies, as `HTTP_PROXY` and its like name them.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `CONNECT`.
    https: Option<Proxy>,
    /// For plain HTTP.
    http: Option<Proxy>,
    /// `NO_PROXY`, entry by entry.
    direct: Vec<Direct>,
}

/// An entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Direct {
    Everything,
    /// A name and all below it.
    Domain(String, Option<u16>),
    /// Addresses whose first bits are these.
    Network(IpAddr, u8),
}

impl Proxies {
    /// Reads what `var` gives for `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
    /// A value that cannot be used is left out and told.
    pub fn read(var: impl Fn(&str) -> Option<String>) -> (Self, Vec<BadProxy>) {
        let mut bad = Vec::new();
        let mut proxy = |names: [&str; 2]| {
            let (name, value) = names.iter().find_map(|name| Some((*name, var(name)?)))?;
            let read = Proxy::of_url(&value);
            if read.is_none() {
                bad.push(BadProxy { variable: name.to_owned() });
            }
            read
        };
        let https = proxy(["HTTPS_PROXY", "ALL_PROXY"]);
        let http = proxy(["HTTP_PROXY", "ALL_PROXY"]);
        let direct = var("NO_PROXY").unwrap_or_default();
        let direct = direct.split(',').filter_map(|entry| Direct::read(entry.trim())).collect();
        bad.dedup();
        (Self { https, http, direct }, bad)
    }

    /// The proxy through which `place` is reached, by `CONNECT` or in plain HTTP.
    pub fn of(&self, place: &Place, connect: bool) -> Option<&Proxy> {
        let proxy = if connect { &self.https } else { &self.http };
        proxy.as_ref().filter(|_| !self.direct.iter().any(|direct| direct.fits(place)))
    }
}

impl Proxy {
    fn of_url(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let scheme = scheme.to_ascii_lowercase();
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let login = authority.rsplit_once('@').map(|(user, _)| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (decoded(name), decoded(password))
        });
        let (port, kind) = match scheme.as_str() {
            "http" => {
                let plain = login.map(|(name, password)| [name, vec![b':'], password].concat());
                (HTTP_PORT, ProxyKind::Http(plain.map(|plain| format!("Basic {}", base64(&plain)))))
            }
            "socks5" | "socks5h" => {
                let fits = |(name, password): &Login| name.len().max(password.len()) <= MAX_TEXT;
                if !login.as_ref().is_none_or(fits) {
                    return None;
                }
                (SOCKS_PORT, ProxyKind::Socks { login, looks_up: scheme == "socks5h" })
            }
            _ => return None,
        };
        Some(Self { place: Place::of_authority(authority, port).ok()?, kind })
    }
}

impl Direct {
    fn read(entry: &str) -> Option<Self> {
        if entry == "*" {
            return Some(Direct::Everything);
        }
        if let Some((address, bits)) = entry.split_once('/') {
            return Some(Direct::Network(address.parse().ok()?, bits.parse().ok()?));
        }
        if let Ok(address) = entry.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Some(Direct::Network(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        let entry = entry.strip_prefix('*').unwrap_or(entry);
        let entry = entry.strip_prefix('.').unwrap_or(entry);
        let port = entry.split_once(':').and_then(|(_, port)| port.parse().ok());
        let place = Place::of_authority(entry, 1).ok()?;
        Some(Direct::Domain(place.host, port))
    }

    fn fits(&self, place: &Place) -> bool {
        match self {
            Direct::Everything => true,
            Direct::Domain(domain, port) => {
                let above = place.host.strip_suffix(domain.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
                    && port.is_none_or(|port| port == place.port)
            }
            Direct::Network(network, bits) => match (network, place.address()) {
                (IpAddr::V4(network), Some(IpAddr::V4(address))) => {
                    same_start(&network.octets(), &address.octets(), *bits)
                }
                (IpAddr::V6(network), Some(IpAddr::V6(address))) => {
                    same_start(&network.octets(), &address.octets(), *bits)
                }
                _ => false,
            },
        }
    }
}

fn same_start(left: &[u8], right: &[u8], bits: u8) -> bool {
    left.iter().zip(right).enumerate().all(|(at, (left, right))| {
        let counted = usize::from(bits).saturating_sub(8 * at).min(8);
        let mask = !(0xff_u16 >> counted) as u8;
        left & mask == right & mask
    })
}

/// Undoes the percent-encoding of a URL.
fn decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                plain.push(byte);
                at += 3;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= chunk.len() { DIGITS[index].into() } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(vars: &[(&str, &str)]) -> (Proxies, Vec<BadProxy>) {
        Proxies::read(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn place(text: &str) -> Place {
        text.parse().unwrap()
    }

    #[test]
    fn credentials_become_a_header_and_are_never_shown() {
        let (proxies, bad) = proxies(&[("HTTPS_PROXY", "http://al%40ice:pass%3Aword@proxy.corp:3128/")]);
        assert_eq!(bad, []);
        let proxy = proxies.of(&place("index.example"), true).unwrap();
        assert_eq!(proxy.place, place("proxy.corp:3128"));
        assert!(proxy.kind == ProxyKind::Http(Some("Basic YWxAaWNlOnBhc3M6d29yZA==".to_owned())));
        assert!(!format!("{proxies:?}").contains("YWx"), "{proxies:?}");
        assert_eq!(proxies.of(&place("index.example"), false), None);
        for (plain, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), text);
        }
    }

    #[test]
    fn what_no_proxy_names_is_reached_directly() {
        let no_proxy = "localhost, .corp,example.com,*.wild.net,10.0.0.0/8,192.0.2.7,fd00::/8,one.net:8443";
        let (proxies, _) = proxies(&[("ALL_PROXY", "proxy:3128"), ("NO_PROXY", no_proxy)]);
        let direct =
            ["localhost", "a.corp", "corp", "example.com", "b.example.com", "x.wild.net", "10.9.8.7:80"];
        for text in direct.into_iter().chain(["192.0.2.7", "[fd00::5]", "one.net:8443"]) {
            assert_eq!(proxies.of(&place(text), true), None, "{text}");
        }
        for text in ["index.example", "notexample.com", "11.0.0.1", "192.0.2.8", "[fe00::5]", "one.net"] {
            assert!(proxies.of(&place(text), true).is_some(), "{text}");
        }
        let (proxies, _) = self::proxies(&[("HTTP_PROXY", "http://p"), ("NO_PROXY", "*")]);
        assert_eq!(proxies.of(&place("index.example"), false), None);
    }

    #[test]
    fn a_proxy_of_another_kind_is_told_and_not_half_used() {
        let (socks, bad) = proxies(&[("ALL_PROXY", "socks5h://u:p%20w@p")]);
        assert_eq!(bad, []);
        let proxy = socks.of(&place("index.example"), true).unwrap();
        assert_eq!(proxy.place.port, SOCKS_PORT);
        let login = Some((b"u".to_vec(), b"p w".to_vec()));
        assert!(proxy.kind == ProxyKind::Socks { login, looks_up: true });
        let (proxies, bad) = proxies(&[("ALL_PROXY", "https://p:1080")]);
        assert_eq!(bad, [BadProxy { variable: "ALL_PROXY".to_owned() }]);
        assert_eq!(proxies.of(&place("index.example"), true), None);
    }
}
