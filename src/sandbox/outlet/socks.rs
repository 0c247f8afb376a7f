//! A connection through a SOCKS proxy of the operator's (RFC 1928, RFC 1929). Runs in the worker.
//!
//! ```text
//! 5, methods ─▶ 5, method ─▶ [1, user, password ─▶ 1, 0] ─▶ 5, connect, host, port ─▶ 5, 0, address ─▶ bytes
//! ```
//!
//! Every message has a length of its own, so that not a byte of the connection itself is read.

use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const VERSION: u8 = 5;
const NO_LOGIN: u8 = 0;
const LOGIN: u8 = 2;
/// Version of the messages in which a user and a password are sent.
const LOGIN_VERSION: u8 = 1;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

/// Longest name, user or password, in bytes: their length is one byte.
pub(super) const MAX_TEXT: usize = 255;

/// A user and a password.
pub(super) type Login = (Vec<u8>, Vec<u8>);

/// Asks the proxy behind `stream` to connect to `host`, an address or a name, at `port`.
///
/// # Errors
/// Returns the proxy's reason, or `InvalidData` for an answer that is not of this protocol.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    login: Option<&Login>,
    host: &str,
    port: u16,
) -> io::Result<()> {
    let method = if login.is_some() { LOGIN } else { NO_LOGIN };
    stream.write_all(&[VERSION, 1, method]).await?;
    if read::<2, S>(stream).await? != [VERSION, method] {
        return Err(io::Error::other("it wants another login than the one in its URL"));
    }
    if let Some((user, password)) = login {
        let mut message = vec![LOGIN_VERSION];
        push(&mut message, user)?;
        push(&mut message, password)?;
        stream.write_all(&message).await?;
        if read::<2, S>(stream).await?[1] != 0 {
            return Err(io::Error::other("it refused the user and password in its URL"));
        }
    }
    let mut message = vec![VERSION, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            message.push(IPV4);
            message.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            message.push(IPV6);
            message.extend(address.octets());
        }
        Err(_) => {
            message.push(NAME);
            push(&mut message, host.as_bytes())?;
        }
    }
    message.extend(port.to_be_bytes());
    stream.write_all(&message).await?;
    let [version, reply, _, kind] = read::<4, S>(stream).await?;
    if version != VERSION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is not of SOCKS 5"));
    }
    if reply != 0 {
        return Err(io::Error::other(reason(reply)));
    }
    // The address that the proxy connected from, and its port.
    let length = match kind {
        IPV4 => 4,
        IPV6 => 16,
        NAME => usize::from(read::<1, S>(stream).await?[0]),
        _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "its answer is not of SOCKS 5")),
    };
    stream.read_exact(&mut vec![0; length + 2]).await.map(drop)
}

async fn read<const N: usize, S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Adds a text and, before it, its length.
fn push(message: &mut Vec<u8>, text: &[u8]) -> io::Result<()> {
    let length = u8::try_from(text.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    message.push(length);
    message.extend(text);
    Ok(())
}

/// Words for a reply (RFC 1928, section 6).
fn reason(reply: u8) -> &'static str {
    match reply {
        2 => "it does not allow this connection",
        3 => "the network is unreachable",
        4 => "the host is unreachable",
        5 => "the connection was refused",
        6 => "the connection timed out",
        7 | 8 => "it does not support this kind of connection",
        _ => "it failed",
    }
}
