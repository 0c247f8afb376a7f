//! The trigger over real sockets: bytes in, bytes out. The engine here answers
//! from plain Rust, by the function's name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::lambda::{
    Answer, Blame, Engine, FunctionName, Invocation, InvokeError, RegistryFault, Start, Timings,
};
use crate::stats::Stats;

mod calls;
mod doors;
mod limits;

/// Nothing in these tests takes longer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers by the function's name; counts calls that were dropped.
#[derive(Default)]
struct Plain {
    started: AtomicUsize,
    dropped: Arc<AtomicUsize>,
}

/// Counts one drop unless it was told that the call ended.
struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn answer(headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    Answer {
        status: 200,
        headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        body: body.into(),
        start: Start::Warm,
        timings: Timings(vec![("exec", Duration::from_micros(1500))]),
    }
}

impl Engine for Plain {
    async fn invoke(&self, call: Invocation) -> Result<Answer, InvokeError> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let function = call.function.to_string();
        match function.as_str() {
            "echo" => Ok(answer(&[("x-path", &call.path), ("x-query", &call.query)], call.body)),
            "headers" => Ok(answer(&[], format!("{:?}", call.headers))),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(300)).await;
                Ok(answer(&[], "slow"))
            }
            "never" => {
                let _guard = OnDrop(self.dropped.clone());
                std::future::pending().await
            }
            "inject" => Ok(answer(&[("x-evil", "a\r\nSet-Cookie: b")], "")),
            "big" => Ok(answer(&[], vec![b'x'; 64 << 20])),
            "panic" => panic!("the engine's fault, on purpose"),
            "full" => Err(InvokeError::QueueFull { function, limit: 1 }),
            "get" => Err(InvokeError::MethodNotAllowed { sent: call.method, allowed: "GET POST".into() }),
            _ => Err(InvokeError::UnknownFunction(function)),
        }
    }

    async fn store(&self, _: &FunctionName, archive: Bytes) -> Result<(), RegistryFault> {
        match archive.starts_with(&[0x1f, 0x8b]) {
            true => Ok(()),
            false => Err(RegistryFault { blame: Blame::Caller, message: "no gzip".into() }),
        }
    }

    async fn remove(&self, name: &FunctionName) -> Result<bool, RegistryFault> {
        Ok(name.as_str() == "echo")
    }

    async fn list(&self) -> Result<Vec<String>, RegistryFault> {
        Ok(vec!["echo".into()])
    }

    async fn config(&self, name: &FunctionName) -> Result<Option<Value>, RegistryFault> {
        Ok((name.as_str() == "echo").then(|| serde_json::json!({ "reuse-sandbox": true })))
    }

    fn stats(&self) -> Map<String, Value> {
        Map::from_iter([("sandboxes".to_owned(), 3.into())])
    }

    async fn debug(&self) -> String {
        "no sandboxes\n".into()
    }
}

/// A served trigger.
struct Worker {
    addr: SocketAddr,
    own: PathBuf,
    engine: Arc<Plain>,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Worker {
    fn start(settings: HttpSettings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let own = dir.path().join("hosier.sock");
        let listeners = bind("127.0.0.1", 0).expect("a port");
        let addr = listeners[0].local_addr().expect("an address");
        let own_socket = bind_own(&own).expect("a socket");
        let engine = Arc::new(Plain::default());
        let (stop, stopped) = oneshot::channel();
        let stopping = async {
            let _ = stopped.await;
        };
        let serving =
            serve(listeners, own_socket, engine.clone(), Arc::new(Stats::default()), settings, stopping);
        let served = tokio::spawn(serving);
        Self { addr, own, engine, stop, served, _dir: dir }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.expect("a connection")
    }

    /// Sends bytes, reads to the end.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.expect("sent");
        read_all(&mut stream).await
    }

    /// One request on a connection of its own.
    async fn call(&self, method: &str, path: &str, body: &str) -> String {
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n");
        self.exchange(&format!("{head}Content-Length: {length}\r\n\r\n{body}")).await
    }

    async fn call_own(&self, path: &str) -> String {
        self.ask_own("GET", path, b"").await
    }

    /// One request on the worker's own socket.
    async fn ask_own(&self, method: &str, path: &str, body: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.own).await.expect("a connection");
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).await.expect("sent");
        read_all(&mut stream).await
    }

    /// Waits until `count` calls have reached the engine.
    async fn until_started(&self, count: usize) {
        until(|| self.engine.started.load(Ordering::SeqCst) >= count).await;
    }
}

async fn until(reached: impl Fn() -> bool) {
    let polling = async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, polling).await.expect("in time");
}

/// Reads to the client's end of the connection; a reset is a failed test.
async fn read_all(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("an end in time");
    read.expect("no reset");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads until `wanted` has come.
async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut bytes = Vec::new();
    let reading = async {
        while !String::from_utf8_lossy(&bytes).contains(wanted) {
            let count = stream.read_buf(&mut bytes).await.expect("no reset");
            assert!(count > 0, "the connection ended early");
        }
    };
    timeout(PATIENCE, reading).await.expect("in time");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[track_caller]
fn assert_status(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "wanted {status}, got {answer:?}");
}
