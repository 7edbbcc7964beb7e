//! CI runs race: whatever order they come in, the newest wins, and the others hear which one did.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use deploy_proto::event::PhaseName;
use deploy_proto::release::DeploymentView;
use deploy_tests::agent::{Agent, Settings, write_config};
use deploy_tests::clinic::Clinic;
use deploy_tests::ctl::Ctl;
use deploy_tests::images::{Mode, Registry};
use deploy_tests::torture::strace::{Threads, Tracing};
use deploy_tests::until::until;
use deploy_tests::wire::{Connection, Events, Message};
use serde_json::json;

const SERVICE: &str = "auth_service";
const REPOSITORY: &str = "acme/clinic";
/// How long a flush takes where that is what is tried, and how many callers go away, each a third of it later.
const FLUSH: Duration = Duration::from_millis(120);
const LEAVING: u32 = 12;

/// A caller as it is in a run of GitHub Actions.
fn in_run(ctl: &Ctl, run: &str, attempt: &str) -> Ctl {
    ctl.clone()
        .env("GITHUB_SERVER_URL", "https://github.com")
        .env("GITHUB_REPOSITORY", REPOSITORY)
        .env("GITHUB_RUN_ID", run)
        .env("GITHUB_RUN_ATTEMPT", attempt)
}

#[test]
fn an_older_run_cannot_win() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let mut agent = Agent::start(&clinic)?;
    let ctl = agent.ctl()?;
    for tag in ["dev-0000100", "dev-0000200", "dev-0000201"] {
        clinic.push_version(SERVICE, Mode::Good, tag)?;
    }
    let older = clinic.set_argument(SERVICE, "dev-0000100");
    let newer = clinic.set_argument(SERVICE, "dev-0000200");

    assert_eq!(in_run(&ctl, "200", "1").push(0, &[&newer], &[])?.result(), "live");
    let running = clinic.container_id(SERVICE)?;
    let file = clinic.file();

    // The run that began before it comes late: refused at the door, by its number, naming the winner.
    let late = in_run(&ctl, "100", "1");
    for arguments in [
        &["push", "--set", &older][..],
        &["push", "--set", &older, "--dry-run"],
    ] {
        let refused = late.expect(7, arguments)?;
        refused
            .says("run 100.1")?
            .says("200.1")?
            .says("https://github.com/acme/clinic/actions/runs/200")?
            .says("--allow-older")?;
    }
    assert_eq!(late.push(7, &[&older], &[])?.code(), "stale");
    // An earlier attempt of the same run, too; and after a restart.
    assert_eq!(
        in_run(&ctl, "200", "2").push(0, &[&newer], &[])?.result(),
        "unchanged"
    );
    agent.restart()?;
    assert_eq!(in_run(&ctl, "200", "1").push(7, &[&older], &[])?.code(), "stale");
    assert_eq!(ctl.push(7, &[&older], &["--sequence", "199"])?.code(), "stale");
    assert_eq!((clinic.container_id(SERVICE)?, clinic.file()), (running, file));

    // What was refused at the door is no deployment.
    let history = ctl.json(0, &["history"])?;
    assert_eq!(history.list("/deployments").len(), 2, "{history:?}");

    // Runs of another repository count for themselves; a person's push has no run.
    let elsewhere = in_run(&ctl, "7", "1").env("GITHUB_REPOSITORY", "acme/other");
    assert_eq!(elsewhere.push(0, &[&newer], &[])?.result(), "unchanged");
    assert_eq!(ctl.push(0, &[&older], &[])?.result(), "live");

    // Asked for by name, the older one is let in, and the history says so; the mark stays where it was.
    let third = clinic.set_argument(SERVICE, "dev-0000201");
    let id = "00000000000000a1";
    late.push(0, &[&third], &["--allow-older", "--id", id])?;
    let events = ctl.expect(0, &["watch", id, "--jsonl"])?.stdout;
    assert!(events.contains("let in by --allow-older"), "{events}");
    let history = ctl.expect(0, &["history"])?.stdout;
    assert!(history.contains("with --allow-older"), "{history}");
    assert_eq!(in_run(&ctl, "150", "1").push(7, &[&older], &[])?.code(), "stale");
    Ok(())
}

#[test]
fn a_push_made_for_another_release_is_stale() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let agent = Agent::start(&clinic)?;
    let ctl = agent.ctl()?;
    for tag in ["dev-0000001", "dev-0000002"] {
        clinic.push_version(SERVICE, Mode::Good, tag)?;
    }
    let first = clinic.set_argument(SERVICE, "dev-0000001");
    let second = clinic.set_argument(SERVICE, "dev-0000002");
    let none = ctl.push(7, &[&first], &["--expect-release", "1"])?;
    assert_eq!(none.code(), "stale");
    let release = ctl.push(0, &[&first], &[])?.at("/outcome/release");

    let before = (clinic.container_id(SERVICE)?, clinic.file());
    for more in [
        &["--expect-release", "1"][..],
        &["--expect-release", "1", "--dry-run"],
    ] {
        assert_eq!(ctl.push(7, &[&second], more)?.code(), "stale");
    }
    assert_eq!((clinic.container_id(SERVICE)?, clinic.file()), before);
    assert_eq!(
        ctl.push(0, &[&second], &["--expect-release", &release])?.result(),
        "live"
    );

    // Somebody deployed past the agent: what runs is no release.
    clinic.set_tag(SERVICE, "dev-0000001")?;
    let now = ctl.json(0, &["status"])?.at("/release/number");
    let refused = ctl.push(7, &[&second], &["--expect-release", &now, "--accept-edits"])?;
    assert_eq!(refused.code(), "stale");
    Ok(())
}

