//! An sshd of our own on a free port of 127.0.0.1, with its own host key and one authorized key, and a client for it.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use deploy_tests::command::Run;
use deploy_tests::images::{free_port, temporary_dir};
use deploy_tests::until::until;
use tempfile::TempDir;

/// Where sshd goes before a login; it must be there, and only the service's start script makes it.
const EMPTY_DIR: &str = "/run/sshd";

/// A running sshd, ended on drop.
pub(crate) struct Sshd {
    process: Child,
    home: TempDir,
    port: u16,
    user: String,
}

impl Sshd {
    /// Starts it, and waits until it lets us in.
    pub(crate) fn start() -> Result<Self> {
        let home = temporary_dir("sshd")?;
        let dir = home.path();
        for name in ["host", "caller"] {
            Run::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f", name])
                .dir(dir)
                .text()?;
        }
        fs::copy(dir.join("caller.pub"), dir.join("authorized"))?;
        let port = free_port()?;
        let host = fs::read_to_string(dir.join("host.pub"))?;
        fs::write(dir.join("known"), format!("[127.0.0.1]:{port} {host}"))?;
        fs::write(dir.join("config"), config(dir, port))?;
        if !Path::new(EMPTY_DIR).exists() {
            fs::DirBuilder::new()
                .mode(0o755)
                .create(EMPTY_DIR)
                .with_context(|| format!("failed to make {EMPTY_DIR}"))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        // sshd starts itself anew for every login, so it wants its own whole path.
        let program = Run::new("sh")
            .args(["-c", "PATH=$PATH:/usr/sbin command -v sshd"])
            .text()?;
        let process = Command::new(program)
            .args([
                "-D".as_ref(),
                "-e".as_ref(),
                "-f".as_ref(),
                dir.join("config").as_os_str(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join("log"))?)
            .spawn()
            .context("failed to start sshd; tests/setup.sh installs it")?;
        let mut sshd = Self {
            process,
            port,
            user: Run::new("id").args(["-un"]).text()?,
            home,
        };
        until("sshd lets us in", Duration::from_secs(20), || {
            if let Some(status) = sshd.process.try_wait()? {
                return Ok(Some(Err(anyhow!("sshd ended, {status}: {}", sshd.log()))));
            }
            Ok(sshd.run("true").text().ok().map(|_| Ok(())))
        })
        .with_context(|| sshd.log())??;
        Ok(sshd)
    }

    /// Runs a command line in the login shell, on a connection of its own, as a pipeline's step does.
    pub(crate) fn run(&self, line: &str) -> Run {
        let dir = self.home.path();
        let option = |name: &str, value: String| ["-o".to_owned(), format!("{name}={value}")];
        Run::new("ssh")
            .args([
                "-F",
                "none",
                "-T",
                "-i",
                &dir.join("caller").display().to_string(),
            ])
            .args(option(
                "UserKnownHostsFile",
                dir.join("known").display().to_string(),
            ))
            .args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
            .args([
                "-o",
                "StrictHostKeyChecking=yes",
                "-o",
                "GlobalKnownHostsFile=none",
            ])
            .args(["-p", &self.port.to_string()])
            .args([&format!("{}@127.0.0.1", self.user), line])
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }
}

/// Nothing in it costs time: no PAM, no look-up of names, no message of the day.
fn config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized\nPidFile none\n\
         UsePAM no\nUseDNS no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
         PrintMotd no\nPrintLastLog no\nLogLevel ERROR\n"
    )
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}
