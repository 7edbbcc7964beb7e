//! `make soak`: hundreds of deployments in a row on one small project with hooks that bakes, good, sick, cancelled, raced,
//! rolled back and reconciled mixed. After each, what runs must be what the history says; at the end nothing may have grown
//! that does not belong to the project. It wants the Engine for itself: what others make meanwhile counts as left over.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deploy_tests::agent::{Agent, Settings, release_programs};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::docker;
use deploy_tests::ctl::{Ctl, Running};
use deploy_tests::images::{Image, Mode, Registry};
use deploy_tests::process::{Held, Pss};
use deploy_tests::until::until;

const SERVICE: &str = "auth_service";
/// How many deployments, unless the first argument says another number.
const DEPLOYMENTS: u32 = 500;
/// After so many the agent's caches, statements and threads are warm: growth is counted from here.
const WARM_UP: u32 = 30;
/// How many the memory may grow by, from the warm agent to the end.
const GROWTH_MAX_KIB: u64 = 8 * 1024;
/// How many threads an agent at rest may have: the look for drift, once a minute, wakes some of the runtime's.
const THREADS_MAX: usize = 8;
/// How many releases the project keeps.
const KEEP: usize = 3;
/// How many images of each kind there are: more than are kept, so that each comes back after it was removed.
const GOOD: u32 = 12;
const BAD: u32 = 3;
/// The runtime's threads and clean-ups end when they had nothing to do for a while.
const QUIET: Duration = Duration::from_secs(15);

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Good,
    Sick,
    Cancelled,
    Raced,
    RolledBack,
    Reconciled,
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn kind(&mut self) -> Kind {
        match self.below(20) {
            0..10 => Kind::Good,
            10..13 => Kind::Sick,
            13..16 => Kind::Cancelled,
            16..18 => Kind::Raced,
            18 => Kind::Reconciled,
            _ => Kind::RolledBack,
        }
    }
}

struct Soak {
    clinic: Clinic,
    agent: Agent,
    ctl: Ctl,
    dice: Dice,
    next_run: u64,
    /// The tag that runs.
    live: String,
    databases: Vec<String>,
    violations: Vec<String>,
    tried: BTreeMap<Kind, u32>,
}

/// What the machine holds for the project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    containers: usize,
    networks: usize,
    volumes: usize,
    images: usize,
    /// Those without a name, whoever made them.
    nameless: usize,
    /// All of them, whoever made them.
    all_volumes: usize,
}

