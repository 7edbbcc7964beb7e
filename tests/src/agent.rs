//! A running `deploy-agent` with a configuration and a state of its own, as systemd would run it: killed, restarted and
//! reloaded at will.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::clinic::Clinic;
use crate::command::{KEPT, Run};
use crate::ctl::{Ctl, private_key};
use crate::http;
use crate::images::{free_port, target_dir, temporary_dir, workspace};
use crate::until::until;

/// From the process's start to `/livez`, on a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// From SIGTERM to the end, with a deployment under way.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// The programs under test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `deploy-agent`.
    pub agent: PathBuf,
    /// `deployctl`.
    pub ctl: PathBuf,
}

impl Programs {
    fn of(folder: &Path) -> Self {
        Self {
            agent: folder.join("deploy-agent"),
            ctl: folder.join("deployctl"),
        }
    }
}

/// Builds the programs as they are released, when they are not fresh: for measuring, not for tests.
pub fn release_programs() -> Result<Programs> {
    // By name, as they are packaged: a crate of the tests must not give their dependencies another feature.
    Run::within(Duration::from_secs(1800), option_env!("CARGO").unwrap_or("cargo"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "deploy-agent",
            "--package",
            "deployctl",
        ])
        .args(["--target-dir".as_ref(), target_dir().as_os_str()])
        .dir(workspace())
        .text()?;
    Ok(Programs::of(&target_dir().join("release")))
}

/// Returns the debug builds of this checkout, built when they are not fresh.
pub fn programs() -> Result<Programs> {
    static BUILT: OnceLock<Result<Programs, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn build() -> Result<Programs> {
    // All binaries of the workspace, so that dependencies have the features that `cargo test --workspace` gave them.
    Run::within(Duration::from_secs(900), option_env!("CARGO").unwrap_or("cargo"))
        .args(["build", "--quiet", "--workspace", "--bins", "--target-dir"])
        .args([target_dir()])
        .dir(workspace())
        .text()?;
    Ok(Programs::of(&target_dir().join("debug")))
}

/// What a test wants of the agent's configuration; the rest is what `deploy-agent add` writes, with short times.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `key = value` of `projects.d/NAME.toml`, values as TOML.
    project: BTreeMap<String, String>,
    /// `[[probe]]` tables.
    probes: Vec<String>,
    /// More `[[key]]` tables.
    keys: Vec<String>,
    /// What the caller that comes with the agent may do.
    allow: String,
    docker_socket: PathBuf,
    docker_config: Option<PathBuf>,
    names: Vec<String>,
    env: BTreeMap<String, String>,
    programs: Option<Programs>,
}

impl Default for Settings {
    fn default() -> Self {
        let project = [
            ("wait", "\"20s\""),
            ("settle", "\"1s\""),
            ("min_free", "\"1MiB\""),
        ];
        Self {
            project: project
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            probes: Vec::new(),
            keys: Vec::new(),
            allow: "[\"push\", \"rollback\", \"status\", \"logs\"]".to_owned(),
            docker_socket: PathBuf::from("/var/run/docker.sock"),
            docker_config: None,
            names: Vec::new(),
            env: BTreeMap::new(),
            programs: None,
        }
    }
}

