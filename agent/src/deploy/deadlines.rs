//! How long each action may take, and which may be broken off when the agent stops. Pure.

use std::time::Duration;

use super::phase::Action;
use super::plan::{Moment, Plan};
use crate::config::{Order, Project};

/// Compose's version and model (20 s and 30 s), the registries (20 s, and 20 s for a credential helper), the model once
/// more, and all of it again after a restart of the Engine.
const PLAN_DEADLINE: Duration = Duration::from_mins(5);
const PULL_DEADLINE: Duration = Duration::from_mins(30);
const CHECK_DEADLINE: Duration = Duration::from_mins(2);
/// What is done to files runs on a thread that goes on when nobody waits for it: a rename that lands in a later phase
/// would be worse than a long wait, so this limit is far beyond all that is waited for inside.
const FILES_DEADLINE: Duration = Duration::from_hours(1);
/// For one service. Here nothing is known of its stop grace period: the host's limits (`host/restart.rs`), which are
/// shorter, are the real ones, and this one only ends what they do not.
const RESTART_DEADLINE_PER_SERVICE: Duration = Duration::from_hours(1);
/// For the journal, where an action writes into it: a database that somebody locked is waited for twice ten minutes.
const JOURNAL_MARGIN: Duration = Duration::from_mins(25);
/// Beyond the hooks' own limits: making and removing the container that one runs in.
const HOOK_MARGIN: Duration = Duration::from_mins(2);
/// How often a watch may begin, `host/restart.rs`: anew after an absence of the Engine.
pub const WATCHES_MAX: u32 = 2;
/// Beyond the watch's own limits: for the absence of the Engine, one that answers slowly, and the last look's checks.
const WATCH_MARGIN: Duration = Duration::from_mins(4);
/// How often a step of the way back is begun inside one action while the Engine comes and goes.
pub const BACK_ATTEMPTS: u32 = 3;
/// How long the Engine is waited for on the way back, in all.
const BACK_MARGIN: Duration = Duration::from_mins(50);

/// How long an action of a plan may take; none is made yet when that is the action. Each is longer than what it waits
/// for inside, so that the inner limit, which knows more, is the one that is told.
pub(super) fn deadline(action: Action, project: &Project, plan: Option<&Plan>) -> Duration {
    let services = plan.map_or(1, |plan| plan.services.len().max(1));
    let services = u32::try_from(services).unwrap_or(u32::MAX);
    let hooks = |moment| {
        let hooks = plan.into_iter().flat_map(|plan| plan.hooks_at(moment));
        let each = hooks.map(|hook| Duration::from_millis(hook.deadline_ms).saturating_add(HOOK_MARGIN));
        each.fold(JOURNAL_MARGIN, Duration::saturating_add)
    };
    let watch = project
        .wait
        .saturating_add(project.settle)
        .saturating_mul(WATCHES_MAX)
        .saturating_add(WATCH_MARGIN);
    let restart = RESTART_DEADLINE_PER_SERVICE
        .saturating_add(match project.order {
            Order::Together => Duration::ZERO,
            Order::OneByOne => watch,
        })
        .saturating_mul(services);
    match action {
        // Services that run what was asked for already are watched in it.
        Action::Plan => PLAN_DEADLINE.saturating_add(watch).saturating_add(JOURNAL_MARGIN),
        Action::Pull => PULL_DEADLINE,
        Action::Gate => CHECK_DEADLINE,
        Action::BackUp => FILES_DEADLINE.saturating_add(hooks(Moment::BeforeChange)),
        Action::Edit | Action::Restore => FILES_DEADLINE,
        Action::RunBeforeHooks => hooks(Moment::BeforeRestart),
        Action::RunAfterHooks => hooks(Moment::AfterLive),
        Action::Restart => restart,
        Action::RestartOld => restart.saturating_mul(BACK_ATTEMPTS).saturating_add(BACK_MARGIN),
        Action::Watch => watch,
        // It may bring services up again.
        Action::WatchOld => watch
            .saturating_add(restart)
            .saturating_mul(BACK_ATTEMPTS)
            .saturating_add(BACK_MARGIN),
    }
}

/// What only reads, or pulls, is begun anew after a restart; what changes the host is let finish.
pub(super) fn may_be_interrupted(action: Action) -> bool {
    match action {
        Action::Plan | Action::Pull | Action::Gate | Action::Watch | Action::WatchOld => true,
        Action::BackUp
        | Action::Edit
        | Action::RunBeforeHooks
        | Action::Restart
        | Action::RunAfterHooks
        | Action::Restore
        | Action::RestartOld => false,
    }
}

/// What is broken off when the deployment is cancelled, where its phase heeds that. The plan is made to its end, which is
/// soon, so that what it recorded is known.
pub(super) fn may_be_broken_off(action: Action) -> bool {
    match action {
        Action::Pull
        | Action::Gate
        | Action::BackUp
        | Action::RunBeforeHooks
        | Action::Restart
        | Action::Watch
        | Action::RunAfterHooks => true,
        Action::Plan | Action::Edit | Action::Restore | Action::RestartOld | Action::WatchOld => false,
    }
}

/// The action as a person reads it in `... did not end within 60s`.
pub(super) fn doing(action: Action) -> &'static str {
    match action {
        Action::Plan => "planning",
        Action::Pull => "pulling the images",
        Action::Gate => "the check before the first change",
        Action::BackUp => "backing up",
        Action::Edit => "editing the files",
        Action::RunBeforeHooks => "running the hooks before the restart",
        Action::Restart => "restarting the services",
        Action::Watch => "watching the services",
        Action::RunAfterHooks => "running the hooks after the restart",
        Action::Restore => "restoring the files",
        Action::RestartOld => "bringing the previous containers back",
        Action::WatchOld => "watching the previous containers",
    }
}
