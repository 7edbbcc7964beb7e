//! Hooks in the runner: where they run, what follows when one fails, and what runs again after a crash.

use std::collections::BTreeMap;
use std::time::Duration;

use deploy_proto::event::{Ending, Happened, Outcome};
use deploy_proto::names::{DeploymentId, ReleaseNumber};
use deploy_proto::problem::Code;
use deploy_proto::push::RollbackTarget;
use jiff::Timestamp;

use super::fake_host::{Answer, NEW_DIGEST};
use super::phase::Action;
use super::runner::ATTEMPTS_MAX;
use super::runner_tests::{Bench, FORWARD, back, ended, nobody, project, push};
use crate::config::{Hook, HookMoment, Project};
use crate::history::Request;

fn hook(name: &str, moment: HookMoment) -> Hook {
    Hook {
        name: name.to_owned(),
        moment,
        service: None,
        command: vec!["true".to_owned()],
        deadline: Duration::from_secs(5),
    }
}

const REVERSIBLE: HookMoment = HookMoment::BeforeRestart {
    is_irreversible: false,
};
const FOR_GOOD: HookMoment = HookMoment::BeforeRestart {
    is_irreversible: true,
};

/// The project with hooks at every moment; two before the restart.
fn hooked(second: HookMoment) -> Project {
    Project {
        hooks: vec![
            hook("backup", HookMoment::BeforeEverything),
            hook("check", REVERSIBLE),
            hook("migrate", second),
            hook("smoke", HookMoment::AfterLive),
        ],
        ..project()
    }
}

const HOOKED: [Action; 10] = [
    Action::Plan,
    Action::Pull,
    Action::Gate,
    Action::BackUp,
    Action::Edit,
    Action::RunBeforeHooks,
    Action::RunBeforeHooks,
    Action::Restart,
    Action::Watch,
    Action::RunAfterHooks,
];

impl Bench {
    async fn run_hooked(&self, project: &Project, request: Request) -> Outcome {
        let deployment = self.accept(request).await;
        ended(self.runner().run(project, deployment, nobody()).await.unwrap())
    }

    /// Kills the agent in an action, and starts it again.
    async fn killed_in(&self, project: &Project, request: Request, action: Action) -> Outcome {
        self.host.answer(action, Answer::Never);
        let deployment = self.accept(request).await;
        let runner = self.runner();
        let asked = || async {
            while self.host.asked().last() != Some(&action) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ran = runner.run(project, deployment, nobody()) => panic!("{action:?} ended: {ran:?}"),
            () = asked() => {}
        }
        self.host.answer(action, Answer::Yes);
        let deployment = self.history.unfinished().await.unwrap().pop().unwrap();
        ended(self.runner().run(project, deployment, nobody()).await.unwrap())
    }

    fn ran(&self) -> Vec<String> {
        self.host.hooks().into_iter().map(|(name, _)| name).collect()
    }
}

#[tokio::test]
async fn hooks_run_in_their_places_and_know_their_deployment() {
    let bench = Bench::new();
    let outcome = bench.run_hooked(&hooked(REVERSIBLE), push(1, "v2")).await;
    assert_eq!(outcome.result, Ending::Live);
    assert_eq!(bench.host.asked(), HOOKED);
    assert_eq!(bench.ran(), ["backup", "check", "migrate", "smoke"]);
    let (_, variables) = bench.host.hooks().remove(2);
    let told: BTreeMap<_, _> = variables.into_iter().collect();
    let new = format!("acme/api:v2@{NEW_DIGEST}");
    for (name, value) in [
        ("DEPLOY_PROJECT", "shop"),
        ("DEPLOY_ID", "0000000000000001"),
        ("DEPLOY_KIND", "push"),
        ("DEPLOY_HOOK", "migrate"),
        ("DEPLOY_KEY", "ci"),
        ("DEPLOY_VERSION", "v2"),
        ("DEPLOY_RELEASE", "2"),
        ("DEPLOY_PREVIOUS_RELEASE", "1"),
        ("DEPLOY_SERVICES", "worker api"),
        ("DEPLOY_OLD_IMAGE_API", "acme/api:v1"),
        ("DEPLOY_NEW_IMAGE_API", new.as_str()),
    ] {
        assert_eq!(told.get(name).map(String::as_str), Some(value), "{name}");
    }
    let events = bench.history.events(DeploymentId::from_bits(1), 0).await.unwrap();
    let mut done = Vec::new();
    for event in events {
        if let Happened::HookDone { last_lines, .. } = event.what {
            done.extend(last_lines);
        }
    }
    assert_eq!(done, ["backup said", "check said", "migrate said", "smoke said"]);
}

