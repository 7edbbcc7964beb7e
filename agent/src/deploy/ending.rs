//! How a deployment's last phase becomes an outcome for the caller and a state for its releases. Pure.

use deploy_proto::event::{Ending, Outcome, RunningService};
use deploy_proto::names::ReleaseNumber;
use deploy_proto::release::{DeploymentKind, ReleaseState};

use super::phase::Phase;
use crate::history::Deployment;

/// Puts into words and numbers how a deployment ended. `live` is the release that was live when it began, `now` what was
/// seen to run.
pub(super) fn outcome(
    phase: &Phase,
    deployment: &Deployment,
    live: Option<ReleaseNumber>,
    now: Vec<RunningService>,
    elapsed_ms: u64,
) -> Outcome {
    let (result, cause, trouble) = match phase {
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
    let release = if result == Ending::Live {
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
    }
}

/// How the releases of a deployment stand when it has ended so.
pub(super) fn release_states(phase: &Phase, deployment: &Deployment) -> Vec<(ReleaseNumber, ReleaseState)> {
    let Some(plan) = &deployment.plan else {
        return Vec::new();
    };
    match (phase, deployment.request.kind()) {
        (Phase::Live, _) => {
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
        (_, DeploymentKind::Rollback | DeploymentKind::Reconcile | DeploymentKind::Push) => Vec::new(),
    }
}
