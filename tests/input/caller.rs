//! What a caller can send: names, bodies, methods.

use crate::support::Worker;
use crate::*;

#[test]
fn a_name_that_is_none_is_refused_before_anything_is_looked_for() {
    let worker = Worker::with(&[("hello", HELLO)]);
    let long = "x".repeat(129);
    for name in ["..", ".", "%2e%2e", "a%2Fb", "%252e", "a%20b", "%C3%A4", "%ff", &long, ""] {
        for (method, path) in [("GET", format!("/run/{name}")), ("DELETE", format!("/registry/{name}"))] {
            if name.is_empty() && method == "DELETE" {
                continue; // the list, which cannot be deleted: 405
            }
            let answer = worker.request(method, &path, &[], b"");
            assert_eq!(
                (answer.status, reason(&answer).as_str()),
                (400, "bad-name"),
                "{method} {path}: {answer:?}"
            );
        }
    }
    // A name, and no function: nothing of it stays.
    let unknown = worker.call("nobody", "{}");
    assert_eq!((unknown.status, reason(&unknown).as_str()), (404, "unknown-function"), "{unknown:?}");
    assert!(error(&unknown).contains("hosier deploy"), "{unknown:?}");
    assert!(!worker.get("/debug").body.contains("nobody"));
    // `a/b` is the function `a` with the path `/b`.
    assert_eq!(worker.get("/run/hello/b").status, 200);
    assert_eq!(worker.get("/run/a/b").status, 404);
    assert_eq!(worker.get("/nothing").status, 404);
    // 128 characters are a name.
    assert_eq!(worker.get(&format!("/run/{}", "x".repeat(128))).status, 404);
    worker.down();
}

#[test]
fn a_body_that_is_too_large_or_not_json_is_the_callers_fault() {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&["http.body_limit_bytes=1000"]);
    let large = worker.request("POST", "/run/hello", &[], &[b' '; 1001]);
    assert_eq!((large.status, reason(&large).as_str()), (413, "body-too-large"), "{large:?}");
    assert!(error(&large).contains("1000"), "{large:?}");
    let large = worker.request("POST", "/registry/large", &[], &[0; 1001]);
    assert_eq!(large.status, 413, "{large:?}");
    for body in ["{", "nope", "{'single': 1}", "[1,]", "\u{fe}"] {
        let answer = worker.call("hello", body);
        assert_eq!((answer.status, reason(&answer).as_str()), (400, "bad-json"), "{body}: {answer:?}");
    }
    // At the limit, and after all that.
    let event = format!("{{\"name\": \"{}\"}}", "x".repeat(1000 - 12));
    assert_eq!(event.len(), 1000);
    assert_eq!(worker.result("hello", &event)["hello"].as_str().unwrap().len(), 988);
    assert_eq!(worker.result("hello", "")["hello"], "world");
    worker.down();
}

#[test]
fn the_default_limit_of_a_body_is_six_megabytes() {
    let worker = Worker::with(&[("length", "def f(event):\n    return len(event)\n")]);
    let event = format!("\"{}\"", "x".repeat((6 << 20) - 2));
    assert_eq!(worker.result("length", &event), (6 << 20) - 2);
    assert_eq!(worker.call("length", &format!("{event} ")).status, 413);
    worker.down();
}

#[test]
fn methods_and_environment_are_what_ol_yaml_says() {
    let worker = Worker::new();
    let code = "import os\ndef f(event):\n    return dict(os.environ)\n";
    let config = "triggers:\n  http: [{method: GET}, {method: POST}]\nenvironment: {GREETING: hi there, PATH: /mine}\n";
    worker.deploy("asks", &[("f.py", code), ("ol.yaml", config)]);
    let worker = up(worker, &[]);
    let refused = worker.request("PUT", "/run/asks", &[], b"");
    assert_eq!(refused.status, 405);
    assert_eq!(refused.body, "HTTP method not allowed. Sent: PUT, Allowed: [GET POST]\n");
    assert_eq!(refused.header("allow"), "GET, POST");
    let env = worker.result("asks", "");
    assert_eq!((&env["GREETING"], &env["PATH"]), (&"hi there".into(), &"/mine".into()));
    let names: Vec<_> = env.as_object().unwrap().keys().cloned().collect();
    for (name, _) in std::env::vars() {
        let ours = ["PATH", "HOME", "LANG", "USER", "LOGNAME", "TMPDIR", "PWD", "SHLVL", "LC_CTYPE"];
        assert!(
            ours.contains(&name.as_str()) || !names.contains(&name),
            "{name} of the worker's is in {names:?}"
        );
    }
    worker.down();
}
