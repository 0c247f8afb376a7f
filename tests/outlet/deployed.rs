//! A deploy by a real worker: what a source package's own code reaches while it is built.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use crate::support::{HOSIER, Worker, source};
use crate::world::{Abstract, Forbidden, Site, own_address};

/// Tries each way out from its build and leaves what came of it in the package.
const BACKEND: &str = r#"
import json, os, socket, zipfile

def build_wheel(directory, settings=None, metadata=None):
    with zipfile.ZipFile(os.path.join(directory, "evil-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("evil.py", "SEEN = " + repr([outcome(*way) for way in WAYS]))
        wheel.writestr("evil-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        wheel.writestr("evil-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("evil-1.0.dist-info/RECORD", "evil.py,,\nevil-1.0.dist-info/RECORD,,\n")
    return "evil-1.0-py3-none-any.whl"

def outcome(kind, where):
    try:
        return ["reached", globals()[kind](where)]
    except OSError as error:
        return ["not", str(error)]

def direct(where):
    with socket.create_connection(tuple(where), 3) as s:
        s.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        return s.recv(100).decode("latin-1")

def proxied(where):
    with socket.create_connection(("127.0.0.1", 3128), 3) as s:
        s.sendall(("CONNECT %s:%d HTTP/1.1\r\nHost: x\r\n\r\n" % tuple(where)).encode())
        answer = s.recv(200).decode("latin-1")
        if " 200" not in answer.split("\r\n")[0]:
            raise OSError(answer)
        return answer

def abstract(where):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("\0" + where)
        return ""

"#;

fn sdist(ways: &str) -> Vec<u8> {
    let backend = format!("{BACKEND}WAYS = {ways}\n");
    let project = "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n";
    let info = "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n";
    let files = [("pyproject.toml", project), ("PKG-INFO", info), ("backend.py", &backend)];
    let mut archive =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("evil-1.0/{name}"), content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

#[test]
fn a_source_package_reaches_neither_the_worker_nor_this_machine_while_it_is_built() {
    let mut worker = Worker::new();
    let (loopback, unix) = (Forbidden::on(Ipv4Addr::LOCALHOST.into()), Abstract::new());
    // The worker's port must be known to the package before the worker is up.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut targets =
        vec![format!("['127.0.0.1', {port}]"), format!("['127.0.0.1', {}]", loopback.address.port())];
    targets.extend(own_address().map(|own| format!("['{own}', {}]", loopback.address.port())));
    targets.push("['169.254.169.254', 80]".to_owned());
    let ways: Vec<_> =
        targets.iter().flat_map(|to| [format!("('direct', {to})"), format!("('proxied', {to})")]).collect();
    let package = sdist(&format!("[{}, ('abstract', '{}')]", ways.join(", "), unix.name));
    let index = index_of(package);
    std::fs::write(worker.path().join("hosier.toml"), format!("pip_mirror = \"{}\"\n", index.url())).unwrap();

    worker.up(&[&format!("worker_port={port}")]);
    assert_eq!(worker.port, port);
    let function = source(&[
        ("f.py", "import evil\ndef f(event):\n    return evil.SEEN\n"),
        ("requirements.txt", "evil==1.0\n"),
    ]);
    let deploy = std::process::Command::new(HOSIER)
        .args(["deploy", function.path().to_str().unwrap(), "-n", "evil", "-p"])
        .arg(worker.path())
        .output()
        .unwrap();
    assert!(deploy.status.success(), "{}", String::from_utf8_lossy(&deploy.stderr));
    let seen = worker.result("evil", "");
    let seen = seen.as_array().unwrap();
    assert_eq!(seen.len(), ways.len() + 1);
    for (way, seen) in ways.iter().zip(seen) {
        assert_eq!(seen[0], "not", "{way}: {seen}");
    }
    assert_eq!(seen[ways.len()][0], "not", "an abstract socket: {seen:?}");
    assert_eq!((loopback.visitors(), unix.visitors()), (0, 0));
    worker.down();
}

#[test]
fn a_file_that_an_index_has_elsewhere_is_refused_by_name_until_the_operator_allows_the_place() {
    let worker = Worker::new();
    // One file: a wheel made at each request would have another digest each time.
    let wheel = wheel();
    let files = Site::with(move |mut stream, head| {
        let body = wheel.clone();
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        let body = if head.starts_with("HEAD") { Vec::new() } else { body };
        let _ = stream.write_all(&[answer.into_bytes(), body].concat());
    });
    let link = format!("<a href=\"{}far-1.0-py3-none-any.whl\">far-1.0-py3-none-any.whl</a>\n", files.url());
    let index = Site::with(move |mut stream, _| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n";
        let _ = stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{link}", link.len()).as_bytes());
    });
    let settings = format!("pip_mirror = \"{}\"\n", index.url());
    std::fs::write(worker.path().join("hosier.toml"), &settings).unwrap();
    let function = source(&[
        ("f.py", "import far\ndef f(event):\n    return far.FAR\n"),
        ("requirements.txt", "far==1.0\n"),
    ]);
    let deploy = ["deploy", function.path().to_str().unwrap(), "-n", "far"];
    let said = worker.refused(&deploy);
    let refused = format!("{} was refused", files.address);
    assert!(
        said.contains("far==1.0") && said.contains(&refused) && said.contains("installer.hosts"),
        "{said}"
    );
    assert_eq!(files.asked(), Vec::<String>::new());

    let allowed = format!("{settings}[installer]\nhosts = \"{}\"\n", files.address);
    std::fs::write(worker.path().join("hosier.toml"), allowed).unwrap();
    worker.ok(&deploy);
    assert!(!files.asked().is_empty());
    let mut worker = worker;
    worker.up(&[]);
    assert_eq!(worker.result("far", ""), 7);
    worker.down();
}

/// A wheel of one module, zipped by Python.
fn wheel() -> Vec<u8> {
    let code = "import io, sys, zipfile\nout = io.BytesIO()\nwith zipfile.ZipFile(out, 'w') as z:\n    \
                z.writestr('far.py', 'FAR = 7\\n')\n    \
                z.writestr('far-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: far\\nVersion: 1.0\\n')\n    \
                z.writestr('far-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n    \
                z.writestr('far-1.0.dist-info/RECORD', 'far.py,,\\nfar-1.0.dist-info/RECORD,,\\n')\n\
                sys.stdout.buffer.write(out.getvalue())\n";
    let made = std::process::Command::new("/usr/bin/python3").args(["-c", code]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    made.stdout
}

/// An index with one source package.
fn index_of(package: Vec<u8>) -> Site {
    Site::with(move |mut stream, head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let (kind, body) = if path.ends_with(".tar.gz") {
            ("application/gzip", package.clone())
        } else {
            ("text/html", b"<a href=\"/files/evil-1.0.tar.gz\">evil-1.0.tar.gz</a>\n".to_vec())
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let body = if head.starts_with("HEAD") { Vec::new() } else { body };
        let _ = stream.write_all(&[answer.into_bytes(), body].concat());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0; 1]);
    })
}
