//! `deployctl cancel`: before the files are touched a deployment ends refused, after that it goes back.

use anyhow::{Result, ensure};
use deploy_proto::event::{Ending, PhaseName};
use deploy_proto::problem::Code;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::ctl::Ctl;
use deploy_tests::engine::Engine;
use deploy_tests::images::{Image, Mode, Registry};
use deploy_tests::liar::{About, Liar, Lie};
use deploy_tests::wire::Events;

const SERVICE: &str = "auth_service";
/// Large enough for a layer whose pull can be held in the middle.
const IMAGE_BYTES: u64 = 2_000_000;

/// What must be the same after a deployment that was cancelled.
fn stands(clinic: &Clinic) -> Result<(String, String, Vec<String>)> {
    Ok((clinic.file(), clinic.image_id(SERVICE)?, clinic.database_ids()))
}

/// Pushes in the background and cancels in a phase; the way it ended.
fn cancelled_in(agent: &Agent, ctl: &Ctl, set: &str, id: &str, phase: PhaseName) -> Result<Ending> {
    ctl.expect(0, &["push", "--set", set, "--id", id, "--detach"])?;
    let key = ctl.private_key()?;
    let mut events = Events::follow(agent, &key, id, None)?;
    events.reach(phase)?;
    let cancelled = ctl.expect(0, &["cancel", id])?;
    cancelled.says("is cancelled")?;
    let outcome = Events::follow(agent, &key, id, None)?.outcome()?;
    let problem = outcome.problem.as_ref();
    ensure!(
        problem.is_some_and(|problem| problem.code == Code::Cancelled),
        "{outcome:?}"
    );
    ensure!(
        problem.is_some_and(|problem| problem.detail.contains("ci")),
        "{outcome:?}"
    );
    Ok(outcome.result)
}

#[test]
fn cancelled_before_the_edit_it_is_refused_and_after_it_goes_back() -> Result<()> {
    let liar = Liar::start()?;
    let registry = Registry::start_behind(&Engine::shared(), &liar)?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    // Never well within the test: it would be watched for a minute.
    let settings = Settings::default().project("wait", "\"60s\"");
    let mut agent = Agent::start_with(&clinic, settings)?;
    let ctl = agent.ctl()?;
    let before = stands(&clinic)?;
    let mut next = 0;
    let mut fresh = |mode: Mode| -> Result<(String, String)> {
        next += 1;
        let tag = format!("dev-{next:07x}");
        Image::new(SERVICE, &tag, mode)
            .extra_bytes(IMAGE_BYTES)
            .build_and_push(&registry, "drassistant/auth_service", &tag)?;
        Ok((clinic.set_argument(SERVICE, &tag), format!("{next:016x}")))
    };
    for (phase, ending) in [
        (PhaseName::Pulling, Ending::Refused),
        (PhaseName::Restarting, Ending::RolledBack),
        (PhaseName::Watching, Ending::RolledBack),
    ] {
        let (set, id) = fresh(Mode::Sick)?;
        if phase == PhaseName::Pulling {
            liar.lie(About::Layers, Lie::Stalled);
        }
        let ended = cancelled_in(&agent, &ctl, &set, &id, phase)?;
        liar.be_honest();
        assert_eq!(ended, ending, "{phase:?}");
        assert_eq!(stands(&clinic)?, before, "{phase:?}");
        assert_eq!(clinic.get(SERVICE, "/health")?.0, 200, "{phase:?}");
        // Once it has ended there is nothing to cancel.
        ctl.expect(9, &["cancel", &id])?.says("it has ended")?;
    }

    // The agent dies right after it took the cancellation: the journal has it.
    let (set, id) = fresh(Mode::Sick)?;
    ctl.expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
    let key = ctl.private_key()?;
    Events::follow(&agent, &key, &id, None)?.reach(PhaseName::Watching)?;
    ctl.expect(0, &["cancel", &id, "--detach"])?;
    agent.kill9_all()?;
    agent.resume()?;
    let outcome = Events::follow(&agent, &key, &id, None)?.outcome()?;
    assert_eq!(outcome.result, Ending::RolledBack, "{outcome:?}");
    assert_eq!(outcome.problem.map(|problem| problem.code), Some(Code::Cancelled));
    assert_eq!(stands(&clinic)?, before);

    // The one that pushed hears it too, and the next push finds the project free.
    let (set, id) = fresh(Mode::Sick)?;
    let pushing = ctl.spawn(&["push", "--set", &set, "--id", &id])?;
    let mut events = Events::when_accepted(&agent, &key, &id)?;
    events.reach(PhaseName::Watching)?;
    ctl.expect(0, &["cancel", &id])?;
    pushing.end()?.expect(3)?.says("was cancelled")?;
    let (set, _) = fresh(Mode::Good)?;
    assert_eq!(ctl.push(0, &[&set], &[])?.result(), "live");
    Ok(())
}

#[test]
fn one_that_waits_is_taken_out_and_only_who_may_push_may_cancel() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let mut settings = Settings::default().project("settle", "\"5s\"");
    let strangers = Agent::prepare(clinic.project(), settings.clone())?;
    let (reader_file, reader) = strangers.new_key("reader")?;
    let (other_file, other) = strangers.new_key("other")?;
    settings = settings
        .key(&format!("name = \"reader\"\npublic = \"{reader}\"\nprojects = [\"*\"]\nallow = [\"status\"]"))
        .key(&format!(
            "name = \"other\"\npublic = \"{other}\"\nprojects = [\"*\"]\nservices = [\"user_service\"]\nallow = [\"push\", \"status\"]"
        ));
    let agent = Agent::start_with(&clinic, settings)?;
    let ctl = agent.ctl()?;
    for tag in ["dev-0000001", "dev-0000002"] {
        clinic.push_version(SERVICE, Mode::Good, tag)?;
    }
    let (running, waiting) = ("00000000000000c1", "00000000000000c2");
    let set = |tag: &str| clinic.set_argument(SERVICE, tag);
    ctl.expect(
        0,
        &["push", "--set", &set("dev-0000001"), "--id", running, "--detach"],
    )?;
    let mut events = Events::follow(&agent, &ctl.private_key()?, running, None)?;
    events.reach(PhaseName::Watching)?;
    for file in [&reader_file, &other_file] {
        let stranger = agent.ctl_with_key(file)?;
        stranger.expect(4, &["cancel", running])?.says("may not")?;
    }
    ctl.expect(8, &["cancel", "00000000000000ff"])?;

    let queued = ctl.spawn(&[
        "push",
        "--set",
        &set("dev-0000002"),
        "--queue",
        "--id",
        waiting,
        "--json",
    ])?;
    drop(Events::when_accepted(&agent, &ctl.private_key()?, waiting)?);
    ctl.expect(0, &["cancel", waiting])?.says("nothing was changed")?;
    assert_eq!(queued.end()?.expect(9)?.json()?.code(), "cancelled");
    assert_eq!(events.outcome()?.result, Ending::Live);
    assert_eq!(clinic.service_version(SERVICE)?, "dev-0000001");
    let took = ctl.json(0, &["history"])?;
    assert_eq!(took.at("/deployments/0/cancelled_by"), "ci", "{took:?}");
    Ok(())
}
