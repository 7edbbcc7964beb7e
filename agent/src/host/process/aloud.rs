//! Running a program whose words are for people: both streams through one pipe, in the order in which they were written,
//! line by line as they come, and the last lines kept.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use deploy_proto::event::{LOG_LINE_MAX_BYTES, LOG_LINES_MAX};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

use super::{DRAIN, ProcessError, Program, Running, escaped, name_of, start};

/// How many lines are told in a second; a program that says more is still heard to its end, and its last lines are kept.
const TOLD_PER_SECOND_MAX: u32 = 50;

/// How a program ended, and what it wrote last.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub how: How,
    /// At most [`LOG_LINES_MAX`] lines, oldest first, control characters escaped.
    pub last_lines: Vec<String>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// By itself, or by a signal that was not ours.
    Exited(ExitStatus),
    /// Its deadline passed, and it was killed with its children.
    Deadline,
}

/// Runs a program to its end and tells each line that it writes. It reads nothing.
///
/// # Errors
/// It cannot be started or followed. When this future is dropped, the program and its children are killed.
pub async fn run_aloud(
    program: &Program,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> Result<Ended, ProcessError> {
    let failed_to_start = |source| ProcessError::Start {
        program: name_of(program),
        source,
    };
    let (reader, writer) = std::io::pipe().map_err(failed_to_start)?;
    let second = writer.try_clone().map_err(failed_to_start)?;
    let mut output = Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(failed_to_start)?;
    let mut running = start(program, Stdio::from(writer), Stdio::from(second)).map_err(failed_to_start)?;
    let mut lines = Lines::new();
    let followed = tokio::time::timeout(
        program.deadline,
        follow(&mut running, &mut output, &mut lines, tell),
    );
    let how = match followed.await {
        Ok(Ok(status)) => How::Exited(status),
        Ok(Err(source)) => {
            return Err(ProcessError::Follow {
                program: name_of(program),
                source,
            });
        }
        Err(_elapsed) => How::Deadline,
    };
    lines.end(tell);
    Ok(Ended {
        how,
        last_lines: lines.last.into(),
    })
}

async fn follow(
    running: &mut Running,
    output: &mut Receiver,
    lines: &mut Lines,
    tell: &(dyn Fn(&str) + Send + Sync),
) -> std::io::Result<ExitStatus> {
    let mut buffer = vec![0; 16 * 1024];
    let mut is_open = true;
    let status = loop {
        tokio::select! {
            read = output.read(&mut buffer), if is_open => match read? {
                0 => is_open = false,
                count => lines.take(buffer.get(..count).unwrap_or_default(), tell),
            },
            status = running.child.wait() => break status?,
        }
    };
    // Reaped: its number may belong to another process from here on.
    running.group = None;
    let rest = async {
        while is_open {
            match output.read(&mut buffer).await? {
                0 => is_open = false,
                count => lines.take(buffer.get(..count).unwrap_or_default(), tell),
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // A child that still holds the pipe is not waited for.
    if let Ok(read) = tokio::time::timeout(DRAIN, rest).await {
        read?;
    }
    Ok(status)
}

/// Lines out of bytes, in bounded memory.
struct Lines {
    /// The line that has not ended yet, as far as it is kept.
    begun: Vec<u8>,
    last: VecDeque<String>,
    second: Instant,
    told: u32,
}

impl Lines {
    fn new() -> Self {
        Self {
            begun: Vec::new(),
            last: VecDeque::new(),
            second: Instant::now(),
            told: 0,
        }
    }

    fn take(&mut self, bytes: &[u8], tell: &(dyn Fn(&str) + Send + Sync)) {
        for byte in bytes {
            match byte {
                b'\n' | b'\r' => self.end(tell),
                byte if self.begun.len() < LOG_LINE_MAX_BYTES => self.begun.push(*byte),
                _ => {}
            }
        }
    }

    /// Ends the line; an empty one is none.
    fn end(&mut self, tell: &(dyn Fn(&str) + Send + Sync)) {
        let bytes = std::mem::take(&mut self.begun);
        let mut line = escaped(String::from_utf8_lossy(&bytes).trim_end());
        if line.is_empty() {
            return;
        }
        line.truncate(line.floor_char_boundary(LOG_LINE_MAX_BYTES));
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.told) = (Instant::now(), 0);
        }
        if self.told < TOLD_PER_SECOND_MAX {
            self.told += 1;
            tell(&line);
        }
        if self.last.len() == LOG_LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}
