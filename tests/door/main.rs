//! The door to all that is not a call: `/registry` and `/debug`, tried by those who reach the port.
//!
//! ```text
//! clients   with and without a token, from elsewhere by Host and Origin ──┐
//! inside    a leaf and a zygote with the host's network, an installer ────┼─▶ nothing told, nothing changed
//! browser   pages of another origin, in a headless Chromium ──────────────┘
//! ```
//!
//! Each refusal stands beside a control that shows the same attempt succeeding where it may.

#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code, reason = "its suite uses the rest")]
#[path = "../tree/site.rs"]
mod site;

mod browser;
mod clients;
mod inside;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::Worker;

const HELLO: &str = "def f(event):\n    return 'hello'\n";

/// Sends a request over the port just as it is given, and reads the answer: (status, all of its text).
fn send(worker: &Worker, line: &str, headers: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", worker.port)).unwrap();
    let length = body.len();
    let head = format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    (status.unwrap_or_else(|| panic!("{line}: no answer: {answer:?}")), answer)
}

/// A `.tar.gz` of these files.
fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}
