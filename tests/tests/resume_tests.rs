//! `kill -9` in every phase, forward and back: the restarted agent ends the deployment by itself, live or rolled back,
//! and what it says is what runs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use deploy_proto::event::{Ending, Event, Happened, Outcome, PhaseName};
use deploy_tests::agent::{Agent, Settings, write_config};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::docker;
use deploy_tests::ctl::Ctl;
use deploy_tests::engine::Engine;
use deploy_tests::images::{Image, Mode, Registry};
use deploy_tests::liar::{About, Liar, Lie};
use deploy_tests::project::Project;
use deploy_tests::until::until;
use deploy_tests::wire::Events;

const SERVICE: &str = "auth_service";

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Killed {
    /// The agent; a `docker compose` that it started goes on beside the next agent.
    Agent,
    /// The agent and all that it started, as in a power cut.
    All,
}

struct Host {
    clinic: Clinic,
    agent: Agent,
    ctl: Ctl,
    next: u32,
}

impl Host {
    fn start(registry: &Registry) -> Result<Self> {
        let clinic = Clinic::start_only(registry, &[SERVICE])?;
        let settings = Settings::default()
            .project("wait", "\"4s\"")
            .project("settle", "\"500ms\"");
        let agent = Agent::start_with(&clinic, settings)?;
        let ctl = agent.ctl()?;
        Ok(Self {
            clinic,
            agent,
            ctl,
            next: 0,
        })
    }

    /// Pushes a version, kills in a phase, starts again, and checks that what the agent says is what runs.
    fn survives(&mut self, mode: Mode, phase: PhaseName, killed: Killed) -> Result<Outcome> {
        self.next += 1;
        let tag = format!("dev-{:07x}", self.next);
        let id = format!("{:016x}", self.next);
        // Large enough that pulling it takes a moment.
        Image::new(SERVICE, &tag, mode)
            .extra_bytes(20_000_000)
            .build_and_push(self.clinic.registry(), "drassistant/auth_service", &tag)?;
        let before = (self.clinic.file(), self.clinic.image_id(SERVICE)?);
        let databases = self.clinic.database_ids();
        let set = self.clinic.set_argument(SERVICE, &tag);
        self.ctl
            .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
        let key = self.ctl.private_key()?;
        Events::follow(&self.agent, &key, &id, None)?.reach(phase)?;
        match killed {
            Killed::Agent => self.agent.kill9()?,
            Killed::All => self.agent.kill9_all()?,
        }
        self.agent.resume()?;
        let events = Events::follow(&self.agent, &key, &id, None)?.all()?;
        let outcome = outcome(&events)?;
        let now = (self.clinic.file(), self.clinic.image_id(SERVICE)?);
        match outcome.result {
            Ending::Live => {
                ensure!(mode == Mode::Good, "a sick image is live");
                ensure!(now.0.contains(&tag), "the file does not name {tag}: {}", now.0);
                let serves = self.clinic.service_version(SERVICE)?;
                ensure!(serves == tag, "{serves} serves");
            }
            Ending::RolledBack | Ending::Refused => {
                ensure!(now == before, "{:?}: {now:?} is not {before:?}", outcome.result);
                self.is_well()?;
            }
            Ending::Unchanged | Ending::Stuck => bail!("{outcome:?}"),
        }
        ensure!(self.clinic.database_ids() == databases, "a database was touched");
        // Nothing half-made is left, and the next push finds the project free.
        let containers = self
            .clinic
            .compose(&["ps", "--all", "--format", "{{.Name}}"])
            .text()?;
        let half_made = |name: &str| !name.starts_with(self.clinic.project());
        ensure!(!containers.lines().any(half_made), "{containers}");
        ensure!(self.agent.log().contains("resuming"), "{}", self.agent.log());
        Ok(outcome)
    }

    fn is_well(&self) -> Result<()> {
        until("the service is well", Duration::from_secs(10), || {
            Ok((self.clinic.get(SERVICE, "/health")?.0 == 200).then_some(()))
        })
    }
}

/// The outcome of a whole, gapless journal.
fn outcome(events: &[Event]) -> Result<Outcome> {
    let numbers: Vec<u64> = events.iter().filter_map(|event| event.seq).collect();
    let expected: Vec<u64> = (1..).take(numbers.len()).collect();
    ensure!(numbers == expected, "the journal has gaps: {numbers:?}");
    let last = events.last().context("no events")?;
    let Happened::Ended { outcome } = &last.what else {
        bail!("the last event is {last:?}");
    };
    Ok(outcome.clone())
}

