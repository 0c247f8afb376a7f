//! Clients that are slow, greedy, many, or gone.

use super::*;

fn settings() -> HttpSettings {
    HttpSettings {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        body_limit_bytes: 1000,
        ..HttpSettings::default()
    }
}

#[tokio::test]
async fn a_head_that_trickles_is_cut_off() {
    let worker = Worker::start(settings());
    let mut stream = worker.connect().await;
    let began = std::time::Instant::now();
    // One header a moment, for ever: activity does not extend the time.
    let trickle = async {
        stream.write_all(b"GET /status HTTP/1.1\r\n").await?;
        loop {
            stream.write_all(b"X-A: b\r\n").await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let cut: std::io::Result<()> = timeout(PATIENCE, trickle).await.expect("cut off");
    assert!(cut.is_err());
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let worker = Worker::start(settings());
    let mut stream = worker.connect().await;
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    assert!(read_all(&mut stream).await.ends_with("ready\n"));
}

#[tokio::test]
async fn a_body_that_says_it_is_too_large_is_refused_unread() {
    let worker = Worker::start(settings());
    let head = "POST /run/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n";
    let answer = worker.exchange(head).await;
    assert_status(&answer, 413);
    assert!(answer.contains("\r\nconnection: close\r\n") && answer.contains("1000 bytes"), "{answer}");
    assert_status(&worker.call("POST", "/run/echo", &"x".repeat(1000)).await, 200);
    assert_eq!(worker.engine.started.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_sends_all_before_it_reads_gets_its_413() {
    let worker = Worker::start(HttpSettings { body_timeout: Duration::from_secs(10), ..settings() });
    const SIZE: usize = 32 << 20;
    for coding in [format!("Content-Length: {SIZE}"), format!("Transfer-Encoding: chunked\r\n\r\n{SIZE:x}")] {
        let ends = if coding.contains("chunked") { "\r\n" } else { "\r\n\r\n" };
        let mut stream = worker.connect().await;
        let head = format!("POST /run/echo HTTP/1.1\r\nHost: h\r\n{coding}{ends}");
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(&vec![b'x'; SIZE]).await.expect("all of it is taken");
        stream.shutdown().await.expect("half closed");
        assert_status(&read_all(&mut stream).await, 413);
    }
}

#[tokio::test]
async fn a_body_that_stays_away_is_a_408() {
    let worker = Worker::start(settings());
    let answer = worker.exchange("POST /run/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc").await;
    assert_status(&answer, 408);
    assert!(answer.contains("body-timeout"), "{answer}");
}

#[tokio::test]
async fn a_call_that_outlasts_the_total_is_a_504_and_dropped() {
    let total_timeout = Some(Duration::from_millis(50));
    let worker = Worker::start(HttpSettings { total_timeout, ..HttpSettings::default() });
    let answer = worker.call("GET", "/run/never", "").await;
    assert_status(&answer, 504);
    assert!(answer.contains("total-timeout"), "{answer}");
    assert_eq!(worker.engine.dropped.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_client_that_reads_too_slowly_is_cut_off() {
    let worker = Worker::start(HttpSettings { max_connections: 1, ..settings() });
    let mut slow = worker.connect().await;
    slow.write_all(b"GET /run/big HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    // It holds the only slot, takes a little at a time, and must lose it.
    let trickle = async {
        let mut some = [0; 100];
        while slow.read(&mut some).await.is_ok_and(|count| count > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let other = async {
        worker.until_started(1).await;
        worker.call("GET", "/status", "").await
    };
    tokio::select! {
        () = trickle => panic!("64 MiB cannot trickle through in time"),
        answer = other => assert_status(&answer, 200),
    }
}

#[tokio::test]
async fn each_answer_has_its_own_time_to_be_taken() {
    let body_timeout = Duration::from_millis(500);
    let worker = Worker::start(HttpSettings { body_timeout, ..HttpSettings::default() });
    let mut stream = worker.connect().await;
    for _ in 0..2 {
        stream.write_all(b"GET /run/big HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
        // Blocked for a while, then taken at once.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
        stream.read_exact(&mut vec![0; 64 << 20]).await.expect("all of the body");
        tokio::time::sleep(body_timeout).await;
    }
}

#[tokio::test]
async fn at_the_cap_the_next_client_waits_its_turn() {
    let worker = Worker::start(HttpSettings { max_connections: 2, ..HttpSettings::default() });
    let held = (worker.connect().await, worker.connect().await);
    let mut third = worker.connect().await;
    third.write_all(b"GET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.expect("sent");
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), third.peek(&mut byte)).await;
    assert!(early.is_err(), "answered above the cap");
    assert!(worker.call_own("/status").await.ends_with("ready\n"), "the own socket has its own slots");
    drop(held);
    assert_status(&read_all(&mut third).await, 200);
}

#[tokio::test]
async fn a_client_that_is_gone_drops_its_call() {
    let worker = Worker::start(HttpSettings::default());
    for (gone, half) in [(1, false), (2, true)] {
        let mut stream = worker.connect().await;
        stream.write_all(b"GET /run/never HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
        worker.until_started(gone).await;
        if half {
            stream.shutdown().await.expect("half closed");
            assert_eq!(read_all(&mut stream).await, "");
        } else {
            drop(stream);
        }
        until(|| worker.engine.dropped.load(Ordering::SeqCst) == gone).await;
    }
}

#[tokio::test]
async fn a_client_that_only_closed_its_side_gets_its_answers() {
    let worker = Worker::start(HttpSettings::default());
    let mut stream = worker.connect().await;
    let two = "GET /status HTTP/1.1\r\nHost: h\r\n\r\nGET /run/slow HTTP/1.1\r\nHost: h\r\n\r\n";
    stream.write_all(two.as_bytes()).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let began = std::time::Instant::now();
    let answers = read_all(&mut stream).await;
    assert!(answers.contains("\r\n\r\nready\n") && answers.ends_with("\r\n\r\nslow"), "{answers}");
    assert!(began.elapsed() < Duration::from_secs(1), "the end is not held back after the answer");
}

#[tokio::test]
async fn a_head_or_body_that_ends_early_ends_the_connection() {
    let worker = Worker::start(HttpSettings::default());
    for part in ["GET /sta", "POST /run/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc"] {
        let mut stream = worker.connect().await;
        stream.write_all(part.as_bytes()).await.expect("sent");
        stream.shutdown().await.expect("half closed");
        let answer = read_all(&mut stream).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(worker.engine.started.load(Ordering::SeqCst), 0);
}
