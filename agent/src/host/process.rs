//! Running programs: the only place in the agent that spawns.
//!
//! A program is an argument list (never a shell line) with an environment that is written out in full, a folder, a
//! deadline, and a cap on what is kept of its output. It gets a process group of its own, so that ending it ends its
//! children; it is ended when the deadline passes and when the future that runs it is dropped. This room does not
//! know what the programs mean.

use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use deploy_proto::problem::{Code, Problem};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin};

mod aloud;
mod leftovers;

pub use aloud::{Ended, How, run_aloud};
pub use leftovers::end_marked;

/// Output beyond this much at the beginning of a stream is kept only as far as it is the end (`TAIL_MAX_BYTES`).
/// A rendered project of a hundred services is about 200 KiB.
pub const HEAD_MAX_BYTES: usize = 8 * 1024 * 1024;
/// How much of the end of an overlong stream is kept: enough for the message a program dies with.
pub const TAIL_MAX_BYTES: usize = 16 * 1024;
/// How many lines of standard error an error quotes: what fits on a screen below a command.
pub const LAST_LINES_MAX: usize = 12;
/// How long one quoted line may be, in characters.
pub const LAST_LINE_MAX_CHARS: usize = 400;
/// How long the output is awaited after the program ended, in case a child of it still holds the pipe.
const DRAIN: Duration = Duration::from_secs(1);

/// One program to run.
#[derive(Debug, Clone)]
pub struct Program {
    /// The binary: a path, or a name that is looked up in `environment`'s `PATH`.
    pub binary: PathBuf,
    /// The arguments, without the binary.
    pub arguments: Vec<OsString>,
    /// The whole environment; nothing is inherited.
    pub environment: Vec<(OsString, OsString)>,
    /// The folder it runs in.
    pub dir: PathBuf,
    /// How long it may take.
    pub deadline: Duration,
    /// What it reads on its standard input; empty for none.
    pub input: Vec<u8>,
}

/// What a program wrote to one stream, in bounded memory.
#[derive(Clone, Default)]
pub struct Captured {
    head: Vec<u8>,
    tail: Vec<u8>,
    dropped_bytes: u64,
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `docker compose config` prints secrets in clear.
        write!(f, "[{} bytes hidden]", self.head.len() + self.tail.len())
    }
}

impl Captured {
    /// All of the output, unless some of it was dropped for its size.
    pub fn whole(&self) -> Option<&[u8]> {
        (self.dropped_bytes == 0 && self.tail.is_empty()).then_some(self.head.as_slice())
    }

    /// The last lines, for an error: at most `LAST_LINES_MAX`, control characters escaped, empty lines left out.
    pub fn last_lines(&self) -> Vec<String> {
        let end = if self.tail.is_empty() {
            &self.head
        } else {
            &self.tail
        };
        let text =
            String::from_utf8_lossy(end.get(end.len().saturating_sub(TAIL_MAX_BYTES)..).unwrap_or(end));
        let lines: Vec<String> = text
            .split(['\n', '\r'])
            .map(printable)
            .filter(|line| !line.trim().is_empty())
            .collect();
        lines
            .get(lines.len().saturating_sub(LAST_LINES_MAX)..)
            .unwrap_or(&lines)
            .to_vec()
    }

    fn take(&mut self, bytes: &[u8]) {
        let room = HEAD_MAX_BYTES.saturating_sub(self.head.len()).min(bytes.len());
        let (first, rest) = bytes.split_at(room);
        self.head.extend_from_slice(first);
        self.tail.extend_from_slice(rest);
        if self.tail.len() > 2 * TAIL_MAX_BYTES {
            let excess = self.tail.len() - TAIL_MAX_BYTES;
            self.dropped_bytes += excess as u64;
            self.tail.drain(..excess);
        }
    }
}

/// What a program that exited with 0 wrote.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
}