#[test]
fn killed_on_the_way_forward_it_ends_live_or_rolled_back() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry)?;
    for (phase, killed) in [
        (PhaseName::Pulling, Killed::Agent),
        (PhaseName::Gating, Killed::Agent),
        (PhaseName::BackingUp, Killed::Agent),
        (PhaseName::Editing, Killed::Agent),
        (PhaseName::Restarting, Killed::Agent),
        (PhaseName::Restarting, Killed::All),
        (PhaseName::Watching, Killed::All),
    ] {
        let what = format!("{} {killed:?}", phase.as_str());
        let outcome = host.survives(Mode::Good, phase, killed).context(what.clone())?;
        // Nothing was wrong with the image, so nothing keeps it from going live.
        assert_eq!(outcome.result, Ending::Live, "{what}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn killed_on_the_way_back_it_ends_rolled_back() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry)?;
    for (phase, killed) in [
        (PhaseName::Watching, Killed::Agent),
        (PhaseName::Restoring, Killed::Agent),
        (PhaseName::RestartingOld, Killed::Agent),
        (PhaseName::RestartingOld, Killed::All),
        (PhaseName::WatchingOld, Killed::All),
    ] {
        let what = format!("{} {killed:?}", phase.as_str());
        let outcome = host.survives(Mode::Crash, phase, killed).context(what.clone())?;
        assert_eq!(outcome.result, Ending::RolledBack, "{what}: {outcome:?}");
        assert!(outcome.problem.is_some(), "{what}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn killed_again_and_again_it_still_ends() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry)?;
    host.clinic.push_version(SERVICE, Mode::Good, "dev-900d001")?;
    let id = "00000000000000cc";
    let set = host.clinic.set_argument(SERVICE, "dev-900d001");
    host.ctl
        .expect(0, &["push", "--set", &set, "--id", id, "--detach"])?;
    // Five times in one phase would be a deployment that kills the agent; that one is given up.
    for _ in 0..4 {
        host.agent.kill9_all()?;
        host.agent.resume()?;
    }
    let key = host.ctl.private_key()?;
    let outcome = outcome(&Events::follow(&host.agent, &key, id, None)?.all()?)?;
    assert_eq!(outcome.result, Ending::Live, "{outcome:?}");
    assert_eq!(host.clinic.service_version(SERVICE)?, "dev-900d001");
    Ok(())
}

#[test]
fn killed_while_a_container_takes_its_time_to_stop_it_still_ends() -> Result<()> {
    const COMPOSE: &str = "services:\n  web:\n    image: REGISTRY/acme/web:v1\n    stop_grace_period: 6s\n";
    let registry = Registry::start()?;
    let project = Project::write(&registry, &[("compose.yaml", COMPOSE)])?;
    // The old one takes no notice of SIGTERM, so the Engine is stopping it for six seconds.
    project.push_image("web", "v1", Mode::Deaf)?;
    project.push_image("web", "v2", Mode::Good)?;
    project.push_image("web", "v3", Mode::Crash)?;
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let settings = Settings::default().project("settle", "\"300ms\"");
    let config = registry.docker_config();
    let mut agent = Agent::start_on(project.dir(), project.name(), &config, settings)?;
    let ctl = agent.ctl()?;
    let key = ctl.private_key()?;
    for (tag, id, killed, ending, runs) in [
        ("v3", "00000000000000d1", Killed::All, Ending::RolledBack, "v1"),
        ("v3", "00000000000000d2", Killed::Agent, Ending::RolledBack, "v1"),
        ("v2", "00000000000000d3", Killed::All, Ending::Live, "v2"),
    ] {
        let set = format!("web={}", project.image("web", tag));
        ctl.expect(0, &["push", "--set", &set, "--id", id, "--detach"])?;
        Events::follow(&agent, &key, id, None)?.reach(PhaseName::Restarting)?;
        let old = project.container_id("web")?;
        until(
            "the old container is being stopped",
            Duration::from_secs(10),
            || {
                let since = [
                    "events",
                    "--since",
                    "10s",
                    "--until",
                    "0s",
                    "--filter",
                    "event=kill",
                ];
                let events = docker(since)
                    .args(["--filter", &format!("container={old}"), "--format", "{{.ID}}"])
                    .text()?;
                Ok((!events.is_empty()).then_some(()))
            },
        )?;
        match killed {
            Killed::Agent => agent.kill9()?,
            Killed::All => agent.kill9_all()?,
        }
        agent.resume()?;
        let outcome = outcome(&Events::follow(&agent, &key, id, None)?.all()?)?;
        ensure!(outcome.result == ending, "{tag} {killed:?}: {outcome:?}");
        ensure!(project.version("web")? == runs, "{tag} {killed:?}");
        let status = ctl.json(0, &["status"])?;
        ensure!(status.at("/services/0/health") == "healthy", "{status:?}");
    }
    Ok(())
}

#[test]
fn a_project_that_is_taken_out_in_the_middle_ends_refused_or_says_where_to_look() -> Result<()> {
    let liar = Liar::start()?;
    let registry = Registry::start_behind(&Engine::shared(), &liar)?;
    let mut host = Host::start(&registry)?;
    let file = host.agent.project_file(host.clinic.project());
    let text = std::fs::read_to_string(&file)?;
    for (phase, ending) in [
        (PhaseName::Pulling, Ending::Refused),
        (PhaseName::Watching, Ending::Stuck),
    ] {
        host.next += 1;
        let (tag, id) = (format!("dev-{:07x}", host.next), format!("{:016x}", host.next));
        Image::new(SERVICE, &tag, Mode::Good)
            .extra_bytes(2_000_000)
            .build_and_push(&registry, "drassistant/auth_service", &tag)?;
        let set = host.clinic.set_argument(SERVICE, &tag);
        // The pull is held until the agent is dead.
        if phase == PhaseName::Pulling {
            liar.lie(About::Layers, Lie::Stalled);
        }
        host.ctl
            .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
        let key = host.ctl.private_key()?;
        Events::follow(&host.agent, &key, &id, None)?.reach(phase)?;
        host.agent.kill9_all()?;
        liar.be_honest();
        std::fs::remove_file(&file)?;
        host.agent.resume()?;
        let outcome = outcome(&Events::follow(&host.agent, &key, &id, None)?.all()?)?;
        ensure!(outcome.result == ending, "{phase:?}: {outcome:?}");
        let problem = outcome.problem.context("no reason")?;
        ensure!(problem.detail.contains("taken out"), "{problem:?}");
        ensure!(
            problem.hint.is_some_and(|hint| hint.contains("projects.d")),
            "no hint"
        );
        write_config(&file, &text)?;
        host.agent.reload()?;
    }
    Ok(())
}
