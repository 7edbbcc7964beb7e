//! Which Docker Engine a test uses: the machine's, which all share and nobody may touch, or one of its own, which is
//! stopped, killed, hung and hidden at will.
//!
//! An Engine of a test's own lives in namespaces of its own: network, processes and mounts. Their first process is a
//! shell that does nothing (the holder). When it dies, the kernel ends the Engine, its containers and its mounts with
//! it, however the test ended; `tests/sweep.sh` finds the holder of a killed test by the folder in its arguments.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

use crate::agent::{descendants, signal_process};
use crate::command::{Run, docker};
use crate::images::temporary_dir;
use crate::until::until;

/// From dockerd's start to its first answer: a second, more with containers to restore on a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// From SIGTERM to its end: it waits 10 s for containers that take no notice of theirs.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// What the first process of the namespaces does: nothing, and it reaps what is orphaned, which dockerd would take for
/// a containerd that still runs.
const HOLD: &str = "while :; do sleep 3600 & wait $!; done";

/// A handle on an Engine. One of a test's own ends with the last clone.
#[derive(Debug, Clone, Default)]
pub struct Engine {
    own: Option<Arc<Own>>,
}

#[derive(Debug)]
struct Own {
    holder: u32,
    unshare: Mutex<Child>,
    /// `nsenter`, whose child dockerd is.
    daemon: Mutex<Option<Child>>,
    options: Vec<String>,
    dir: TempDir,
    base_image: OnceLock<Result<String, String>>,
}

/// Starts an Engine of the test's own and calls the test on a thread inside its network: all that the test starts there,
/// and every port, is inside too.
pub fn with_own_engine<T: Send>(test: impl FnOnce(&Engine) -> Result<T> + Send) -> Result<T> {
    with_own_engine_and(&[], test)
}

/// The same with more options of dockerd.
pub fn with_own_engine_and<T: Send>(
    options: &[&str],
    test: impl FnOnce(&Engine) -> Result<T> + Send,
) -> Result<T> {
    let engine = Engine {
        own: Some(Arc::new(Own::start(options)?)),
    };
    engine.start()?;
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            engine.own()?.enter()?;
            test(&engine)
        });
        match inside.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

impl Engine {
    /// The machine's.
    pub fn shared() -> Self {
        Self::default()
    }

    /// Starts a `docker` command.
    pub fn docker<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Run {
        let run = docker(arguments);
        match &self.own {
            Some(own) => run.env("DOCKER_HOST", format!("unix://{}", own.socket().display())),
            None => run,
        }
    }

    /// Its socket; none for the machine's, which is where everybody looks.
    pub fn socket(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.socket())
    }

    /// Where one of the test's own keeps images and containers.
    pub fn data_root(&self) -> Result<PathBuf> {
        Ok(self.own()?.dir.path().join("data"))
    }

    /// The image that all others are made from, made when it is first asked for.
    pub(crate) fn base_image(&self, build: impl FnOnce() -> Result<String>) -> Result<String> {
        static OF_THE_MACHINE: OnceLock<Result<String, String>> = OnceLock::new();
        self.own
            .as_ref()
            .map_or(&OF_THE_MACHINE, |own| &own.base_image)
            .get_or_init(|| build().map_err(|error| format!("{error:#}")))
            .clone()
            .map_err(|error| anyhow!(error))
    }

    /// Starts dockerd, and waits until it answers.
    pub fn start(&self) -> Result<()> {
        self.own()?.spawn()?;
        until("the Engine answers", START_DEADLINE, || {
            let said = self.docker(["version"]).output()?;
            Ok(said.status.success().then_some(()))
        })
        .with_context(|| self.log())
    }

    /// SIGTERM, and waits for its end: containers are stopped, those with a restart policy start with the next Engine.
    pub fn stop(&self) -> Result<()> {
        let own = self.own()?;
        signal_process(own.dockerd()?, Signal::TERM)?;
        own.wait_for_end()
    }

    /// SIGKILL: containers go on until the next Engine finds and ends them.
    pub fn kill9(&self) -> Result<()> {
        let own = self.own()?;
        signal_process(own.dockerd()?, Signal::KILL)?;
        own.wait_for_end()
    }

    /// SIGSTOP: it accepts connections, and never answers.
    pub fn hang(&self) -> Result<()> {
        signal_process(self.own()?.dockerd()?, Signal::STOP)
    }

    /// Ends [`Self::hang`].
    pub fn unhang(&self) -> Result<()> {
        let own = self.own()?;
        // `nsenter` stopped itself when its child stopped.
        signal_process(own.nsenter()?, Signal::CONT)?;
        signal_process(own.dockerd()?, Signal::CONT)
    }

    /// Takes the socket away; open connections go on.
    pub fn hide_socket(&self) -> Result<()> {
        let socket = self.own()?.socket();
        Ok(fs::rename(&socket, socket.with_extension("hidden"))?)
    }

    /// Ends [`Self::hide_socket`].
    pub fn show_socket(&self) -> Result<()> {
        let socket = self.own()?.socket();
        Ok(fs::rename(socket.with_extension("hidden"), &socket)?)
    }

    /// What dockerd logged last, for the message of a failed test.
    pub fn log(&self) -> String {
        let Some(own) = &self.own else {
            return String::new();
        };
        let log = fs::read_to_string(own.dir.path().join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines
            .get(lines.len().saturating_sub(20)..)
            .unwrap_or_default()
            .join("\n")
    }

    fn own(&self) -> Result<&Own> {
        self.own
            .as_deref()
            .context("this is the machine's Engine: only one of the test's own may be broken")
    }
}

