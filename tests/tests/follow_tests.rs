//! An accepted deployment belongs to the agent: callers come and go, and it deploys once.

use std::time::Duration;

use anyhow::Result;
use deploy_proto::event::{Ending, Happened, PhaseName};
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::ctl::Running;
use deploy_tests::images::{Mode, Registry};
use deploy_tests::until::until;
use deploy_tests::wire::{Events, Message};
use serde_json::json;

const SERVICE: &str = "auth_service";
const SOON: Duration = Duration::from_secs(20);

#[test]
fn callers_come_and_go_and_it_deploys_once() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let mut agent = Agent::start_with(&clinic, Settings::default().project("settle", "\"8s\""))?;
    let ctl = agent.ctl()?;
    let key = ctl.private_key()?;

    // 202 with the id; the same request again is 200, and another request with this id is refused.
    // All are built before the first is under way, or it may have ended by the time that the others come.
    for tag in ["dev-a000001", "dev-a000002", "dev-a000003"] {
        clinic.push_version(SERVICE, Mode::Good, tag)?;
    }
    let id = "00000000000000a1";
    let path = format!("/v1/projects/{}/deployments", clinic.project());
    let image = clinic.image(SERVICE, "dev-a000001");
    let body = json!({ "id": id, "images": [{ "service": SERVICE, "image": image }] });
    let accepted = Message::post(&agent, &path, &body).signed(&key).send(&agent)?;
    assert_eq!((accepted.status, accepted.json()?), (202, json!({ "id": id })));
    let again = Message::post(&agent, &path, &body).signed(&key).send(&agent)?;
    assert_eq!((again.status, again.json()?), (200, json!({ "id": id })));
    let other = json!({ "id": id, "images": [{ "image": image }] });
    let reused = Message::post(&agent, &path, &other).signed(&key).send(&agent)?;
    assert_eq!((reused.status, reused.code()), (409, "id_reused".to_owned()));
    ctl.expect(
        7,
        &[
            "push",
            "--image",
            &clinic.image(SERVICE, "dev-a000001"),
            "--id",
            id,
        ],
    )?;

    // Another push meanwhile is busy, and names the one that runs.
    let mut events = Events::follow(&agent, &key, id, None)?;
    events.reach(PhaseName::Watching)?;
    let second = clinic.set_argument(SERVICE, "dev-a000002");
    let busy = ctl.expect(7, &["push", "--set", &second])?;
    busy.says("under way")?.says(id)?;

    // With --queue one waits, and a newer one takes its place.
    let third = clinic.set_argument(SERVICE, "dev-a000003");
    let queue = |set: &str, id: &str| -> Result<Running> {
        let queued = ctl.spawn(&["push", "--set", set, "--queue", "--id", id, "--json"])?;
        until(&format!("{id} waits"), SOON, || {
            let mut events = Events::follow(&agent, &key, id, None)?;
            events.next_event()?;
            let second = events.next_event()?.map(|event| event.what);
            Ok(matches!(second, Some(Happened::Queued { .. })).then_some(()))
        })?;
        Ok(queued)
    };
    let watching = ctl.spawn(&["watch", id])?;
    let superseded = queue(&second, "00000000000000a2")?;
    let queued = queue(&third, "00000000000000a3")?;
    assert_eq!(superseded.end()?.expect(7)?.json()?.code(), "superseded");

    // The agent is killed while one runs and one waits, and deployctl sees both to their ends.
    agent.restart()?;
    assert_eq!(queued.end()?.expect(0)?.json()?.result(), "live");
    watching.end()?.expect(0)?;
    assert_eq!(clinic.service_version(SERVICE)?, "dev-a000003");

    // It deployed once.
    let history = ctl.json(0, &["history"])?;
    assert_eq!(history.list("/deployments").len(), 3, "{history:?}");

    // A stream resumes after the event that was seen last.
    let all = Events::follow(&agent, &key, id, None)?.all()?;
    let rest = Events::follow(&agent, &key, id, Some(3))?.all()?;
    assert_eq!(all.get(3..).unwrap_or_default(), rest);
    assert!(
        matches!(&rest.last().map(|event| &event.what), Some(Happened::Ended { outcome }) if outcome.result == Ending::Live)
    );
    // After the last one there is nothing more to come, and the stream ends.
    let beyond = u64::try_from(all.len())?;
    assert_eq!(Events::follow(&agent, &key, id, Some(beyond))?.all()?, []);
    ctl.expect(8, &["watch", "00000000000000ff"])?;
    Ok(())
}

#[test]
fn ctrl_c_leaves_the_deployment_running_and_says_how_to_come_back() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let mut agent = Agent::start_with(&clinic, Settings::default().project("settle", "\"3s\""))?;
    let ctl = agent.ctl()?;
    clinic.push_version(SERVICE, Mode::Good, "dev-a000001")?;
    let id = "00000000000000b1";
    let set = clinic.set_argument(SERVICE, "dev-a000001");
    let pushing = ctl.spawn(&["push", "--set", &set, "--id", id])?;
    let key = ctl.private_key()?;
    let mut events = Events::when_accepted(&agent, &key, id)?;
    events.reach(PhaseName::Watching)?;
    pushing.interrupt()?;
    let ended = pushing.end()?.expect(130)?;
    ended.says("deployctl watch")?.says(id)?.says("goes on")?;
    let watched = ctl.json(0, &["watch", id])?;
    assert_eq!(watched.result(), "live");
    assert_eq!(clinic.service_version(SERVICE)?, "dev-a000001");

    // --timeout: the time to wait is over, the deployment is not.
    clinic.push_version(SERVICE, Mode::Good, "dev-a000002")?;
    let set = clinic.set_argument(SERVICE, "dev-a000002");
    let waited = ctl.push(8, &[&set], &["--timeout", "1s"])?;
    assert_eq!(waited.result(), "still_running");
    let id = waited
        .0
        .pointer("/id")
        .and_then(|id| id.as_str())
        .unwrap_or_default()
        .to_owned();
    assert_eq!(ctl.json(0, &["watch", &id])?.result(), "live");

    // --jsonl: every journaled event, the last one last.
    clinic.push_version(SERVICE, Mode::Good, "dev-a000003")?;
    let set = clinic.set_argument(SERVICE, "dev-a000003");
    let lines = ctl.expect(0, &["push", "--set", &set, "--jsonl"])?.stdout;
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap_or_default())?;
    assert_eq!(
        last.get("type").and_then(|kind| kind.as_str()),
        Some("ended"),
        "{lines}"
    );

    // An agent that is not there.
    agent.kill9()?;
    ctl.expect(5, &["status"])?.says("cannot be reached")?;
    Ok(())
}
