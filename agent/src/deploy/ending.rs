//! How a deployment's last phase becomes an outcome for the caller and a state for its releases. Pure.

use std::time::Duration;

use deploy_proto::event::{Ending, Outcome, RunningService};
use deploy_proto::names::ReleaseNumber;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::{DeploymentKind, ReleaseState};

use super::phase::{Failure, Phase};
use crate::history::Deployment;

/// The last phase, as it is recorded. An automatic rollback that did not put the previous release back leaves a sick one
/// running, so that it is stuck even where nothing was touched.
pub(super) fn settled(phase: Phase, deployment: &Deployment) -> Phase {
    let Some(rollback) = deployment.request.auto_rollback() else {
        return phase;
    };
    let trouble = match phase {
        Phase::Refused { cause } | Phase::RolledBack { cause } => cause,
        Phase::Stuck { cause, trouble } => both(cause, &trouble),
        // The release before it runs the same images: the sick one runs on.
        Phase::Unchanged => Problem::new(
            Code::UnknownRelease,
            format!(
                "release {} runs the same images as the one that fell sick",
                rollback.to
            ),
        )
        .into(),
        other @ (Phase::Accepted
        | Phase::Pulling
        | Phase::Gating
        | Phase::BackingUp
        | Phase::Editing
        | Phase::BeforeHook
        | Phase::Restarting
        | Phase::Watching
        | Phase::AfterHook
        | Phase::Restoring { .. }
        | Phase::RestartingOld { .. }
        | Phase::WatchingOld { .. }
        | Phase::Live) => return other,
    };
    Phase::Stuck {
        cause: rollback.cause.clone(),
        trouble,
    }
}

/// Why the previous release did not come back, and why the sick one did not either.
fn both(cause: Failure, trouble: &Failure) -> Failure {
    if cause == *trouble {
        return cause;
    }
    let detail = format!("{}; and then: {}", cause.problem.detail, trouble.problem.detail);
    let hint = trouble.problem.hint.clone().or(cause.problem.hint);
    Failure {
        problem: Problem {
            code: trouble.problem.code,
            detail,
            hint,
            ..cause.problem
        },
        ..cause
    }
}

/// Puts into words and numbers how a deployment ended. `live` is the release that was live when it began, none when the project was stuck, `now` what was
/// seen to run, `bake` how long the project's releases are watched afterwards.
pub(super) fn outcome(
    phase: &Phase,
    deployment: &Deployment,
    live: Option<ReleaseNumber>,
    now: Vec<RunningService>,
    elapsed_ms: u64,
    bake: Duration,
) -> Outcome {
    let undone = deployment.request.auto_rollback().map(|rollback| &rollback.cause);
    let (result, cause, trouble) = match phase {
        // The previous release runs again, checked: that is what went live here.
        Phase::Live if undone.is_some() => (Ending::RolledBack, undone, None),
        Phase::Live => (Ending::Live, None, None),
        Phase::Unchanged => (Ending::Unchanged, None, None),
        Phase::Refused { cause } => (Ending::Refused, Some(cause), None),
        Phase::RolledBack { cause } => (Ending::RolledBack, Some(cause), None),
        Phase::Stuck { cause, trouble } => (Ending::Stuck, Some(cause), Some(trouble)),
        Phase::Accepted
        | Phase::Pulling
        | Phase::Gating
        | Phase::BackingUp
        | Phase::Editing
        | Phase::BeforeHook
        | Phase::Restarting
        | Phase::Watching
        | Phase::AfterHook
        | Phase::Restoring { .. }
        | Phase::RestartingOld { .. }
        | Phase::WatchingOld { .. } => (Ending::Stuck, None, None),
    };
    let release = if *phase == Phase::Live {
        deployment.plan.as_ref().map(|plan| plan.to)
    } else {
        live
    };
    // When stuck, no release runs whole, and what a reconciliation found was none: naming one would be a claim that was
    // not checked.
    let is_a_release = match (result, deployment.request.kind()) {
        (Ending::Stuck, _) | (Ending::RolledBack, DeploymentKind::Reconcile) => false,
        (Ending::Live | Ending::Unchanged | Ending::Refused | Ending::RolledBack, _) => true,
    };
    Outcome {
        result,
        release: release.filter(|_| is_a_release),
        problem: cause.map(|failure| failure.problem.clone()),
        trouble: trouble.map(|failure| failure.problem.clone()),
        sick_service: cause.and_then(|failure| failure.service.clone()),
        log_lines: cause.map(|failure| failure.log_lines.clone()).unwrap_or_default(),
        now,
        elapsed_ms,
        bake_ms: bakes(phase, deployment, bake),
        undone: deployment.request.auto_rollback().map(|rollback| rollback.sick),
    }
}

/// How long what went live is watched: only a push. What a rollback goes back to was live before.
fn bakes(phase: &Phase, deployment: &Deployment, bake: Duration) -> Option<u64> {
    let begins = *phase == Phase::Live
        && deployment.request.kind() == DeploymentKind::Push
        && deployment.from.is_some()
        && !bake.is_zero();
    begins.then(|| u64::try_from(bake.as_millis()).unwrap_or(u64::MAX))
}

/// How the releases of a deployment stand when it has ended so.
pub(super) fn release_states(phase: &Phase, deployment: &Deployment) -> Vec<(ReleaseNumber, ReleaseState)> {
    let Some(plan) = &deployment.plan else {
        return Vec::new();
    };
    match (phase, deployment.request.kind()) {
        (Phase::Live, DeploymentKind::AutoRollback) => {
            // What fell sick is no release to go back to.
            let sick = deployment.request.auto_rollback().map(|rollback| rollback.sick);
            let from = [sick, plan.from]
                .into_iter()
                .flatten()
                .filter(|from| *from != plan.to);
            from.map(|from| (from, ReleaseState::Failed))
                .chain([(plan.to, ReleaseState::Live)])
                .collect()
        }
        (Phase::Live, DeploymentKind::Push | DeploymentKind::Rollback) => {
            let replaced = plan
                .from
                .filter(|from| *from != plan.to)
                .map(|from| (from, ReleaseState::Replaced));
            replaced
                .into_iter()
                .chain([(plan.to, ReleaseState::Live)])
                .collect()
        }
        (Phase::Refused { .. } | Phase::RolledBack { .. } | Phase::Stuck { .. }, DeploymentKind::Push) => {
            vec![(plan.to, ReleaseState::Failed)]
        }
        // A rollback's target has been live before and can be asked for again, and what is reconciled with stays live; an
        // unchanged push made no release.
        (
            _,
            DeploymentKind::Rollback
            | DeploymentKind::Reconcile
            | DeploymentKind::AutoRollback
            | DeploymentKind::Push,
        ) => Vec::new(),
    }
}