#[test]
fn three_runs_at_once_leave_the_newest_and_projects_do_not_wait_for_each_other() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let neighbour = Clinic::start_only(&registry, &[SERVICE])?;
    // The first is watched for longer than the neighbour's whole deployment takes, which settles within a second.
    let settings = Settings::default().project("settle", "\"15s\"");
    let agent = Agent::start_with(&clinic, settings)?;
    agent.add(neighbour.dir(), neighbour.project())?;
    let file = agent.project_file(neighbour.project());
    let text = fs::read_to_string(&file)?.replace("settle = \"15s\"", "settle = \"1s\"");
    write_config(&file, &text)?;
    agent.reload()?;
    let ctl = agent.ctl()?;
    let key = ctl.private_key()?;
    for tag in ["dev-0000001", "dev-0000002", "dev-0000003"] {
        clinic.push_version(SERVICE, Mode::Good, tag)?;
    }
    neighbour.push_version(SERVICE, Mode::Good, "dev-0000009")?;

    // The first runs; the third waits; the second, which is older, comes last and is refused rather than let in behind.
    let set = |tag: &str| clinic.set_argument(SERVICE, tag);
    let id = "00000000000000b1";
    let first =
        in_run(&ctl, "1", "1").spawn(&["push", "--set", &set("dev-0000001"), "--id", id, "--json"])?;
    let mut events = Events::when_accepted(&agent, &key, id)?;
    events.reach(PhaseName::Watching)?;
    let third = in_run(&ctl, "3", "1").spawn(&["push", "--set", &set("dev-0000003"), "--queue", "--json"])?;
    third.waits_to_say("waits for deployment")?;
    let second = in_run(&ctl, "2", "1").push(7, &[&set("dev-0000002")], &["--queue"])?;
    assert_eq!(second.code(), "stale");

    // Meanwhile the other project deploys, begins and ends.
    let beside = ctl.clone().to(&agent.url(), &agent.pin()?, neighbour.project());
    let pushed = beside.push(0, &[&neighbour.set_argument(SERVICE, "dev-0000009")], &[])?;
    assert_eq!(pushed.result(), "live");
    assert_eq!(ctl.json(0, &["status"])?.at("/running/id"), id);
    assert_eq!(first.end()?.expect(0)?.json()?.result(), "live");
    assert_eq!(third.end()?.expect(0)?.json()?.result(), "live");
    assert_eq!(clinic.service_version(SERVICE)?, "dev-0000003");
    assert_eq!(neighbour.service_version(SERVICE)?, "dev-0000009");
    Ok(())
}

/// A CI job is cancelled at any moment of its request: what the agent journaled runs, waits or ended, and nothing is lost
/// between the journal and the queue.
#[test]
fn a_caller_that_goes_away_at_any_moment_loses_no_deployment() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let agent = Agent::start(&clinic)?;
    let key = agent.ctl()?.private_key()?;
    let tag = "dev-0000001";
    clinic.push_version(SERVICE, Mode::Good, tag)?;
    let path = format!("/v1/projects/{}/deployments", clinic.project());
    let images = json!([{ "service": SERVICE, "image": clinic.image(SERVICE, tag) }]);

    // Every flush takes its time, so that each moment between two can be met.
    let state = agent.state_dir();
    let tracing = Tracing {
        calls: vec!["fsync"],
        paths: vec![state.join("history.db-wal"), state.join("history.db")],
        inject: Some(("fsync", format!("delay_enter={}", FLUSH.as_micros()))),
    };
    let strace = tracing.attach(&agent, Threads::All)?;
    let mut left = Vec::new();
    for number in 0..LEAVING {
        let id = format!("{:016x}", number + 1);
        let body = json!({ "id": id, "images": images, "queue": true });
        let message = Message::post(&agent, &path, &body).signed(&key);
        let mut connection = Connection::open(agent.port())?;
        connection.write(&message.bytes())?;
        thread::sleep(FLUSH / 3 * number);
        drop(connection);
        left.push(id);
    }
    strace.detach()?;

    let view = |id: &str| -> Result<Option<DeploymentView>> {
        let answer = Message::get(&agent, &format!("/v1/deployments/{id}"))
            .signed(&key)
            .send(&agent)?;
        Ok(if answer.status == 404 {
            None
        } else {
            Some(serde_json::from_value(answer.json()?)?)
        })
    };
    until("all of them end", Duration::from_secs(60), || {
        for id in &left {
            if view(id)?.is_some_and(|view| view.ended_at.is_none()) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .with_context(|| agent.log())?;
    let known = left.iter().filter_map(|id| view(id).transpose());
    let known = known.collect::<Result<Vec<_>>>()?;
    ensure!(!known.is_empty(), "no moment was late enough to be accepted");
    ensure!(known.len() < left.len(), "no moment was early enough to be lost");
    assert_eq!(clinic.service_version(SERVICE)?, tag);
    Ok(())
}
