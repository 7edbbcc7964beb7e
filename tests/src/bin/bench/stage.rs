//! What the benchmark runs on: a registry, the project four times (for ssh in two forms, and for the agent in both orders), an sshd,
//! and one agent with two projects.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use deploy_proto::event::{Event, Happened, PhaseName};
use deploy_tests::agent::{Agent, Programs, Settings};
use deploy_tests::clinic::{Clinic, DATABASES, SERVICES};
use deploy_tests::command::Run;
use deploy_tests::ctl::Ctl;
use deploy_tests::images::{Image, Mode, Registry, unique};
use deploy_tests::until::until;

use crate::Course;
use crate::sshd::Sshd;

/// Docker's default, and the interval in the row about healthchecks. In the other rows it keeps forty checks off the
/// processors that are measured.
const INTERVAL_SECONDS: u32 = 30;
const PATIENCE: Duration = Duration::from_secs(90);

/// A way to deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The pipeline's one line.
    Ssh,
    /// The same line as an expert would write it: `up -d --no-deps SERVICES`.
    Tuned,
    /// The agent, `order = "together"`.
    Together,
    /// The agent, `order = "one-by-one"`, its default.
    OneByOne,
}

impl Way {
    /// Its name in this program.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Tuned => "ssh, tuned",
            Self::Together => "together",
            Self::OneByOne => "one by one",
        }
    }
}

/// All ways.
pub(crate) const WAYS: [Way; 4] = [Way::Ssh, Way::Tuned, Way::Together, Way::OneByOne];

/// How the pipeline's line ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Up {
    /// `docker compose up -d`.
    Started,
    /// `docker compose up -d --wait`.
    Healthy,
}

/// A deployment that ended well.
#[derive(Debug, Default)]
pub(crate) struct Deployed {
    /// From the command's start to its end.
    pub(crate) took: Duration,
    /// Where the agent's part of it went.
    pub(crate) phases: Vec<(PhaseName, Duration)>,
}

/// All of it; everything goes on drop, the agent first and the registry last.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) sshd: Sshd,
    pub(crate) ctl: Ctl,
    ctl_one_by_one: Ctl,
    clinics: [Clinic; 4],
    registry: Registry,
}

impl Stage {
    /// Starts everything.
    pub(crate) fn set(course: &Course, programs: &Programs) -> Result<Self> {
        course.go_on("starting the registry and four copies of the project")?;
        let registry = Registry::start()?;
        let [ssh, tuned, together, one_by_one] = [(); 4].map(|()| {
            let clinic = Clinic::start_with_interval(&registry, INTERVAL_SECONDS)?;
            calm(&clinic)?;
            course.go_on("a copy is up")?;
            Ok::<_, anyhow::Error>(clinic)
        });
        let clinics = [ssh?, tuned?, together?, one_by_one?];
        let [_, _, together, one_by_one] = &clinics;
        course.go_on("starting sshd and the agent")?;
        let settings = Settings::default()
            .project("settle", "\"0s\"")
            .project("wait", "\"60s\"")
            .programs(programs.clone());
        let mut agent = Agent::prepare(together.project(), settings)?;
        for (clinic, order) in [(together, "together"), (one_by_one, "one-by-one")] {
            agent.add(clinic.dir(), clinic.project())?;
            set_order(&agent, clinic.project(), order)?;
        }
        agent.resume()?;
        let ctl = agent.ctl()?;
        Ok(Self {
            ctl_one_by_one: ctl.clone().to(&agent.url(), &agent.pin()?, one_by_one.project()),
            ctl,
            agent,
            sshd: Sshd::start()?,
            clinics,
            registry,
        })
    }

    /// The copy of the project that is deployed this way.
    pub(crate) fn clinic(&self, way: Way) -> &Clinic {
        let [ssh, tuned, together, one_by_one] = &self.clinics;
        match way {
            Way::Ssh => ssh,
            Way::Tuned => tuned,
            Way::Together => together,
            Way::OneByOne => one_by_one,
        }
    }