#[tokio::test]
async fn a_rollback_backs_up_and_is_tried_out_but_migrates_nothing() {
    let bench = Bench::new();
    let project = hooked(REVERSIBLE);
    bench.run_hooked(&project, push(1, "v2")).await;
    let outcome = bench.run_hooked(&project, back(2, RollbackTarget::Back(1))).await;
    assert_eq!(
        (outcome.result, outcome.release),
        (Ending::Live, Some(ReleaseNumber(1)))
    );
    assert_eq!(bench.ran().split_off(4), ["backup", "smoke"]);
}

#[tokio::test]
async fn a_hook_that_fails_refuses_before_the_first_change_and_rolls_back_after_it() {
    for (failing, expected) in [
        (Action::BackUp, Ending::Refused),
        (Action::RunBeforeHooks, Ending::RolledBack),
        (Action::RunAfterHooks, Ending::RolledBack),
    ] {
        let bench = Bench::new();
        bench.host.answer(failing, Answer::No);
        let outcome = bench.run_hooked(&hooked(REVERSIBLE), push(1, "v2")).await;
        assert_eq!(outcome.result, expected, "{failing:?}");
        let asked = bench.host.asked();
        assert_eq!(
            asked.contains(&Action::Restore),
            expected == Ending::RolledBack,
            "{asked:?}"
        );
        let before = failing == Action::RunBeforeHooks;
        assert_eq!(
            before,
            !asked.contains(&Action::Restart) && asked.contains(&Action::Edit)
        );
        if before {
            // The lines of the old containers are not kept as those of a release that never ran.
            let kept = bench
                .history
                .kept_log(project().name, ReleaseNumber(2), "api".parse().unwrap())
                .await
                .unwrap();
            assert_eq!(kept, None);
        }
    }
}

#[tokio::test]
async fn an_agent_killed_in_a_hook_runs_it_again_and_no_other_hook_twice() {
    for (killed_in, ran) in [
        (Action::BackUp, ["backup", "backup", "check", "migrate", "smoke"]),
        (
            Action::RunBeforeHooks,
            ["backup", "check", "check", "migrate", "smoke"],
        ),
        (
            Action::RunAfterHooks,
            ["backup", "check", "migrate", "smoke", "smoke"],
        ),
    ] {
        let bench = Bench::new();
        let project = hooked(FOR_GOOD);
        let outcome = bench.killed_in(&project, push(1, "v2"), killed_in).await;
        assert_eq!(outcome.result, Ending::Live, "{killed_in:?}");
        assert_eq!(bench.ran(), ran, "{killed_in:?}");
    }
    for killed_in in FORWARD {
        let bench = Bench::new();
        let outcome = bench.killed_in(&hooked(FOR_GOOD), push(1, "v2"), killed_in).await;
        assert_eq!(outcome.result, Ending::Live, "{killed_in:?}");
        assert_eq!(
            bench.ran(),
            ["backup", "check", "migrate", "smoke"],
            "{killed_in:?}"
        );
    }
}

