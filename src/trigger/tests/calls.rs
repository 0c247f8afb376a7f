//! Calls and their answers.

use super::*;

#[tokio::test]
async fn a_call_carries_path_query_and_body_and_answers_with_its_cost() {
    let worker = Worker::start(HttpSettings::default());
    let answer = worker.call("POST", "/run/echo/a%2Fb/?q=1&r", "hello").await;
    assert_status(&answer, 200);
    for line in ["x-path: /a%2Fb/", "x-query: q=1&r", "x-hosier-start: warm", "server-timing: exec;dur=1.500"]
    {
        assert!(answer.contains(&format!("\r\n{line}\r\n")), "{line}: {answer}");
    }
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    let stats = worker.call("GET", "/stats", "").await;
    assert!(stats.contains("\"web-request.cnt\":1") && stats.contains("\"sandboxes\":3"), "{stats}");
}

#[tokio::test]
async fn a_chunked_body_arrives_whole_and_with_its_length() {
    let worker = Worker::start(HttpSettings::default());
    let head = "POST /run/headers HTTP/1.1\r\nHost: h\r\nX-UP: \u{e9}\r\nConnection: close\r\n";
    let chunks = "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let answer = worker.exchange(&format!("{head}{chunks}")).await;
    // The two bytes of the e acute come as two Latin-1 characters.
    let seen = r#"[("host", "h"), ("x-up", "Ã©"), ("content-length", "5")]"#;
    assert!(answer.ends_with(seen), "{answer}");
    let body = answer_to_chunks(&worker).await;
    assert!(body.ends_with("\r\n\r\nabcde"), "{body}");
}

async fn answer_to_chunks(worker: &Worker) -> String {
    let head =
        "POST /run/echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut stream = worker.connect().await;
    for piece in [head, "3\r\nabc\r\n", "2\r\nde\r\n", "0\r\n\r\n"] {
        stream.write_all(piece.as_bytes()).await.expect("sent");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    read_all(&mut stream).await
}

#[tokio::test]
async fn bad_names_are_refused_with_the_rule() {
    let worker = Worker::start(HttpSettings::default());
    for bad in ["..", "%2e%2e", "a%2fb", "%252e", "a%00b", "%zz", ""] {
        let answer = worker.call("POST", &format!("/run/{bad}"), "{}").await;
        assert_status(&answer, 400);
        assert!(answer.contains("bad-name") && answer.contains("1 to 128 of A-Z"), "{answer}");
    }
    assert_eq!(worker.engine.started.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn refusals_of_the_engine_are_status_codes() {
    let worker = Worker::start(HttpSettings::default());
    let unknown = worker.call("GET", "/run/nobody", "").await;
    assert_status(&unknown, 404);
    assert!(unknown.contains(r#""reason":"unknown-function""#), "{unknown}");
    let full = worker.call("GET", "/run/full", "").await;
    assert_status(&full, 429);
    assert!(full.contains("\r\nretry-after: 1\r\n"), "{full}");
    let put = worker.call("PUT", "/run/get", "").await;
    assert_status(&put, 405);
    assert!(put.contains("\r\nallow: GET, POST\r\n"), "{put}");
    assert!(put.ends_with("\r\n\r\nHTTP method not allowed. Sent: PUT, Allowed: [GET POST]\n"), "{put}");
}

#[tokio::test]
async fn a_wrong_method_on_a_known_path_says_what_is_allowed() {
    let worker = Worker::start(HttpSettings::default());
    for (method, path, allow) in [
        ("POST", "/status", "GET, HEAD"),
        ("PUT", "/stats", "GET, HEAD"),
        ("GET", "/registry/echo", "POST, DELETE"),
    ] {
        let answer = worker.ask_own(method, path, b"").await;
        assert_status(&answer, 405);
        assert!(answer.contains(&format!("\r\nallow: {allow}\r\n")), "{answer}");
    }
    assert_status(&worker.call("GET", "/nothing", "").await, 404);
}

#[tokio::test]
async fn the_registry_stores_lists_tells_and_removes() {
    let worker = Worker::start(HttpSettings::default());
    let bad = worker.ask_own("POST", "/registry/echo", b"no archive").await;
    assert_status(&bad, 400);
    assert!(bad.contains("no gzip"), "{bad}");
    assert_status(&worker.ask_own("POST", "/registry/echo", &[0x1f, 0x8b]).await, 201);
    assert!(worker.call_own("/registry/").await.ends_with("\r\n\r\n[\"echo\"]\n"));
    assert!(worker.call_own("/registry/echo/config").await.contains("reuse-sandbox"));
    assert_status(&worker.call_own("/registry/other/config").await, 404);
    assert_status(&worker.ask_own("DELETE", "/registry/echo", b"").await, 200);
    assert_status(&worker.ask_own("DELETE", "/registry/other", b"").await, 404);
}

#[tokio::test]
async fn a_function_cannot_inject_a_header() {
    let worker = Worker::start(HttpSettings::default());
    let answer = worker.call("GET", "/run/inject", "").await;
    assert_status(&answer, 502);
    assert!(answer.contains(r#""reason":"protocol""#), "{answer}");
    assert!(!answer.to_lowercase().contains("set-cookie"), "{answer}");
}

#[tokio::test]
async fn a_panic_is_one_answer_and_the_connection_goes_on() {
    let worker = Worker::start(HttpSettings::default());
    let both = "GET /run/panic HTTP/1.1\r\nHost: h\r\n\r\nGET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answers = worker.exchange(both).await;
    assert_status(&answers, 500);
    assert!(answers.contains(r#""reason":"panic""#) && answers.ends_with("\r\n\r\nready\n"), "{answers}");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let worker = Worker::start(HttpSettings::default());
    let mut requests = String::new();
    for path in ["/run/slow", "/run/echo?q=2", "/nothing"] {
        requests += &format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    requests += "GET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answers = worker.exchange(&requests).await;
    let places: Vec<_> =
        ["slow", "x-query: q=2", "unknown-path", "ready\n"].iter().map(|text| answers.find(text)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{answers}");
}

#[tokio::test]
async fn garbage_is_a_400_and_a_head_has_no_body() {
    let worker = Worker::start(HttpSettings::default());
    assert_status(&worker.exchange("no http at all\r\n\r\n").await, 400);
    let head = worker.call("HEAD", "/status", "").await;
    assert_status(&head, 200);
    assert!(head.contains("content-length: 6") && head.ends_with("\r\n\r\n"), "{head}");
}
