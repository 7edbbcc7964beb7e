//! The runner against a host that says yes, no or nothing, and a real journal on the disk.

use std::sync::Arc;
use std::time::Duration;

use deploy_proto::event::{Ending, Happened, Outcome};
use deploy_proto::names::{DeploymentId, ReleaseNumber};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::{Change, Push, Reconcile, Rollback, RollbackTarget, Source};
use deploy_proto::release::ReleaseState;
use jiff::Timestamp;
use tokio::sync::watch;

use super::fake_host::{Answer, FILE, FakeHost};
use super::feed::Feed;
use super::phase::Action;
use super::runner::{ATTEMPTS_MAX, Cancel, Ran, Runner};
use crate::config::{Hook, HookMoment, Order, Pin, Project};
use crate::history::{AutoRollback, Deployment, History, Request};
use crate::policy::ServiceScope;

pub(super) fn project() -> Project {
    Project {
        name: "shop".parse().unwrap(),
        dir: "/srv/shop".into(),
        files: Vec::new(),
        images: vec!["acme/*".into()],
        allow_latest: false,
        pin: Pin::Digest,
        order: Order::OneByOne,
        wait: Duration::from_secs(1),
        settle: Duration::ZERO,
        bake: Duration::from_secs(60),
        keep: 10,
        remove_images: true,
        min_free_bytes: 0,
        probes: Vec::new(),
        hooks: Vec::new(),
    }
}

pub(super) fn push(id: u64, tag: &str) -> Request {
    let change = |repository: &str| Change {
        service: None,
        image: format!("acme/{repository}:{tag}").parse().unwrap(),
    };
    Request::Push(Push {
        id: DeploymentId::from_bits(id),
        images: vec![change("api"), change("worker")],
        version: tag.parse().ok(),
        queue: false,
        accept_edits: true,
        sequence: None,
        allow_older: false,
        expect_release: None,
        source: Source::default(),
    })
}

/// A host, a journal in a folder of its own, and runners on both: each runner is the agent after one more start.
pub(super) struct Bench {
    _dir: tempfile::TempDir,
    pub(super) host: Arc<FakeHost>,
    pub(super) history: History,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(&dir.path().join("history.db")).unwrap();
        Self {
            _dir: dir,
            host: Arc::default(),
            history,
        }
    }

    pub(super) fn runner(&self) -> Runner<FakeHost> {
        let (_stop, stopping) = watch::channel(false);
        Runner::new(
            Arc::clone(&self.host),
            self.history.clone(),
            Arc::new(Feed::default()),
            stopping,
            Timestamp::now,
        )
    }

    pub(super) async fn accept(&self, request: Request) -> Deployment {
        let key = "ci".parse().unwrap();
        let deployment =
            Deployment::accepted(project().name, request, key, ServiceScope::All, Timestamp::now());
        self.history.accept(deployment.clone(), Vec::new()).await.unwrap();
        deployment
    }

    async fn run(&self, request: Request) -> Outcome {
        let deployment = self.accept(request).await;
        ended(self.runner().run(&project(), deployment, nobody()).await.unwrap())
    }

    /// Goes on from the journal, as a started agent does.
    async fn restart(&self) -> Outcome {
        let deployment = self.history.unfinished().await.unwrap().pop().unwrap();
        ended(self.runner().run(&project(), deployment, nobody()).await.unwrap())
    }

    async fn states(&self) -> Vec<(u32, ReleaseState)> {
        let releases = self.history.releases(project().name, 100).await.unwrap();
        releases
            .iter()
            .rev()
            .map(|release| (release.number.0, release.state))
            .collect()
    }
}

/// A cancellation that never comes.
pub(super) fn nobody() -> Cancel {
    watch::channel(None).1
}

pub(super) fn ended(ran: Ran) -> Outcome {
    match ran {
        Ran::Ended(outcome) => *outcome,
        Ran::Interrupted => panic!("interrupted"),
    }
}