impl Own {
    fn start(options: &[&str]) -> Result<Self> {
        let dir = temporary_dir("engine")?;
        let unshare = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["bash", "-c", HOLD])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("failed to start unshare")?;
        let id = unshare.id();
        let holder = until("the namespaces are there", START_DEADLINE, || {
            let holder = descendants(id)?.into_iter().next();
            Ok(holder.filter(|pid| is_program(*pid, "bash")))
        })?;
        let own = Self {
            holder,
            unshare: Mutex::new(unshare),
            daemon: Mutex::new(None),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            dir,
            base_image: OnceLock::new(),
        };
        fs::write(own.dir.path().join("pid"), holder.to_string())?;
        own.nsenter_command(&["--net"])
            .args(["ip", "link", "set", "lo", "up"])
            .status()
            .context("failed to run nsenter")?;
        Ok(own)
    }

    fn nsenter_command(&self, which: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.to_string()]).args(which);
        command
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// The group of all control groups of its containers, below every controller.
    fn control_group(&self) -> Option<&OsStr> {
        self.dir.path().file_name()
    }

    fn spawn(&self) -> Result<()> {
        let dir = self.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let path = |name: &str| dir.join(name).into_os_string();
        let mut command = self.nsenter_command(&["--net", "--mount", "--pid"]);
        command
            .args([
                "dockerd".as_ref(),
                "--data-root".as_ref(),
                path("data").as_os_str(),
            ])
            .args(["--exec-root".as_ref(), path("exec").as_os_str()])
            .args(["--pidfile".as_ref(), path("docker.pid").as_os_str()])
            .args(["-H", &format!("unix://{}", self.socket().display())])
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        if let Some(group) = self.control_group() {
            command.arg("--cgroup-parent").arg(group);
        }
        let child = command.spawn().context("failed to start dockerd")?;
        *self.daemon.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        Ok(())
    }

    /// Moves the calling thread, and what it starts from now on, into the Engine's network.
    fn enter(&self) -> Result<()> {
        let network = File::open(format!("/proc/{}/ns/net", self.holder))?;
        Ok(move_into_link_name_space(
            network.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    fn nsenter(&self) -> Result<u32> {
        let daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(daemon.as_ref().context("the Engine does not run")?.id())
    }

    fn dockerd(&self) -> Result<u32> {
        descendants(self.nsenter()?)?
            .into_iter()
            .find(|pid| is_program(*pid, "dockerd"))
            .context("the Engine has ended")
    }

    fn wait_for_end(&self) -> Result<()> {
        until("the Engine ends", STOP_DEADLINE, || {
            let mut daemon = self.daemon.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = daemon.as_mut().map(Child::try_wait).transpose()?;
            if matches!(ended, None | Some(Some(_))) {
                *daemon = None;
                return Ok(Some(()));
            }
            Ok(None)
        })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // All may have ended by themselves; the holder's end is the end of everything in its namespaces.
        drop(signal_process(self.holder, Signal::KILL));
        let mut unshare = self.unshare.lock().unwrap_or_else(PoisonError::into_inner);
        drop(unshare.wait());
        drop(self.wait_for_end());
        if let Some(group) = self.control_group() {
            let controllers = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
            for controller in controllers {
                remove_groups(&controller.path().join(group));
            }
            remove_groups(&Path::new("/sys/fs/cgroup").join(group));
        }
    }
}

/// Removes a control group with those in it; what cannot be removed is empty and does no harm.
fn remove_groups(group: &Path) {
    for inner in fs::read_dir(group).into_iter().flatten().flatten() {
        if inner.path().is_dir() {
            remove_groups(&inner.path());
        }
    }
    drop(fs::remove_dir(group));
}

fn is_program(pid: u32, name: &str) -> bool {
    let link = fs::read_link(format!("/proc/{pid}/exe"));
    link.is_ok_and(|exe| exe.file_name() == Some(name.as_ref()))
}
