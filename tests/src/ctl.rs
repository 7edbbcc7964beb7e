//! `deployctl` as a pipeline or a person runs it: its own key, an environment without anything of ours, and an exit code
//! that is checked every time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deploy_proto::signing::PrivateKey;
use rustix::process::Signal;
use serde_json::Value;

use crate::agent::signal_process;
use crate::command::{KEPT, Run};
use crate::images::unique;
use crate::until::until;

/// Longer than any deployment of the tests.
const DEADLINE: Duration = Duration::from_secs(150);

/// A caller with a key file of its own, aimed at one agent.
#[derive(Debug, Clone)]
pub struct Ctl {
    program: PathBuf,
    dir: PathBuf,
    key_file: PathBuf,
    target: Vec<String>,
    env: BTreeMap<String, String>,
}

impl Ctl {
    /// A caller that is aimed at nothing yet, and runs in this folder.
    pub fn new(program: &Path, key_file: &Path, dir: &Path) -> Self {
        Self {
            program: program.to_owned(),
            dir: dir.to_owned(),
            key_file: key_file.to_owned(),
            target: Vec::new(),
            env: BTreeMap::new(),
        }
    }

    /// Makes a key with `deployctl keygen`; returns what it printed.
    pub fn keygen(program: &Path, key_file: &Path) -> Result<String> {
        let file = ["--key-file".as_ref(), key_file.as_os_str()];
        Run::new(program).args(["keygen"]).args(file).text()
    }

    /// The same caller, aimed at a project of the agent at this address, whose public key has this pin.
    #[must_use]
    pub fn to(mut self, url: &str, pin: &str, project: &str) -> Self {
        let words = ["--host", url, "--pin", pin, "--project", project];
        self.target = words.map(str::to_owned).to_vec();
        self
    }

    /// The same caller without `--host`, `--pin` and `--project`, as deploy.toml and variables name them.
    #[must_use]
    pub fn untargeted(mut self) -> Self {
        self.target.clear();
        self
    }

