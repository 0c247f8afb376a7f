//! Reach of a command: the configured index, and nothing of this machine beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hosier::sandbox::Outlet;
use hosier::sandbox::outlet::Refusal;
use serde_json::json;

use crate::lab::{lab, lab_after};
use crate::probe::{answer, connected, expect_refusal, policy, probe};
use crate::world::{Abstract, Forbidden, Site, own_address};

#[test]
fn nothing_of_this_machine_is_reached_but_the_configured_index() {
    lab(|lab| async move {
        let index = Site::serve(5);
        let loopback = Forbidden::on(Ipv4Addr::LOCALHOST.into());
        let unix = Abstract::new();
        let mut forbidden = vec![loopback];
        forbidden.extend(own_address().map(Forbidden::on));
        if std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            forbidden.push(Forbidden::on(Ipv6Addr::LOCALHOST.into()));
        }
        let listening: Vec<_> = forbidden.iter().map(|place| format!("direct {}", place.address)).collect();
        let around: Vec<_> = listening
            .iter()
            .cloned()
            .chain([format!("direct {}", index.address), format!("abstract {}", unix.name)])
            .collect();

        // In the host's network, where installs used to run, every one of these is reached.
        let before = probe(&lab, &around, None).await;
        assert!(before.iter().all(|found| *found == connected()), "{around:?}: {before:?}");
        assert!(forbidden.iter().all(|place| place.visitors() == 1));
        assert_eq!(unix.visitors(), 1);
        let asked = index.asked().len();

        // Around the outlet there is nothing at all.
        let outlet = Outlet::new(policy(&[&index.address.to_string()], &[]), 16);
        for (way, found) in around.iter().zip(probe(&lab, &around, Some(&outlet)).await) {
            let nowhere = ["ECONNREFUSED", "ENETUNREACH", "EADDRNOTAVAIL"];
            assert!(found.as_str().is_some_and(|errno| nowhere.contains(&errno)), "{way}: {found}");
        }

        // Through the outlet, by each name that this machine has.
        let port = forbidden[0].address.port();
        let mut ways: Vec<_> = forbidden.iter().map(|place| format!("connect {}", place.address)).collect();
        ways.extend(forbidden.iter().map(|place| format!("plain http://{}/", place.address)));
        let names =
            ["localhost", "localhost.", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"];
        ways.extend(names.map(|name| format!("connect {name}:{port}")));
        // The right port, but not the name that is configured.
        ways.extend(["localhost", "127.1"].map(|name| format!("connect {name}:{}", index.address.port())));
        // The one port that is open to all, at addresses that are not everybody's.
        let addresses =
            ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "[fe80::1]", "10.0.0.1", "224.0.0.1"];
        ways.extend(addresses.map(|name| format!("connect {name}:443")));
        ways.extend(own_address().map(|own| format!("connect {own}:443")));
        ways.extend(["plain http://169.254.169.254/latest/meta-data/".to_owned()]);
        for (way, found) in ways.iter().zip(probe(&lab, &ways, Some(&outlet)).await) {
            expect_refusal(way, &found);
        }
        assert!(forbidden.iter().all(|place| place.visitors() == 0), "somebody was reached");
        assert_eq!(unix.visitors(), 0);
        assert_eq!(index.asked().len(), asked, "{:?}", index.asked());

        // What was refused is known afterwards, bounded and each place once.
        let refusals = outlet.refusals();
        assert_eq!(refusals.len(), 8, "{refusals:?}");
        assert!(matches!(&refusals[0], Refusal::Port(place) if place.port == port), "{refusals:?}");
        assert!(outlet.complaint().unwrap().contains(&format!("127.0.0.1:{port} was refused")));
        assert_eq!(outlet.failures(), Vec::<String>::new());
    });
}