impl Settings {
    /// Sets a key of `projects.d/NAME.toml`; the value as TOML: `"5s"` with its quotes.
    #[must_use]
    pub fn project(mut self, key: &str, value: &str) -> Self {
        self.project.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a probe, its table as TOML.
    #[must_use]
    pub fn probe(mut self, table: &str) -> Self {
        self.probes.push(table.to_owned());
        self
    }

    /// Adds another caller's key, its table as TOML.
    #[must_use]
    pub fn key(mut self, table: &str) -> Self {
        self.keys.push(table.to_owned());
        self
    }

    /// Gives the first caller other rights than all: a TOML list.
    #[must_use]
    pub fn allow(mut self, list: &str) -> Self {
        list.clone_into(&mut self.allow);
        self
    }

    /// Uses another Engine socket.
    #[must_use]
    pub fn docker_socket(mut self, path: &Path) -> Self {
        path.clone_into(&mut self.docker_socket);
        self
    }

    /// Adds a name that `@authority` may say.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// Runs other builds than those for debugging.
    #[must_use]
    pub fn programs(mut self, programs: Programs) -> Self {
        self.programs = Some(programs);
        self
    }

    /// Sets a variable of the agent's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A `deploy-agent` process and its folder. On drop the process ends and the folder goes; after a failed test its log
/// is printed first.
#[derive(Debug)]
pub struct Agent {
    programs: Programs,
    home: TempDir,
    port: u16,
    monitor_port: u16,
    project: String,
    settings: Settings,
    caller: PathBuf,
    process: Option<Child>,
    /// How many logs there are: one for each start.
    starts: u32,
}

impl Agent {
    /// Registers the clinic with `deploy-agent add` and starts an agent with one caller that may do everything.
    pub fn start(clinic: &Clinic) -> Result<Self> {
        Self::start_with(clinic, Settings::default())
    }

    /// The same with other settings.
    pub fn start_with(clinic: &Clinic, settings: Settings) -> Result<Self> {
        let docker_config = clinic.registry().docker_config();
        let settings = match clinic.registry().engine().socket() {
            Some(socket) => settings.docker_socket(&socket),
            None => settings,
        };
        Self::start_on(clinic.dir(), clinic.project(), &docker_config, settings)
    }

    /// Registers the project in a folder and starts an agent that has this `DOCKER_CONFIG`.
    pub fn start_on(dir: &Path, project: &str, docker_config: &Path, settings: Settings) -> Result<Self> {
        let settings = Settings {
            docker_config: Some(docker_config.to_owned()),
            ..settings
        };
        let mut agent = Self::prepare(project, settings)?;
        agent.add(dir, project)?;
        agent.resume()?;
        Ok(agent)
    }

    /// Starts an agent of a project whose containers never run: for what needs no Engine. The project is `shop`, its
    /// services `web` and `db`, and its registry does not exist.
    pub fn start_without_containers(settings: Settings) -> Result<Self> {
        let mut agent = Self::prepare("shop", settings)?;
        agent.add(&agent.shop()?, "shop")?;
        agent.resume()?;
        Ok(agent)
    }

    /// Writes the Compose file of `shop` and returns its folder.
    pub fn shop(&self) -> Result<PathBuf> {
        let dir = self.home.path().join("shop");
        fs::create_dir_all(&dir)?;
        let file = "services:\n  web:\n    image: 127.0.0.1:1/acme/web:v1\n  db:\n    image: 127.0.0.1:1/acme/db:v1\n";
        fs::write(dir.join("docker-compose.yml"), file)?;
        Ok(dir)
    }

    /// Lays the folder out and makes the caller's key; nothing is registered and nothing runs.
    pub fn prepare(project: &str, settings: Settings) -> Result<Self> {
        let programs = match &settings.programs {
            Some(programs) => programs.clone(),
            None => programs()?,
        };
        let home = temporary_dir("agent")?;
        for dir in ["config", "config/projects.d", "state", "home"] {
            fs::create_dir(home.path().join(dir))?;
        }
        let caller = home.path().join("caller.pem");
        Ctl::keygen(&programs.ctl, &caller)?;
        let agent = Self {
            programs,
            port: free_port()?,
            monitor_port: free_port()?,
            project: project.to_owned(),
            settings,
            caller,
            process: None,
            starts: 0,
            home,
        };
        agent.write_agent_file()?;
        Ok(agent)
    }

    /// Writes `agent.toml` from the settings.
    pub fn write_agent_file(&self) -> Result<()> {
        write_config(&self.config_dir().join("agent.toml"), &self.agent_file()?)
    }

    fn agent_file(&self) -> Result<String> {
        let Self {
            port,
            monitor_port,
            settings,
            ..
        } = self;
        let public = private_key(&self.caller)?.public();
        let mut names = vec![format!("\"127.0.0.1:{port}\"")];
        names.extend(settings.names.iter().map(|name| format!("\"{name}\"")));
        let docker_config = settings
            .docker_config
            .clone()
            .unwrap_or_else(|| self.home.path().join("home"));
        let mut text = format!(
            "state_dir = \"{}\"\n\n[server]\nlisten = \"127.0.0.1:{port}\"\nnames = [{}]\n\n\
             [monitor]\nlisten = \"127.0.0.1:{monitor_port}\"\n\n\
             [docker]\nsocket = \"{}\"\nconfig_dir = \"{}\"\n\n\
             [[key]]\nname = \"ci\"\npublic = \"{public}\"\nprojects = [\"*\"]\nallow = {}\n",
            self.state_dir().display(),
            names.join(", "),
            settings.docker_socket.display(),
            docker_config.display(),
            settings.allow
        );
        for key in &settings.keys {
            write!(text, "\n[[key]]\n{key}\n")?;
        }
        Ok(text)
    }

    /// Registers a Compose project with `deploy-agent add`, then writes the settings into its file.
    pub fn add(&self, dir: &Path, name: &str) -> Result<String> {
        let said = self
            .command(&["add"])
            .args([dir])
            .args(["--config".as_ref(), self.config_dir().as_os_str()])
            .text()?;
        self.change_project(name)?;
        Ok(said)
    }

    /// Writes the settings into `projects.d/NAME.toml`, before the first table.
    pub fn change_project(&self, name: &str) -> Result<()> {
        let path = self.project_file(name);
        let text =
            fs::read_to_string(&path).with_context(|| format!("{} was not written", path.display()))?;
        let is_ours = |line: &str| {
            let key = line.split('=').next().unwrap_or_default().trim();
            self.settings.project.contains_key(key)
        };
        let mut new = String::new();
        for (key, value) in &self.settings.project {
            writeln!(new, "{key} = {value}")?;
        }
        for line in text.lines().filter(|line| !is_ours(line)) {
            writeln!(new, "{line}")?;
        }
        for probe in &self.settings.probes {
            write!(new, "\n[[probe]]\n{probe}\n")?;
        }
        write_config(&path, &new)
    }

    /// Writes these `[[hook]]` tables into the first project's file instead of those that were there, and starts the
    /// agent anew with them.
    pub fn set_hooks(&mut self, hooks: &[String]) -> Result<()> {
        let path = self.project_file(&self.project);
        let text = fs::read_to_string(&path)?;
        let mut new = text.split("\n[[hook]]").next().unwrap_or_default().to_owned();
        for hook in hooks {
            write!(new, "\n[[hook]]\n{hook}\n")?;
        }
        write_config(&path, &new)?;
        self.restart()
    }

    /// `projects.d/NAME.toml`.
    pub fn project_file(&self, name: &str) -> PathBuf {
        self.config_dir().join(format!("projects.d/{name}.toml"))
    }

    /// One run of `deploy-agent` in the agent's environment.
    pub fn command(&self, arguments: &[&str]) -> Run {
        let run = Run::new(&self.programs.agent).args(arguments);
        run.env("HOME", self.home.path().join("home"))
    }

    /// Starts the process, and waits until it lives.
    pub fn resume(&mut self) -> Result<()> {
        let mut tried = 0;
        loop {
            self.spawn()?;
            tried += 1;
            match self.wait_until_live() {
                Ok(()) => return Ok(()),
                // Somebody took a port between our look and the agent's. Only the first start may choose another.
                Err(error)
                    if tried < 4 && self.starts == tried && format!("{error:#}").contains("in use") =>
                {
                    self.port = free_port()?;
                    self.monitor_port = free_port()?;
                    self.write_agent_file()?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts the process under another program, such as `strace` with its arguments; it may not live long. Returns how
    /// it ended when it did before it lived.
    pub fn resume_under(&mut self, wrapper: &[OsString]) -> Result<Option<ExitStatus>> {
        self.spawn_under(wrapper)?;
        until("the agent lives or ends", START_DEADLINE, || {
            if let Some(status) = self.exited()? {
                return Ok(Some(Some(status)));
            }
            let lives = self.monitor("/livez").is_ok_and(|(status, _)| status == 200);
            Ok(lives.then_some(None))
        })
    }

    fn spawn(&mut self) -> Result<()> {
        self.spawn_under(&[])
    }

    fn spawn_under(&mut self, wrapper: &[OsString]) -> Result<()> {
        self.starts += 1;
        let log = File::create(self.log_path(self.starts))?;
        let agent = self.programs.agent.as_os_str();
        let mut words = wrapper.iter().map(OsString::as_os_str).chain([agent]);
        let mut command = Command::new(words.next().unwrap_or(agent));
        command.args(words);
        command.env_clear().envs(
            KEPT.iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command
            .args([
                "serve".as_ref(),
                "--config".as_ref(),
                self.config_dir().as_os_str(),
            ])
            .env("HOME", self.home.path().join("home"))
            .env("RUST_BACKTRACE", "1")
            // As the unit has it.
            .env("MALLOC_ARENA_MAX", "2")
            .envs(&self.settings.env)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = command.spawn().context("failed to start deploy-agent")?;
        // For tests/sweep.sh, should this test be killed.
        fs::write(self.home.path().join("pid"), child.id().to_string())?;
        self.process = Some(child);
        Ok(())
    }

    fn wait_until_live(&mut self) -> Result<()> {
        until("the agent lives", START_DEADLINE, || {
            if let Some(status) = self.exited()? {
                return Ok(Some(Err(anyhow!("the agent ended, {status}:\n{}", self.log()))));
            }
            Ok(self
                .monitor("/livez")
                .is_ok_and(|(status, _)| status == 200)
                .then_some(Ok(())))
        })
        .with_context(|| self.log())?
    }

    /// How it ended, if it did by itself or by somebody else's signal.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.process {
            Some(child) => Ok(child.try_wait()?),
            None => bail!("the agent was not started"),
        }
    }

    /// The process's id.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the agent does not run")?.id())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        signal_process(self.pid()?, signal)
    }

    /// SIGKILL to the agent alone; a `docker compose` that it started goes on.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.reap()
    }

    /// SIGKILL to the agent and everything it started, as a power cut.
    pub fn kill9_all(&mut self) -> Result<()> {
        let pid = self.pid()?;
        // Stopped, it starts nothing new while its children are counted.
        self.signal(Signal::STOP)?;
        let children = descendants(pid)?;
        self.signal(Signal::KILL)?;
        for child in children {
            // It may have ended meanwhile.
            drop(signal_process(child, Signal::KILL));
        }
        self.reap()
    }

    fn reap(&mut self) -> Result<()> {
        if let Some(mut child) = self.process.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM; returns how the process ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let status = until("the agent ends", STOP_DEADLINE, || self.exited())?;
        self.process = None;
        Ok(status)
    }

    /// SIGKILL if it runs, then a new start.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.is_some() {
            self.kill9()?;
        }
        self.resume()
    }

    /// SIGHUP. What it did shows in the log.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// Starts it, expecting that it refuses to; returns the exit code and what it said.
    pub fn refuses_to_start(&mut self) -> Result<(i32, String)> {
        self.spawn()?;
        let status = until("the agent gives up", START_DEADLINE, || self.exited())?;
        self.process = None;
        Ok((status.code().context("a signal ended the agent")?, self.log()))
    }

    fn log_path(&self, start: u32) -> PathBuf {
        self.home.path().join(format!("log-{start}"))
    }

    /// What it logged since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path(self.starts)).unwrap_or_default()
    }

