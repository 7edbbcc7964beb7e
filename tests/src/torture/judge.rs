//! The promises, asked for after every case: each broken one is a line.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use deploy_proto::event::{Ending, Event, Happened, Outcome};
use deploy_proto::release::{ProjectStatus, ServiceHealth};
use rusqlite::{Connection, OpenFlags};

use super::stage::{Asked, DATABASE, FILES, OWNED, SERVICES, Stage, Version};
use crate::command::docker;

/// Nothing was broken that could keep it from going live.
pub const LIVE: &[Ending] = &[Ending::Live];
/// The image is bad: it goes back.
pub const BACK: &[Ending] = &[Ending::RolledBack];
/// The disk failed once: any end but `stuck`.
pub const WHOLE: &[Ending] = &[Ending::Live, Ending::RolledBack, Ending::Refused];
/// The disk failed for good, where the way back needs it.
pub const ANY: &[Ending] = &[Ending::Live, Ending::RolledBack, Ending::Refused, Ending::Stuck];

/// Every so many deployments the project is asked for another one without trouble.
const CHECKED_BY_A_PUSH: u64 = 4;

/// Waits for the deployment's end and asks for every promise. The agent runs, and nothing is broken any more.
pub fn judge(stage: &mut Stage, asked: &Asked, allowed: &[Ending]) -> Result<Vec<String>> {
    let (events, outcome) = stage.end(&asked.id)?;
    let mut broken = gaps(&events);
    broken.extend(hooks(&events, outcome.result));
    if !allowed.contains(&outcome.result) {
        broken.push(format!(
            "it ended {:?}, allowed is {allowed:?}: {outcome:?}",
            outcome.result
        ));
    }
    let runs = match outcome.result {
        Ending::Live | Ending::Unchanged => asked.target,
        Ending::RolledBack | Ending::Refused => asked.before,
        // Neither is promised; what is, is that it was said and that the files are one of the two.
        Ending::Stuck => return Ok([broken, stuck(stage, asked)?].concat()),
    };
    stage.version = runs;
    broken.extend(stands(stage, runs, Some(&outcome))?);
    Ok(broken)
}

/// The same after a request of which nobody knows whether the agent took it: it did, whole, or nothing happened.
pub fn judge_unsure(stage: &mut Stage, asked: &Asked, allowed: &[Ending]) -> Result<Vec<String>> {
    if stage.knows(&asked.id)?.is_some() {
        return judge(stage, asked, allowed);
    }
    stands(stage, asked.before, None)
}

/// What is asked for after every few cases: the project takes the next push.
pub fn takes_the_next(stage: &mut Stage, asked: &Asked) -> Result<Vec<String>> {
    let number = u64::from_str_radix(&asked.id, 16)?;
    if number.is_multiple_of(CHECKED_BY_A_PUSH) {
        stage.deploys_again()
    } else {
        Ok(Vec::new())
    }
}

/// The journal has every number once, in order, and its last event is the end.
fn gaps(events: &[Event]) -> Vec<String> {
    let numbers: Vec<u64> = events.iter().filter_map(|event| event.seq).collect();
    let expected: Vec<u64> = (1..).take(numbers.len()).collect();
    let mut broken = Vec::new();
    if numbers != expected {
        broken.push(format!("the journal has gaps: {numbers:?}"));
    }
    let is_end = |event: &&Event| matches!(event.what, Happened::Ended { .. });
    let ends = events.iter().filter(is_end).count();
    if ends != 1 || !events.last().as_ref().is_some_and(is_end) {
        broken.push(format!(
            "its end is not the last event, or not the only one: {events:?}"
        ));
    }
    broken
}

/// Each hook of the plan is done once when the release is live, and never twice: what ended well is not run again.
fn hooks(events: &[Event], ending: Ending) -> Vec<String> {
    let done = |name: &str| {
        let is_it = |event: &&Event| matches!(&event.what, Happened::HookDone { hook, .. } if hook == name);
        events.iter().filter(is_it).count()
    };
    // An agent that was killed while it planned plans again: the last plan is the one that is followed.
    let planned = events.iter().rev().find_map(|event| {
        if let Happened::Planned { plan } = &event.what {
            Some(&plan.hooks)
        } else {
            None
        }
    });
    let least = usize::from(ending == Ending::Live);
    planned
        .into_iter()
        .flatten()
        .filter(|hook| !(least..=1).contains(&done(&hook.name)))
        .map(|hook| {
            format!(
                "it ended {ending:?}, and hook {} was done {} times",
                hook.name,
                done(&hook.name)
            )
        })
        .collect()
}

/// Everything is as it is when a version runs, and the agent says so.
fn stands(stage: &Stage, version: Version, outcome: Option<&Outcome>) -> Result<Vec<String>> {
    let mut broken = files(stage, version)?;
    broken.extend(containers(stage, version)?);
    let status = stage.status()?;
    broken.extend(says(stage, version, &status)?);
    if let Some(outcome) = outcome
        && outcome.release != status.release.as_ref().map(|release| release.number)
    {
        broken.push(format!("the outcome names another release: {outcome:?}"));
    }
    broken.extend(database(&stage.agent.state_dir().join("history.db"))?);
    Ok(broken)
}

/// The files are those of a version, all of them, and nothing of the agent's is beside them.
fn files(stage: &Stage, version: Version) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let now = stage.files()?;
    if stage.files_of(version)? != now {
        broken.push(format!("the files are not those of {version:?}: {now:?}"));
    }
    broken.extend(owned(stage)?);
    let mut expected = FILES.map(str::to_owned);
    expected.sort_unstable();
    let names = stage.names()?;
    if names != expected {
        broken.push(format!("the folder has {names:?}"));
    }
    Ok(broken)
}