pub(super) const FORWARD: [Action; 6] = [
    Action::Plan,
    Action::Pull,
    Action::Gate,
    Action::Edit,
    Action::Restart,
    Action::Watch,
];
const BACK: [Action; 3] = [Action::Restore, Action::RestartOld, Action::WatchOld];

#[tokio::test]
async fn a_push_makes_a_release_and_keeps_the_one_it_found() {
    let bench = Bench::new();
    let outcome = bench.run(push(1, "v2")).await;
    assert_eq!(
        (outcome.result, outcome.release),
        (Ending::Live, Some(ReleaseNumber(2)))
    );
    assert_eq!(bench.host.asked(), FORWARD);
    assert_eq!(
        bench.states().await,
        [(1, ReleaseState::Replaced), (2, ReleaseState::Live)]
    );
    for (release, bytes) in [(1, b"old"), (2, b"new")] {
        let files = bench
            .history
            .files(project().name, ReleaseNumber(release))
            .await
            .unwrap();
        assert_eq!(
            files.first().map(|file| file.bytes.as_slice()),
            Some(bytes.as_slice()),
            "release {release} of {FILE}"
        );
    }
    let kept = bench
        .history
        .kept_log(project().name, ReleaseNumber(1), "api".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(kept.unwrap(), ["api said"]);
}

#[tokio::test]
async fn services_restart_after_what_they_depend_on() {
    let bench = Bench::new();
    bench.run(push(1, "v2")).await;
    let deployment = bench
        .history
        .deployment(DeploymentId::from_bits(1))
        .await
        .unwrap()
        .unwrap();
    let names = deployment.plan.unwrap().service_names();
    assert_eq!(
        names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
        ["worker", "api"]
    );
}

#[tokio::test]
async fn what_runs_already_is_not_touched() {
    let bench = Bench::new();
    let outcome = bench.run(push(1, "v1")).await;
    assert_eq!(outcome.result, Ending::Unchanged);
    assert_eq!(bench.host.asked(), [Action::Plan, Action::Watch]);
    assert_eq!(bench.states().await, []);
    bench.host.answer(Action::Watch, Answer::No);
    let outcome = bench.run(push(2, "v1")).await;
    assert_eq!(
        outcome.result,
        Ending::Refused,
        "what runs already and is sick is no success"
    );
}

#[tokio::test]
async fn a_failure_at_every_action_ends_as_promised() {
    for failing in FORWARD {
        let bench = Bench::new();
        bench.host.answer(failing, Answer::No);
        let outcome = bench.run(push(1, "v2")).await;
        let untouched = matches!(failing, Action::Plan | Action::Pull | Action::Gate);
        let expected = if untouched {
            Ending::Refused
        } else {
            Ending::RolledBack
        };
        assert_eq!(outcome.result, expected, "{failing:?} said no");
        assert_eq!(outcome.problem.unwrap().detail, format!("{failing:?} said no"));
        let asked = bench.host.asked();
        assert_eq!(
            BACK.iter().all(|action| asked.contains(action)),
            !untouched,
            "{asked:?}"
        );
        if failing != Action::Plan {
            assert_eq!(
                bench.states().await,
                [(1, ReleaseState::Live), (2, ReleaseState::Failed)],
                "{failing:?}"
            );
        }
    }
}

#[tokio::test]
async fn an_edit_that_was_undone_is_a_refusal() {
    let bench = Bench::new();
    bench.host.answer(Action::Edit, Answer::NoAndUndone);
    assert_eq!(bench.run(push(1, "v2")).await.result, Ending::Refused);
    assert_eq!(bench.host.asked().last(), Some(&Action::Edit));
}

#[tokio::test]
async fn a_rollback_that_fails_is_stuck_with_both_reasons_and_no_claim_of_what_runs() {
    for failing in BACK {
        let bench = Bench::new();
        bench.host.answer(Action::Watch, Answer::No);
        bench.host.answer(failing, Answer::No);
        let outcome = bench.run(push(1, "v2")).await;
        assert_eq!(
            (outcome.result, outcome.release),
            (Ending::Stuck, None),
            "{failing:?}"
        );
        assert_eq!(outcome.problem.unwrap().detail, "Watch said no");
        assert_eq!(outcome.trouble.unwrap().detail, format!("{failing:?} said no"));
    }
}

#[tokio::test]
async fn an_agent_killed_in_any_phase_ends_the_deployment_after_its_restart() {
    for killed_in in FORWARD.into_iter().chain(BACK) {
        let bench = Bench::new();
        let backwards = BACK.contains(&killed_in);
        if backwards {
            bench.host.answer(Action::Watch, Answer::No);
        }
        bench.host.answer(killed_in, Answer::Never);
        let deployment = bench.accept(push(1, "v2")).await;
        let runner = bench.runner();
        let the_project = project();
        let asked = || async {
            while bench.host.asked().last() != Some(&killed_in) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ran = runner.run(&the_project, deployment, nobody()) => panic!("{killed_in:?} ended: {ran:?}"),
            () = asked() => {}
        }
        bench.host.answer(killed_in, Answer::Yes);
        let outcome = bench.restart().await;
        assert_eq!(
            outcome.result,
            if backwards {
                Ending::RolledBack
            } else {
                Ending::Live
            },
            "killed in {killed_in:?}"
        );
        assert!(bench.history.unfinished().await.unwrap().is_empty());
        let events = bench.history.events(DeploymentId::from_bits(1), 0).await.unwrap();
        assert!(
            events
                .iter()
                .any(|event| matches!(event.what, Happened::Note { .. })),
            "the restart is told"
        );
        let numbers: Vec<_> = events.iter().filter_map(|event| event.seq).collect();
        assert_eq!(
            numbers,
            (1..=u64::try_from(events.len()).unwrap()).collect::<Vec<_>>(),
            "no gap"
        );
    }
}

#[tokio::test]
async fn cancelled_in_any_action_it_ends_refused_or_rolled_back() {
    let key = || "kim".parse().unwrap();
    for (cancelled_in, ending) in [
        (Action::Pull, Ending::Refused),
        (Action::Gate, Ending::Refused),
        (Action::Restart, Ending::RolledBack),
        (Action::Watch, Ending::RolledBack),
    ] {
        let bench = Bench::new();
        bench.host.answer(cancelled_in, Answer::Never);
        let deployment = bench.accept(push(1, "v2")).await;
        let (cancel, cancelled) = watch::channel(None);
        let canceller = async {
            while bench.host.asked().last() != Some(&cancelled_in) {
                tokio::task::yield_now().await;
            }
            cancel.send_replace(Some(key()));
        };
        let (runner, the_project) = (bench.runner(), project());
        let (ran, ()) = tokio::join!(runner.run(&the_project, deployment, cancelled), canceller);
        let outcome = ended(ran.unwrap());
        assert_eq!(outcome.result, ending, "cancelled in {cancelled_in:?}");
        let problem = outcome.problem.unwrap();
        assert_eq!(
            (problem.code, problem.detail.as_str()),
            (Code::Cancelled, "cancelled by kim")
        );
        let went_back = BACK.iter().all(|action| bench.host.asked().contains(action));
        assert_eq!(
            went_back,
            ending == Ending::RolledBack,
            "{:?}",
            bench.host.asked()
        );
    }
}

#[tokio::test]
async fn cancelled_while_the_files_are_written_it_goes_back_after_that() {
    for (before, ending) in [
        (Action::Edit, Ending::RolledBack),
        (Action::Plan, Ending::Refused),
    ] {
        let bench = Bench::new();
        bench.host.answer(before, Answer::Held);
        let deployment = bench.accept(push(1, "v2")).await;
        let (cancel, cancelled) = watch::channel(None);
        let canceller = async {
            while bench.host.asked().last() != Some(&before) {
                tokio::task::yield_now().await;
            }
            cancel.send_replace(Some("kim".parse().unwrap()));
            bench.host.go_on();
        };
        let (runner, the_project) = (bench.runner(), project());
        let (ran, ()) = tokio::join!(runner.run(&the_project, deployment, cancelled), canceller);
        let outcome = ended(ran.unwrap());
        let expected = (ending, vec![(1, ReleaseState::Live), (2, ReleaseState::Failed)]);
        assert_eq!((outcome.result, bench.states().await), expected, "{before:?}");
        assert!(
            !bench.host.asked().contains(&Action::Restart),
            "nothing is restarted any more"
        );
    }
}

/// Who cancels writes into the journal and then tells the runner: a step that it takes in between is not taken.
#[tokio::test]
async fn a_cancellation_that_only_the_journal_knows_of_keeps_every_step_from_being_taken() {
    for (during, ending) in [
        (Action::Plan, Ending::Refused),
        (Action::Pull, Ending::Refused),
        (Action::Gate, Ending::Refused),
        (Action::Edit, Ending::RolledBack),
        (Action::Restart, Ending::RolledBack),
        (Action::Watch, Ending::RolledBack),
    ] {
        let bench = Bench::new();
        bench.host.answer(during, Answer::Held);
        let deployment = bench.accept(push(1, "v2")).await;
        let id = deployment.id().clone();
        let canceller = async {
            while bench.host.asked().last() != Some(&during) {
                tokio::task::yield_now().await;
            }
            let cancelled = bench.history.cancel(id, "kim".parse().unwrap(), Timestamp::now());
            assert!(cancelled.await.unwrap().is_some());
            bench.host.go_on();
        };
        let (runner, the_project) = (bench.runner(), project());
        let (ran, ()) = tokio::join!(runner.run(&the_project, deployment, nobody()), canceller);
        let outcome = ended(ran.unwrap());
        assert_eq!(outcome.result, ending, "{during:?}");
        assert!(outcome.is_cancelled(), "{during:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_cancellation_in_the_journal_is_heeded_after_a_restart() {
    let bench = Bench::new();
    bench.host.answer(Action::Watch, Answer::Never);
    let deployment = bench.accept(push(1, "v2")).await;
    let id = deployment.id().clone();
    let (runner, the_project) = (bench.runner(), project());
    let killed = async {
        while bench.host.asked().last() != Some(&Action::Watch) {
            tokio::task::yield_now().await;
        }
        bench
            .history
            .cancel(id, "kim".parse().unwrap(), Timestamp::now())
            .await
            .unwrap();
    };
    tokio::select! {
        ran = runner.run(&the_project, deployment, nobody()) => panic!("ended: {ran:?}"),
        () = killed => {}
    }
    let deployment = bench.history.unfinished().await.unwrap().pop().unwrap();
    let (_cancel, cancelled) = watch::channel(deployment.cancelled_by.clone());
    let outcome = ended(
        bench
            .runner()
            .run(&the_project, deployment, cancelled)
            .await
            .unwrap(),
    );
    assert_eq!(outcome.result, Ending::RolledBack);
    assert_eq!(outcome.problem.map(|problem| problem.code), Some(Code::Cancelled));
}

#[tokio::test]
async fn a_phase_that_takes_the_agent_down_every_time_counts_as_failed() {
    let bench = Bench::new();
    bench.host.answer(Action::Watch, Answer::Never);
    let mut deployment = bench.accept(push(1, "v2")).await;
    let the_project = project();
    for start in 0..ATTEMPTS_MAX {
        let runner = bench.runner();
        let watches = || {
            bench
                .host
                .asked()
                .iter()
                .filter(|action| **action == Action::Watch)
                .count()
        };
        let before = watches();
        let asked = || async {
            while watches() == before {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ran = runner.run(&the_project, deployment, nobody()) => panic!("start {start} ended: {ran:?}"),
            () = asked() => {}
        }
        deployment = bench.history.unfinished().await.unwrap().pop().unwrap();
    }
    let outcome = ended(
        bench
            .runner()
            .run(&the_project, deployment, nobody())
            .await
            .unwrap(),
    );
    assert_eq!(outcome.result, Ending::RolledBack);
    assert!(
        outcome
            .problem
            .unwrap()
            .detail
            .contains("stopped 5 times while watching")
    );
}

#[tokio::test]
async fn a_stopping_agent_leaves_the_deployment_in_the_journal() {
    let bench = Bench::new();
    bench.host.answer(Action::Watch, Answer::Never);
    let deployment = bench.accept(push(1, "v2")).await;
    let (stop, stopping) = watch::channel(false);
    let runner = Runner::new(
        Arc::clone(&bench.host),
        bench.history.clone(),
        Arc::new(Feed::default()),
        stopping,
        Timestamp::now,
    );
    let the_project = project();
    let stopper = async {
        while bench.host.asked().last() != Some(&Action::Watch) {
            tokio::task::yield_now().await;
        }
        stop.send(true).unwrap();
    };
    let (ran, ()) = tokio::join!(runner.run(&the_project, deployment, nobody()), stopper);
    assert_eq!(ran.unwrap(), Ran::Interrupted);
    bench.host.answer(Action::Watch, Answer::Yes);
    assert_eq!(bench.restart().await.result, Ending::Live);
}

pub(super) fn back(id: u64, to: RollbackTarget) -> Request {
    let id = DeploymentId::from_bits(id);
    Request::Rollback(Rollback {
        id,
        to,
        queue: false,
        across_migration: false,
        source: Source::default(),
    })
}

#[tokio::test]
async fn a_rollback_goes_to_what_ran_before_and_never_to_what_was_rolled_back_from() {
    use ReleaseState::{Live, Replaced};
    let bench = Bench::new();
    for (id, tag) in [(1, "v2"), (2, "v3")] {
        assert_eq!(bench.run(push(id, tag)).await.result, Ending::Live);
    }
    let outcome = bench
        .run(back(3, RollbackTarget::Version("v2".parse().unwrap())))
        .await;
    assert_eq!(
        (outcome.result, outcome.release),
        (Ending::Live, Some(ReleaseNumber(2)))
    );
    assert_eq!(bench.states().await, [(1, Replaced), (2, Live), (3, Replaced)]);

    // v3 was rejected: after a push of v4, back is v2, and two back is what was found.
    assert_eq!(bench.run(push(4, "v4")).await.release, Some(ReleaseNumber(4)));
    assert_eq!(
        bench.run(back(5, RollbackTarget::Back(1))).await.release,
        Some(ReleaseNumber(2))
    );
    assert_eq!(bench.run(push(6, "v5")).await.release, Some(ReleaseNumber(5)));
    assert_eq!(
        bench.run(back(7, RollbackTarget::Back(2))).await.release,
        Some(ReleaseNumber(1))
    );

    let outcome = bench.run(back(8, RollbackTarget::Back(5))).await;
    assert_eq!(outcome.result, Ending::Refused);
    assert_eq!(
        outcome.problem.unwrap().detail,
        "project shop has no successful release 5 back"
    );
}

#[tokio::test]
async fn a_project_is_stuck_until_a_deployment_ends_well() {
    let bench = Bench::new();
    bench.host.answer(Action::Watch, Answer::No);
    bench.host.answer(Action::RestartOld, Answer::No);
    assert_eq!(bench.run(push(1, "v2")).await.result, Ending::Stuck);
    let stuck = || async { bench.history.stuck(project().name).await.unwrap().is_some() };
    assert!(stuck().await);
    bench.host.answer(Action::Pull, Answer::No);
    assert_eq!(bench.run(push(2, "v3")).await.result, Ending::Refused);
    assert!(
        stuck().await,
        "a refused push touches nothing, so the project is as stuck as before"
    );
    // One that is put back is back in what was stuck: the alarm stays, and no release is said to run.
    bench.host.answer(Action::Pull, Answer::Yes);
    let outcome = bench.run(push(3, "v3")).await;
    assert_eq!((outcome.result, outcome.release), (Ending::Stuck, None));
    bench.host.answer(Action::RestartOld, Answer::Yes);
    let outcome = bench.run(push(4, "v3")).await;
    assert_eq!((outcome.result, outcome.release), (Ending::RolledBack, None));
    assert!(stuck().await);

    bench.host.answer(Action::Watch, Answer::Yes);
    assert_eq!(bench.run(push(5, "v3")).await.result, Ending::Live);
    assert!(!stuck().await);
    // What the stuck ones left is no release to go back to: only what was found at first is.
    use ReleaseState::{Failed, Live, Replaced};
    let states: Vec<ReleaseState> = bench.states().await.into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [Replaced, Failed, Failed, Failed, Failed, Live]);
    let outcome = bench.run(back(6, RollbackTarget::Back(1))).await;
    assert_eq!(
        (outcome.result, outcome.release),
        (Ending::Live, Some(ReleaseNumber(1)))
    );
}

/// That every image is the wanted one already says nothing of a stuck project: it is brought up and watched.
#[tokio::test]
async fn what_a_stuck_project_runs_already_gets_it_out_all_the_same() {
    let back = |id: u64| {
        Request::Rollback(Rollback {
            id: DeploymentId::from_bits(id),
            to: RollbackTarget::Back(1),
            queue: false,
            across_migration: false,
            source: Source::default(),
        })
    };
    let stuck = async || {
        let bench = Bench::new();
        assert_eq!(bench.run(push(1, "v2")).await.result, Ending::Live);
        bench.host.answer(Action::Watch, Answer::No);
        bench.host.answer(Action::WatchOld, Answer::No);
        assert_eq!(bench.run(push(2, "v3")).await.result, Ending::Stuck);
        bench.host.answer(Action::Watch, Answer::Yes);
        bench.host.answer(Action::WatchOld, Answer::Yes);
        bench
    };
    for (request, to) in [(push(3, "v2"), 4), (back(3), 2)] {
        let bench = stuck().await;
        let restarted = |bench: &Bench| {
            let asked = bench.host.asked();
            asked.iter().filter(|action| **action == Action::Restart).count()
        };
        let before = restarted(&bench);
        let outcome = bench.run(request).await;
        assert_eq!(
            (outcome.result, outcome.release, restarted(&bench) - before),
            (Ending::Live, Some(ReleaseNumber(to)), 1)
        );
        assert!(bench.history.stuck(project().name).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_reconciliation_keeps_the_release_and_ends_being_stuck() {
    use ReleaseState::{Failed, Live, Replaced};
    let reconcile = |id: u64| {
        Request::Reconcile(Reconcile {
            id: DeploymentId::from_bits(id),
            queue: false,
            discard_edits: false,
            source: Source::default(),
        })
    };
    let bench = Bench::new();
    let refused = bench.run(reconcile(1)).await;
    assert_eq!(
        refused.result,
        Ending::Refused,
        "there is nothing to reconcile with"
    );
    assert_eq!(bench.run(push(2, "v2")).await.result, Ending::Live);
    let outcome = bench.run(reconcile(3)).await;
    assert_eq!(
        (outcome.result, outcome.release),
        (Ending::Unchanged, Some(ReleaseNumber(2)))
    );

    bench.host.answer(Action::Watch, Answer::No);
    bench.host.answer(Action::RestartOld, Answer::No);
    assert_eq!(bench.run(push(4, "v3")).await.result, Ending::Stuck);
    // The way back leads to what was found, and that was stuck.
    bench.host.answer(Action::RestartOld, Answer::Yes);
    bench.host.answer(Action::WatchOld, Answer::Yes);
    let outcome = bench.run(reconcile(5)).await;
    assert_eq!((outcome.result, outcome.release), (Ending::RolledBack, None));
    assert!(bench.history.stuck(project().name).await.unwrap().is_some());
    bench.host.answer(Action::Watch, Answer::Yes);
    let outcome = bench.run(reconcile(6)).await;
    assert_eq!(
        (outcome.result, outcome.release),
        (Ending::Live, Some(ReleaseNumber(2)))
    );
    assert_eq!(bench.states().await, [(1, Replaced), (2, Live), (3, Failed)]);
    assert!(bench.history.stuck(project().name).await.unwrap().is_none());
}

/// The automatic rollback of the push with this id, which went from release 1 to 2.
fn taken_back(id: u64, undoes: u64) -> Request {
    Request::AutoRollback(AutoRollback {
        id: DeploymentId::from_bits(id),
        undoes: DeploymentId::from_bits(undoes),
        sick: ReleaseNumber(2),
        to: ReleaseNumber(1),
        cause: Problem::new(Code::Unhealthy, "web: it exited with code 3").into(),
        source: Source::default(),
    })
}

#[tokio::test]
async fn an_automatic_rollback_ends_rolled_back_with_the_cause_and_ends_the_bake() {
    let bench = Bench::new();
    let live = bench.run(push(1, "v2")).await;
    assert_eq!((live.result, live.bake_ms), (Ending::Live, Some(60_000)));
    let bakes = bench.history.bakes().await.unwrap();
    assert_eq!(bakes[0].release, ReleaseNumber(2));

    // Touches nothing, so the release bakes on.
    bench.host.answer(Action::Pull, Answer::No);
    bench.run(push(2, "v3")).await;
    assert_eq!(bench.history.bakes().await.unwrap(), bakes);
    bench.host.answer(Action::Pull, Answer::Yes);

    let outcome = bench.run(taken_back(3, 1)).await;
    assert_eq!(
        (outcome.result, outcome.release, outcome.undone),
        (Ending::RolledBack, Some(ReleaseNumber(1)), Some(ReleaseNumber(2)))
    );
    assert_eq!(outcome.problem.unwrap().detail, "web: it exited with code 3");
    let states = bench.states().await;
    assert_eq!(states[..2], [(1, ReleaseState::Live), (2, ReleaseState::Failed)]);
    assert_eq!(bench.history.bakes().await.unwrap(), []);
    let undone_by = bench.history.undone_by(DeploymentId::from_bits(1)).await.unwrap();
    assert_eq!(undone_by, Some(DeploymentId::from_bits(3)));
    assert!(bench.history.stuck(project().name).await.unwrap().is_none());
}

#[tokio::test]
async fn an_automatic_rollback_that_puts_nothing_back_is_stuck_even_when_it_touched_nothing() {
    for (action, and_back) in [
        (Action::Plan, Answer::Yes),
        (Action::Pull, Answer::Yes),
        (Action::Watch, Answer::Yes),
        (Action::Watch, Answer::No),
    ] {
        let bench = Bench::new();
        bench.run(push(1, "v2")).await;
        bench.host.answer(action, Answer::No);
        bench.host.answer(Action::WatchOld, and_back);
        let outcome = bench.run(taken_back(2, 1)).await;
        assert_eq!(
            (outcome.result, outcome.release),
            (Ending::Stuck, None),
            "{action:?}"
        );
        assert_eq!(outcome.problem.unwrap().detail, "web: it exited with code 3");
        let trouble = outcome.trouble.unwrap().detail;
        assert!(trouble.contains(&format!("{action:?} said no")), "{trouble}");
        assert_eq!(trouble.contains("WatchOld"), and_back == Answer::No, "{trouble}");
        assert!(bench.history.stuck(project().name).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn an_automatic_rollback_runs_no_hook_and_one_to_the_same_images_is_stuck() {
    let hook = |name: &str, moment| Hook {
        name: name.to_owned(),
        moment,
        service: None,
        command: vec!["true".to_owned()],
        deadline: Duration::from_secs(5),
    };
    let project = Project {
        hooks: vec![
            hook("backup", HookMoment::BeforeEverything),
            hook("smoke", HookMoment::AfterLive),
        ],
        ..project()
    };
    let bench = Bench::new();
    let run = async |request| {
        let deployment = bench.accept(request).await;
        ended(bench.runner().run(&project, deployment, nobody()).await.unwrap())
    };
    assert_eq!(run(push(1, "v2")).await.result, Ending::Live);
    let before = bench.host.hooks().len();
    assert_eq!(run(taken_back(2, 1)).await.result, Ending::RolledBack);
    assert_eq!(
        bench.host.hooks().len(),
        before,
        "a failing backup would keep the sick release"
    );

    // Release 1 runs again: going back to it once more changes nothing, so what is sick runs on.
    let outcome = run(taken_back(3, 1)).await;
    assert_eq!((outcome.result, outcome.release), (Ending::Stuck, None));
}

#[tokio::test]
async fn across_a_migration_that_cannot_be_undone_nothing_is_taken_back() {
    let bench = Bench::new();
    bench.run(push(1, "v2")).await;
    let marked = bench
        .history
        .mark_irreversible(project().name, ReleaseNumber(2))
        .await;
    marked.unwrap();
    let before = bench.host.asked().len();
    let outcome = bench.run(taken_back(2, 1)).await;
    assert_eq!(outcome.result, Ending::Stuck);
    assert_eq!(outcome.trouble.unwrap().code, Code::Irreversible);
    assert_eq!(bench.host.asked().len(), before, "the host is asked for nothing");
}

/// The push that gets a project out of a migration has none of its own, and its data is migrated all the same.
#[tokio::test]
async fn what_was_pushed_out_of_a_stuck_migration_is_not_taken_back_before_it() {
    let migrated = Project {
        hooks: vec![Hook {
            name: "migrate".to_owned(),
            moment: HookMoment::BeforeRestart {
                is_irreversible: true,
            },
            service: None,
            command: vec!["true".to_owned()],
            deadline: Duration::from_secs(5),
        }],
        ..project()
    };
    let bench = Bench::new();
    assert_eq!(bench.run(push(1, "v2")).await.result, Ending::Live);
    bench.host.answer(Action::Watch, Answer::No);
    let deployment = bench.accept(push(2, "v3")).await;
    let stuck = bench.runner().run(&migrated, deployment, nobody()).await.unwrap();
    assert_eq!(ended(stuck).result, Ending::Stuck);
    // Twice: what is pushed and gets stuck in between hands it on.
    bench.host.answer(Action::WatchOld, Answer::No);
    assert_eq!(bench.run(push(3, "v4")).await.result, Ending::Stuck);
    bench.host.answer(Action::Watch, Answer::Yes);
    assert_eq!(bench.run(push(4, "v5")).await.result, Ending::Live);

    let sick = AutoRollback {
        id: DeploymentId::from_bits(5),
        undoes: DeploymentId::from_bits(4),
        sick: ReleaseNumber(5),
        to: ReleaseNumber(2),
        cause: super::fake_host::no(Action::Watch),
        source: Source::default(),
    };
    let outcome = bench.run(Request::AutoRollback(sick)).await;
    assert_eq!(outcome.result, Ending::Stuck, "{outcome:?}");
    assert_eq!(outcome.trouble.unwrap().code, Code::Irreversible);
}

#[tokio::test]
async fn a_release_that_a_failed_push_was_rolled_back_to_bakes_on_in_new_containers() {
    let bench = Bench::new();
    bench.run(push(1, "v2")).await;
    let known = [("api".parse().unwrap(), ["a".to_owned()].into())].into();
    let id = DeploymentId::from_bits(1);
    bench.history.bake_watches(id.clone(), known).await.unwrap();
    bench.host.answer(Action::Watch, Answer::No);
    assert_eq!(bench.run(push(2, "v3")).await.result, Ending::RolledBack);
    let bakes = bench.history.bakes().await.unwrap();
    assert_eq!((&bakes[0].deployment, &bakes[0].containers), (&id, &None));
    // What goes live takes its place.
    bench.host.answer(Action::Watch, Answer::Yes);
    bench.run(push(3, "v4")).await;
    let bakes = bench.history.bakes().await.unwrap();
    assert_eq!(
        bakes
            .iter()
            .map(|bake| bake.deployment.as_str())
            .collect::<Vec<_>>(),
        ["0000000000000003"]
    );
}