    /// What it logged in all starts.
    pub fn logs(&self) -> String {
        (1..=self.starts)
            .map(|start| fs::read_to_string(self.log_path(start)).unwrap_or_default())
            .collect()
    }

    /// Its address, for `--host`.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// `127.0.0.1:PORT`, as it stands in `Host`.
    pub fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The port of the signed API.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port of monitoring.
    pub fn monitor_port(&self) -> u16 {
        self.monitor_port
    }

    /// What `deploy-agent pin` prints: the pin, alone on its line.
    pub fn pin(&self) -> Result<String> {
        let said = self
            .command(&["pin", "--config"])
            .args([self.config_dir()])
            .text()?;
        let pin = said
            .split(|c: char| c.is_whitespace() || c == '"')
            .find(|word| word.starts_with("sha256//"));
        Ok(pin.with_context(|| format!("no pin in {said:?}"))?.to_owned())
    }

    /// GETs a path of the monitor listener.
    pub fn monitor(&self, path: &str) -> Result<(u16, String)> {
        http::get(self.monitor_port, path)
    }

    /// The folder of `agent.toml`.
    pub fn config_dir(&self) -> PathBuf {
        self.home.path().join("config")
    }

    /// The folder of the database and the TLS key.
    pub fn state_dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The private key of the caller that may do everything.
    pub fn caller_key_file(&self) -> &Path {
        &self.caller
    }

