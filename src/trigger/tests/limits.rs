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
    let worker = Worker::start(settings());
    let mut slow = worker.connect().await;
    slow.write_all(b"GET /run/big HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    // It takes a little at a time: of 64 MiB it has not much when it is cut off.
    let trickle = async {
        let (mut some, mut taken) = ([0; 100], 0);
        loop {
            match slow.read(&mut some).await {
                Ok(count) if count > 0 => taken += count,
                _ => return taken,
            }
            // Once the time is over all that the kernel holds is taken at once.
            if taken < 3000 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let taken = timeout(PATIENCE, trickle).await.expect("cut off");
    assert!(taken < 64 << 20, "{taken}");
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
async fn at_the_cap_the_next_request_is_refused_and_idle_connections_do_not_count() {
    let worker = Worker::start(HttpSettings { max_connections: 2, ..HttpSettings::default() });
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(worker.connect().await);
    }
    let mut held = [worker.connect().await, worker.connect().await];
    for (count, stream) in held.iter_mut().enumerate() {
        stream.write_all(b"GET /run/never HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
        worker.until_started(count + 1).await;
    }
    let refused = worker.call("GET", "/run/echo", "").await;
    assert_status(&refused, 503);
    assert!(
        refused.contains(r#""reason":"busy""#) && refused.contains("\r\nretry-after: 1\r\n"),
        "{refused}"
    );
    assert_eq!(worker.engine.started.load(Ordering::SeqCst), 2, "nothing of it ran");
    assert!(worker.call_own("/status").await.ends_with("ready\n"), "the own socket has its own slots");
    drop(held);
    until(|| worker.engine.dropped.load(Ordering::SeqCst) == 2).await;
    assert_status(&worker.call("GET", "/run/echo", "").await, 200);
}

#[tokio::test]
async fn of_those_that_wait_the_longest_pending_one_goes() {
    let worker = Worker::start(HttpSettings { max_pending: 2, ..HttpSettings::default() });
    let mut served = worker.connect().await;
    served.write_all(b"GET /run/never HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
    worker.until_started(1).await;
    let mut first = worker.connect().await;
    first.write_all(b"POST /run/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\na").await.expect("sent");
    let mut second = worker.connect().await;
    let mut third = worker.connect().await;
    assert_eq!(read_all(&mut first).await, "", "it waited for its client the longest");
    for stream in [&mut second, &mut third] {
        stream.write_all(b"GET /status HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("sent");
        read_until(stream, "ready\n").await;
    }
    assert_eq!(worker.engine.dropped.load(Ordering::SeqCst), 0, "a call is nobody's victim");
}

#[tokio::test]
async fn a_head_beyond_its_bound_is_a_431_that_arrives() {
    let worker = Worker::start(settings());
    for size in [HEAD_LIMIT_BYTES, 2 * HEAD_LIMIT_BYTES, 4 << 20] {
        let head = format!("GET /run/echo HTTP/1.1\r\nHost: h\r\nX-A: {}\r\n\r\n", "a".repeat(size));
        assert_status(&worker.exchange(&head).await, 431);
    }
    assert_eq!(worker.engine.started.load(Ordering::SeqCst), 0);
    let fits = "a".repeat(HEAD_LIMIT_BYTES - 100);
    let head = format!("GET /run/echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-A: {fits}\r\n\r\n");
    assert_status(&worker.exchange(&head).await, 200);
}

#[tokio::test]
async fn a_body_that_finds_no_memory_is_a_503_and_small_ones_go_on() {
    let body_budget_bytes = 1 << 20;
    let worker = Worker::start(HttpSettings {
        body_budget_bytes,
        body_limit_bytes: body_budget_bytes,
        ..HttpSettings::default()
    });
    let head = "POST /run/echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n";
    let mut holder = worker.connect().await;
    holder.write_all(head.as_bytes()).await.expect("sent");
    holder.write_all(&vec![b'x'; 900_000]).await.expect("sent");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut other = worker.connect().await;
    other.write_all(head.as_bytes()).await.expect("sent");
    other.write_all(&vec![b'x'; 900_000]).await.expect("sent");
    let refused = read_all(&mut other).await;
    assert_status(&refused, 503);
    assert!(refused.contains("bodies-full") && refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
    assert_status(&worker.call("POST", "/run/echo", &"x".repeat(60_000)).await, 200);
    holder.write_all(&vec![b'x'; 100_000]).await.expect("sent");
    assert_status(&read_all(&mut holder).await, 200);
    assert_status(&worker.call("POST", "/run/echo", &"x".repeat(1_000_000)).await, 200);
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
