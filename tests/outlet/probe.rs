//! A program that tries ways out and prints what came of each, as one line of JSON.

use std::sync::Arc;

use hosier::sandbox::outlet::{Place, Policy, Proxies};
use hosier::sandbox::{Ended, Outlet};
use serde_json::{Value, json};

use crate::lab::Lab;

const CODE: &str = r#"
import errno, http.client, json, os, socket, sys
LIMIT = 30

def outcome(attempt):
    try:
        return attempt()
    except socket.timeout:
        return "ETIMEDOUT"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

def proxy(request, more=b""):
    with socket.create_connection(("127.0.0.1", 3128), LIMIT) as s:
        s.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = s.recv(65536)
            if not part:
                break
            answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1]) if head else 0
        if status == 200 and more:
            s.sendall(more)
        length = [int(l.split(b":")[1]) for l in head.lower().split(b"\r\n") if l.startswith(b"content-length:")]
        want = length[0] if length else None
        while want is None or len(body) < want:
            part = s.recv(65536)
            if not part:
                break
            body += part
            if more and b"\r\n\r\n" in body:
                break
        return [status, body[:2000].decode("latin-1")]

def connect(target):
    get = ("GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % target).encode()
    return proxy(("CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, target)).encode(), get)

def plain(url):
    return proxy(("GET %s HTTP/1.1\r\nHost: elsewhere\r\nProxy-Authorization: Basic eDp5\r\n"
                  "Connection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\n\r\n" % url).encode())

def tunnel(target):
    # Python's own client, which speaks HTTP/1.0 to a proxy.
    client = http.client.HTTPConnection("127.0.0.1", 3128, timeout=LIMIT)
    host, port = target.rsplit(":", 1)
    client.set_tunnel(host, int(port))
    client.request("GET", "/")
    answer = client.getresponse()
    return [answer.status, answer.read().decode("latin-1")]

def direct(target):
    host, port = target.rsplit(":", 1)
    with socket.create_connection((host.strip("[]"), int(port)), 3):
        return "connected"

def abstract(name):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("\0" + name)
        return "connected"

def environment(_):
    return dict(os.environ)

ways = [way.split(" ", 1) for way in sys.argv[1:]]
print(json.dumps([outcome(lambda: globals()[kind](target)) for kind, target in ways]))
"#;

/// A policy with these places configured, and these proxies of the operator's.
pub fn policy(named: &[&str], vars: &[(&str, &str)]) -> Arc<Policy> {
    let var =
        |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let named = named.iter().map(|place| place.parse::<Place>().unwrap()).collect();
    Arc::new(Policy { named, proxies: Proxies::read(var).0 })
}

/// Tries each of `ways` and returns the outcomes ("connect HOST:PORT", "tunnel HOST:PORT", "plain URL", "direct HOST:PORT", "abstract NAME").
/// Without an outlet they are tried in the host's network.
pub async fn probe(lab: &Lab, ways: &[String], outlet: Option<&Arc<Outlet>>) -> Vec<Value> {
    let ways: Vec<_> = ways.iter().map(String::as_str).collect();
    let outcome = lab.python(CODE, &ways, outlet).await;
    assert_eq!(outcome.ended, Ended::Exited(0), "{}", outcome.output);
    let found: Vec<Value> = serde_json::from_str(&outcome.output).unwrap_or_else(|_| panic!("{outcome:?}"));
    assert_eq!(found.len(), ways.len());
    found
}

/// The status of an answer, and its body.
pub fn answer(found: &Value) -> (u64, &str) {
    let status = found[0].as_u64().unwrap_or_else(|| panic!("{found}"));
    (status, found[1].as_str().unwrap())
}

/// Expects a refusal that names the place and the setting.
pub fn expect_refusal(way: &str, found: &Value) {
    let (status, body) = answer(found);
    assert_eq!(status, 403, "{way}: {found}");
    assert!(body.contains("was refused") && body.contains("installer.hosts"), "{way}: {body}");
}

pub fn connected() -> Value {
    json!("connected")
}
