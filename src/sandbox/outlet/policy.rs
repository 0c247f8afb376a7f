//! Hosts, ports and addresses that an outlet leads to, as plain data.
//! Pure. Runs in the worker.
//!
//! ```text
//! host:port ──▶ standing        the operator named it / any other on port 443
//! address   ──▶ may_connect     by standing and kind; the very address that is then connected to
//! ```

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::address::Kind;
use super::proxies::Proxies;

/// Port that is open on every public host.
const HTTPS: u16 = 443;
/// Longest host name, in bytes (RFC 1035).
const MAX_HOST: usize = 253;

/// A host and a port, as a client names them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// A name in lower case without a dot at its end, or an address without brackets.
    pub host: String,
    pub port: u16,
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a host and a port")]
pub struct NoPlace;

/// Reason that an outlet does not lead to a place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "{0} was refused: only port 443, the configured indexes and the places in installer.hosts are reached; \
         if it is meant, add \"{0}\" to installer.hosts"
    )]
    Port(Place),
    #[error("{place} was refused: {address} is {kind}; if it is meant, add \"{place}\" to installer.hosts")]
    Address { place: Place, address: IpAddr, kind: Kind },
    #[error(
        "{place} was refused: its name leads to {address}, {kind}; if it is meant, name the address \
         itself in the index's URL or in installer.hosts"
    )]
    Name { place: Place, address: IpAddr, kind: Kind },
    #[error("the rest was refused: more than {0} MiB were moved; raise installer.transfer_mb")]
    Spent(u64),
}

/// Standing of a place with the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The operator named this very host and port.
    Named,
    /// Any other host, on port 443.
    Stranger,
}

/// Places that the operator lets installs reach.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// The configured indexes, and what the operator allows beside them.
    pub named: Vec<Place>,
    /// The operator's own proxies, through which all is reached that they are for.
    pub proxies: Proxies,
}

impl Policy {
    /// Tells how `place` stands, before its name is looked up.
    ///
    /// # Errors
    /// Returns [`Refusal::Port`] for a port that is neither 443 nor configured with that host.
    pub fn standing(&self, place: &Place) -> Result<Standing, Refusal> {
        if self.named.contains(place) {
            Ok(Standing::Named)
        } else if place.port == HTTPS {
            Ok(Standing::Stranger)
        } else {
            Err(Refusal::Port(place.clone()))
        }
    }

    /// Checks one address of `place`. Whoever connects does so to this address, without another look-up.
    ///
    /// # Errors
    /// Returns [`Refusal::Address`], or [`Refusal::Name`] for a place that the operator named
    /// and whose name leads where no index is.
    pub fn may_connect(
        &self,
        place: &Place,
        standing: Standing,
        address: IpAddr,
        kind: Kind,
    ) -> Result<(), Refusal> {
        let place = || place.clone();
        match (standing, kind) {
            (_, Kind::Public) => Ok(()),
            (Standing::Named, Kind::Private | Kind::Loopback | Kind::ThisMachine) => Ok(()),
            (Standing::Named, _) if place().address().is_some() => Ok(()),
            (Standing::Named, _) => Err(Refusal::Name { place: place(), address, kind }),
            _ => Err(Refusal::Address { place: place(), address, kind }),
        }
    }
}

impl Place {
    /// Makes one of a URL's or a request's authority, which may name a user and leave the port out.
    ///
    /// # Errors
    /// Returns [`NoPlace`] if the host is empty, too long or has other characters than names
    /// and addresses have, or the port is no number above 0.
    pub fn of_authority(authority: &str, default_port: u16) -> Result<Self, NoPlace> {
        let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
        let (host, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']').ok_or(NoPlace)?;
                let address: std::net::Ipv6Addr = address.parse().map_err(|_| NoPlace)?;
                (address.to_string(), port.strip_prefix(':').or(port.is_empty().then_some("")))
            }
            None => match host.split_once(':') {
                Some((host, port)) => (name(host)?, Some(port)),
                None => (name(host)?, Some("")),
            },
        };
        let port = match port.ok_or(NoPlace)? {
            "" => default_port,
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| NoPlace)?
            }
            _ => return Err(NoPlace),
        };
        if port == 0 { Err(NoPlace) } else { Ok(Self { host, port }) }
    }

    /// Makes one of an `http` or `https` URL.
    ///
    /// # Errors
    /// Returns [`NoPlace`] for another scheme and as [`Place::of_authority`].
    pub fn of_url(url: &str) -> Result<Self, NoPlace> {
        let (scheme, rest) = url.split_once("://").ok_or(NoPlace)?;
        let port = match scheme.to_ascii_lowercase().as_str() {
            "https" => HTTPS,
            "http" => 80,
            _ => return Err(NoPlace),
        };
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        Self::of_authority(&rest[..end], port)
    }

    /// The host, if it is an address and not a name.
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// One place of `installer.hosts`: `HOST`, which means port 443, or `HOST:PORT`.
impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        Self::of_authority(text, HTTPS)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

fn name(host: &str) -> Result<String, NoPlace> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || host.len() > MAX_HOST || !host.bytes().all(fits) {
        return Err(NoPlace);
    }
    Ok(host.to_ascii_lowercase())
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