/// The files belong to whom they belonged, with the same modes.
fn owned(stage: &Stage) -> Result<Vec<String>> {
    let now = stage.owned()?;
    Ok(if now == OWNED {
        Vec::new()
    } else {
        vec![format!("owners and modes are {now:?}, they were {OWNED:?}")]
    })
}

/// Each service has one container, which runs the version's image and is well; the database is untouched; nothing
/// half-made is left.
fn containers(stage: &Stage, version: Version) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    let project = stage.project.name();
    let mut found: BTreeMap<String, Vec<Container>> = BTreeMap::new();
    for container in list(project)? {
        if !container.name.starts_with(&format!("{project}-")) {
            broken.push(format!("half-made: {container:?}"));
        }
        found
            .entry(container.service.clone())
            .or_default()
            .push(container);
    }
    for service in SERVICES {
        let tag = version.of(service);
        let mine = found.get(service).map_or(&[][..], Vec::as_slice);
        let [container] = mine else {
            broken.push(format!("{service} has {} containers: {mine:?}", mine.len()));
            continue;
        };
        let wanted = image_id(stage, service, tag)?;
        if container.image_id != wanted {
            broken.push(format!("{service} does not run {tag} ({wanted}): {container:?}"));
        }
        let check = docker(["exec", &container.id, "/service", "healthcheck"]).output()?;
        if !container.is_running || !check.status.success() {
            broken.push(format!("{service} is not well: {container:?}"));
        }
    }
    let databases = found.get(DATABASE).map_or(&[][..], Vec::as_slice);
    if !matches!(databases, [one] if one.id == stage.database && one.is_running) {
        broken.push(format!("the database was touched: {databases:?}"));
    }
    Ok(broken)
}

/// The agent's word: the release names the digests that run, nothing is under way, nothing needs attention.
fn says(stage: &Stage, version: Version, status: &ProjectStatus) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    if let Some(running) = &status.running {
        broken.push(format!("still under way: {running:?}"));
    }
    if !status.attention.is_empty() {
        broken.push(format!("attention: {:?}", status.attention));
    }
    if !status.drift.is_empty() {
        broken.push(format!("drift: {:?}", status.drift));
    }
    let released = status
        .release
        .as_ref()
        .map_or(&[][..], |release| &release.services);
    for service in SERVICES {
        let digest = stage.images.digest(service, version.of(service))?;
        let named = released.iter().find(|one| one.service.as_str() == service);
        let named = named.map(|one| one.image.to_string()).unwrap_or_default();
        if !named.ends_with(digest) {
            broken.push(format!(
                "the release names {named} for {service}, what runs is {}",
                version.of(service)
            ));
        }
        let state = status.services.iter().find(|one| one.service.as_str() == service);
        if !state.is_some_and(|one| one.health == ServiceHealth::Healthy) {
            broken.push(format!("status says of {service}: {state:?}"));
        }
    }
    Ok(broken)
}

/// What is promised of the worst end: it is said, no file is between the old bytes and the new ones, and once the disk
/// works again a push is all that is needed.
fn stuck(stage: &mut Stage, asked: &Asked) -> Result<Vec<String>> {
    let mut broken = owned(stage)?;
    let sides = [stage.files_of(asked.before)?, stage.files_of(asked.target)?];
    for (at, now) in stage.files()?.iter().enumerate() {
        if !sides.iter().any(|side| side.get(at) == Some(now)) {
            broken.push(format!("stuck with a file that is neither old nor new: {now:?}"));
        }
    }
    let status = stage.status()?;
    if status.attention.is_empty() || status.release.is_some() {
        broken.push(format!("stuck, and status says {status:?}"));
    }
    broken.extend(database(&stage.agent.state_dir().join("history.db"))?);
    stage.version = asked.before;
    broken.extend(stage.deploys_again()?);
    Ok(broken)
}

/// SQLite's own word on the database, read beside the agent that has it open.
fn database(path: &Path) -> Result<Vec<String>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let mut broken = Vec::new();
    let integrity: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if integrity != "ok" {
        broken.push(format!("the database: {integrity}"));
    }
    let strangers: i64 =
        connection.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| {
            row.get(0)
        })?;
    if strangers != 0 {
        broken.push(format!("the database: {strangers} rows belong to nothing"));
    }
    Ok(broken)
}

#[derive(Debug)]
struct Container {
    id: String,
    name: String,
    service: String,
    image_id: String,
    is_running: bool,
}

/// Every container of the project, running or not.
fn list(project: &str) -> Result<Vec<Container>> {
    let label = format!("label=com.docker.compose.project={project}");
    let ids = docker(["ps", "--all", "--quiet", "--no-trunc", "--filter", &label]).text()?;
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let format = "{{.Id}} {{.Name}} {{index .Config.Labels \"com.docker.compose.service\"}} {{.Image}} {{.State.Status}}";
    let lines = docker(["inspect", "--type", "container", "--format", format])
        .args(ids.lines())
        .text()?;
    lines
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [id, name, service, image_id, state] = words.as_slice() else {
                anyhow::bail!("docker inspect says {line:?}");
            };
            Ok(Container {
                id: (*id).to_owned(),
                name: name.trim_start_matches('/').to_owned(),
                service: (*service).to_owned(),
                image_id: (*image_id).to_owned(),
                is_running: *state == "running",
            })
        })
        .collect()
}

/// The id under which this host has an image of the registry.
fn image_id(stage: &Stage, service: &str, tag: &str) -> Result<String> {
    let digest = stage.images.digest(service, tag)?;
    let image = stage.project.image(service, tag);
    let (repository, _tag) = image.rsplit_once(':').context("an image without a tag")?;
    docker([
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        &format!("{repository}@{digest}"),
    ])
    .text()
}
