//! Headers on their way to a function, and a function's answer on its way out.
//!
//! A function is not trusted: what HTTP cannot carry (a line break in a value, a
//! status outside 200 to 999) is a broken protocol, 502, and never a panic.
//! Headers that speak of one connection are dropped both ways; the length is
//! ours to say. Strings carry bytes as Latin-1, one character a byte, as WSGI's
//! native strings do, so that any header value goes through unharmed.

use std::fmt::Write;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::status::Refusal;
use crate::lambda::{Answer, FunctionName, Timings};

/// Headers that a function may set.
const MAX_HEADERS: usize = 256;

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const X_HOSIER_START: HeaderName = HeaderName::from_static("x-hosier-start");

/// Headers of one connection, not of the message (RFC 9110, 7.6.1), and
/// `Expect`, which has been answered by the time a function sees it.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "expect"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// The headers a function sees: lower case, `content-length` that of the body.
pub(super) fn request_headers(headers: &HeaderMap, body_bytes: usize) -> Vec<(String, String)> {
    let named: Vec<&str> = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok()).collect();
    let mut out = Vec::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        let text = name.as_str();
        if is_hop_by_hop(text) || name == CONTENT_LENGTH || is_named(&named, text) {
            continue;
        }
        let value = match value.to_str() {
            Ok(ascii) => ascii.to_owned(),
            Err(_) => value.as_bytes().iter().map(|&byte| char::from(byte)).collect(),
        };
        out.push((text.to_owned(), value));
    }
    if body_bytes > 0 || headers.contains_key(CONTENT_LENGTH) {
        out.push((CONTENT_LENGTH.as_str().to_owned(), body_bytes.to_string()));
    }
    out
}

/// `Connection: a, b` makes `a` and `b` headers of the connection too.
fn is_named(lists: &[&str], name: &str) -> bool {
    lists.iter().flat_map(|list| list.split(',')).any(|item| item.trim().eq_ignore_ascii_case(name))
}

/// # Errors
/// The answer holds what HTTP cannot carry.
pub(super) fn into_response(
    answer: Answer,
    function: &FunctionName,
    is_head: bool,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let bad = |what: String| Refusal::BadAnswer { function: function.to_string(), what };
    // 1xx announces another answer, and 101 would hand over the connection.
    let status = StatusCode::from_u16(answer.status)
        .ok()
        .filter(|status| !status.is_informational())
        .ok_or_else(|| bad(format!("status {}", answer.status)))?;
    if answer.headers.len() > MAX_HEADERS {
        return Err(bad(format!("{} headers, the limit is {MAX_HEADERS}", answer.headers.len())));
    }
    let named: Vec<&str> = answer
        .headers
        .iter()
        .filter_map(|(name, value)| name.eq_ignore_ascii_case("connection").then_some(value.as_str()))
        .collect();
    // To a HEAD, the length is that of the body a GET would get.
    let keeps_length = is_head && answer.body.is_empty();
    let mut headers = HeaderMap::with_capacity(answer.headers.len() + 3);
    for (raw_name, raw_value) in &answer.headers {
        let name = HeaderName::from_bytes(raw_name.as_bytes())
            .map_err(|_| bad(format!("header name {}", shown(raw_name))))?;
        let value = header_value(raw_value).ok_or_else(|| bad(format!("a value of header {name}")))?;
        if is_hop_by_hop(name.as_str()) || name == X_HOSIER_START || is_named(&named, name.as_str()) {
            continue;
        }
        if name != CONTENT_LENGTH {
            headers.append(name, value);
        } else if keeps_length && value.as_bytes().iter().all(u8::is_ascii_digit) {
            headers.insert(name, value);
        }
    }
    headers.insert(X_HOSIER_START, HeaderValue::from_static(answer.start.as_str()));
    if let Some(value) = server_timing(&answer.timings) {
        headers.append(SERVER_TIMING, value);
    }
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

fn header_value(text: &str) -> Option<HeaderValue> {
    if text.is_ascii() {
        return HeaderValue::from_str(text).ok();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    HeaderValue::from_bytes(&bytes?).ok()
}

/// A name from a function, short and escaped, for an error.
fn shown(name: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    format!("{:?}", name.chars().take(SHOWN_CHARS).collect::<String>())
}

/// `queue;dur=0.012, fork;dur=1.250`, in milliseconds; `None` without steps.
fn server_timing(Timings(steps): &Timings) -> Option<HeaderValue> {
    let mut line = String::with_capacity(steps.len() * 24);
    for (step, took) in steps {
        let comma = if line.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(line, "{comma}{step};dur={:.3}", took.as_secs_f64() * 1e3);
    }
    (!line.is_empty()).then(|| HeaderValue::try_from(line).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::lambda::Start;

    fn response(status: u16, headers: &[(&str, &str)]) -> Result<Response<Full<Bytes>>, Refusal> {
        let headers = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let timings = Timings(vec![("queue", Duration::from_micros(12)), ("fork", Duration::from_millis(1))]);
        let answer = Answer { status, headers, body: Bytes::new(), start: Start::Forked, timings };
        into_response(answer, &FunctionName::new("f").expect("a name"), false)
    }

    #[test]
    fn what_http_cannot_carry_is_a_refusal() {
        for bad in [
            ("a b", "x"),
            ("", "x"),
            ("x", "a\r\nSet-Cookie: b"),
            ("x", "a\0"),
            ("x", "\u{20ac}"),
            ("x\n", ""),
        ] {
            assert!(response(200, &[bad]).is_err(), "{bad:?}");
        }
        for bad in [0, 99, 100, 101, 1000] {
            assert!(response(bad, &[]).is_err(), "{bad}");
        }
        assert!(response(200, &[("x", "y"); MAX_HEADERS + 1]).is_err());
    }

    #[test]
    fn headers_of_the_connection_stay_with_it() {
        let sent = [("Connection", "close, X-Hop"), ("X-Hop", "1"), ("Transfer-Encoding", "chunked")];
        let sent = [&sent[..], &[("Content-Length", "9"), ("X-Hosier-Start", "warm"), ("X-Kept", "\u{e9}")]]
            .concat();
        let response = response(200, &sent).expect("a response");
        assert_eq!(response.headers().len(), 3);
        assert_eq!(response.headers()["x-kept"].as_bytes(), b"\xe9");
        assert_eq!(response.headers()["x-hosier-start"], "forked");
        assert_eq!(response.headers()["server-timing"], "queue;dur=0.012, fork;dur=1.000");
    }
}
