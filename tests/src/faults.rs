//! The Engine fails in a phase of a deployment, and comes back: whatever the phase and the fault, the deployment ends by
//! itself, live, rolled back or refused, and what it says is what runs.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use deploy_proto::event::{Ending, Event, Happened, Outcome, PhaseName};
use deploy_proto::problem::Problem;
use serde_json::Value;

use crate::agent::{Agent, Settings};
use crate::clinic::Clinic;
use crate::ctl::Ctl;
use crate::engine::Engine;
use crate::images::{Image, Mode, Registry};
use crate::until::until;
use crate::wire::Events;

const SERVICE: &str = "auth_service";
/// From the Engine's return to the deployment's end.
pub const RETURN_DEADLINE: Duration = Duration::from_secs(60);
/// How long the Engine is away: longer than a person's `systemctl restart docker`, and for one that hangs longer than
/// the agent waits for one answer.
const AWAY: Duration = Duration::from_secs(3);
const HUNG: Duration = Duration::from_secs(20);
/// Longer than the agent waits for `docker compose up` of one service.
const HUNG_FOR_MINUTES: Duration = Duration::from_secs(150);
/// For the databases to run again after the Engine's restart.
const DATABASES_DEADLINE: Duration = Duration::from_secs(20);
/// Large enough that its pull is struck.
const IMAGE_BYTES: u64 = 30_000_000;

/// What happens to the Engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It is stopped, and started after some seconds.
    Stopped,
    /// It is stopped and started at once.
    Restarted,
    /// It is killed (SIGKILL), and started after some seconds.
    Killed,
    /// It accepts connections and does not answer, for 20 s.
    Hung,
    /// The same for minutes: until the agent has ended the `docker compose` that waits for it.
    HungForMinutes,
    /// Its socket is gone for some seconds.
    SocketGone,
}

impl Fault {
    /// Those that take seconds.
    pub const BRIEF: [Self; 5] = [
        Self::Stopped,
        Self::Restarted,
        Self::Killed,
        Self::Hung,
        Self::SocketGone,
    ];

    fn strike(self, engine: &Engine) -> Result<()> {
        match self {
            Self::Stopped | Self::Restarted => engine.stop(),
            Self::Killed => engine.kill9(),
            Self::Hung | Self::HungForMinutes => engine.hang(),
            Self::SocketGone => engine.hide_socket(),
        }
    }

    fn cure(self, engine: &Engine) -> Result<()> {
        match self {
            Self::Stopped | Self::Restarted | Self::Killed => engine.start(),
            Self::Hung | Self::HungForMinutes => engine.unhang(),
            Self::SocketGone => engine.show_socket(),
        }
    }

    fn lasts(self) -> Duration {
        match self {
            Self::Stopped | Self::Killed | Self::SocketGone => AWAY,
            Self::Restarted => Duration::ZERO,
            Self::Hung => HUNG,
            Self::HungForMinutes => HUNG_FOR_MINUTES,
        }
    }
}

/// The phases that a fault can strike in; those on the way back are reached with a sick image.
pub const PHASES: [PhaseName; 12] = [
    PhaseName::Accepted,
    PhaseName::Pulling,
    PhaseName::Gating,
    PhaseName::BackingUp,
    PhaseName::Editing,
    PhaseName::BeforeHook,
    PhaseName::Restarting,
    PhaseName::Watching,
    PhaseName::AfterHook,
    PhaseName::Restoring,
    PhaseName::RestartingOld,
    PhaseName::WatchingOld,
];

/// How a deployment came through a fault.
#[derive(Debug, Clone)]
pub struct Survived {
    /// How it ended.
    pub outcome: Outcome,
    /// All that was told since the fault.
    pub events: Vec<Event>,
    /// How long after the Engine's return.
    pub after: Duration,
}

/// A project, its agent and its Engine, to be struck again and again.
#[derive(Debug)]
pub struct Struck {
    engine: Engine,
    clinic: Clinic,
    agent: Agent,
    ctl: Ctl,
    databases_come_back: bool,
    next: u32,
}

