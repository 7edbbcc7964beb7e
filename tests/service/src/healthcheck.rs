//! The `healthcheck` command: an image `FROM scratch` has no curl.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(3);
/// As much of an answer as is read and shown.
const ANSWER_LIMIT_BYTES: u64 = 4096;

/// GETs the URL (`http://IP:PORT/PATH`); the answer's status line and body are well (2xx) or the error.
pub(crate) fn check(url: &str) -> Result<String, String> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("{url} is not an http:// URL"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = host.replace("localhost", "127.0.0.1");
    let address: SocketAddr = address.parse().map_err(|_| format!("{host} is not IP:PORT"))?;
    let answer = get(&address, path).map_err(|error| format!("GET {url}: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    let said = format!("GET {url}: {status} {}", body.trim());
    if status.split(' ').nth(1).is_some_and(|code| code.starts_with('2')) {
        Ok(said)
    } else {
        Err(said)
    }
}

fn get(address: &SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.take(ANSWER_LIMIT_BYTES).read_to_string(&mut answer)?;
    Ok(answer)
}
