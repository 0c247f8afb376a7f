//! A proxy of the operator's: the outlet goes through it and keeps its credentials to itself.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;

use hosier::sandbox::Outlet;

use crate::lab::lab;
use crate::probe::{answer, expect_refusal, policy, probe};
use crate::world::Site;

/// Base64 of `me:s3cret`.
const HEADER: &str = "Basic bWU6czNjcmV0";

/// A proxy that serves whoever has the password, and leads every name to `index`.
fn operators_proxy(index: &Site) -> Site {
    let to = index.address;
    Site::with(move |mut client, head| {
        if !head.to_lowercase().contains(&format!("proxy-authorization: {}", HEADER.to_lowercase())) {
            let _ =
                client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
            return;
        }
        let mut outside = TcpStream::connect(to).unwrap();
        if head.starts_with("CONNECT ") {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        } else {
            outside.write_all(head.as_bytes()).unwrap();
        }
        let (mut up, mut down) = (client.try_clone().unwrap(), outside.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut up, &mut down));
        let _ = std::io::copy(&mut outside, &mut client);
    })
}

#[test]
fn an_outlet_goes_through_the_operators_proxy_and_shows_it_to_nobody() {
    lab(|lab| async move {
        let (index, direct) = (Site::serve(5), Site::serve(7));
        let proxy = operators_proxy(&index);
        let url = format!("http://me:s3cret@{}", proxy.address);
        let vars = [("HTTPS_PROXY", url.as_str()), ("HTTP_PROXY", &url), ("NO_PROXY", "127.0.0.0/8")];
        let named = ["index.invalid:8080", &direct.address.to_string()];
        let outlet = Outlet::new(policy(&named, &vars), 16);
        let ways = [
            // This machine cannot look these names up: the proxy does.
            "connect index.invalid:8080".to_owned(),
            "plain http://index.invalid:8080/simple/".to_owned(),
            "connect files.invalid:443".to_owned(),
            // For NO_PROXY.
            format!("plain {}", direct.url()),
            "environment .".to_owned(),
            // The policy holds all the same.
            "connect index.invalid:8081".to_owned(),
            "connect 169.254.169.254:443".to_owned(),
            "connect localhost:443".to_owned(),
            "plain http://files.invalid/".to_owned(),
        ];
        let found = probe(&lab, &ways, Some(&outlet)).await;
        for found in [&found[0], &found[2]] {
            let (status, body) = answer(found);
            assert!(status == 200 && body.contains("X-Site: here"), "{found}");
        }
        assert_eq!(answer(&found[1]), (200, "xxxxx"));
        assert_eq!(answer(&found[3]), (200, "xxxxxxx"));
        for (way, found) in ways.iter().zip(&found).skip(5) {
            expect_refusal(way, found);
        }
        let asked = proxy.asked();
        let lines: Vec<_> = asked.iter().filter_map(|head| head.split(" HTTP/1.1").next()).collect();
        let expected = [
            "CONNECT index.invalid:8080",
            "GET http://index.invalid:8080/simple/",
            "CONNECT files.invalid:443",
        ];
        assert_eq!(lines, expected);
        assert!(asked.iter().all(|head| head.contains(HEADER)), "{asked:?}");
        // The sandbox knows the outlet alone, and the index never sees the proxy's password.
        assert!(!found[4].to_string().contains("s3cret"), "{}", found[4]);
        assert!(!found[4].to_string().contains("NO_PROXY"), "{}", found[4]);
    });
}

#[test]
fn a_proxy_that_refuses_is_told_without_its_password() {
    lab(|lab| async move {
        let proxy = operators_proxy(&Site::serve(5));
        let url = format!("http://me:wr0ng@{}", proxy.address);
        let outlet = Outlet::new(policy(&[], &[("HTTPS_PROXY", &url)]), 16);
        let found = probe(&lab, &["connect files.invalid:443".to_owned()], Some(&outlet)).await;
        let (status, body) = answer(&found[0]);
        assert_eq!(status, 502, "{body}");
        assert!(body.contains("the operator's proxy") && body.contains("407"), "{body}");
        assert!(!body.contains("wr0ng") && outlet.complaint().unwrap().contains(body), "{body}");
    });
}

/// A SOCKS 5 proxy that serves whoever has the password and leads every place to `index`. The places it
/// was told come out of the channel.
fn socks_proxy(index: &Site) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, to) = (listener.local_addr().unwrap(), index.address);
    let (sender, asked) = mpsc::channel();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            assert_eq!(read(&mut client, 3), [5, 1, 2]);
            client.write_all(&[5, 2]).unwrap();
            let login = read(&mut client, 2 + 2 + 1 + 6);
            let good = login == b"\x01\x02me\x06s3cret";
            client.write_all(&[1, u8::from(!good)]).unwrap();
            if !good {
                continue;
            }
            let head = read(&mut client, 4);
            let host = if head[3] == 3 {
                let length = read(&mut client, 1)[0].into();
                String::from_utf8(read(&mut client, length)).unwrap()
            } else {
                let octets: [u8; 4] = read(&mut client, 4).try_into().unwrap();
                Ipv4Addr::from(octets).to_string()
            };
            let port = read(&mut client, 2);
            sender.send(format!("{host}:{}", u16::from_be_bytes([port[0], port[1]]))).unwrap();
            let mut outside = TcpStream::connect(to).unwrap();
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
            let (mut up, mut down) = (client.try_clone().unwrap(), outside.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut up, &mut down));
            std::thread::spawn(move || std::io::copy(&mut outside, &mut client));
        }
    });
    (address, asked)
}

fn read(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    stream.read_exact(&mut bytes).map(|()| bytes).unwrap_or_default()
}

#[test]
fn a_socks_proxy_is_told_a_name_or_the_address_that_was_checked() {
    lab(|lab| async move {
        let index = Site::serve(5);
        let (proxy, asked) = socks_proxy(&index);
        let ways = |host: &str| {
            [
                format!("plain http://{host}:8080/simple/"),
                format!("tunnel {host}:8080"),
                "connect 127.0.0.1:443".into(),
            ]
        };
        for (scheme, host, told) in
            [("socks5h", "index.invalid", "index.invalid:8080"), ("socks5", "localhost", "127.0.0.1:8080")]
        {
            let url = format!("{scheme}://me:s3cret@{proxy}");
            let outlet = Outlet::new(policy(&[&format!("{host}:8080")], &[("ALL_PROXY", &url)]), 16);
            let ways = ways(host);
            let found = probe(&lab, &ways, Some(&outlet)).await;
            assert_eq!((answer(&found[0]), answer(&found[1])), ((200, "xxxxx"), (200, "xxxxx")), "{scheme}");
            expect_refusal(&ways[2], &found[2]);
            assert_eq!(asked.try_iter().collect::<Vec<_>>(), [told, told]);
        }
        let url = format!("socks5h://me:wrong!@{proxy}");
        let outlet = Outlet::new(policy(&["index.invalid:8080"], &[("ALL_PROXY", &url)]), 16);
        let found = probe(&lab, &["plain http://index.invalid:8080/".to_owned()], Some(&outlet)).await;
        let (status, body) = answer(&found[0]);
        assert!(status == 502 && body.contains("refused the user and password"), "{body}");
        assert!(!body.contains("wrong!"), "{body}");
    });
}
