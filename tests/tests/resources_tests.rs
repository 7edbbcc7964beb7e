//! Time and resources: a clock that is set, a locked database, an agent that is replaced by a newer one, and hundreds of
//! connections, all while a deployment is under way.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deploy_proto::event::{Ending, Event, Happened, Outcome, PhaseName};
use deploy_proto::signing::PrivateKey;
use deploy_tests::agent::{Agent, Programs, Settings, programs};
use deploy_tests::clinic::Clinic;
use deploy_tests::ctl::Ctl;
use deploy_tests::images::{Mode, Registry};
use deploy_tests::until::until;
use deploy_tests::wire::{Connection, Events, Message};
use rusqlite::types::Value as Cell;
use serde_json::{Map, Value};

const SERVICE: &str = "auth_service";
const SOON: Duration = Duration::from_secs(20);
/// No deployment here takes longer.
const LONGEST: Duration = Duration::from_secs(60);

/// As `libfaketime` counts them, in seconds.
const TEN_YEARS: i64 = 10 * 365 * 86_400;

/// `libfaketime`, which gives a process another wall clock and leaves it the monotonic one.
fn faketime() -> Result<String> {
    for entry in fs::read_dir("/usr/lib")? {
        let library = entry?.path().join("faketime/libfaketimeMT.so.1");
        if library.exists() {
            return Ok(library.display().to_string());
        }
    }
    anyhow::bail!("libfaketime is not installed: tests/setup.sh does that")
}

/// An agent whose wall clock the test sets while it runs.
struct Clock(PathBuf);

impl Clock {
    fn new(folder: &Path) -> Result<Self> {
        let clock = Self(folder.join("clock"));
        clock.set("+0")?;
        Ok(clock)
    }

    fn settings(&self, settings: Settings) -> Result<Settings> {
        Ok(settings
            .env("LD_PRELOAD", &faketime()?)
            .env("FAKETIME_TIMESTAMP_FILE", &self.0.display().to_string())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1"))
    }

    /// `+10y`, `-10y`, `+1h`, `+0`; at once.
    fn set(&self, offset: &str) -> Result<()> {
        let new = self.0.with_extension("new");
        fs::write(&new, offset)?;
        Ok(fs::rename(new, &self.0)?)
    }
}

struct Host {
    clinic: Clinic,
    agent: Agent,
    ctl: Ctl,
    key: PrivateKey,
    next: u32,
}

impl Host {
    fn start(registry: &Registry, settings: Settings) -> Result<Self> {
        let clinic = Clinic::start_only(registry, &[SERVICE])?;
        let settings = settings.project("wait", "\"6s\"").project("settle", "\"1s\"");
        let agent = Agent::start_with(&clinic, settings)?;
        let ctl = agent.ctl()?;
        let key = ctl.private_key()?;
        Ok(Self {
            clinic,
            agent,
            ctl,
            key,
            next: 0,
        })
    }

    /// Pushes another version and returns its tag and its id.
    fn push(&mut self, mode: Mode) -> Result<(String, String)> {
        self.next += 1;
        let (tag, id) = (format!("dev-{:07x}", self.next), format!("{:016x}", self.next));
        self.clinic.push_version(SERVICE, mode, &tag)?;
        let set = self.clinic.set_argument(SERVICE, &tag);
        self.ctl
            .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
        Ok((tag, id))
    }

    fn follow(&self, id: &str) -> Result<Events> {
        Events::follow(&self.agent, &self.key, id, None)
    }

