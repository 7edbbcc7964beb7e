//! The HTTP/1.1 the service speaks: GET of `/` and `/health`, kept-alive connections, a thread for each.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::behaviour::{Behaviour, Health, Mode};
use crate::log;

/// What a deployed schema change that was forgotten looks like in the logs of a real service.
pub(crate) const SICKNESS: &str = "ERROR: relation \"orders_v2\" does not exist";

/// A head longer than this is not one of ours.
const HEAD_LIMIT_BYTES: u64 = 16 * 1024;
/// An idle connection gives its thread back after this.
const IDLE_LIMIT: Duration = Duration::from_secs(75);
/// A thread needs little more than a request's head.
const STACK_BYTES: usize = 128 * 1024;

pub(crate) struct Server {
    pub(crate) behaviour: Behaviour,
    pub(crate) started: Instant,
    /// How often this service started on its volume; only a database counts.
    pub(crate) boots: Option<usize>,
    /// What it was told to be.
    pub(crate) moods: Moods,
}

/// How a moody service feels.
#[derive(Default)]
pub(crate) struct Moods {
    is_sick: AtomicBool,
    /// The next check alone finds it sick.
    is_sick_once: AtomicBool,
}

/// What a service that is told to die exits with.
const CRASHED: i32 = 3;

/// Answers for ever, in the background.
pub(crate) fn serve(server: Server) -> Result<(), String> {
    let port = server.behaviour.port;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .map_err(|error| format!("failed to listen on port {port}: {error}"))?;
    let server = Arc::new(server);
    spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = Arc::clone(&server);
            // A connection that breaks, or finds no thread, is its client's concern.
            drop(spawn(move || drop(server.converse(&stream))));
        }
    })
    .map_err(|error| format!("failed to start a thread: {error}"))?;
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().stack_size(STACK_BYTES).spawn(work)
}

impl Server {
    fn converse(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE_LIMIT))?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            let Some((status, body)) = self.answer(&request) else {
                thread::sleep(Duration::MAX);
                return Ok(());
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: {}\r\n\r\n",
                body.len(),
                if request.close { "close" } else { "keep-alive" },
            );
            let mut writer = stream;
            writer.write_all(format!("{head}{body}").as_bytes())?;
            if request.close {
                break;
            }
        }
        Ok(())
    }

    /// Status line and body, or no answer for ever.
    fn answer(&self, request: &Request) -> Option<(&'static str, String)> {
        let path = request.target.split('?').next().unwrap_or_default();
        let (status, body) = match path {
            "/health" => self.health()?,
            "/" => self.identity()?,
            _ if self.behaviour.mode == Mode::Moody && path.starts_with("/become/") => self.become_what(path),
            _ => ("404 Not Found", "{\"error\":\"not found\"}\n".to_owned()),
        };
        log::info(&format!(
            "{} {} {}",
            request.method,
            request.target,
            status.get(..3).unwrap_or(status)
        ));
        Some((status, body))
    }

    #[allow(
        clippy::exit,
        reason = "a process that is told to die dies at once, as one that crashes does"
    )]
    fn become_what(&self, path: &str) -> (&'static str, String) {
        let Moods {
            is_sick,
            is_sick_once,
        } = &self.moods;
        match path {
            "/become/sick" => is_sick.store(true, Ordering::SeqCst),
            "/become/well" => is_sick.store(false, Ordering::SeqCst),
            "/become/sick-once" => is_sick_once.store(true, Ordering::SeqCst),
            "/become/dead" => {
                log::error("FATAL giving up");
                // Told over HTTP: the caller gets no answer, as from any service that dies.
                std::process::exit(CRASHED);
            }
            _ => return ("404 Not Found", "{\"error\":\"not a mood\"}\n".to_owned()),
        }
        ("200 OK", "{}\n".to_owned())
    }

    fn health(&self) -> Option<(&'static str, String)> {
        let Moods {
            is_sick,
            is_sick_once,
        } = &self.moods;
        let is_moody_sick = is_sick.load(Ordering::SeqCst) || is_sick_once.swap(false, Ordering::SeqCst);
        let health = if is_moody_sick {
            Health::Sick
        } else {
            self.behaviour.mode.health(self.started.elapsed())
        };
        match health {
            Health::Well => Some(("200 OK", "{\"status\":\"ok\"}\n".to_owned())),
            Health::Starting => Some((
                "503 Service Unavailable",
                "{\"status\":\"starting\"}\n".to_owned(),
            )),
            Health::Sick => {
                log::error(SICKNESS);
                Some((
                    "500 Internal Server Error",
                    "{\"status\":\"relation orders_v2 does not exist\"}\n".to_owned(),
                ))
            }
            Health::Silent => None,
        }
    }

    fn identity(&self) -> Option<(&'static str, String)> {
        let Behaviour {
            name, version, mode, ..
        } = &self.behaviour;
        if mode.health(self.started.elapsed()) == Health::Silent {
            return None;
        }
        let boots = self
            .boots
            .map(|boots| format!(",\"boots\":{boots}"))
            .unwrap_or_default();
        let mode = mode.name();
        Some((
            "200 OK",
            format!("{{\"name\":\"{name}\",\"version\":\"{version}\",\"mode\":\"{mode}\"{boots}}}\n"),
        ))
    }
}

struct Request {
    method: String,
    target: String,
    close: bool,
}

impl Request {
    /// Reads one request and throws its body away; none when the client is done.
    fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Self>> {
        let mut head = reader.by_ref().take(HEAD_LIMIT_BYTES);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut close = words.next().is_none_or(|version| version == "HTTP/1.0");
        let mut body_bytes = 0;
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            let header = line.to_ascii_lowercase();
            match header.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("connection", "close")) => close = true,
                Some(("content-length", length)) => body_bytes = length.parse().unwrap_or(0),
                _ => {}
            }
        }
        std::io::copy(&mut reader.by_ref().take(body_bytes), &mut std::io::sink())?;
        Ok(Some(Self {
            method,
            target,
            close,
        }))
    }
}
