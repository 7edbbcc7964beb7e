//! The one program inside all images of the tests: a small HTTP service whose behaviour is baked into the image as
//! environment variables, so that a tag decides whether a release is good, sick, slow or dying.
//!
//! `service` serves, `service healthcheck [URL]` checks a service from inside its own container, `service sleep N`
//! waits N seconds; `service print WORDS`, `service fail WORDS` and `service env PREFIX` are commands for hooks.

mod behaviour;
mod healthcheck;
mod log;
mod server;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use behaviour::{Behaviour, Mode};

/// What a service that cannot go on exits with.
const CRASHED: u8 = 3;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        [] | ["serve"] => serve(),
        ["healthcheck"] => {
            behaviour().and_then(|behaviour| check(&format!("http://127.0.0.1:{}/health", behaviour.port)))
        }
        ["healthcheck", url] => check(url),
        ["sleep", seconds] => sleep(seconds),
        ["print", words @ ..] => {
            log::info(&words.join(" "));
            Ok(ExitCode::SUCCESS)
        }
        ["fail", words @ ..] => {
            log::error(&words.join(" "));
            Ok(ExitCode::FAILURE)
        }
        ["env", prefix] => {
            print_environment(prefix);
            Ok(ExitCode::SUCCESS)
        }
        _ => Err(
            "usage: service [serve | healthcheck [URL] | sleep SECONDS | print WORDS | fail WORDS | env PREFIX]"
                .to_owned(),
        ),
    };
    done.unwrap_or_else(|error| {
        log::error(&format!("FATAL {error}"));
        ExitCode::from(USAGE)
    })
}

/// The version of the image that this runs in, and the variables whose names begin so.
fn print_environment(prefix: &str) {
    let version = std::env::var("SERVICE_VERSION").unwrap_or_default();
    log::info(&format!("SERVICE_VERSION={version}"));
    for (name, value) in std::env::vars().filter(|(name, _)| name.starts_with(prefix)) {
        log::info(&format!("{name}={value}"));
    }
}

fn behaviour() -> Result<Behaviour, String> {
    Behaviour::parse(|name| std::env::var(name).ok())
}

fn check(url: &str) -> Result<ExitCode, String> {
    Ok(match healthcheck::check(url) {
        Ok(said) => {
            log::info(&said);
            ExitCode::SUCCESS
        }
        Err(said) => {
            log::error(&said);
            ExitCode::FAILURE
        }
    })
}

/// Starts the service and stays until SIGTERM, or until its mode lets it die.
fn serve() -> Result<ExitCode, String> {
    let started = Instant::now();
    let behaviour = behaviour()?;
    let Behaviour {
        name,
        version,
        port,
        mode,
        ..
    } = behaviour.clone();
    let end = end_of_signals(mode == Mode::Deaf)?;
    log::info(&format!("starting {name} {version}"));
    let lifetime = match mode {
        Mode::Crash => return Ok(crash()),
        Mode::Oneshot => {
            log::info("migrated 3 of 3 tables, done");
            return Ok(ExitCode::SUCCESS);
        }
        Mode::CrashLater(lifetime) => Some(lifetime),
        Mode::Good
        | Mode::Sick
        | Mode::SlowStart(_)
        | Mode::Flapping(_)
        | Mode::Deaf
        | Mode::Hang
        | Mode::Database
        | Mode::Moody => None,
    };
    let boots = if mode == Mode::Database {
        Some(count_boot(Path::new(&behaviour.data_dir))?)
    } else {
        None
    };
    server::serve(server::Server {
        behaviour,
        started,
        boots,
        moods: server::Moods::default(),
    })?;
    log::info(&format!("listening on 0.0.0.0:{port}"));
    if mode == Mode::Sick {
        log::error(server::SICKNESS);
    }
    if mode == Mode::Database {
        log::info("database system is ready to accept connections");
    }
    Ok(match wait(&end, lifetime) {
        Waited::Signalled => {
            log::info("received SIGTERM, shutting down");
            ExitCode::SUCCESS
        }
        Waited::TimeIsUp => crash(),
    })
}

fn crash() -> ExitCode {
    log::error(
        "ERROR: failed to connect to auth_db:5432: password authentication failed for user \"clinic\"",
    );
    log::error("FATAL giving up");
    ExitCode::from(CRASHED)
}

fn sleep(seconds: &str) -> Result<ExitCode, String> {
    let seconds = seconds
        .parse()
        .map_err(|_| format!("{seconds} is not a number of seconds"))?;
    let end = end_of_signals(false)?;
    Ok(match wait(&end, Some(Duration::from_secs(seconds))) {
        Waited::TimeIsUp => ExitCode::SUCCESS,
        Waited::Signalled => ExitCode::FAILURE,
    })
}

/// A channel that says when it is time to go. Pid 1 has no default action for SIGTERM: without this every stop would
/// take Docker's whole grace period, as it does for a deaf service.
fn end_of_signals(deaf: bool) -> Result<mpsc::Receiver<()>, String> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|error| format!("failed to listen for signals: {error}"))?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for signal in signals.forever() {
            if deaf {
                log::info(&format!("took no notice of signal {signal}"));
            } else if sender.send(()).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

enum Waited {
    Signalled,
    TimeIsUp,
}

fn wait(end: &mpsc::Receiver<()>, lifetime: Option<Duration>) -> Waited {
    match end.recv_timeout(lifetime.unwrap_or(Duration::MAX)) {
        Err(RecvTimeoutError::Timeout) => Waited::TimeIsUp,
        Ok(()) | Err(RecvTimeoutError::Disconnected) => Waited::Signalled,
    }
}

/// Adds a line to the volume's `boots` file and counts them: a database that nobody touched has started once.
fn count_boot(data_dir: &Path) -> Result<usize, String> {
    let file = data_dir.join("boots");
    let failed = |error| format!("failed to write {}: {error}", file.display());
    std::fs::create_dir_all(data_dir).map_err(failed)?;
    let mut boots = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&file)
        .map_err(failed)?;
    writeln!(boots, "started").map_err(failed)?;
    boots.sync_all().map_err(failed)?;
    Ok(std::fs::read_to_string(&file).map_err(failed)?.lines().count())
}
