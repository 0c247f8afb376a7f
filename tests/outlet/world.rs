//! Listeners on this machine: an index that answers, and places that only notice who came.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::sync::{Arc, Mutex};

/// A listener that must not be reached.
pub struct Forbidden {
    listener: TcpListener,
    pub address: SocketAddr,
}

impl Forbidden {
    pub fn on(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    /// Number of connections since the last look.
    pub fn visitors(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }
}

/// An abstract unix socket of the host's network namespace.
pub struct Abstract {
    listener: UnixListener,
    pub name: String,
}

impl Abstract {
    pub fn new() -> Self {
        let name = format!("hosier-outlet-test-{}", std::process::id());
        let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(&name).unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, name }
    }

    pub fn visitors(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }
}

/// An IPv4 address of this machine other than loopback, if it has one.
pub fn own_address() -> Option<IpAddr> {
    // No packet is sent: the kernel only picks the address that one would come from.
    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 200), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback())
}

/// An HTTP server on loopback: what it was asked, and `size` bytes as its answer.
pub struct Site {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Site {
    pub fn serve(size: usize) -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into(), size)
    }

    /// The same, on another address of this machine.
    pub fn on(ip: IpAddr, size: usize) -> Self {
        Self::listen(ip, move |mut stream, head| {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nX-Site: here\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
            if !head.starts_with("HEAD") {
                let _ = stream.write_all(&vec![b'x'; size]);
            }
        })
    }

    /// Serves each connection by `answer`, which gets the head of its one request.
    pub fn with(answer: impl Fn(TcpStream, String) + Send + Sync + 'static) -> Self {
        Self::listen(Ipv4Addr::LOCALHOST.into(), answer)
    }

    fn listen(ip: IpAddr, answer: impl Fn(TcpStream, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (heads, answer) = (Arc::clone(&asked), Arc::new(answer));
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, heads, answer) = (stream.unwrap(), Arc::clone(&heads), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let head = head(&mut stream);
                    heads.lock().unwrap().push(head.clone());
                    answer(stream, head);
                });
            }
        });
        Self { address, asked }
    }

    pub fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    /// Heads of the requests so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads up to the empty line that ends a head.
pub fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}
