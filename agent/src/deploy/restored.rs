//! How a deployment ends that was under way in a backup: pure.
//!
//! It is not carried on: the backup may be weeks old, and other deployments came after it. Nor is it called refused,
//! even in a phase that changes nothing: after the backup was made it went on, and may have changed everything. What is
//! known is only that it is not known, and that a person should look: stuck.

use std::time::Duration;

use deploy_proto::event::Happened;
use deploy_proto::problem::{Code, Problem};
use jiff::Timestamp;

use super::ending::{outcome, release_states};
use super::phase::Phase;
use crate::history::{Deployment, Ended};

/// The phase, the record and the event that end such a deployment. `backup` is when the backup's last entry was made.
pub fn end(deployment: &Deployment, backup: Timestamp, now: Timestamp) -> (Phase, Ended, Vec<Happened>) {
    let detail = format!(
        "the history was restored from a backup whose last entry is of {backup:.0}, when this deployment was {}: how it ended is not known",
        deployment.phase.name().as_str()
    );
    let problem = Problem::new(Code::Internal, detail)
        .hint("compare what runs with `deployctl status`, then push what should run");
    let phase = Phase::Stuck {
        cause: problem.clone().into(),
        trouble: problem.into(),
    };
    let outcome = outcome(&phase, deployment, None, Vec::new(), 0, Duration::ZERO);
    let ended = Ended {
        project: deployment.project.clone(),
        kind: deployment.request.kind(),
        at: now,
        outcome: outcome.clone(),
        releases: release_states(&phase, deployment),
        ran: None,
    };
    (phase, ended, vec![Happened::Ended { outcome }])
}
