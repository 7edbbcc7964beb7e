//! A registry that lies: a proxy in front of an honest one, told while it runs what to do to those who pull. Those who
//! push are served honestly.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// The longest head of a request or an answer.
const HEAD_MAX_BYTES: usize = 64 * 1024;
/// What a TLS connection begins with.
const TLS_HANDSHAKE: u8 = 0x16;
/// A blob of this size is a layer.
const LAYER_MIN_BYTES: u64 = 32 * 1024;
/// How often one who stands still looks whether he may go on.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// How many pieces a second a slow body comes in.
const PIECES_A_SECOND: u64 = 20;

/// What is done to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Another status, with `Retry-After` in seconds where one is given.
    Status(u16, Option<u32>),
    /// The connection is closed without an answer.
    HungUp,
    /// Half of the body, then the connection is closed.
    Truncated,
    /// One byte of the body is another.
    Damaged,
    /// Half of the body, then nothing until something else is told; then the rest, or with [`Self::HungUp`] the end.
    Stalled,
    /// The body comes at this many bytes a second.
    Slow(u64),
}

/// Which answers are lied about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// All that a pull asks for.
    Everything,
    /// Manifests.
    Manifests,
    /// Layers. An image's configuration, which a lookup asks for too, is none: it is small.
    Layers,
}

impl About {
    /// `length`: of the honest answer, where it is known already.
    fn concerns(self, method: &str, path: &str, length: Option<u64>) -> bool {
        let asks = matches!(method, "GET" | "HEAD");
        match (self, length) {
            (Self::Everything, None) => asks,
            (Self::Manifests, None) => asks && path.contains("/manifests/"),
            // A push asks by HEAD whether a blob is there.
            (Self::Layers, Some(length)) => {
                method == "GET" && path.contains("/blobs/") && length >= LAYER_MIN_BYTES
            }
            (Self::Everything | Self::Manifests, Some(_)) | (Self::Layers, None) => false,
        }
    }
}

/// The proxy. It ends on drop.
#[derive(Debug)]
pub struct Liar {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    port: u16,
    honest_port: AtomicU16,
    told: Mutex<Option<Told>>,
    /// How often it has lied.
    lies: AtomicU32,
    stopped: AtomicBool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    lie: Lie,
    about: About,
    /// After so many answers it is honest again.
    left: Option<u32>,
}

impl Liar {
    /// Listens on a free port of 127.0.0.1; honest, once it is told by [`Self::speak_for`] whose answers it gives.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let inner = Arc::new(Inner {
            port: listener.local_addr()?.port(),
            honest_port: AtomicU16::new(0),
            told: Mutex::new(None),
            lies: AtomicU32::new(0),
            stopped: AtomicBool::new(false),
        });
        let serving = Arc::clone(&inner);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if serving.stopped.load(Ordering::Acquire) {
                    break;
                }
                let serving = Arc::clone(&serving);
                // A client that goes away in the middle is no concern of anybody's.
                thread::spawn(move || drop(serving.serve(client)));
            }
        });
        Ok(Self { inner })
    }

    /// The port that it listens on.
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// Gives the answers of the registry on this port.
    pub fn speak_for(&self, port: u16) {
        self.inner.honest_port.store(port, Ordering::Release);
    }

    /// Lies so from now on.
    pub fn lie(&self, about: About, lie: Lie) {
        let left = None;
        self.inner.set(Some(Told { lie, about, left }));
    }

    /// Lies so in so many answers, then is honest.
    pub fn lie_times(&self, times: u32, about: About, lie: Lie) {
        let left = Some(times);
        self.inner.set(Some(Told { lie, about, left }));
    }

    /// Is honest from now on.
    pub fn be_honest(&self) {
        self.inner.set(None);
    }

    /// How often it has lied since it was told to.
    pub fn lies(&self) -> u32 {
        self.inner.lies.load(Ordering::Acquire)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.inner.stopped.store(true, Ordering::Release);
        self.be_honest();
        // The listener wakes for it, and looks.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.inner.port)));
    }
}

