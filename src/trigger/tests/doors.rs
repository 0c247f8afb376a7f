//! Ports, the own socket, and a stop.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;

#[tokio::test]
async fn the_pid_is_told_on_the_own_socket_only() {
    let worker = Worker::start(HttpSettings::default());
    assert_status(&worker.call("GET", "/pid", "").await, 404);
    let pid = worker.call_own("/pid").await;
    assert!(pid.ends_with(&format!("\r\n\r\n{}\n", std::process::id())), "{pid}");
    assert!(worker.call_own("/status").await.ends_with("\r\n\r\nready\n"));
}

#[tokio::test]
async fn the_port_answers_what_is_not_a_call_only_to_who_is_let_in() {
    let closed = Worker::start(HttpSettings::default());
    let admin = ["/debug", "/registry/", "/registry/echo/config", "/registry/a%2Fb", "/registry/echo"];
    for path in admin {
        assert_status(&closed.call("GET", path, "").await, 403);
        let own = closed.call_own(path).await;
        assert!(!own.contains("foreign") && !own.contains("token"), "{own}");
    }
    // Nobody is told to come back with a token that there is not, and a call needs no Host of ours.
    assert_status(&closed.call("POST", "/run/echo", "x").await, 200);
    assert_status(&closed.call("GET", "/stats", "").await, 200);
    let access = Access::new(Admin::Open, "h", &["127.0.0.1:80".parse().expect("an address")]);
    let open = Worker::start(HttpSettings { access, ..HttpSettings::default() });
    for (path, status) in admin.into_iter().zip([200, 200, 200, 400, 405]) {
        assert_status(&open.call("GET", path, "").await, status);
    }
}

#[tokio::test]
async fn the_own_socket_is_0600_replaces_a_stale_one_and_spares_a_live_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("hosier.sock");
    // A killed worker's: the file stays, nobody listens.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("a stale socket"));
    let stale = std::fs::metadata(&path).expect("a file");
    assert_ne!(stale.permissions().mode() & 0o777, 0o600, "the control has the umask's mode");
    let own = bind_own(&path).expect("a socket");
    let found = std::fs::metadata(&path).expect("a file");
    assert!(found.file_type().is_socket() && found.ino() != stale.ino());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    let second = bind_own(&path).expect_err("it is answered");
    assert!(matches!(second, TriggerError::OwnSocketInUse { .. }), "{second}");
    drop(own);
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
    std::fs::write(&path, "mine").expect("a file");
    let not_ours = bind_own(&path).expect_err("a file is there");
    assert!(matches!(not_ours, TriggerError::NotASocket { .. }), "{not_ours}");
    assert_eq!(std::fs::read(&path).expect("the file"), b"mine");
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let held = bind("127.0.0.1", 0).expect("a port");
    let port = held[0].local_addr().expect("an address").port();
    for url in ["127.0.0.1", "localhost"] {
        let text = bind(url, port).expect_err("taken").to_string();
        for part in [&format!("port {port} "), "-o worker_port=", "hosier down"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let text = bind("host.invalid", 0).expect_err("no such host").to_string();
    assert!(text.contains("-o worker_url="), "{text}");
}

#[tokio::test]
async fn localhost_is_every_loopback_address_there_is() {
    let listeners = bind("localhost", 0).expect("a port");
    let addrs: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("an address")).collect();
    assert!(addrs.iter().all(|addr| addr.ip().is_loopback() && addr.port() == addrs[0].port()), "{addrs:?}");
    let has_v6 = std::net::TcpListener::bind("[::1]:0").is_ok();
    assert_eq!(addrs.len(), 1 + usize::from(has_v6));
}

#[tokio::test]
async fn a_stop_lets_calls_in_flight_end_and_closes_the_rest() {
    let worker = Worker::start(HttpSettings::default());
    let mut idle = worker.connect().await;
    idle.write_all(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    read_until(&mut idle, "ready\n").await;
    let mut busy = worker.connect().await;
    busy.write_all(b"GET /run/slow HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    worker.until_started(1).await;
    worker.stop.send(()).expect("it listens");
    let began = std::time::Instant::now();
    assert_eq!(read_all(&mut idle).await, "");
    assert!(read_all(&mut busy).await.ends_with("\r\n\r\nslow"));
    timeout(PATIENCE, worker.served).await.expect("in time").expect("no panic");
    assert!(began.elapsed() < HttpSettings::default().stop_timeout, "nothing had to be cut");
    assert!(TcpStream::connect(worker.addr).await.is_err(), "nobody accepts any more");
    assert!(!worker.own.exists());
}

#[tokio::test]
async fn a_stop_is_bounded() {
    let stop_timeout = Duration::from_millis(100);
    let worker = Worker::start(HttpSettings { stop_timeout, ..HttpSettings::default() });
    let mut busy = worker.connect().await;
    busy.write_all(b"GET /run/never HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    worker.until_started(1).await;
    worker.stop.send(()).expect("it listens");
    timeout(Duration::from_secs(5), worker.served).await.expect("in time").expect("no panic");
    assert_eq!(worker.engine.dropped.load(Ordering::SeqCst), 1, "its call was dropped by then");
    assert_eq!(read_all(&mut busy).await, "");
}
