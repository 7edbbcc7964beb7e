//! Requests to a service on this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

const DEADLINE: Duration = Duration::from_secs(5);

/// GETs `http://127.0.0.1:PORT/PATH` and returns the status and the body.
pub fn get(port: u16, path: &str) -> Result<(u16, String)> {
    request(port, "GET", path, "", "")
}

/// Sends a request with more header lines (each ends with CRLF) and a body; returns the status and the answer's body.
pub fn request(port: u16, method: &str, path: &str, headers: &str, body: &str) -> Result<(u16, String)> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length = body.len();
    let length = if method == "GET" {
        String::new()
    } else {
        format!("Content-Length: {length}\r\n")
    };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}{length}\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .with_context(|| format!("half an answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((
        status.with_context(|| format!("no status in {head:?}"))?,
        body.to_owned(),
    ))
}