impl Struck {
    /// A project on an Engine of the test's own, from a thread inside its network.
    pub fn start(engine: &Engine) -> Result<Self> {
        let registry = Registry::start_on(engine)?;
        let clinic = Clinic::start_only(&registry, &[SERVICE])?;
        let settings = Settings::default()
            .project("wait", "\"15s\"")
            .project("settle", "\"1s\"");
        let agent = Agent::start_with(&clinic, settings)?;
        Ok(Self {
            engine: engine.clone(),
            ctl: agent.ctl()?,
            clinic,
            agent,
            databases_come_back: true,
            next: 0,
        })
    }

    /// The same, with a hook of each kind, those in the image long enough to be struck.
    pub fn with_hooks(mut self) -> Result<Self> {
        let in_the_image = |moment: &str, name: &str| {
            format!("{moment}\nname = \"{name}\"\nservice = \"{SERVICE}\"\ncommand = [\"sleep\", \"1\"]")
        };
        self.agent.set_hooks(&[
            "before = \"everything\"\nname = \"backup\"\ncommand = [\"/bin/sleep\", \"1\"]".to_owned(),
            in_the_image("before = \"restart\"", "migrate"),
            in_the_image("after = \"live\"", "smoke"),
        ])?;
        Ok(self)
    }

    /// The same, where neither the service nor the first of its databases has a restart policy: what ends with the
    /// Engine stays down until somebody starts it. Without its healthcheck the service looks like a one-shot then.
    pub fn start_without_restart_policy(engine: &Engine, healthcheck: bool) -> Result<Self> {
        let mut struck = Self::start(engine)?;
        let file = struck.clinic.file();
        let without: Vec<&str> = file
            .lines()
            .filter(|line| line.trim() != "restart: always")
            .collect();
        let mut without = without.join("\n") + "\n";
        if !healthcheck {
            // The service is the first in the file.
            without = without.replacen(r#"test: ["CMD", "/service", "healthcheck"]"#, "disable: true", 1);
        }
        fs::write(struck.clinic.file_path(), without)?;
        struck.clinic.compose(&["up", "-d", SERVICE]).text()?;
        let well = if healthcheck { "healthy" } else { "running" };
        until("the service is well", DATABASES_DEADLINE, || {
            Ok((struck.clinic.health(SERVICE)? == well).then_some(()))
        })?;
        struck.databases_come_back = false;
        Ok(struck)
    }

    /// Pushes a version, strikes in a phase, cures, and checks all that must be so afterwards.
    pub fn survives(&mut self, phase: PhaseName, fault: Fault) -> Result<Survived> {
        self.strike(phase, fault)
            .with_context(|| format!("{fault:?} while {}", phase.as_str()))
    }

    fn strike(&mut self, phase: PhaseName, fault: Fault) -> Result<Survived> {
        self.next += 1;
        let tag = format!("dev-{:07x}", self.next);
        let id = format!("{:016x}", self.next);
        let goes_back = matches!(
            phase,
            PhaseName::Restoring | PhaseName::RestartingOld | PhaseName::WatchingOld
        );
        let mode = if goes_back { Mode::Crash } else { Mode::Good };
        Image::new(SERVICE, &tag, mode)
            .extra_bytes(IMAGE_BYTES)
            .build_and_push(self.clinic.registry(), "drassistant/auth_service", &tag)?;
        let before = (self.clinic.file(), self.clinic.image_id(SERVICE)?);
        let databases = self.databases()?;
        let set = self.clinic.set_argument(SERVICE, &tag);
        self.ctl
            .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
        let mut events = Events::follow(&self.agent, &self.ctl.private_key()?, &id, None)?;
        if phase != PhaseName::Accepted {
            events.reach(phase)?;
        }
        fault.strike(&self.engine)?;
        thread::sleep(fault.lasts());
        fault.cure(&self.engine)?;
        let cured = Instant::now();
        let events = events.all()?;
        let after = cured.elapsed();
        let outcome = events.iter().find_map(|event| {
            if let Happened::Ended { outcome } = &event.what {
                Some(outcome.clone())
            } else {
                None
            }
        });
        let outcome = outcome.context("the stream ended before the deployment")?;
        ensure!(
            after <= RETURN_DEADLINE,
            "it took {} s after the Engine's return: {outcome:?}",
            after.as_secs()
        );
        self.check(&outcome, mode, &tag, &before)
            .and_then(|()| self.check_databases(&databases))
            .with_context(|| format!("{outcome:?}\n{}", self.agent.log()))?;
        Ok(Survived {
            outcome,
            events,
            after,
        })
    }

    /// Pushes while the Engine is broken for good; the agent must refuse, and work again when it is whole.
    pub fn refuses(&mut self, fault: Fault) -> Result<Problem> {
        self.next += 1;
        let tag = format!("dev-{:07x}", self.next);
        self.clinic.push_version(SERVICE, Mode::Good, &tag)?;
        let before = (self.clinic.file(), self.clinic.image_id(SERVICE)?);
        let databases = self.databases()?;
        let set = self.clinic.set_argument(SERVICE, &tag);
        fault.strike(&self.engine)?;
        let refused = self.ctl.push(9, &[&set], &[]);
        fault.cure(&self.engine)?;
        let problem = refused?.at("/outcome/problem");
        let now = (self.clinic.file(), self.clinic.image_id(SERVICE)?);
        ensure!(now == before, "{now:?} is not {before:?}");
        self.check_databases(&databases)?;
        let pushed = self.ctl.push(0, &[&set], &[])?;
        ensure!(pushed.result() == "live", "{pushed:?}");
        Ok(serde_json::from_str(&problem)?)
    }

    fn check(&self, outcome: &Outcome, mode: Mode, tag: &str, before: &(String, String)) -> Result<()> {
        let now = (self.clinic.file(), self.clinic.image_id(SERVICE)?);
        match outcome.result {
            Ending::Live => {
                ensure!(mode == Mode::Good, "a sick image is live");
                ensure!(now.0.contains(tag), "the file does not name {tag}: {}", now.0);
                let serves = self.clinic.service_version(SERVICE)?;
                ensure!(serves == tag, "{serves} serves");
            }
            Ending::RolledBack | Ending::Refused => {
                ensure!(&now == before, "{now:?} is not {before:?}");
                until("the service is well", DATABASES_DEADLINE, || {
                    Ok((self.clinic.get(SERVICE, "/health")?.0 == 200).then_some(()))
                })?;
            }
            Ending::Unchanged | Ending::Stuck => bail!("it must not end so"),
        }
        let containers = self
            .clinic
            .compose(&["ps", "--all", "--format", "{{.Name}}"])
            .text()?;
        let half_made = |name: &str| !name.starts_with(self.clinic.project());
        ensure!(!containers.lines().any(half_made), "half made: {containers}");
        let of_hooks = ["ps", "--all", "--filter", "label=com.docker.compose.oneoff=True"];
        let left = self.engine.docker(of_hooks).args(["--quiet"]).text()?;
        ensure!(left.is_empty(), "containers of hooks are left: {left}");
        self.check_history()
    }

    /// The release that the agent says is live is the one whose digest runs.
    fn check_history(&self) -> Result<()> {
        let status = self.ctl.json(0, &["status"])?;
        let image_in = |list: &str, key: &str| {
            status.list(list).into_iter().find_map(|service| {
                let of = |key| service.get(key).and_then(Value::as_str);
                (of("service") == Some(SERVICE)).then(|| of(key).unwrap_or_default().to_owned())
            })
        };
        let runs = image_in("/services", "digest").context("the status does not have the service")?;
        // Before the first push was planned there is no release.
        if let Some(released) = image_in("/release/services", "image") {
            ensure!(
                !runs.is_empty() && released.ends_with(&runs),
                "{runs:?} runs, and the history says {released}"
            );
        }
        Ok(())
    }

    /// The containers of the databases that the service needs.
    fn databases(&self) -> Result<BTreeMap<&'static str, String>> {
        ["auth_db", "redis"]
            .into_iter()
            .map(|name| Ok((name, self.clinic.container_id(name)?)))
            .collect()
    }

    fn check_databases(&self, before: &BTreeMap<&'static str, String>) -> Result<()> {
        ensure!(&self.databases()? == before, "a database was replaced");
        for name in before.keys() {
            if !self.databases_come_back {
                // As a person who has read what the deployment said.
                self.engine
                    .docker(["start", &self.clinic.container_id(name)?])
                    .text()?;
            }
            until(&format!("{name} is well"), DATABASES_DEADLINE, || {
                Ok((self.clinic.health(name)? == "healthy").then_some(()))
            })?;
        }
        Ok(())
    }
}
