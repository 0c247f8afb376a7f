//! The policy as a table: who may reach what.

use super::*;
use crate::sandbox::outlet::address::kind;

fn place(text: &str) -> Place {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn policy() -> Policy {
    let named =
        ["http://index.corp:8080/simple", "http://127.0.0.1:3141/root/pypi", "https://[fd00::9]/simple"];
    let named = named.map(|url| Place::of_url(url).unwrap());
    let literal = place("169.254.7.7:80");
    Policy { named: named.into_iter().chain([literal]).collect(), ..Policy::default() }
}

/// Whether a client that asks for `text`, whose name leads to `address`, gets there.
fn reaches(text: &str, address: &str) -> Result<(), Refusal> {
    let (policy, place, address) = (policy(), place(text), address.parse().unwrap());
    let own = ["192.0.2.2".parse().unwrap()];
    let standing = policy.standing(&place)?;
    policy.may_connect(&place, standing, address, kind(address, &own))
}

#[test]
fn a_stranger_is_reached_on_port_443_at_public_addresses_only() {
    assert_eq!(reaches("files.example", "151.101.0.223"), Ok(()));
    assert!(matches!(reaches("files.example:80", "151.101.0.223"), Err(Refusal::Port(_))));
    assert!(matches!(reaches("127.0.0.1:5000", "127.0.0.1"), Err(Refusal::Port(_))));
    let refused = [
        ("rebound.example", "127.0.0.1"),
        ("rebound.example", "::ffff:127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("localhost.", "::1"),
        ("127.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("self.example", "192.0.2.2"),
        ("intranet.example", "10.0.0.7"),
        ("metadata.google.internal", "169.254.169.254"),
        ("[fe80::1]", "fe80::1"),
        ("group.example", "224.0.0.1"),
    ];
    for (text, address) in refused {
        let refusal = reaches(text, address).unwrap_err();
        assert!(matches!(refusal, Refusal::Address { .. }), "{text}: {refusal}");
        assert!(refusal.to_string().contains("installer.hosts"), "{refusal}");
    }
}

#[test]
fn a_configured_index_is_reached_where_it_is_and_nothing_else_beside_it() {
    assert_eq!(reaches("index.corp:8080", "10.1.1.1"), Ok(()));
    assert_eq!(reaches("INDEX.corp.:8080", "192.0.2.2"), Ok(()));
    assert_eq!(reaches("127.0.0.1:3141", "127.0.0.1"), Ok(()));
    assert_eq!(reaches("[fd00::9]", "fd00::9"), Ok(()));
    assert_eq!(reaches("169.254.7.7:80", "169.254.7.7"), Ok(()));
    // Another port, the same address by another name, another address.
    for (text, address) in [
        ("index.corp", "10.1.1.1"),
        ("index.corp:8081", "10.1.1.1"),
        ("localhost:3141", "127.0.0.1"),
        ("127.0.0.2:3141", "127.0.0.2"),
        ("[fd00::8]", "fd00::8"),
    ] {
        assert!(reaches(text, address).is_err(), "{text}");
    }
    // Its name must not lead to the metadata service.
    assert!(matches!(reaches("index.corp:8080", "169.254.169.254"), Err(Refusal::Name { .. })));
}

#[test]
fn an_index_that_nobody_configured_is_reached_at_public_addresses_only() {
    assert_eq!(reaches("index.example", "151.101.0.223"), Ok(()));
    for address in ["10.0.0.7", "127.0.0.1", "192.0.2.2", "169.254.169.254"] {
        assert!(reaches("index.example", address).is_err(), "{address}");
    }
}

#[test]
fn a_place_is_read_from_an_authority_and_from_a_url() {
    assert_eq!(place("Index.Example.").to_string(), "index.example:443");
    assert_eq!(place("[::1]:8080").to_string(), "[::1]:8080");
    assert_eq!(place("[0:0::1]").host, "::1");
    assert_eq!(Place::of_url("http://user:p@ss@h/simple?x=@y").unwrap().to_string(), "h:80");
    assert_eq!(Place::of_url("https://h:8443").unwrap().to_string(), "h:8443");
    assert_eq!(Place::of_url("https://good.example\\@evil.example/").unwrap().host, "good.example");
    for text in ["", ":80", "a b", "h:", "h:0", "h:65536", "h:+80", "[::1", "[::1]x", "::1", "h/../x", "é"] {
        let read = text.parse::<Place>();
        assert!(text == "h:" || read.is_err(), "{text}: {read:?}");
    }
    assert_eq!(Place::of_url("file:///etc/passwd"), Err(NoPlace));
    assert!("a".repeat(254).parse::<Place>().is_err());
}