    /// That caller.
    pub fn ctl(&self) -> Result<Ctl> {
        self.ctl_with_key(&self.caller)
    }

    /// A caller with a key file of its own, which the agent knows only if a `[[key]]` says so.
    pub fn ctl_with_key(&self, key_file: &Path) -> Result<Ctl> {
        let ctl = Ctl::new(&self.programs.ctl, key_file, self.home.path());
        Ok(ctl.to(&self.url(), &self.pin()?, &self.project))
    }

    /// Makes another key; returns its file and its public half. The agent knows it only if a `[[key]]` says so.
    pub fn new_key(&self, name: &str) -> Result<(PathBuf, String)> {
        let file = self.home.path().join(format!("{name}.pem"));
        Ctl::keygen(&self.programs.ctl, &file)?;
        let public = private_key(&file)?.public().to_string();
        Ok((file, public))
    }

    /// The project that was registered first.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// A folder for a test's own files, gone with the agent.
    pub fn folder(&self) -> &Path {
        self.home.path()
    }
}

impl Drop for Agent {
    #[allow(clippy::print_stderr, reason = "the log explains what a failed test cannot")]
    fn drop(&mut self) {
        if self.process.is_some() {
            // It may have ended by itself; that shows in the test's own error.
            drop(self.kill9_all());
        }
        if thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// Writes a file of the configuration as an operator must: nothing in it is for everybody.
pub fn write_config(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, Permissions::from_mode(0o640))?)
}

/// Sends a signal to one process.
pub fn signal_process(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")?;
    kill_process(pid, signal).with_context(|| format!("failed to send a signal to {pid:?}"))
}

/// All processes that a process started, and theirs.
pub fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(child) = entry?.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // PID (COMMAND) STATE PARENT ...; the command may contain anything.
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parents.extend(parent.map(|parent| (child, parent)));
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(child, _)| *child),
        );
        next += 1;
    }
    found.remove(0);
    Ok(found)
}
