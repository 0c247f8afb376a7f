//! Clients on the port: with the token, without it, with a wrong one, and from elsewhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::Worker;
use crate::{HELLO, archive, send};

/// All that is not a call: method and path, and the status of an operator's request.
const ADMIN: [(&str, u16); 6] = [
    ("GET /debug", 200),
    ("GET /registry/", 200),
    ("GET /registry/hello/config", 200),
    ("POST /registry/new", 201),
    ("DELETE /registry/new", 200),
    ("PUT /registry/hello", 405),
];

const PUBLIC: [&str; 4] = ["GET /status", "GET /stats", "POST /run/hello", "POST /run/hello/debug"];

fn token(worker: &Worker) -> String {
    fs::read_to_string(worker.path().join("token")).unwrap().trim().to_owned()
}

/// The header lines of a client that addresses the worker by its own name.
fn own(worker: &Worker, more: &str) -> String {
    format!("Host: localhost:{}\r\n{more}", worker.port)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[test]
fn a_client_without_the_token_can_call_and_nothing_else() {
    let worker = Worker::with(&[("hello", HELLO)]);
    let secret = token(&worker);
    let code = archive(&[("f.py", HELLO)]);
    for line in PUBLIC {
        for headers in ["", "Host: elsewhere.example\r\nOrigin: http://elsewhere.example\r\n"] {
            let (status, answer) = send(&worker, line, headers, b"{}");
            assert_eq!(status, 200, "{line}: {answer}");
        }
    }
    let mut wrong = secret.clone().into_bytes();
    wrong[63] = if wrong[63] == b'0' { b'1' } else { b'0' };
    let wrong = String::from_utf8(wrong).unwrap();
    for (line, allowed) in ADMIN {
        for headers in [
            String::new(),
            bearer(""),
            bearer(&wrong),
            bearer(&secret[..63]),
            bearer(&format!("{secret}0")),
            format!("Authorization: Basic {secret}\r\n"),
            bearer(&wrong) + &bearer(&secret),
            format!("Cookie: token={secret}\r\n"),
        ] {
            let (status, answer) = send(&worker, line, &own(&worker, &headers), &code);
            assert_eq!(status, 401, "{line} with {headers:?}: {answer}");
            for part in ["\r\nwww-authenticate: Bearer", "own socket", "`token`", "http.admin"] {
                assert!(answer.contains(part), "{part}: {answer}");
            }
            assert!(!answer.contains(&secret), "{answer}");
        }
        let (status, answer) = send(&worker, line, &own(&worker, &bearer(&secret)), &code);
        assert_eq!(status, allowed, "{line}: {answer}");
    }
    assert_eq!(worker.get("/registry/").json(), serde_json::json!(["hello"]));
    assert_eq!(send(&worker, "GET /nothing", &own(&worker, ""), b"").0, 404);
    worker.down();
}

#[test]
fn a_foreign_host_or_origin_is_refused_with_the_token_too_and_in_an_open_worker() {
    for options in [&[][..], &["http.admin=open"]] {
        let mut worker = Worker::new();
        worker.deploy("hello", &[("f.py", HELLO)]);
        worker.up(options);
        let port = worker.port;
        let key = bearer(&token(&worker));
        let ours = own(&worker, "");
        let foreign = [
            String::new(),
            "Host: \r\n".to_owned(),
            "Host: localhost\r\n".to_owned(),
            format!("Host: localhost:{}\r\n", port.wrapping_add(1)),
            format!("Host: elsewhere.example:{port}\r\n"),
            format!("Host: localhost.elsewhere.example:{port}\r\n"),
            format!("Host: localhost:{port}@elsewhere.example\r\n"),
            format!("{ours}Host: elsewhere.example:{port}\r\n"),
            format!("{ours}Origin: null\r\n"),
            format!("{ours}Origin: http://elsewhere.example:{port}\r\n"),
            format!("{ours}Origin: https://localhost:{port}\r\n"),
            format!("{ours}Origin: http://localhost:{}\r\n", port.wrapping_add(1)),
            format!("{ours}Origin: http://localhost:{port}.elsewhere.example\r\n"),
            format!("{ours}Sec-Fetch-Site: cross-site\r\n"),
            format!("{ours}Sec-Fetch-Site: same-site\r\n"),
        ];
        let code = archive(&[("f.py", HELLO)]);
        for (line, _) in ADMIN {
            for headers in &foreign {
                let (status, answer) = send(&worker, line, &format!("{headers}{key}"), &code);
                // Two of one header, or a Host that is none, may be malformed before they are foreign.
                let refused = status == 403 && answer.contains("\"reason\":\"foreign-");
                assert!(refused || status == 400, "{line} with {headers:?}: {answer}");
            }
            // An absolute target goes before Host.
            let (method, path) = line.split_once(' ').unwrap();
            let absolute = format!("{method} http://elsewhere.example:{port}{path}");
            assert_eq!(send(&worker, &absolute, &format!("{ours}{key}"), &code).0, 403, "{absolute}");
        }
        for host in ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]"] {
            let headers = format!("Host: {host}:{port}\r\nSec-Fetch-Site: none\r\n{key}");
            let (status, answer) = send(&worker, "GET /debug", &headers, b"");
            assert_eq!(status, 200, "{host}: {answer}");
        }
        // A browser asks first: nothing that it is told permits another origin anything.
        let asks = "Origin: http://elsewhere.example\r\nAccess-Control-Request-Method: DELETE\r\n\
                    Access-Control-Request-Headers: authorization\r\n";
        for path in ["/registry/hello", "/registry/", "/debug"] {
            let (status, answer) = send(&worker, &format!("OPTIONS {path}"), &format!("{ours}{asks}"), b"");
            assert_eq!(status, 403, "{answer}");
            assert!(!answer.to_lowercase().contains("access-control"), "{answer}");
        }
        assert_eq!(worker.get("/registry/").json(), serde_json::json!(["hello"]));
        worker.down();
    }
}

