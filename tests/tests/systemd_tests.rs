//! What systemd is told, and that the unit is one that it takes.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use deploy_proto::event::{Ending, PhaseName};
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::Run;
use deploy_tests::images::{Mode, Registry, temporary_dir};
use deploy_tests::wire::Events;

/// The socket that systemd would listen on.
struct Manager {
    _folder: tempfile::TempDir,
    socket: UnixDatagram,
    path: String,
}

impl Manager {
    fn new() -> Result<Self> {
        let folder = temporary_dir("notify")?;
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path)?;
        Ok(Self {
            _folder: folder,
            socket,
            path: path.display().to_string(),
        })
    }

    /// Waits for a message with this line in it.
    fn hears(&self, line: &str, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        let mut heard = Vec::new();
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 4096];
            let length = self
                .socket
                .recv(&mut buffer)
                .with_context(|| format!("no {line} among {heard:?}"))?;
            let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
            if message.lines().any(|have| have == line) {
                return Ok(message);
            }
            heard.push(message);
        }
    }
}

#[test]
fn systemd_hears_ready_watchdog_reloading_and_stopping() -> Result<()> {
    let manager = Manager::new()?;
    let settings = Settings::default()
        .env("NOTIFY_SOCKET", &manager.path)
        .env("WATCHDOG_USEC", "1000000");
    let mut agent = Agent::start_without_containers(settings)?;
    let ready = manager.hears("READY=1", Duration::from_secs(5))?;
    assert!(ready.contains("STATUS=serves 1 project on "), "{ready}");
    // Twice in the interval of one second; more than one shows that it goes on.
    for _ in 0..3 {
        manager.hears("WATCHDOG=1", Duration::from_secs(2))?;
    }
    agent.reload()?;
    let reloading = manager.hears("RELOADING=1", Duration::from_secs(5))?;
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    manager.hears("READY=1", Duration::from_secs(5))?;
    let status = agent.terminate()?;
    assert!(status.success(), "{status}");
    manager.hears("STOPPING=1", Duration::from_secs(5))?;
    Ok(())
}

#[test]
fn systemd_takes_the_unit_and_finds_it_confined() -> Result<()> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/deploy-agent.service");
    let folder = temporary_dir("unit")?;
    let text = std::fs::read_to_string(unit)?;
    // The binary is not installed where the tests run; everything else is verified as it stands.
    let copy = folder.path().join("deploy-agent.service");
    std::fs::write(&copy, text.replace("/usr/bin/deploy-agent", "/bin/true"))?;
    let verified = Run::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args([&copy])
        .output()?;
    let complaints = String::from_utf8_lossy(&verified.stderr).into_owned();
    let ours: Vec<&str> = complaints
        .lines()
        .filter(|line| line.contains("deploy-agent"))
        .collect();
    assert!(verified.status.success() && ours.is_empty(), "{complaints}");

    let security = Run::new("systemd-analyze")
        .args(["security", "--offline=yes"])
        .args([&copy])
        .text()?;
    let overall = security
        .lines()
        .find(|line| line.contains("Overall exposure level"))
        .context("no overall level")?;
    let level: f64 = overall
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .context("no number")?;
    assert!(level < 3.0, "{overall}");
    Ok(())
}

#[test]
fn a_stop_in_the_middle_is_finished_or_goes_on_after_the_start() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &["auth_service"])?;
    let mut agent = Agent::start_with(&clinic, Settings::default().project("settle", "\"2s\""))?;
    let ctl = agent.ctl()?;
    let key = ctl.private_key()?;
    for (number, phase) in [PhaseName::Pulling, PhaseName::Restarting, PhaseName::Watching]
        .into_iter()
        .enumerate()
    {
        let tag = format!("dev-{number:07x}");
        let id = format!("{number:016x}");
        clinic.push_version("auth_service", Mode::Good, &tag)?;
        let set = clinic.set_argument("auth_service", &tag);
        let pushing = ctl.spawn(&["push", "--set", &set, "--id", &id])?;
        let mut events = Events::when_accepted(&agent, &key, &id)?;
        events.reach(phase)?;
        assert!(agent.terminate()?.success(), "{}", agent.log());
        agent.resume()?;
        // deployctl found the agent again by itself.
        pushing.end()?.expect(0)?;
        let outcome = Events::follow(&agent, &key, &id, None)?.outcome()?;
        assert_eq!(outcome.result, Ending::Live, "{phase:?}: {outcome:?}");
        assert_eq!(clinic.service_version("auth_service")?, tag);
    }
    Ok(())
}
