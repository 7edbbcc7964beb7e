//! Programs as the tests run them: a scrubbed environment, a deadline, and an error that shows the command, the folder
//! and both streams.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A program that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(180);

/// What is kept of the environment: enough to find the programs, their toolchain and the Engine.
pub(crate) const KEPT: [&str; 9] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "DOCKER_HOST",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    // Where it is 0, a program that calls rustc must not begin to install or update a toolchain.
    "RUSTUP_AUTO_INSTALL",
    "SSL_CERT_FILE",
];

/// One run of a program.
#[derive(Debug)]
pub struct Run {
    command: Command,
}

impl Run {
    /// Starts from a program without arguments.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self::within(DEADLINE, program)
    }

    /// Starts from a program that is killed at its deadline.
    pub fn within(deadline: Duration, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new("timeout");
        command.env_clear().env("LC_ALL", "C");
        command.envs(
            KEPT.iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command
            .arg("--kill-after=5")
            .arg(deadline.as_secs_f64().to_string())
            .arg(program);
        Self { command }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets the folder it runs in.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets several variables.
    #[must_use]
    pub fn envs(mut self, variables: &BTreeMap<String, String>) -> Self {
        self.command.envs(variables);
        self
    }

    /// Runs it to its end, however that is.
    pub fn output(mut self) -> Result<Output> {
        self.command
            .output()
            .with_context(|| format!("failed to run {}", self.line()))
    }

    /// Runs it and returns its stdout without the last newline; anything but success is an error.
    pub fn text(mut self) -> Result<String> {
        let output = self
            .command
            .output()
            .with_context(|| format!("failed to run {}", self.line()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let dir = self
                .command
                .get_current_dir()
                .unwrap_or(Path::new("."))
                .display()
                .to_string();
            bail!(
                "{} in {dir}: {}\nstdout: {stdout}\nstderr: {stderr}",
                self.line(),
                output.status
            );
        }
        Ok(stdout.trim_end().to_owned())
    }

    fn line(&self) -> String {
        // The first two arguments are those of `timeout`.
        let words: Vec<OsString> = self.command.get_args().skip(2).map(OsStr::to_os_string).collect();
        words.join(OsStr::new(" ")).to_string_lossy().into_owned()
    }
}

/// Starts a `docker` command.
pub fn docker<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    Run::new("docker").args(arguments)
}
