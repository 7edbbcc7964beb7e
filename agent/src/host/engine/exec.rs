//! Running a command inside a container, with a deadline and capped output. Used for a container's own healthcheck.

use std::time::Duration;

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::{ANSWER_LIMIT, Engine, Error, Result};

/// The most output of a command that is kept, in bytes: what `docker inspect` keeps of a healthcheck's.
pub const EXEC_OUTPUT_MAX_BYTES: usize = 4096;
/// How often a command whose output ended is asked after until it has an exit code.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// What came of a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// It ended.
    Ended {
        /// Its exit code.
        code: i64,
        /// The beginning of what it wrote to both streams, invalid UTF-8 replaced.
        output: String,
    },
    /// It did not end in time. The Engine has no call to end it: it stays in the container until that ends.
    StillRunning {
        /// The beginning of what it wrote so far.
        output: String,
    },
}

impl Engine {
    /// Runs argv in a running container, as the container's own user and in its own directory.
    ///
    /// # Errors
    /// When the container does not run, or the program cannot be started in it.
    pub async fn exec(&self, container_id: &str, argv: &[String], limit: Duration) -> Result<Ran> {
        let options = CreateExecOptions {
            cmd: Some(argv.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let made = self
            .call("prepare a command in a container", ANSWER_LIMIT, |docker| {
                docker.create_exec(container_id, options)
            })
            .await?;
        let end = Instant::now() + limit;
        let mut output = Vec::new();
        match timeout_at(end, self.run(&made.id, &mut output)).await {
            Ok(Ok(code)) => Ok(Ran::Ended {
                code,
                output: lossy(&output),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(Ran::StillRunning {
                output: lossy(&output),
            }),
        }
    }

    async fn run(&self, exec_id: &str, output: &mut Vec<u8>) -> Result<i64> {
        const DOING: &str = "run a command in a container";
        let docker = self.negotiated().await?;
        let started = docker
            .start_exec(exec_id, None::<StartExecOptions>)
            .await
            .map_err(|source| self.explained(DOING, source))?;
        if let StartExecResults::Attached {
            output: mut pieces, ..
        } = started
        {
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|source| self.explained(DOING, source))?;
                let room = EXEC_OUTPUT_MAX_BYTES.saturating_sub(output.len());
                output.extend(piece.as_ref().iter().take(room));
            }
        }
        loop {
            let seen = self
                .call("ask how a command ended", ANSWER_LIMIT, |docker| {
                    docker.inspect_exec(exec_id)
                })
                .await?;
            if seen.running != Some(true) {
                return seen.exit_code.ok_or(Error::Lacking {
                    doing: DOING,
                    what: "ExitCode",
                });
            }
            sleep(EXIT_POLL).await;
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}