    /// Checks that what the outcome says is what runs.
    fn is_true(&self, outcome: &Outcome, mode: Mode, tag: &str) -> Result<()> {
        let wanted = if mode == Mode::Good {
            Ending::Live
        } else {
            Ending::RolledBack
        };
        ensure!(outcome.result == wanted, "{outcome:?}\n{}", self.agent.log());
        if mode == Mode::Good {
            let serves = self.clinic.service_version(SERVICE)?;
            ensure!(serves == tag, "{serves} serves");
        } else {
            let serves = until("it serves", SOON, || {
                Ok(self.clinic.service_version(SERVICE).ok())
            })?;
            ensure!(serves != tag, "{serves} serves");
        }
        Ok(())
    }
}

fn outcome(events: &[Event]) -> Result<Outcome> {
    match events.last().map(|event| &event.what) {
        Some(Happened::Ended { outcome }) => Ok(outcome.clone()),
        last => anyhow::bail!("the last event is {last:?}"),
    }
}

#[test]
fn a_clock_that_jumps_by_years_in_any_phase_changes_nothing_but_timestamps() -> Result<()> {
    let registry = Registry::start()?;
    let folder = tempfile::tempdir()?;
    let clock = Clock::new(folder.path())?;
    let mut host = Host::start(&registry, clock.settings(Settings::default())?)?;
    for (mode, phase, jump) in [
        (Mode::Good, PhaseName::Gating, "-10y"),
        (Mode::Good, PhaseName::Restarting, "+10y"),
        (Mode::Good, PhaseName::Watching, "-10y"),
        (Mode::Crash, PhaseName::Gating, "+10y"),
        (Mode::Crash, PhaseName::RestartingOld, "+1h"),
        (Mode::Crash, PhaseName::WatchingOld, "-10y"),
    ] {
        let what = format!("{mode:?}, {jump} in {}", phase.as_str());
        let (tag, id) = host.push(mode)?;
        let mut events = host.follow(&id)?;
        events.reach(phase).context(what.clone())?;
        let begun = Instant::now();
        clock.set(jump)?;
        let events = events.all().context(what.clone())?;
        assert!(begun.elapsed() < LONGEST, "{what}: {:?}", begun.elapsed());
        let outcome = outcome(&events).context(what.clone())?;
        host.is_true(&outcome, mode, &tag).context(what.clone())?;
        let elapsed = Duration::from_millis(outcome.elapsed_ms);
        assert!(
            elapsed > Duration::from_millis(500) && elapsed < LONGEST,
            "{what}: it says it took {elapsed:?}"
        );
        // The timestamps did change: the clock was really another one.
        let last = events.last().context("no event")?.at.as_second();
        let off = (deploy_tests::wire::now() - last).abs();
        assert!(off > 3000, "{what}: it ended at {last}");
        clock.set("+0")?;
    }
    Ok(())
}

#[test]
fn an_old_containers_restarts_are_no_crash_of_a_deployment_whatever_the_clock_says() -> Result<()> {
    let registry = Registry::start()?;
    let folder = tempfile::tempdir()?;
    let clock = Clock::new(folder.path())?;
    let mut host = Host::start(&registry, clock.settings(Settings::default())?)?;
    let (tag, id) = host.push(Mode::Good)?;
    host.is_true(&outcome(&host.follow(&id)?.all()?)?, Mode::Good, &tag)?;
    // A container that had a bad night: its process is killed, and the Engine starts it again.
    let number = |pointer: &str| -> Result<Option<u64>> {
        Ok(host
            .clinic
            .inspect(SERVICE)?
            .pointer(pointer)
            .and_then(Value::as_u64))
    };
    let pid = u32::try_from(number("/State/Pid")?.context("it does not run")?)?;
    deploy_tests::agent::signal_process(pid, rustix::process::Signal::KILL)?;
    until("the Engine restarts it", SOON, || {
        let restarts = number("/RestartCount")?;
        Ok((restarts == Some(1) && host.clinic.health(SERVICE)? == "healthy").then_some(()))
    })?;
    // The same again, for an agent whose clock is ten years behind the Engine's: by age the container would be the
    // deployment's own, and its restart a crash.
    clock.set("-10y")?;
    let signed_at = deploy_tests::wire::now() - TEN_YEARS;
    let body = serde_json::json!({
        "id": "00000000000000dd",
        "images": [{ "service": SERVICE, "image": host.clinic.image(SERVICE, &tag) }],
    });
    let path = format!("/v1/projects/{}/deployments", host.clinic.project());
    let signed = |message: Message| {
        message.signed_as(&host.key, |input| {
            input.set("created", signed_at);
            input.set("expires", signed_at + 300);
        })
    };
    let accepted = signed(Message::post(&host.agent, &path, &body)).send(&host.agent)?;
    assert_eq!(accepted.status, 202, "{accepted:?}");
    clock.set("+0")?;
    let ended = outcome(&host.follow("00000000000000dd")?.all()?)?;
    assert_eq!(ended.result, Ending::Unchanged, "{ended:?}");
    Ok(())
}

#[test]
fn a_request_is_not_let_in_twice_by_a_clock_that_jumps_forward_and_back() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clock = Clock::new(folder.path())?;
    let agent = Agent::start_without_containers(clock.settings(Settings::default())?)?;
    let key = agent.ctl()?.private_key()?;
    let question = |at: i64| {
        Message::get(&agent, "/v1/projects").signed_as(&key, |input| {
            input.set("created", at);
            input.set("expires", at + 60);
        })
    };
    let now = deploy_tests::wire::now();
    let recorded = question(now);
    assert_eq!(recorded.send(&agent)?.status, 200);
    assert_eq!(recorded.send(&agent)?.status, 401);
    // A caller whose clock is as wrong makes the agent forget what has expired for years.
    clock.set("+10y")?;
    assert_eq!(question(now + TEN_YEARS).send(&agent)?.status, 200);
    clock.set("+0")?;
    assert_eq!(recorded.send(&agent)?.status, 401);
    assert!(agent.log().contains("forgotten"), "{}", agent.log());
    // And whoever asks anew is let in.
    assert_eq!(question(now + 1).send(&agent)?.status, 200);
    Ok(())
}