impl Inner {
    fn set(&self, told: Option<Told>) {
        self.lies.store(0, Ordering::Release);
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    /// The lie for this request, which counts as told.
    fn lie_for(&self, head: &str, length: Option<u64>) -> Option<Lie> {
        let mut words = head.split(' ');
        let (method, path) = (words.next()?, words.next()?);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let now = told.as_mut()?;
        if !now.about.concerns(method, path, length) || now.left == Some(0) {
            return None;
        }
        now.left = now.left.map(|left| left - 1);
        self.lies.fetch_add(1, Ordering::AcqRel);
        Some(now.lie)
    }

    fn serve(&self, mut client: TcpStream) -> Result<()> {
        let (asked, rest) = read_head(&mut client)?;
        let early = self.lie_for(&asked, None);
        if let Some(lie) = early
            && answered_with(lie, &mut client)?
        {
            return Ok(());
        }
        let honest = (Ipv4Addr::LOCALHOST, self.honest_port.load(Ordering::Acquire));
        let mut registry = TcpStream::connect(honest)?;
        // One request for each connection, so that what is told holds from the next request on.
        registry.write_all(closing(&asked).as_bytes())?;
        registry.write_all(&rest)?;
        let (mut from, mut to) = (client.try_clone()?, registry.try_clone()?);
        thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
        let (head, rest) = read_head(&mut registry)?;
        let length: u64 = header(&head, "content-length")
            .and_then(|length| length.parse().ok())
            .unwrap_or(0);
        let lie = early.or_else(|| self.lie_for(&asked, Some(length)));
        if lie.is_none_or(|lie| !answered_with(lie, &mut client).unwrap_or(true)) {
            client.write_all(closing(&head).as_bytes())?;
            let mut body = rest.as_slice().chain(&mut registry);
            // A client that goes away is no concern of anybody's, but the other half of the pair must hear of it.
            drop(self.pass_on(&mut body, length, lie, &mut client));
        }
        drop(client.shutdown(Shutdown::Both));
        drop(registry.shutdown(Shutdown::Both));
        Ok(())
    }

    fn pass_on(
        &self,
        body: &mut impl Read,
        length: u64,
        lie: Option<Lie>,
        client: &mut TcpStream,
    ) -> Result<()> {
        let half = length / 2;
        match lie {
            Some(Lie::Truncated) => {
                std::io::copy(&mut body.take(half), client)?;
                return Ok(());
            }
            Some(Lie::Damaged) => {
                std::io::copy(&mut body.take(half), client)?;
                let mut byte = [0];
                body.read_exact(&mut byte)?;
                client.write_all(&byte.map(|byte| byte ^ 1))?;
            }
            Some(Lie::Stalled) => {
                std::io::copy(&mut body.take(half), client)?;
                while self.is_told(Lie::Stalled) {
                    thread::sleep(LOOK_PAUSE);
                }
                if self.is_told(Lie::HungUp) {
                    return Ok(());
                }
            }
            Some(Lie::Slow(bytes)) => {
                let piece = (bytes / PIECES_A_SECOND).max(1);
                while self.is_told(Lie::Slow(bytes)) && std::io::copy(&mut body.take(piece), client)? > 0 {
                    thread::sleep(Duration::from_secs(1) / u32::try_from(PIECES_A_SECOND)?);
                }
            }
            None | Some(Lie::Status(..) | Lie::HungUp) => {}
        }
        std::io::copy(body, client)?;
        Ok(())
    }

    fn is_told(&self, lie: Lie) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.is_some_and(|told| told.lie == lie)
    }
}

/// Whether this lie is the whole answer, which is given then.
fn answered_with(lie: Lie, client: &mut TcpStream) -> Result<bool> {
    match lie {
        Lie::Status(status, retry_after) => answer(client, status, retry_after).map(|()| true),
        Lie::HungUp => Ok(true),
        Lie::Truncated | Lie::Damaged | Lie::Stalled | Lie::Slow(_) => Ok(false),
    }
}

fn answer(client: &mut TcpStream, status: u16, retry_after: Option<u32>) -> Result<()> {
    let code = match status {
        401 => "UNAUTHORIZED",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    };
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"as the liar says"}}]}}"#);
    let retry_after = retry_after.map_or_else(String::new, |seconds| format!("Retry-After: {seconds}\r\n"));
    write!(
        client,
        "HTTP/1.1 {status} A Lie\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         {retry_after}Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// Reads a head with its empty line, and what came behind it.
fn read_head(stream: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok((String::from_utf8(read)?, rest));
        }
        let count = stream.read(&mut piece)?;
        anyhow::ensure!(count > 0 && read.len() < HEAD_MAX_BYTES, "half a head");
        read.extend(piece.get(..count).context("more than was read")?);
        // The Engine tries TLS first, and waits 10 s for an answer to it.
        anyhow::ensure!(read.first() != Some(&TLS_HANDSHAKE), "this is TLS");
    }
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The head with `Connection: close`.
fn closing(head: &str) -> String {
    let mut lines: Vec<&str> = head
        .trim_end()
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    lines.push("Connection: close");
    lines.join("\r\n") + "\r\n\r\n"
}