#[allow(clippy::print_stdout, clippy::print_stderr, reason = "this program's output")]
fn main() -> ExitCode {
    match run() {
        Ok(violations) if violations.is_empty() => {
            println!("no violation");
            ExitCode::SUCCESS
        }
        Ok(violations) => {
            println!("{} VIOLATIONS", violations.len());
            for violation in violations {
                println!("  {violation}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("soak: {error:?}");
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout, reason = "this program's output")]
fn run() -> Result<Vec<String>> {
    let wanted = match std::env::args().nth(1) {
        Some(text) => text.parse().context("the argument is a number of deployments")?,
        None => DEPLOYMENTS,
    };
    let registry = Registry::start()?;
    let mut soak = Soak::start(&registry)?;
    let begun = Instant::now();
    let mut warm = None;
    for number in 1..=wanted {
        let kind = soak.dice.kind();
        *soak.tried.entry(kind).or_default() += 1;
        if let Err(violation) = soak.one(kind).and_then(|()| soak.stands()) {
            println!("deployment {number}, {kind:?}: {violation:#}");
            soak.violations
                .push(format!("deployment {number}, {kind:?}: {violation:#}"));
            soak.recover()?;
        }
        if number == WARM_UP.min(wanted) {
            warm = Some(soak.at_rest()?);
        }
        if number % 25 == 0 {
            let pss = Pss::of(soak.agent.pid()?)?;
            println!(
                "{number:>4}  {:>4} s  {} KiB, {} its own",
                begun.elapsed().as_secs(),
                pss.all_kib,
                pss.anonymous_kib
            );
        }
    }
    let (before, after) = (warm.context("nothing was deployed")?, soak.at_rest()?);
    let tried: Vec<String> = soak
        .tried
        .iter()
        .map(|(kind, count)| format!("{count} {kind:?}"))
        .collect();
    println!(
        "{wanted} deployments in {} s: {}",
        begun.elapsed().as_secs(),
        tried.join(", ")
    );
    println!("warm    {before:?}\nat end  {after:?}");
    soak.compare(before, after);
    Ok(soak.violations)
}

/// What is compared between the warm agent and the end.
type Rest = (Pss, Held, Counted);

impl Soak {
    fn start(registry: &Registry) -> Result<Self> {
        let clinic = Clinic::start_only(registry, &[SERVICE])?;
        let build = |tag: &str, mode: Mode| {
            Image::new(SERVICE, tag, mode)
                .build_and_push(registry, "drassistant/auth_service", tag)
                .map(drop)
        };
        for number in 0..GOOD {
            build(&format!("good-{number}"), Mode::Good)?;
        }
        for number in 0..BAD {
            build(&format!("sick-{number}"), Mode::Crash)?;
            build(
                &format!("slow-{number}"),
                Mode::SlowStart(Duration::from_secs(60)),
            )?;
        }
        let settings = Settings::default()
            .programs(release_programs()?)
            .project("settle", "\"100ms\"")
            .project("wait", "\"30s\"")
            .project("bake", "\"2s\"")
            .project("keep", &KEEP.to_string());
        let mut agent = Agent::start_with(&clinic, settings)?;
        agent.set_hooks(&[
            "before = \"everything\"\nname = \"backup\"\ncommand = [\"true\"]".to_owned(),
            format!("before = \"restart\"\nname = \"migrate\"\nservice = \"{SERVICE}\"\ncommand = [\"print\", \"done\"]"),
            "after = \"live\"\nname = \"smoke\"\ncommand = [\"true\"]".to_owned(),
        ])?;
        let ctl = agent.ctl()?;
        let mut soak = Self {
            databases: clinic.database_ids(),
            clinic,
            agent,
            ctl,
            dice: Dice(42),
            next_run: 1,
            live: String::new(),
            violations: Vec::new(),
            tried: BTreeMap::new(),
        };
        soak.push_good()?;
        Ok(soak)
    }

    fn one(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Good => self.push_good(),
            Kind::Sick => self.push_sick(),
            Kind::Cancelled => self.push_and_cancel(),
            Kind::Raced => self.race(),
            Kind::RolledBack => self.roll_back(),
            Kind::Reconciled => self.reconcile(),
        }
    }

    fn set(&self, tag: &str) -> String {
        self.clinic.set_argument(SERVICE, tag)
    }

    /// A good image that does not run now.
    fn other_good(&mut self, not: &str) -> String {
        loop {
            let tag = format!("good-{}", self.dice.below(u64::from(GOOD)));
            if tag != self.live && tag != not {
                return tag;
            }
        }
    }

    fn bad(&mut self, kind: &str) -> String {
        format!("{kind}-{}", self.dice.below(u64::from(BAD)))
    }

    fn run_number(&mut self) -> String {
        self.next_run += 1;
        self.next_run.to_string()
    }

    fn push_good(&mut self) -> Result<()> {
        let tag = self.other_good("");
        let run = self.run_number();
        self.ctl.push(0, &[&self.set(&tag)], &["--sequence", &run])?;
        self.live = tag;
        Ok(())
    }

    fn push_sick(&mut self) -> Result<()> {
        let tag = self.bad("sick");
        let run = self.run_number();
        self.ctl
            .push(3, &[&self.set(&tag)], &["--sequence", &run])
            .map(drop)
    }

    /// Cancels at a random moment: what never gets well in the middle, what does also just before its end. Either it was
    /// cancelled, or it was too late and the version is live.
    fn push_and_cancel(&mut self) -> Result<()> {
        let (tag, within_ms) = if self.dice.below(2) == 0 {
            (self.bad("slow"), 800)
        } else {
            (self.other_good(""), 4000)
        };
        let id = format!("{:016x}", self.dice.below(u64::MAX));
        self.ctl
            .expect(0, &["push", "--set", &self.set(&tag), "--id", &id, "--detach"])?;
        thread::sleep(Duration::from_millis(self.dice.below(within_ms)));
        let cancelled = self.ctl.run(&["cancel", &id])?;
        if cancelled.code != 0 {
            ensure!(
                cancelled.code == 9,
                "{}: {}{}",
                cancelled.code,
                cancelled.stdout,
                cancelled.stderr
            );
            self.ctl.expect(0, &["watch", &id])?;
            self.live = tag;
        }
        Ok(())
    }

    /// Somebody removes the service's container, and it is brought back.
    fn reconcile(&mut self) -> Result<()> {
        docker(["rm", "--force", &self.clinic.container_id(SERVICE)?]).text()?;
        self.ctl.expect(0, &["reconcile"]).map(drop)
    }

    /// Two runs at once, in either order: the newer one runs in the end, and the older one is told what became of it.
    fn race(&mut self) -> Result<()> {
        let older = (self.other_good(""), self.run_number());
        let newer = (self.other_good(&older.0), self.run_number());
        let newest = newer.0.clone();
        let pair = if self.dice.below(2) == 0 {
            [older, newer]
        } else {
            [newer, older]
        };
        let racing: Vec<(String, Running)> = pair
            .into_iter()
            .map(|(tag, run)| {
                let arguments = ["push", "--set", &self.set(&tag), "--sequence", &run, "--queue"];
                Ok((tag, self.ctl.spawn(&arguments)?))
            })
            .collect::<Result<_>>()?;
        for (tag, run) in racing {
            let ended = run.end()?;
            let allowed: &[i32] = if tag == newest { &[0] } else { &[0, 7] };
            ensure!(
                allowed.contains(&ended.code),
                "{tag} ended with {}: {}{}",
                ended.code,
                ended.stdout,
                ended.stderr
            );
        }
        self.live = newest;
        Ok(())
    }

    fn roll_back(&mut self) -> Result<()> {
        let plan = self.ctl.run(&["rollback", "--dry-run", "--json"])?;
        if plan.code != 0 {
            // Nothing to go back to: the line of releases ends here. Another push makes it longer.
            ensure!(
                plan.stdout.contains("unknown_release"),
                "{}{}",
                plan.stdout,
                plan.stderr
            );
            return self.push_good();
        }
        let target = plan.json()?.at("/plan/services/0/new");
        self.ctl.expect(0, &["rollback"])?;
        let tag = target
            .split('@')
            .next()
            .and_then(|image| image.rsplit(':').next());
        self.live = tag.context("a target without a tag")?.to_owned();
        Ok(())
    }

    /// What must be so after every deployment.
    fn stands(&self) -> Result<()> {
        let serves = self.clinic.service_version(SERVICE)?;
        ensure!(serves == self.live, "{serves} serves where {} should", self.live);
        ensure!(
            self.clinic
                .file()
                .contains(&format!("{}@", self.clinic.image(SERVICE, &self.live))),
            "the file does not name {}",
            self.live
        );
        ensure!(
            self.clinic.database_ids() == self.databases,
            "a database was touched"
        );
        let status = self.ctl.json(0, &["status"])?;
        let released = status.list("/release/services");
        let recorded = released
            .iter()
            .find(|one| one.pointer("/service").is_some_and(|name| name == SERVICE));
        let image = recorded
            .and_then(|one| one.pointer("/image"))
            .and_then(|image| image.as_str());
        let digest = image
            .and_then(|image| image.split_once('@'))
            .context("a release without a digest")?
            .1;
        let runs = status.list("/services");
        let runs = runs
            .iter()
            .find(|one| one.pointer("/service").is_some_and(|name| name == SERVICE));
        let running = runs
            .and_then(|one| one.pointer("/digest"))
            .and_then(|digest| digest.as_str());
        ensure!(
            running == Some(digest),
            "history names {digest}, {running:?} runs"
        );
        ensure!(
            status.list("/attention").is_empty(),
            "attention: {:?}",
            status.list("/attention")
        );
        let names = self
            .clinic
            .compose(&["ps", "--all", "--format", "{{.Name}}"])
            .text()?;
        ensure!(
            names.lines().all(|name| name.starts_with(self.clinic.project())),
            "half-made: {names}"
        );
        Ok(())
    }

    /// After a violation: whatever is under way ends, and a good push makes a state to go on from.
    fn recover(&mut self) -> Result<()> {
        until("nothing is under way", Duration::from_secs(120), || {
            let running = self.ctl.json(0, &["status"])?.at("/running/id");
            Ok(running.is_empty().then_some(()))
        })?;
        self.push_good()
    }

    /// What there is when nothing happens any more.
    fn at_rest(&self) -> Result<Rest> {
        thread::sleep(QUIET);
        let pid = self.agent.pid()?;
        Ok((Pss::of(pid)?, Held::by(pid)?, self.count()?))
    }

    fn count(&self) -> Result<Counted> {
        let label = format!("label=com.docker.compose.project={}", self.clinic.project());
        let lines = |arguments: &[&str]| Ok::<_, anyhow::Error>(docker(arguments).text()?.lines().count());
        let repository = self.clinic.repository(SERVICE);
        Ok(Counted {
            containers: lines(&["ps", "--all", "--quiet", "--filter", &label])?,
            networks: lines(&["network", "ls", "--quiet", "--filter", &label])?,
            volumes: lines(&["volume", "ls", "--quiet", "--filter", &label])?,
            images: lines(&["images", "--quiet", "--no-trunc", &repository])?,
            nameless: lines(&["images", "--quiet", "--filter", "dangling=true"])?,
            all_volumes: lines(&["volume", "ls", "--quiet"])?,
        })
    }

    fn compare(&mut self, before: Rest, after: Rest) {
        let growth = after.0.all_kib.saturating_sub(before.0.all_kib);
        let mut must = |holds: bool, what: String| {
            if !holds {
                self.violations.push(what);
            }
        };
        must(growth <= GROWTH_MAX_KIB, format!("memory grew by {growth} KiB"));
        must(
            after.1.descriptors <= before.1.descriptors + 2,
            format!(
                "descriptors: {} became {}",
                before.1.descriptors, after.1.descriptors
            ),
        );
        must(
            after.1.children == 0,
            format!("{} processes are left", after.1.children),
        );
        must(
            after.1.threads <= THREADS_MAX,
            format!("{} threads are left", after.1.threads),
        );
        must(
            Counted { images: 0, ..after.2 }
                == Counted {
                    images: 0,
                    ..before.2
                },
            format!("{:?} became {:?}", before.2, after.2),
        );
        // Those of the kept releases, and those of the failed ones between them.
        let images_max = KEEP + usize::try_from(BAD).unwrap_or(0) * 2 + 1;
        must(
            after.2.images <= images_max,
            format!("{} images are left, {images_max} may be", after.2.images),
        );
    }
}
