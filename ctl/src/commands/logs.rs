//! `logs`: a service's lines, as they are and as they come.

use deploy_proto::exit_code::ExitCode;
use serde::Serialize;

use super::Session;
use super::interrupt::interrupted;
use crate::cli::Logs;
use crate::client::{Agent, Log};
use crate::error::Error;
use crate::key;
use crate::render::json_v1::{Document, HostPart, Hosts};
use crate::render::text::clean;
use crate::target::Target;

/// The longest line that is put together, in bytes; what is longer is shown in pieces.
const LINE_MAX_BYTES: usize = 64 * 1024;

#[derive(Serialize)]
struct Lines {
    lines: Vec<String>,
}

pub(super) async fn run(session: &Session, arguments: &Logs) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    if arguments.follow && target.hosts.len() > 1 {
        let names: Vec<_> = target.hosts.iter().map(|host| host.name.as_str()).collect();
        return Err(Error::usage(
            "--follow works on one host at a time",
            format!("choose one with --host: {}", names.join(", ")),
        ));
    }
    if arguments.follow && session.globals.json {
        return Err(Error::usage(
            "--follow has no end, and --json prints one document at the end",
            "leave one of them away",
        ));
    }
    let key = key::load(session.globals.key_file.as_deref(), &session.caller)?;
    let path = format!("/v1/projects/{}/logs/{}", target.project()?, arguments.service);
    let query = query(arguments);
    let mut parts = Vec::new();
    for host in &target.hosts {
        let agent = Agent::new(host, &target.pins, &key, &session.surroundings)?;
        if target.hosts.len() > 1 {
            session.output.message(&session.output.paint.bold(&host.name));
        }
        let mut log = agent.open_log(&path, &query).await?;
        if session.globals.json {
            let mut lines = Vec::new();
            read(&mut log, &mut |mut new| {
                lines.append(&mut new);
                Ok(())
            })
            .await?;
            parts.push(HostPart {
                host: host.name.clone(),
                url: host.url.to_string(),
                part: Lines { lines },
            });
        } else {
            let rng = session.surroundings.rng.as_ref();
            let mut print = |lines: Vec<String>| {
                let lines: Vec<_> = lines.iter().map(|line| clean(line)).collect();
                session.output.foreign_data(&lines, rng)
            };
            tokio::select! {
                read = read(&mut log, &mut print) => read?,
                () = interrupted() => return Ok(ExitCode::Interrupted),
            }
        }
    }
    if session.globals.json {
        let hosts = Hosts { hosts: parts };
        session
            .output
            .json(&Document::new("logs", ExitCode::Done, hosts))?;
    }
    Ok(ExitCode::Done)
}

fn query(arguments: &Logs) -> String {
    let mut query = format!("tail={}", arguments.tail);
    if arguments.follow {
        query.push_str("&follow=true");
    }
    if let Some(release) = arguments.release {
        query.push_str(&format!("&release={release}"));
    }
    query
}

/// Gives the log's lines in bunches, as they come.
async fn read(
    log: &mut Log<'_>,
    take: &mut dyn FnMut(Vec<String>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut splitter = Splitter::default();
    let ended = loop {
        match log.chunk().await {
            Ok(Some(chunk)) => match splitter.push(&chunk) {
                lines if lines.is_empty() => {}
                lines => take(lines)?,
            },
            Ok(None) => break Ok(()),
            Err(error) => break Err(error.into()),
        }
    };
    // What came before the end is shown, also when that is a lost connection in the middle of a line.
    if let Some(line) = splitter.rest() {
        take(vec![line])?;
    }
    ended
}

/// Cuts bytes into lines, wherever the chunks end.
#[derive(Default)]
struct Splitter(Vec<u8>);

impl Splitter {
    fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for byte in chunk {
            if *byte == b'\n' || self.0.len() >= LINE_MAX_BYTES {
                lines.extend(self.rest().or_else(|| Some(String::new())));
            }
            if *byte != b'\n' {
                self.0.push(*byte);
            }
        }
        lines
    }

    fn rest(&mut self) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.0);
        let line = bytes.strip_suffix(b"\r").unwrap_or(&bytes);
        Some(String::from_utf8_lossy(line).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_the_chunks_end() {
        let text = "a\n\nbé\r\nc";
        for cut in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            let mut splitter = Splitter::default();
            let mut lines = splitter.push(head);
            lines.extend(splitter.push(tail));
            lines.extend(splitter.rest());
            assert_eq!(lines, ["a", "", "bé", "c"], "cut at {cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.push(&vec![b'x'; LINE_MAX_BYTES + 1]).len(), 1);
    }
}