#[tokio::test]
async fn what_fails_after_an_irreversible_migration_began_is_stuck_and_the_way_back_must_be_asked_for() {
    for failing in [Action::Restart, Action::Watch, Action::RunAfterHooks] {
        let bench = Bench::new();
        let project = hooked(FOR_GOOD);
        assert_eq!(
            bench.run_hooked(&project, push(1, "v2")).await.result,
            Ending::Live
        );
        bench.host.answer(failing, Answer::No);
        let outcome = bench.run_hooked(&project, push(2, "v3")).await;
        assert_eq!(outcome.result, Ending::Stuck, "{failing:?}");
        assert_eq!(
            outcome.problem.unwrap().detail,
            format!("{failing:?} said no"),
            "what went wrong first is the reason"
        );
        let trouble = outcome.trouble.unwrap();
        assert_eq!(trouble.code, Code::Irreversible);
        assert!(!bench.host.asked().contains(&Action::Restore));

        // The step back goes to what was live before the push that is stuck.
        bench.host.answer(failing, Answer::Yes);
        let refused = bench.run_hooked(&project, back(3, RollbackTarget::Back(1))).await;
        assert_eq!(refused.result, Ending::Refused);
        assert_eq!(refused.problem.unwrap().code, Code::Irreversible);
        let mut across = back(4, RollbackTarget::Back(1));
        if let Request::Rollback(rollback) = &mut across {
            rollback.across_migration = true;
        }
        let outcome = bench.run_hooked(&project, across).await;
        assert_eq!(
            (outcome.result, outcome.release),
            (Ending::Live, Some(ReleaseNumber(2))),
            "{failing:?}"
        );
        assert!(bench.history.stuck(project.name.clone()).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_hook_that_fails_before_the_irreversible_one_is_rolled_back() {
    let bench = Bench::new();
    bench.host.answer(Action::RunBeforeHooks, Answer::No);
    let outcome = bench.run_hooked(&hooked(FOR_GOOD), push(1, "v2")).await;
    assert_eq!(outcome.result, Ending::RolledBack);
    assert_eq!(bench.ran(), ["backup", "check"]);
    let releases = bench.history.releases(project().name, 10).await.unwrap();
    assert!(
        releases.iter().all(|release| !release.irreversible),
        "{releases:?}"
    );

    let only_migration = Project {
        hooks: vec![hook("migrate", FOR_GOOD)],
        ..project()
    };
    let outcome = bench.run_hooked(&only_migration, push(2, "v3")).await;
    assert_eq!(outcome.result, Ending::Stuck);
    let trouble = outcome.trouble.unwrap();
    assert!(
        trouble.detail.contains("previous containers were not touched"),
        "{trouble:?}"
    );
}

#[tokio::test]
async fn an_agent_that_dies_in_an_irreversible_migration_every_time_is_stuck() {
    let bench = Bench::new();
    let project = Project {
        hooks: vec![hook("migrate", FOR_GOOD)],
        ..project()
    };
    bench.host.answer(Action::RunBeforeHooks, Answer::Never);
    let mut deployment = bench.accept(push(1, "v2")).await;
    for start in 1..=ATTEMPTS_MAX {
        let runner = bench.runner();
        let ran = || usize::try_from(start).is_ok_and(|start| bench.ran().len() == start);
        let asked = || async {
            while !ran() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = runner.run(&project, deployment, nobody()) => panic!("start {start} ended: {ended:?}"),
            () = asked() => {}
        }
        deployment = bench.history.unfinished().await.unwrap().pop().unwrap();
    }
    let outcome = ended(bench.runner().run(&project, deployment, nobody()).await.unwrap());
    assert_eq!(outcome.result, Ending::Stuck);
    assert_eq!(bench.ran().len(), 5, "the sixth start runs nothing");
}

#[tokio::test]
async fn cancelled_while_the_files_are_written_an_irreversible_migration_does_not_begin() {
    let bench = Bench::new();
    let project = Project {
        hooks: vec![hook("migrate", FOR_GOOD)],
        ..project()
    };
    bench.host.answer(Action::Edit, Answer::Held);
    let deployment = bench.accept(push(1, "v2")).await;
    let id = deployment.id().clone();
    // The runner is not told yet: the journal is what counts.
    let canceller = async {
        while bench.host.asked().last() != Some(&Action::Edit) {
            tokio::task::yield_now().await;
        }
        let cancelled = bench.history.cancel(id, "kim".parse().unwrap(), Timestamp::now());
        assert!(cancelled.await.unwrap().is_some());
        bench.host.go_on();
    };
    let runner = bench.runner();
    let (ran, ()) = tokio::join!(runner.run(&project, deployment, nobody()), canceller);
    let outcome = ended(ran.unwrap());
    assert_eq!(outcome.result, Ending::RolledBack);
    assert_eq!(bench.ran(), [] as [&str; 0]);
}