    /// The same caller with a variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same caller in another folder.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        dir.clone_into(&mut self.dir);
        self
    }

    /// Its private key.
    pub fn private_key(&self) -> Result<PrivateKey> {
        private_key(&self.key_file)
    }

    /// Its public key as `agent.toml` names it.
    pub fn public_key(&self) -> Result<String> {
        Ok(self.private_key()?.public().to_string())
    }

    /// Runs a command to its end, however that is.
    pub fn run(&self, arguments: &[&str]) -> Result<CtlOutput> {
        let output = Run::within(DEADLINE, &self.program)
            .args(self.arguments(arguments))
            .dir(&self.dir)
            .env("HOME", &self.dir)
            .envs(&self.env)
            .output()?;
        Ok(CtlOutput {
            command: arguments.join(" "),
            code: output.status.code().context("a signal ended deployctl")?,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a command that must end so.
    pub fn expect(&self, code: i32, arguments: &[&str]) -> Result<CtlOutput> {
        self.run(arguments)?.expect(code)
    }

    /// Runs a command with `--json` that must end so, and returns its document.
    pub fn json(&self, code: i32, arguments: &[&str]) -> Result<Document> {
        let with_json: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        self.expect(code, &with_json)?.json()
    }

    /// Pushes `SERVICE=IMAGE` pairs and other arguments; must end so. Returns the document.
    pub fn push(&self, code: i32, set: &[&str], more: &[&str]) -> Result<Document> {
        let mut arguments = vec!["push"];
        arguments.extend(set.iter().flat_map(|image| ["--set", image]));
        arguments.extend(more);
        self.json(code, &arguments)
    }

    /// Starts a command in the background.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Running> {
        let name = unique("run");
        let [out, err] = ["out", "err"].map(|stream| self.dir.join(format!("{name}.{stream}")));
        let mut command = Command::new(&self.program);
        command.env_clear().envs(
            KEPT.iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command
            .args(self.arguments(arguments))
            .current_dir(&self.dir)
            .env("HOME", &self.dir)
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(File::create(&out)?)
            .stderr(File::create(&err)?);
        Ok(Running {
            child: command.spawn().context("failed to start deployctl")?,
            command: arguments.join(" "),
            out,
            err,
        })
    }

    fn arguments(&self, arguments: &[&str]) -> Vec<String> {
        let key_file = if self.env.contains_key("DEPLOYCTL_KEY") {
            Vec::new()
        } else {
            vec!["--key-file".to_owned(), self.key_file.display().to_string()]
        };
        let own = arguments.iter().map(|&word| word.to_owned());
        own.chain(self.target.iter().cloned()).chain(key_file).collect()
    }
}

/// Reads a private key's file.
pub fn private_key(path: &Path) -> Result<PrivateKey> {
    Ok(PrivateKey::from_text(&fs::read_to_string(path)?)?)
}

/// How a command ended.
#[derive(Debug, Clone)]
pub struct CtlOutput {
    /// The arguments.
    pub command: String,
    /// The exit code.
    pub code: i32,
    /// Data.
    pub stdout: String,
    /// Messages.
    pub stderr: String,
}

impl CtlOutput {
    /// Fails, with everything it said, unless it ended so.
    pub fn expect(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == code,
            "deployctl {} ended with {} instead of {code}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Fails unless what it said, on either stream, has this text.
    pub fn says(self, text: &str) -> Result<Self> {
        ensure!(
            self.stdout.contains(text) || self.stderr.contains(text),
            "deployctl {} does not say {text:?}\nstdout: {}\nstderr: {}",
            self.command,
            self.stdout,
            self.stderr
        );
        Ok(self)
    }

    /// Its one document.
    pub fn json(&self) -> Result<Document> {
        let value = serde_json::from_str(&self.stdout)
            .with_context(|| format!("no document in {:?}\nstderr: {}", self.stdout, self.stderr))?;
        Ok(Document(value))
    }
}

/// What `--json` printed.
#[derive(Debug, Clone)]
pub struct Document(pub Value);

impl Document {
    /// What stands at a place of the first host's part, as text; empty when nothing does.
    pub fn at(&self, pointer: &str) -> String {
        let value = self.0.pointer(&format!("/hosts/0{pointer}"));
        match value {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// How the deployment on the first host ended.
    pub fn result(&self) -> String {
        self.at("/result")
    }

    /// The code of what went wrong: the agent's answer, the outcome's reason, or the command's own.
    pub fn code(&self) -> String {
        let codes = [self.at("/error/code"), self.at("/outcome/problem/code")];
        let own = self.0.pointer("/error/code").and_then(Value::as_str);
        let known = codes.into_iter().find(|code| !code.is_empty());
        known.unwrap_or_else(|| own.unwrap_or_default().to_owned())
    }

    /// The items of a list in the first host's part.
    pub fn list(&self, pointer: &str) -> Vec<Value> {
        let value = self.0.pointer(&format!("/hosts/0{pointer}"));
        value.and_then(Value::as_array).cloned().unwrap_or_default()
    }
}

/// A command in the background; killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// What it printed so far, on both streams.
    pub fn said(&self) -> String {
        [&self.out, &self.err]
            .map(|path| fs::read_to_string(path).unwrap_or_default())
            .concat()
    }

    /// Waits until it has printed this.
    pub fn waits_to_say(&self, text: &str) -> Result<()> {
        until(&format!("deployctl says {text:?}"), DEADLINE, || {
            Ok(self.said().contains(text).then_some(()))
        })
        .with_context(|| self.said())
    }

    /// Ctrl-C.
    pub fn interrupt(&self) -> Result<()> {
        signal_process(self.child.id(), Signal::INT)
    }

    /// Waits for its end.
    pub fn end(mut self) -> Result<CtlOutput> {
        let status =
            until("deployctl ends", DEADLINE, || Ok(self.child.try_wait()?)).with_context(|| self.said())?;
        Ok(CtlOutput {
            command: self.command.clone(),
            code: status.code().context("a signal ended deployctl")?,
            stdout: fs::read_to_string(&self.out)?,
            stderr: fs::read_to_string(&self.err)?,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