#[test]
fn a_deployment_waits_for_a_database_that_a_person_locked_and_then_goes_on() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry, Settings::default())?;
    let (tag, id) = host.push(Mode::Good)?;
    let mut events = host.follow(&id)?;
    events.reach(PhaseName::Restarting)?;
    let person = rusqlite::Connection::open(host.agent.state_dir().join("history.db"))?;
    person.busy_timeout(Duration::from_secs(5))?;
    person.execute_batch("BEGIN EXCLUSIVE")?;
    let waits = "a deployment waits for it";
    until("the deployment waits", SOON, || {
        Ok(host.agent.log().contains(waits).then_some(()))
    })?;
    assert_eq!(host.agent.monitor("/healthz")?.0, 200);
    person.execute_batch("ROLLBACK")?;
    let ended = outcome(&events.all()?)?;
    host.is_true(&ended, Mode::Good, &tag)?;

    upgraded_in_flight(&mut host)?;
    Ok(())
}

/// The same host: its agent is replaced by a newer one in the middle of a deployment that format 1 of the database holds.
fn upgraded_in_flight(host: &mut Host) -> Result<()> {
    let (tag, id) = host.push(Mode::Good)?;
    host.follow(&id)?.reach(PhaseName::Watching)?;
    host.agent.kill9_all()?;
    let path = host.agent.state_dir().join("history.db");
    to_format_1(&path)?;
    host.agent.resume()?;
    let events = host.follow(&id)?.all()?;
    host.is_true(&outcome(&events)?, Mode::Good, &tag)?;
    assert!(host.agent.log().contains("resuming"), "{}", host.agent.log());
    let format: u32 =
        rusqlite::Connection::open(&path)?.pragma_query_value(None, "user_version", |row| row.get(0))?;
    assert!(format > 1, "format {format}");
    Ok(())
}

/// What format 1 kept in its JSON columns: the names that its agent wrote, and no other.
const FORMAT_1_PLAN: [&str; 10] = [
    "project",
    "made_at",
    "from",
    "to",
    "services",
    "unchanged",
    "untouched",
    "files",
    "edits",
    "warnings",
];
const FORMAT_1_SERVICE: [&str; 9] = [
    "service",
    "old",
    "old_digest",
    "old_image_id",
    "new",
    "written",
    "new_image_id",
    "old_was_well",
    "judged_by",
];
const FORMAT_1_PUSH: [&str; 6] = ["id", "images", "version", "queue", "accept_edits", "source"];

