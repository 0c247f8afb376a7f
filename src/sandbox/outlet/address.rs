//! Kinds of IP addresses: which are everybody's, and which are this machine's or its neighbours'.
//! Pure, but for [`of_this_machine`] and [`leads_here`]. Runs in the worker.
//!
//! An address that carries another one (IPv4 in IPv6, in its several forms) is of the kind of that other one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Kind of an address, as far as an outlet tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reachable by everybody.
    Public,
    /// Of a private or shared network (RFC 1918, RFC 6598, RFC 4193 and the like).
    Private,
    /// Loopback, or unspecified, which the kernel takes for loopback.
    Loopback,
    /// An interface of this machine.
    ThisMachine,
    /// Link-local: neighbours, and the metadata service of a cloud.
    LinkLocal,
    /// Multicast, broadcast, reserved: nobody's.
    Nobody,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Public => "a public address",
            Kind::Private => "an address of a private network",
            Kind::Loopback => "a loopback address",
            Kind::ThisMachine => "an address of this machine",
            Kind::LinkLocal => "a link-local address",
            Kind::Nobody => "an address of no single host",
        })
    }
}

/// Tells the kind of `address` on a machine whose interfaces have the addresses `own`.
pub fn kind(address: IpAddr, own: &[IpAddr]) -> Kind {
    let address = bare(address);
    let by_itself = match address {
        IpAddr::V4(v4) => kind_v4(v4),
        IpAddr::V6(v6) => kind_v6(v6),
    };
    let is_own = own.iter().any(|known| bare(*known) == address);
    match by_itself {
        Kind::Public | Kind::Private if is_own => Kind::ThisMachine,
        other => other,
    }
}

/// Reads the addresses of this machine's interfaces.
///
/// # Errors
/// As `getifaddrs(3)`.
pub fn of_this_machine() -> nix::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|found| IpAddr::V4(found.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|found| IpAddr::V6(found.ip())))
    });
    Ok(addresses.collect())
}

/// Whether the kernel routes `address` to this machine although no interface has it, as a local
/// route for a whole network does. No packet is sent: the kernel picks the address that one would
/// come from, which is then the same.
pub fn leads_here(address: SocketAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(address)?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address.ip())
}

/// Takes an address out of the IPv6 forms that carry an IPv4 one.
fn bare(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match [a, b, c, d, e, f] {
        // Mapped (::ffff:a.b.c.d), translated (::ffff:0:a.b.c.d), and NAT64 (64:ff9b::a.b.c.d).
        [0, 0, 0, 0, 0, 0xffff] | [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => v4(g, h),
        // Compatible (::a.b.c.d); :: and ::1 are addresses of their own.
        [0, 0, 0, 0, 0, 0] if g != 0 || h > 1 => v4(g, h),
        // 6to4 (2002:a.b.c.d::).
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

fn kind_v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        [0 | 127, ..] => Kind::Loopback,
        [169, 254, ..] => Kind::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Kind::Private,
        // Shared by the customers of one provider; several clouds have their metadata service there.
        [100, 64..=127, ..] => Kind::Private,
        // Protocol assignments, benchmarks; a metadata service that only one cloud's own machines see.
        [192, 0, 0, _] | [198, 18 | 19, ..] | [168, 63, 129, 16] => Kind::Private,
        [224..=255, ..] => Kind::Nobody,
        _ => Kind::Public,
    }
}

fn kind_v6(address: Ipv6Addr) -> Kind {
    let [first, second, ..] = address.segments();
    match first {
        _ if address.is_loopback() || address.is_unspecified() => Kind::Loopback,
        0xfe80..=0xfebf => Kind::LinkLocal,
        // Unique local, and site-local, its predecessor.
        0xfc00..=0xfdff | 0xfec0..=0xfeff => Kind::Private,
        // A local NAT64 prefix, and Teredo: an IPv4 address that cannot be told from here.
        0x64 if second == 0xff9b => Kind::Private,
        0x2001 if second == 0 => Kind::Private,
        // Global unicast; all else is reserved or multicast.
        0x2000..=0x3fff => Kind::Public,
        _ => Kind::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Kind {
        let own = ["192.0.2.2", "10.1.2.3", "2001:db8::7", "fe80::5"].map(|own| own.parse().unwrap());
        kind(text.parse().unwrap_or_else(|_| panic!("{text}")), &own)
    }

    #[test]
    fn each_range_is_of_its_kind() {
        let cases = [
            (
                Kind::Public,
                &["151.101.0.223", "203.0.113.7", "2606:4700::1111", "172.15.0.1", "100.63.0.1"][..],
            ),
            (Kind::Private, &["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.7.7", "fd00:ec2::254"]),
            (Kind::Private, &["100.100.100.200", "192.0.0.192", "198.18.0.1", "168.63.129.16", "fec0::1"]),
            (Kind::Loopback, &["127.0.0.1", "127.255.0.9", "0.0.0.0", "0.1.2.3", "::", "::1"]),
            (Kind::LinkLocal, &["169.254.169.254", "169.254.170.2", "fe80::1", "febf::1", "fe80::5"]),
            (Kind::Nobody, &["224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "ff02::1", "100::1"]),
            (Kind::ThisMachine, &["192.0.2.2", "10.1.2.3", "2001:db8::7"]),
        ];
        for (kind, addresses) in cases {
            for address in addresses {
                assert_eq!(of(address), kind, "{address}");
            }
        }
    }

    #[test]
    fn an_address_within_an_address_is_seen() {
        let forms = ["::ffff:", "::ffff:0:", "64:ff9b::", "::"];
        let inner = [
            ("127.0.0.1", Kind::Loopback),
            ("169.254.169.254", Kind::LinkLocal),
            ("10.9.9.9", Kind::Private),
            ("192.0.2.2", Kind::ThisMachine),
            ("151.101.0.223", Kind::Public),
        ];
        for form in forms {
            for (address, kind) in inner {
                assert_eq!(of(&format!("{form}{address}")), kind, "{form}{address}");
            }
        }
        assert_eq!(of("2002:7f00:1::"), Kind::Loopback);
        assert_eq!(of("2002:a9fe:a9fe::1"), Kind::LinkLocal);
        assert_eq!(of("2001::1"), Kind::Private);
        assert_eq!(of("64:ff9b:1::7f00:1"), Kind::Private);
    }

    #[test]
    fn this_machine_has_its_loopback_and_a_socket_can_be_bound_to_each_of_its_addresses() {
        let own = of_this_machine().unwrap();
        assert!(own.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{own:?}");
        let v4 = own.into_iter().filter(IpAddr::is_ipv4);
        assert!(v4.map(|address| std::net::UdpSocket::bind((address, 0))).all(|bound| bound.is_ok()));
    }
}