#[test]
fn the_configured_index_is_reached_in_both_ways_and_requests_are_made_plain() {
    lab(|lab| async move {
        let index = Site::serve(5);
        let outlet = Outlet::new(policy(&[&index.address.to_string()], &[]), 16);
        let url = format!("{}simple/six/?a=b", index.url());
        let ways = [
            format!("connect {}", index.address),
            format!("plain {url}"),
            "environment .".to_owned(),
            format!("tunnel {}", index.address),
        ];
        let found = probe(&lab, &ways, Some(&outlet)).await;
        let (status, body) = answer(&found[0]);
        assert!(status == 200 && body.contains("X-Site: here"), "{found:?}");
        assert_eq!(answer(&found[1]), (200, "xxxxx"));
        assert_eq!(answer(&found[3]), (200, "xxxxx"));
        assert_eq!(outlet.complaint(), None);
        assert!(outlet.moved() > 200, "{}", outlet.moved());

        // Of a plain request the index sees neither the sandbox's host header nor what is for the proxy.
        let plain =
            index.asked().into_iter().find(|head| head.contains("/simple/six/")).unwrap().to_lowercase();
        assert!(plain.starts_with("get /simple/six/?a=b http/1.1\r\n"), "{plain}");
        assert!(
            plain.contains(&format!("host: {}\r\n", index.address)) && plain.contains("x-end: 2"),
            "{plain}"
        );
        for gone in ["proxy-authorization", "x-hop", "elsewhere"] {
            assert!(!plain.contains(gone), "{gone}: {plain}");
        }
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            assert_eq!(found[2][name], json!("http://127.0.0.1:3128"), "{found:?}");
        }
        assert!(found[2].get("NO_PROXY").is_none(), "{found:?}");
    });
}

#[test]
fn an_index_on_another_address_of_this_machine_works_where_it_is_configured() {
    lab(|lab| async move {
        let Some(own) = own_address() else {
            eprintln!("not tried: this machine has no address but loopback");
            return;
        };
        let place = Forbidden::on(own);
        let way = [format!("connect {}", place.address)];
        let configured = Outlet::new(policy(&[&place.address.to_string()], &[]), 16);
        let other = Outlet::new(policy(&[&format!("{own}:{}", place.address.port() ^ 1)], &[]), 16);
        expect_refusal(&way[0], &probe(&lab, &way, Some(&other)).await[0]);
        assert_eq!(place.visitors(), 0);
        let visited = lab.python(CONNECT_ONLY, &[&place.address.to_string()], Some(&configured)).await;
        assert_eq!(visited.output.trim(), "200", "{visited:?}");
        assert_eq!(place.visitors(), 1);
        assert_eq!(configured.complaint(), None);
    });
}

/// Prints the status of one CONNECT.
const CONNECT_ONLY: &str = "import socket, sys\ns = socket.create_connection(('127.0.0.1', 3128), 10)\n\
    s.sendall(('CONNECT %s HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' % sys.argv[1]).encode())\nprint(s.recv(4096).split()[1].decode())\n";

#[test]
fn what_is_no_request_to_a_proxy_is_answered_and_harms_nothing() {
    lab(|lab| async move {
        let index = Site::serve(5);
        let outlet = Outlet::new(policy(&[&index.address.to_string()], &[]), 16);
        let ways = [
            "plain /",
            "plain https://index.example/",
            "plain ftp://h/",
            "connect nowhere",
            "connect a_b@h:0",
        ];
        let mut ways: Vec<_> = ways.map(str::to_owned).into();
        ways.push("connect name.invalid:443".to_owned());
        ways.push(format!("connect {}", "a".repeat(100_000)));
        ways.push(format!("plain {}", index.url()));
        let found = probe(&lab, &ways, Some(&outlet)).await;
        for (way, found) in ways.iter().zip(&found).take(5) {
            assert_eq!(answer(found).0, 400, "{way}: {found}");
        }
        assert_eq!(answer(&found[5]).0, 502, "{found:?}");
        assert!(
            outlet.failures()[0].starts_with("name.invalid:443 was not reached: "),
            "{:?}",
            outlet.failures()
        );
        let too_long = found[6][0].as_u64().unwrap_or(0);
        assert!([0, 400, 414, 431].contains(&too_long), "{}", found[6]);
        assert_eq!(answer(&found[7]), (200, "xxxxx"), "the next request is served");
        let literal: IpAddr = index.address.ip();
        assert!(literal.is_loopback());
    });
}