fn only(object: &Map<String, Value>, names: &[&str]) -> Value {
    let kept = object.iter().filter(|(name, _)| names.contains(&name.as_str()));
    Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn plan_of_format_1(text: &str) -> Result<String> {
    let plan: Map<String, Value> = serde_json::from_str(text)?;
    let mut plan = only(&plan, &FORMAT_1_PLAN);
    for list in ["services", "unchanged"] {
        let services = plan.get_mut(list).and_then(Value::as_array_mut);
        for service in services.context("no services")? {
            *service = only(service.as_object().context("no service")?, &FORMAT_1_SERVICE);
        }
    }
    Ok(plan.to_string())
}

fn request_of_format_1(text: &str) -> Result<String> {
    let request: Value = serde_json::from_str(text)?;
    let push = request
        .get("push")
        .and_then(Value::as_object)
        .context("not a push")?;
    Ok(serde_json::json!({ "push": only(push, &FORMAT_1_PUSH) }).to_string())
}

/// Writes a database anew as the first release of the agent would have left it: its tables, its columns, its JSON.
fn to_format_1(path: &Path) -> Result<()> {
    let old = path.with_extension("format-1");
    let database = rusqlite::Connection::open(&old)?;
    database.execute_batch(include_str!("../fixtures/format-1.sql"))?;
    database.execute("ATTACH ?1 AS now", [path.to_string_lossy()])?;
    let tables: Vec<String> = database
        .prepare("SELECT name FROM main.sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    ensure!(tables.len() == 6, "{tables:?}");
    for table in [
        "nonce",
        "deployment",
        "release",
        "event",
        "release_file",
        "release_log",
    ] {
        let columns: Vec<String> = database
            .prepare("SELECT name FROM pragma_table_info(?1)")?
            .query_map([table], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let columns = columns.join(", ");
        database.execute(
            &format!("INSERT INTO main.{table} ({columns}) SELECT {columns} FROM now.{table}"),
            [],
        )?;
    }
    let rows: Vec<(i64, String, Cell)> = database
        .prepare("SELECT ordinal, request, plan FROM main.deployment")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    for (ordinal, request, plan) in rows {
        let plan = match plan {
            Cell::Text(text) => Cell::Text(plan_of_format_1(&text)?),
            other @ (Cell::Null | Cell::Integer(_) | Cell::Real(_) | Cell::Blob(_)) => other,
        };
        database.execute(
            "UPDATE main.deployment SET request = ?2, plan = ?3 WHERE ordinal = ?1",
            (ordinal, request_of_format_1(&request)?, plan),
        )?;
    }
    database.execute("DETACH now", [])?;
    database.close().map_err(|(_database, error)| error)?;
    for part in ["-wal", "-shm"] {
        drop(fs::remove_file(PathBuf::from(format!(
            "{}{part}",
            path.display()
        ))));
    }
    Ok(fs::rename(old, path)?)
}

/// An agent that is started with limits of its own: the shell sets them and becomes the agent.
fn limited(folder: &Path, limit: &str) -> Result<Programs> {
    let Programs { agent, ctl } = programs()?;
    let wrapper = folder.join("limited-agent");
    fs::write(
        &wrapper,
        format!("#!/bin/sh\nulimit {limit}\nexec {} \"$@\"\n", agent.display()),
    )?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    Ok(Programs { agent: wrapper, ctl })
}

fn descriptors(agent: &Agent) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()?))?.count())
}

/// Processor time that the agent used, in clock ticks (100 a second).
fn ticks(agent: &Agent) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()?))?;
    let (_, rest) = stat.rsplit_once(") ").context("no stat")?;
    // utime and stime, the 14th and 15th of all fields.
    let used = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
    Ok(used.sum::<Result<u64, _>>()?)
}