    /// Deploys a first release in each way, so that no way starts cold, and waits until the databases are healthy.
    pub(crate) fn first_releases(&self, course: &Course) -> Result<()> {
        for way in WAYS {
            let tag = self.new_images(&SERVICES)?;
            self.deploy(way, &SERVICES, &tag, Up::Started)?;
            course.go_on("a first release is live")?;
        }
        for way in WAYS {
            for database in DATABASES {
                until(&format!("{database} is healthy"), PATIENCE, || {
                    Ok((self.clinic(way).health(database)? == "healthy").then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// Puts new images of these services into the registry, unknown to the Engine; returns their tag.
    pub(crate) fn new_images(&self, services: &[&'static str]) -> Result<String> {
        let tag = unique("dev");
        thread::scope(|scope| {
            let pushing: Vec<_> = services
                .iter()
                .map(|service| {
                    let (registry, tag) = (&self.registry, &tag);
                    scope.spawn(move || {
                        let image = Image::new(service, tag, Mode::Good);
                        image.build_and_push(registry, &format!("drassistant/{service}"), tag)
                    })
                })
                .collect();
            pushing
                .into_iter()
                .try_for_each(|one| one.join().map_err(|_| anyhow!("a push panicked"))?.map(drop))
        })?;
        Ok(tag)
    }

    /// Deploys this tag of these services, and makes sure that it runs.
    pub(crate) fn deploy(&self, way: Way, services: &[&'static str], tag: &str, up: Up) -> Result<Deployed> {
        let deployed = match way {
            Way::Ssh | Way::Tuned => self.deploy_by_ssh(way, services, tag, up)?,
            Way::Together => self.push(&self.ctl, way, services, tag)?,
            Way::OneByOne => self.push(&self.ctl_one_by_one, way, services, tag)?,
        };
        for service in services {
            until(&format!("{service} runs {tag}"), PATIENCE, || {
                Ok((self.clinic(way).service_version(service)? == tag).then_some(()))
            })?;
        }
        Ok(deployed)
    }

    fn deploy_by_ssh(&self, way: Way, services: &[&'static str], tag: &str, up: Up) -> Result<Deployed> {
        let line = pipeline(self.clinic(way), way, services, tag, up);
        let run = self.sshd.run(&line);
        let took = timed(run)?;
        Ok(Deployed {
            took,
            phases: Vec::new(),
        })
    }

    fn push(&self, ctl: &Ctl, way: Way, services: &[&'static str], tag: &str) -> Result<Deployed> {
        let clinic = self.clinic(way);
        let set: Vec<String> = services
            .iter()
            .map(|service| clinic.set_argument(service, tag))
            .collect();
        let mut words = vec!["push", "--jsonl"];
        words.extend(set.iter().flat_map(|image| ["--set", image.as_str()]));
        let begun = Instant::now();
        let output = ctl.expect(0, &words)?;
        let took = begun.elapsed();
        Ok(Deployed {
            took,
            phases: phases(&output.stdout)?,
        })
    }
}

/// Runs a command to its good end; returns how long it took.
pub(crate) fn timed(run: Run) -> Result<Duration> {
    let begun = Instant::now();
    run.text()?;
    Ok(begun.elapsed())
}

/// The pipeline's line, without its `git pull`: one login, one sed that leaves quotes alone, only the named images
/// pulled, in parallel as Compose does it. Tuned, it starts the named services only: the plain form waits half a second
/// for each layer of `depends_on` with a condition, and recreates whatever depends on a service that changed.
fn pipeline(clinic: &Clinic, way: Way, services: &[&'static str], tag: &str, up: Up) -> String {
    let edits: String = services
        .iter()
        .map(|service| format!(" -e 's|drassistant/{service}:[A-Za-z0-9._-]*|drassistant/{service}:{tag}|'"))
        .collect();
    let names = services.join(" ");
    let wait = match up {
        Up::Started => "",
        Up::Healthy => " --wait",
    };
    let only = if way == Way::Tuned {
        format!(" --no-deps {names}")
    } else {
        String::new()
    };
    format!(
        "cd {} && sed -i{edits} docker-compose.yml && docker compose pull -q {names} && docker compose up -d{wait}{only}",
        clinic.dir().display(),
    )
}

fn phases(lines: &str) -> Result<Vec<(PhaseName, Duration)>> {
    let mut phases = Vec::new();
    for line in lines.lines() {
        let event: Event = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if let Happened::PhaseDone {
            phase, elapsed_ms, ..
        } = event.what
        {
            phases.push((phase, Duration::from_millis(elapsed_ms)));
        }
    }
    ensure!(!phases.is_empty(), "no phase in {lines:?}");
    Ok(phases)
}

/// Lets the databases' healthchecks run as seldom as the others.
fn calm(clinic: &Clinic) -> Result<()> {
    let file = clinic
        .file()
        .replace("interval: 1s", &format!("interval: {INTERVAL_SECONDS}s"));
    fs::write(clinic.file_path(), file)?;
    clinic
        .compose(&["up", "-d", "--no-deps"])
        .args(DATABASES)
        .text()?;
    Ok(())
}

/// Writes the order into the project's file; the harness has one value for all projects of an agent.
fn set_order(agent: &Agent, project: &str, order: &str) -> Result<()> {
    let path = agent.project_file(project);
    let text = fs::read_to_string(&path)?;
    let others: Vec<&str> = text.lines().filter(|line| !line.starts_with("order")).collect();
    Ok(fs::write(
        path,
        format!("order = \"{order}\"\n{}\n", others.join("\n")),
    )?)
}
