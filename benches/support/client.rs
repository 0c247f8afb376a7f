//! A client of a worker that keeps its connection: what a call cost, seen from outside
//! and by the worker itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::QUIET;

/// Calls after which a node has blanks, and knows what its leaves touch.
const SETTLED: usize = 16;

/// A connection that is kept. An idle one is closed after `http.header_timeout_ms`.
pub struct Client(BufReader<TcpStream>);

/// An answer and what it cost.
#[derive(Debug)]
pub struct Answer {
    pub took: Duration,
    pub start: String,
    /// Steps that the worker measured, in µs.
    pub steps: Vec<(String, f64)>,
}

impl Answer {
    /// What the worker measured in all: without HTTP and the client.
    pub fn engine_us(&self) -> f64 {
        self.steps.iter().map(|(_, took)| took).sum()
    }
}

impl Client {
    pub fn new(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Calls a function and expects 200.
    pub fn call(&mut self, name: &str) -> Answer {
        let request =
            format!("POST /run/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}");
        let begun = Instant::now();
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let (head, body) = self.read();
        let took = begun.elapsed();
        assert!(head.starts_with("HTTP/1.1 200"), "{name}: {head}\n{}", String::from_utf8_lossy(&body));
        let start = field(&head, "x-hosier-start").to_owned();
        let step = |part: &str| {
            let (name, took) = part.trim().split_once(";dur=")?;
            Some((name.to_owned(), took.parse::<f64>().ok()? * 1e3))
        };
        Answer { took, start, steps: field(&head, "server-timing").split(',').filter_map(step).collect() }
    }

    /// Calls a function until its code is compiled, its node grown and all that is made
    /// ahead of need is there.
    pub fn settle(&mut self, name: &str) {
        for _ in 0..SETTLED {
            self.call(name);
            std::thread::sleep(QUIET);
        }
    }

    fn read(&mut self) -> (String, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).unwrap() > 0, "the worker hung up: {head}");
        }
        let mut body = vec![0; field(&head, "content-length").parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        (head, body)
    }
}

fn field<'a>(head: &'a str, name: &str) -> &'a str {
    let named = |line: &'a str| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    };
    head.lines().find_map(named).unwrap_or_default()
}
