//! A package index on loopback: `/NAME/` lists the files of a package, `/files/FILE` is
//! one of them. It counts who asks for what, may want a password, and may lie.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// One file, and what the index says and does about it.
#[derive(Clone)]
pub struct File {
    pub content: Vec<u8>,
    /// A digest that is said to be the file's.
    pub sha256: Option<String>,
    /// A place to which whoever asks for it is sent.
    pub moved: Option<String>,
}

impl From<Vec<u8>> for File {
    fn from(content: Vec<u8>) -> Self {
        Self { content, sha256: None, moved: None }
    }
}

/// Serves until the test's process ends.
pub struct Index {
    pub port: u16,
    /// `user:password` that it wants.
    password: Option<&'static str>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Index {
    pub fn new(files: Vec<(String, File)>) -> Self {
        Self::start(|_| files, None)
    }

    /// `files` are told the port.
    pub fn start(files: impl FnOnce(u16) -> Vec<(String, File)>, password: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (files, heard) =
            (Arc::new(files(port).into_iter().collect::<BTreeMap<_, _>>()), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, heard) = (Arc::clone(&files), Arc::clone(&heard));
                std::thread::spawn(move || answer(stream.unwrap(), &files, password, &heard));
            }
        });
        Self { port, password, asked }
    }

    pub fn url(&self) -> String {
        let user = self.password.map(|password| format!("{password}@")).unwrap_or_default();
        format!("http://{user}127.0.0.1:{}", self.port)
    }

    /// Paths that were asked for, as often as they were.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn answer(
    mut stream: TcpStream,
    files: &BTreeMap<String, File>,
    password: Option<&str>,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?.to_owned());
    asked.lock().unwrap().push(path.clone());
    let wanted = password.map(|password| format!("authorization: basic {}", base64(password.as_bytes())));
    let refused = wanted.is_some_and(|wanted| !head.to_lowercase().contains(&wanted.to_lowercase()));
    let found = path.strip_prefix("/files/").and_then(|name| files.get(name));
    let (status, extra, body) = match found {
        _ if refused => ("401 Unauthorized", "WWW-Authenticate: Basic\r\n".to_owned(), Vec::new()),
        Some(File { moved: Some(to), .. }) => ("302 Found", format!("Location: {to}\r\n"), Vec::new()),
        Some(file) => {
            ("200 OK", "Content-Type: application/octet-stream\r\n".to_owned(), file.content.clone())
        }
        None => match list(files, path.trim_matches('/')) {
            Some(list) => ("200 OK", "Content-Type: text/html\r\n".to_owned(), list.into_bytes()),
            None => ("404 Not Found", String::new(), Vec::new()),
        },
    };
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\n{extra}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    let body = if method == "HEAD" { Vec::new() } else { body };
    stream.write_all(&[head.into_bytes(), body].concat()).ok()
}

/// The page of a package: all files whose names begin with its own.
fn list(files: &BTreeMap<String, File>, package: &str) -> Option<String> {
    let own = |name: &&String| name.split('-').next().is_some_and(|own| own == package.replace('-', "_"));
    let links: Vec<_> = files.keys().filter(own).map(|name| link(name, &files[name])).collect();
    (!links.is_empty()).then(|| links.concat())
}

fn link(name: &str, file: &File) -> String {
    let digest = file.sha256.as_ref().map(|digest| format!("#sha256={digest}")).unwrap_or_default();
    format!("<a href=\"/files/{name}{digest}\">{name}</a>\n")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = bytes.chunks(3).flat_map(|chunk| {
        let word =
            chunk.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        (0..4).map(
            move |at| if at <= chunk.len() { DIGITS[(word >> (18 - 6 * at)) as usize & 63] } else { b'=' },
        )
    });
    String::from_utf8(digits.collect()).unwrap()
}