#[test]
fn hundreds_of_idle_connections_take_nothing_from_a_deployment() -> Result<()> {
    let registry = Registry::start()?;
    let folder = tempfile::tempdir()?;
    // A low limit, which the agent raises by itself.
    let settings = Settings::default().programs(limited(folder.path(), "-S -n 100")?);
    let mut host = Host::start(&registry, settings)?;
    let (before, begun) = (ticks(&host.agent)?, Instant::now());
    let open = |port: u16, count: usize| -> Result<Vec<TcpStream>> {
        (0..count)
            .map(|_| Ok(TcpStream::connect(("127.0.0.1", port))?))
            .collect()
    };
    let idle = open(host.agent.port(), 300)?;
    let watchers = open(host.agent.monitor_port(), 40)?;
    until("the places are taken", SOON, || {
        Ok((descriptors(&host.agent)? > 256 + 40).then_some(()))
    })?;
    let monitor = host.agent.monitor_port();
    let is_over = AtomicBool::new(false);
    let (pushed, answers) = thread::scope(|scope| {
        let asking = scope.spawn(|| -> Result<usize> {
            let mut answers = 0;
            while !is_over.load(Ordering::Relaxed) {
                let (status, body) = deploy_tests::http::get(monitor, "/healthz")?;
                ensure!(status == 200, "{status}: {body}");
                answers += 1;
            }
            Ok(answers)
        });
        // It waits in line for as long as a silent connection is borne, and not longer.
        let pushed = host.push(Mode::Good);
        is_over.store(true, Ordering::Relaxed);
        (pushed, asking.join().expect("no panic"))
    });
    let (tag, id) = pushed?;
    assert!(answers? > 0);
    host.is_true(&outcome(&host.follow(&id)?.all()?)?, Mode::Good, &tag)?;
    drop((idle, watchers));
    until("their descriptors are free again", SOON, || {
        Ok((descriptors(&host.agent)? < 100).then_some(()))
    })?;
    // Waiting for a place is not asking again and again.
    let used = Duration::from_millis((ticks(&host.agent)? - before) * 10);
    assert!(used < begun.elapsed() / 3, "{used:?} of {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn with_too_few_descriptors_it_says_so_and_with_few_it_takes_fewer_connections() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let settings = Settings::default().programs(limited(folder.path(), "-n 64")?);
    let mut agent = Agent::prepare("shop", settings)?;
    agent.add(&agent.shop()?, "shop")?;
    let (code, said) = agent.refuses_to_start()?;
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("the limit is 64") && said.contains("LimitNOFILE=768"),
        "{said}"
    );

    limited(folder.path(), "-n 200")?;
    agent.resume()?;
    assert!(agent.log().contains("few file descriptors"), "{}", agent.log());
    let idle: Vec<TcpStream> = (0..60)
        .map(|_| TcpStream::connect(("127.0.0.1", agent.port())))
        .collect::<Result<_, _>>()?;
    // 27 places, and what the agent has open by itself.
    until("its places are taken", SOON, || {
        Ok((descriptors(&agent)? >= 27 + 8).then_some(()))
    })?;
    assert!(descriptors(&agent)? < 27 + 40, "{}", descriptors(&agent)?);
    assert_eq!(agent.monitor("/healthz")?.0, 200);
    drop(idle);
    let key = agent.ctl()?.private_key()?;
    assert_eq!(
        Message::get(&agent, "/v1/projects")
            .signed(&key)
            .send(&agent)?
            .status,
        200
    );
    Ok(())
}

#[test]
fn a_flood_of_bad_requests_does_not_fill_the_log_and_is_counted() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let mut connection = Connection::open(agent.port())?;
    let began = Instant::now();
    for _ in 0..300 {
        connection.write(&Message::get(&agent, "/v1/projects").bytes())?;
        assert_eq!(connection.answer()?.status, 401);
    }
    let lines = agent
        .log()
        .lines()
        .filter(|line| line.contains("request not let in"))
        .count();
    // A minute begins with its first line. One more has begun for each that the flood itself took.
    let minutes = 1 + usize::try_from(began.elapsed().as_secs() / 60)?;
    assert!((60..=60 * minutes).contains(&lines), "{lines} lines");
    let metrics = agent.monitor("/metrics")?.1;
    let counted = "deploy_agent_requests_rejected_total{reason=\"not_signed\"} 300";
    assert!(metrics.contains(counted), "{metrics}");
    Ok(())
}
