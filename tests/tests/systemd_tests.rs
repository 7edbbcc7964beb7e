//! The agent under systemd: the unit, what it is told, and a stop in the middle of a deployment.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use deploy_proto::event::{Ending, PhaseName};
use deploy_tests::agent::{Agent, Settings, programs};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::Run;
use deploy_tests::images::{Mode, Registry, temporary_dir};
use deploy_tests::until::until;
use deploy_tests::wire::Events;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_unit_is_valid_and_hardened() -> Result<()> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/deploy-agent.service");
    let text = std::fs::read_to_string(&unit)?;
    // verify wants the program to be there: it stands where the build put it.
    let dir = temporary_dir("unit")?;
    let copy = dir.path().join("deploy-agent.service");
    let program = programs()?.agent.display().to_string();
    std::fs::write(&copy, text.replace("/usr/bin/deploy-agent", &program))?;
    let verified = Run::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args([&copy])
        .output()?;
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("deploy-agent"))
        .collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
    let security = Run::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=30", "--no-pager"])
        .args([&copy])
        .output()?;
    assert!(
        security.status.success(),
        "{}",
        String::from_utf8_lossy(&security.stdout)
    );
    Ok(())
}

#[test]
fn systemd_hears_ready_watchdog_reload_and_stop() -> Result<()> {
    let dir = temporary_dir("notify")?;
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_nonblocking(true)?;
    let heard = |what: &str| {
        until(&format!("systemd hears {what}"), SOON, || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                if message.contains(what) {
                    return Ok(Some(message));
                }
            }
            Ok(None)
        })
    };
    let settings = Settings::default()
        .env("NOTIFY_SOCKET", &path.display().to_string())
        .env("WATCHDOG_USEC", "400000");
    let mut agent = Agent::start_without_containers(settings)?;
    let ready = heard("READY=1")?;
    assert!(ready.contains("STATUS="), "{ready}");
    heard("WATCHDOG=1")?;
    heard("WATCHDOG=1")?;
    agent.reload()?;
    heard("RELOADING=1")?;
    heard("READY=1")?;
    assert!(agent.terminate()?.success(), "{}", agent.log());
    heard("STOPPING=1")?;
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
        let mut events = until("it is accepted", SOON, || {
            Ok(Events::follow(&agent, &key, &id, None).ok())
        })?;
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
