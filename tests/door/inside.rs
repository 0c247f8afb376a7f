//! Foreign code on this machine that reaches the port: a leaf and a zygote with the host's network, and an installer.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use crate::site::{before, fixture, probe, site};
use crate::support::{Worker, source};
use crate::{HELLO, archive, send};

/// Asks for all that is not a call, as `PORT` and `DIR` say; what came of each attempt. Python.
const TRIES: &str = r#"
import os, socket

def tries():
    said = {"public": ask("GET /status", "")}
    for line in ("GET /debug", "GET /registry/", "GET /registry/hello/config", "POST /registry/evil", "DELETE /registry/hello"):
        for headers in ("", "Authorization: Bearer \r\n", "Authorization: Bearer " + "0" * 64 + "\r\n",
                        "Host: localhost:PORT\r\nX-Forwarded-For: 127.0.0.1\r\n", "Host: elsewhere.example\r\n"):
            said[line + " " + headers] = ask(line, headers)
    path = "DIR/worker/hosier.sock"
    for name, address in (("socket", path), ("abstract", "\0" + path)):
        try:
            with socket.socket(socket.AF_UNIX) as own:
                own.connect(address)
            said[name] = 200
        except OSError as error:
            said[name] = error.errno
    try:
        said["token"] = open("DIR/token").read()
    except OSError as error:
        said["token"] = error.errno
    return said

def ask(line, headers):
    if "Host:" not in headers:
        headers += "Host: localhost:PORT\r\n"
    try:
        with socket.create_connection(("127.0.0.1", PORT), 5) as client:
            client.sendall((line + " HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n" + headers + "\r\n").encode())
            return int(client.recv(4096).split()[1])
    except (OSError, IndexError, ValueError) as error:
        return repr(error)
"#;

fn tries(worker: &Worker) -> String {
    TRIES.replace("PORT", &worker.port.to_string()).replace("DIR", worker.path().to_str().unwrap())
}

/// Expects that nothing but the public got an answer that tells or changes something.
fn assert_kept_out(worker: &Worker, said: &serde_json::Value) {
    let said = said.as_object().unwrap();
    assert_eq!(said.len(), 1 + 5 * 5 + 3, "{said:?}");
    for (attempt, got) in said.iter().filter(|(attempt, _)| *attempt != "public") {
        let shut_out = match attempt.as_str() {
            "socket" | "token" => got == libc::ENOENT || got == libc::EACCES,
            "abstract" => got == libc::ECONNREFUSED || got == libc::EPERM || got == libc::EACCES,
            _ => got == 401 || got == 403 || got.is_string(),
        };
        assert!(shut_out, "{attempt:?} got {got}");
    }
    assert!(worker.get("/registry/").json().as_array().unwrap().contains(&"hello".into()));
    assert!(!worker.get("/registry/").body.contains("evil"));
    // The control: the socket is there, and answers root.
    UnixStream::connect(worker.path().join("worker/hosier.sock")).unwrap();
    assert!(fs::read_to_string(worker.path().join("token")).is_ok());
}

#[test]
fn a_leaf_with_the_hosts_network_is_not_let_in() {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&["sandbox.network=host"]);
    worker.deploy(
        "evil-leaf",
        &[("f.py", &format!("{}\ndef f(event):\n    return tries()\n", tries(&worker)))],
    );
    let said = worker.result("evil-leaf", "{}");
    assert_eq!(said["public"], 200, "it reaches the port: {said}");
    let said = serde_json::json!(said);
    fs::rename(worker.path().join("registry/evil-leaf.tar.gz"), worker.path().join("leaf.tar.gz")).unwrap();
    assert_kept_out(&worker, &said);
    worker.down();
}

#[test]
fn a_zygote_with_the_hosts_network_is_not_let_in() {
    let mut worker = site(None);
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&["sandbox.network=host"]);
    let pin = fixture("triesthedoor", &format!("{}\nSAID = tries()\n", tries(&worker)));
    probe(&worker, "imports", &[&pin]);
    // In the node, before the leaf was.
    assert_eq!(before(&worker, "imports", &["triesthedoor"]), ["triesthedoor"]);
    let event = serde_json::json!({ "x": "__import__('triesthedoor').SAID" });
    let said = worker.result("imports", &event.to_string());
    assert_eq!(said["public"], 200, "it reaches the port: {said}");
    assert_kept_out(&worker, &said);
    worker.down();
}

/// A build backend that tries the door and leaves what came of it in its wheel.
const BACKEND: &str = r#"
import os, zipfile

def build_wheel(directory, settings=None, metadata=None):
    name = "doorbuild-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr("doorbuild.py", "SAID = " + repr(tries()))
        wheel.writestr("doorbuild-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: doorbuild\nVersion: 1.0\n")
        wheel.writestr("doorbuild-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("doorbuild-1.0.dist-info/RECORD", "doorbuild.py,,\ndoorbuild-1.0.dist-info/RECORD,,\n")
    return name
"#;

#[test]
fn a_build_of_a_package_is_not_let_in() {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&[]);
    let backend = tries(&worker) + BACKEND;
    let url = serve_index(archive(&[
        (
            "doorbuild-1.0/pyproject.toml",
            "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n",
        ),
        ("doorbuild-1.0/PKG-INFO", "Metadata-Version: 2.1\nName: doorbuild\nVersion: 1.0\n"),
        ("doorbuild-1.0/backend.py", &backend),
    ]));
    let path = worker.path().join("hosier.toml");
    let rest = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("pip_mirror = \"{url}\"\n{rest}")).unwrap();
    let code = "import doorbuild\ndef f(event):\n    return doorbuild.SAID\n";
    let function = source(&[("f.py", code), ("requirements.txt", "doorbuild==1.0\n")]);
    worker.ok(&["deploy", function.path().to_str().unwrap(), "-n", "built"]);
    assert_kept_out(&worker, &worker.result("built", "{}"));
    worker.down();
}

/// Serves an index of this machine's own with one source package until the test's process ends; its URL.
fn serve_index(package: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let size = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..size]).into_owned();
            let page = b"<a href=\"/files/doorbuild-1.0.tar.gz\">doorbuild-1.0.tar.gz</a>\n".to_vec();
            let (kind, body) = match request.split(' ').nth(1).is_some_and(|path| path.starts_with("/files/"))
            {
                true => ("application/gzip", package.clone()),
                false => ("text/html", page),
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let body = if request.starts_with("HEAD") { Vec::new() } else { body };
            let _ = stream.write_all(&[head.into_bytes(), body].concat());
        }
    });
    url
}

#[test]
fn a_function_without_network_reaches_no_port_at_all() {
    let worker = Worker::with(&[("hello", HELLO)]);
    worker.deploy(
        "alone",
        &[("f.py", &format!("{}\ndef f(event):\n    return ask('GET /status', '')\n", tries(&worker)))],
    );
    let said = worker.result("alone", "{}");
    assert!(said.as_str().is_some_and(|said| said.contains("Error")), "{said}");
    assert_eq!(send(&worker, "GET /status", "", b"").0, 200);
    worker.down();
}