#[test]
fn an_open_worker_lets_in_clients_but_no_pages_and_says_so_when_it_starts() {
    let mut worker = Worker::new();
    worker.deploy("hello", &[("f.py", HELLO)]);
    worker.up(&[]);
    assert!(!worker.worker_log().contains("http.admin"), "{}", worker.worker_log());
    worker.down();
    worker.up(&["http.admin=open"]);
    let log = worker.worker_log();
    assert!(log.contains("http.admin is \"open\"") && log.contains("deploy"), "{log}");
    let code = archive(&[("f.py", HELLO)]);
    for (line, allowed) in ADMIN {
        let (status, answer) = send(&worker, line, &own(&worker, ""), &code);
        assert_eq!(status, allowed, "{line}: {answer}");
    }
    // A page of the worker's own origin was made by a function.
    let port = worker.port;
    for page in [format!("Origin: http://localhost:{port}\r\n"), "Sec-Fetch-Site: same-origin\r\n".to_owned()]
    {
        let (status, answer) = send(&worker, "DELETE /registry/hello", &own(&worker, &page), b"");
        assert_eq!(status, 403, "{answer}");
    }
    let said = worker.refused(&["up", "-o", "http.admin=closed"]);
    assert!(said.contains("http.admin") && said.contains("\"token\" or \"open\""), "{said}");
    worker.down();
}

#[test]
fn the_token_is_roots_alone_made_once_and_made_again_where_it_is_missing() {
    let mut worker = Worker::new();
    let path = worker.path().join("token");
    let mode = || fs::symlink_metadata(&path).unwrap().permissions().mode();
    let first = token(&worker);
    assert_eq!(mode() & 0o7777, 0o600);
    assert!(first.len() == 64 && first.bytes().all(|byte| byte.is_ascii_hexdigit()), "{first:?}");
    worker.ok(&["init"]);
    assert_eq!(token(&worker), first, "made anew over one that scripts may use");
    // A directory of an older version.
    fs::remove_file(&path).unwrap();
    worker.up(&[]);
    let second = token(&worker);
    assert!(second != first && mode() & 0o7777 == 0o600);
    for (secret, status) in [(&first, 401), (&second, 200)] {
        assert_eq!(send(&worker, "GET /debug", &own(&worker, &bearer(secret)), b"").0, status);
    }
    worker.down();
    // One that others may read, one that is too short to hold, one that is no file of the directory.
    let elsewhere = worker.path().join("elsewhere");
    fs::write(&elsewhere, &second).unwrap();
    let refused = |what: &str, part: &str| {
        let said = worker.refused(&["up", "-d", "-o", "worker_port=0"]);
        assert!(said.contains(path.to_str().unwrap()) && said.contains(part), "{what}: {said}");
        assert!(!said.contains(&second), "{said}");
    };
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    refused("readable", "chmod 600");
    fs::write(&path, "short").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    refused("short", "remove it");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    refused("a link", "remove it");
    fs::remove_file(&path).unwrap();
    let names: Vec<_> =
        fs::read_dir(worker.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("token")), "{names:?}");
}

#[test]
fn values_of_the_environment_are_shown_nowhere() {
    let secret = "a-password-of-somebodys";
    let mut worker = Worker::new();
    let config = format!("environment: {{PASSWORD: {secret}, OL_ENTRY_FILE: f.py}}\n");
    let code = "import os\ndef f(event):\n    return len(os.environ['PASSWORD'])\n";
    worker.deploy("keeps", &[("f.py", code), ("ol.yaml", &config)]);
    worker.up(&["registry_cache_ms=0"]);
    assert_eq!(worker.result("keeps", "{}"), secret.len());
    let config = worker.get("/registry/keeps/config");
    assert_eq!(config.status, 200, "{config:?}");
    let environment = config.json()["environment"].clone();
    let keys: Vec<_> = environment.as_object().unwrap().keys().cloned().collect();
    assert_eq!(keys, ["OL_ENTRY_FILE", "PASSWORD"], "{environment}");
    for text in [config.body, worker.get("/debug").body, worker.ok(&["status"]), worker.get("/stats").body] {
        assert!(!text.contains(secret) && !text.contains("f.py"), "{text}");
    }
    // A value that cannot be used: whoever calls the function learns the key.
    let bad = format!("environment: {{OL_ENTRY_FILE: /{secret}.py}}\n");
    fs::remove_file(worker.path().join("registry/keeps.tar.gz")).unwrap();
    fs::create_dir(worker.path().join("registry/keeps")).unwrap();
    fs::write(worker.path().join("registry/keeps/f.py"), code).unwrap();
    fs::write(worker.path().join("registry/keeps/ol.yaml"), bad).unwrap();
    let answer = worker.call("keeps", "{}");
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.body.contains("OL_ENTRY_FILE") && !answer.body.contains(secret), "{answer:?}");
    worker.down();
    assert!(!worker.worker_log().contains(secret), "{}", worker.worker_log());
}
