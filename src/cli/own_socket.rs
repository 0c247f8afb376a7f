//! A client of the worker's own socket, and of its port: one blocking request a
//! connection, for the commands that talk to a running worker.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const WRITE_BOUND: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Lower-case names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// # Errors
/// No worker listens, or the answer is cut short.
pub fn get(socket: &Path, path: &str) -> io::Result<Answer> {
    request(socket, "GET", path, &[])
}

/// # Errors
/// No worker listens, or the answer is cut short.
pub fn request(socket: &Path, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(WRITE_BOUND))?;
    exchange(stream, method, path, body)
}

/// The same over the worker's port.
///
/// # Errors
/// No worker listens, or the answer is cut short.
pub fn request_tcp(address: &SocketAddr, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_BOUND))?;
    exchange(stream, method, path, body)
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    read_answer(BufReader::new(stream))
}

fn read_answer(mut stream: impl BufRead) -> io::Result<Answer> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer");
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let answer = Answer { status, headers, body: Vec::new() };
    let mut body = Vec::new();
    if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        while let Some(size) = chunk_size(&mut stream)? {
            stream.by_ref().take(size).read_to_end(&mut body)?;
            stream.read_line(&mut line)?;
        }
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok(Answer { body, ..answer })
}

fn chunk_size(stream: &mut impl BufRead) -> io::Result<Option<u64>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let digits = line.trim().split(';').next().unwrap_or_default();
    let size = u64::from_str_radix(digits, 16)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a malformed chunk"))?;
    Ok((size > 0).then_some(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_answer_is_put_together() {
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(read_answer(text.as_bytes()).unwrap().body, b"abcde");
        assert!(read_answer(&b"HTTP/1.1 200"[..]).is_err());
        assert!(read_answer(&b"garbage"[..]).is_err());
    }
}