/// Gives `lo` of a new network namespace addresses and a local route, without a tool: SIOCSIFADDR on
/// aliases, SIOCSIFFLAGS, and one RTM_NEWROUTE that makes all of 10.88.0.0/16 this machine. Port 443 is
/// anybody's there.
const OWN_NETWORK: &str = r#"
import fcntl, socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 0x41))
for alias, address in [(b"lo:1", "198.51.100.7"), (b"lo:2", "169.254.169.254")]:
    fcntl.ioctl(s, 0x8916, struct.pack("16sHH4s8x", alias, socket.AF_INET, 0, socket.inet_aton(address)))
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
route = struct.pack("BBBBBBBBI", socket.AF_INET, 16, 0, 0, 255, 4, 254, 2, 0)
attributes = struct.pack("HH4s", 8, 1, socket.inet_aton("10.88.0.0")) + struct.pack("HHI", 8, 4, socket.if_nametoindex("lo"))
body = route + attributes
n.send(struct.pack("IHHII", 16 + len(body), 24, 0x605, 1, 0) + body)
answer = n.recv(4096)
assert struct.unpack_from("i", answer, 16)[0] == 0, answer
open("/proc/sys/net/ipv4/ip_unprivileged_port_start", "w").write("0")
"#;

/// Moves this thread into a network of its own, where names lead where an attacker's would.
fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let made =
        std::process::Command::new("/usr/bin/python3").args(["-I", "-c", OWN_NETWORK]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut hosts = tempfile::NamedTempFile::new().unwrap();
    let names = "127.0.0.1 localhost rebound.test\n::1 six.test\n198.51.100.7 self.test index.test\n\
                 169.254.169.254 meta.test\n10.88.3.4 routed.test\n";
    std::io::Write::write_all(&mut hosts, names.as_bytes()).unwrap();
    let flags = nix::mount::MsFlags::MS_BIND;
    // In the test's own mount namespace; the file lives as long as the mount.
    nix::mount::mount(Some(hosts.path()), "/etc/hosts", None::<&str>, flags, None::<&str>).unwrap();
}

#[test]
fn names_that_lead_to_this_machine_are_refused_whatever_the_way_there() {
    lab_after(own_network, |lab| async move {
        let any: Vec<_> = ["127.0.0.1", "198.51.100.7", "169.254.169.254", "10.88.3.4", "::1"]
            .iter()
            .map(|ip| std::net::TcpListener::bind((*ip, 443)).unwrap_or_else(|error| panic!("{ip}: {error}")))
            .collect();
        any.iter().for_each(|listener| listener.set_nonblocking(true).unwrap());
        let outlet = Outlet::new(policy(&[], &[]), 16);
        let names = ["rebound.test", "six.test", "self.test", "meta.test", "routed.test"];
        let ways: Vec<_> = names.iter().map(|name| format!("connect {name}:443")).collect();
        for (way, found) in ways.iter().zip(probe(&lab, &ways, Some(&outlet)).await) {
            expect_refusal(way, &found);
        }
        assert!(any.iter().all(|listener| listener.accept().is_err()), "somebody was reached");
        let kinds: Vec<_> = outlet.refusals().iter().map(Refusal::to_string).collect();
        assert!(kinds[2].contains("198.51.100.7 is an address of this machine"), "{kinds:?}");
        assert!(kinds[4].contains("10.88.3.4 is an address of this machine"), "{kinds:?}");

        // The operator's index may be here, and its name may not lead to the metadata service.
        let index = Site::on("198.51.100.7".parse().unwrap(), 5);
        let port = index.address.port();
        let named = [format!("index.test:{port}"), format!("meta.test:{port}")];
        let outlet = Outlet::new(policy(&named.each_ref().map(String::as_str), &[]), 16);
        let ways = [format!("plain http://index.test:{port}/"), format!("plain http://meta.test:{port}/")];
        let found = probe(&lab, &ways, Some(&outlet)).await;
        assert_eq!(answer(&found[0]), (200, "xxxxx"));
        expect_refusal(&ways[1], &found[1]);
    });
}