/// Why a program gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("failed to start {program}")]
    Start {
        /// The name of its binary.
        program: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// Its output or its end could not be read; it was ended.
    #[error("failed to follow {program}")]
    Follow {
        /// The name of its binary.
        program: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It did not end in time and was killed with its children.
    #[error("{program} did not end within {} s and was killed; it last said: {}", after.as_secs_f32(), last_lines.join(" | "))]
    Deadline {
        /// The name of its binary.
        program: String,
        /// The deadline.
        after: Duration,
        /// The end of its standard error until then.
        last_lines: Vec<String>,
    },
    /// It ended with another status than 0.
    #[error("{program} ended with {status}: {}", last_lines.join(" | "))]
    Failed {
        /// The name of its binary.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error.
        last_lines: Vec<String>,
        /// Its standard output: some programs explain themselves there.
        stdout: Captured,
    },
}

impl From<&ProcessError> for Problem {
    fn from(error: &ProcessError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            ProcessError::Start { source, .. } => Self::new(Code::HostUnfit, format!("{error}: {source}"))
                .hint("install it, or correct PATH in the agent's unit"),
            ProcessError::Follow { source, .. } => Self::new(Code::Internal, format!("{error}: {source}")),
            ProcessError::Deadline { .. } => problem(Code::DeadlinePassed)
                .hint("see whether the Docker Engine answers (`docker info`) and what the host is busy with"),
            ProcessError::Failed { .. } => problem(Code::Internal),
        }
    }
}

/// Runs a program to its end.
///
/// # Errors
/// Any status but 0 is [`ProcessError::Failed`]. When the deadline passes, and when this future is dropped, the
/// program and its children are killed (SIGKILL to its process group).
pub async fn run(program: &Program) -> Result<Output, ProcessError> {
    let name = name_of(program);
    let mut running =
        start(program, Stdio::piped(), Stdio::piped()).map_err(|source| ProcessError::Start {
            program: name.clone(),
            source,
        })?;
    let mut output = Output::default();
    let followed = tokio::time::timeout(
        program.deadline,
        follow(&mut running, &program.input, &mut output),
    )
    .await;
    let status = match followed {
        Ok(Ok(status)) => status,
        Ok(Err(source)) => {
            return Err(ProcessError::Follow {
                program: name,
                source,
            });
        }
        Err(_) => {
            return Err(ProcessError::Deadline {
                program: name,
                after: program.deadline,
                last_lines: output.stderr.last_lines(),
            });
        }
    };
    if status.success() {
        return Ok(output);
    }
    Err(ProcessError::Failed {
        program: name,
        status,
        last_lines: output.stderr.last_lines(),
        stdout: output.stdout,
    })
}

/// A running program; dropping it ends it with its children.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            // It can only fail because nothing of the group is left. tokio reaps the child itself.
            kill_process_group(group, Signal::KILL).unwrap_or(());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that spawns")]
fn start(program: &Program, stdout: Stdio, stderr: Stdio) -> std::io::Result<Running> {
    let child = tokio::process::Command::new(&program.binary)
        .args(&program.arguments)
        .env_clear()
        .envs(program.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&program.dir)
        .stdin(if program.input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let group = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    Ok(Running { child, group })
}

async fn follow(running: &mut Running, input: &[u8], output: &mut Output) -> std::io::Result<ExitStatus> {
    let stdin = running.child.stdin.take();
    let stdout = running.child.stdout.take();
    let stderr = running.child.stderr.take();
    let reads = async {
        let all = tokio::join!(
            feed(stdin, input),
            drain(stdout, &mut output.stdout),
            drain(stderr, &mut output.stderr)
        );
        all.0.and(all.1).and(all.2)
    };
    tokio::pin!(reads);
    let mut read = None;
    let status = loop {
        tokio::select! {
            result = &mut reads, if read.is_none() => read = Some(result),
            status = running.child.wait() => break status?,
        }
    };
    // Reaped: its number may belong to another process from here on.
    running.group = None;
    match read {
        Some(result) => result?,
        None => {
            if let Ok(result) = tokio::time::timeout(DRAIN, reads).await {
                result?;
            }
        }
    }
    Ok(status)
}

/// Writes the input and closes it. A program that ends without reading all of it is no error.
async fn feed(stdin: Option<ChildStdin>, input: &[u8]) -> std::io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(input).await {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

async fn drain(stream: Option<impl AsyncRead + Unpin>, into: &mut Captured) -> std::io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        into.take(buffer.get(..count).unwrap_or_default());
    }
}

/// The name of the binary: enough to know it, without paths and values.
fn name_of(program: &Program) -> String {
    program
        .binary
        .file_name()
        .unwrap_or(program.binary.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn printable(line: &str) -> String {
    let end = line
        .char_indices()
        .nth(LAST_LINE_MAX_CHARS)
        .map_or(line.len(), |(at, _)| at);
    escaped(line.get(..end).unwrap_or(line))
}

/// The text with its control characters escaped.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let shown: Box<dyn Iterator<Item = char>> = if c.is_control() && c != '\t' {
                Box::new(c.escape_default())
            } else {
                Box::new(std::iter::once(c))
            };
            shown
        })
        .collect()
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
