//! How long each action may take, and which may be broken off when the agent stops. Pure.

use std::time::Duration;

use super::phase::Action;
use crate::config::{Order, Project};

const PLAN_DEADLINE: Duration = Duration::from_secs(60);
const PULL_DEADLINE: Duration = Duration::from_mins(30);
const CHECK_DEADLINE: Duration = Duration::from_secs(60);
/// For one service: its stop grace period (10 s by default, some set a minute), create and start.
const RESTART_DEADLINE_PER_SERVICE: Duration = Duration::from_secs(90);
/// Beyond the watch's own limits, for an Engine that answers slowly.
const WATCH_MARGIN: Duration = Duration::from_secs(30);

/// How long an action may take for so many services. Each is longer than what it waits for inside, so that the inner
/// limit, which knows more, is the one that is told.
pub(super) fn deadline(action: Action, project: &Project, services: usize) -> Duration {
    let services = u32::try_from(services).unwrap_or(u32::MAX);
    let watch = project
        .wait
        .saturating_add(project.settle)
        .saturating_add(WATCH_MARGIN);
    match action {
        Action::Plan => PLAN_DEADLINE,
        Action::Pull => PULL_DEADLINE,
        Action::Gate | Action::BackUp | Action::Edit | Action::Restore => CHECK_DEADLINE,
        Action::Restart | Action::RestartOld => {
            let each = RESTART_DEADLINE_PER_SERVICE.saturating_add(match project.order {
                Order::Together => Duration::ZERO,
                Order::OneByOne => project.wait,
            });
            each.saturating_mul(services)
        }
        Action::Watch | Action::WatchOld => watch,
    }
}

/// What only reads, or pulls, is begun anew after a restart; what changes the host is let finish.
pub(super) fn may_be_interrupted(action: Action) -> bool {
    match action {
        Action::Plan | Action::Pull | Action::Gate | Action::Watch | Action::WatchOld => true,
        Action::BackUp | Action::Edit | Action::Restart | Action::Restore | Action::RestartOld => false,
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
        Action::Restart => "restarting the services",
        Action::Watch => "watching the services",
        Action::Restore => "restoring the files",
        Action::RestartOld => "bringing the previous containers back",
        Action::WatchOld => "watching the previous containers",
    }
}
