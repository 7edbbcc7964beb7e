//! How a command went on each host: what the summary for people and the document for scripts are made of.

use std::time::Duration;

use deploy_proto::event::{Ending, Outcome};
use deploy_proto::exit_code::ExitCode;
use deploy_proto::names::{DeploymentId, ProjectName, Version};
use deploy_proto::release::{DeploymentKind, PlanView};

use crate::error::Error;
use crate::target::host::Host;

/// What became of a deployment on one host.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It ended, this way.
    Outcome(Box<Outcome>),
    /// It ended cancelled, as this command asked: refused, or rolled back.
    Cancelled(Box<Outcome>),
    /// Only its plan was asked for.
    Planned,
    /// It was accepted, and nobody waited for the end.
    Accepted,
    /// The agent cancels it, and nobody waited for the end.
    Cancelling,
    /// It had not ended when the time to wait was over, or nobody knows whether it was accepted.
    StillRunning(Error),
    /// It was refused at the door, or the agent was not reached.
    Failed(Error),
    /// The command was interrupted while it was under way there; whether the agent had accepted it by then.
    Interrupted { accepted: bool },
    /// An earlier host failed: this one was not asked.
    Untouched,
}

/// One host's part of a deployment.
#[derive(Debug)]
pub(crate) struct HostReport {
    /// The host.
    pub(crate) host: Host,
    /// What was to be done there, as far as the agent told.
    pub(crate) plan: Option<PlanView>,
    /// What became of it.
    pub(crate) ended: Ended,
}

/// A deployment to all hosts of a target.
#[derive(Debug)]
pub(crate) struct Report {
    /// Push or rollback; none for `watch` and `cancel`, which need not know.
    pub(crate) kind: Option<DeploymentKind>,
    /// The Compose project.
    pub(crate) project: Option<ProjectName>,
    /// Its id, the same on all hosts.
    pub(crate) id: DeploymentId,
    /// The label that was asked for.
    pub(crate) version: Option<Version>,
    /// The environment, or the host.
    pub(crate) place: String,
    /// The environment, when there is one.
    pub(crate) environment: Option<String>,
    /// The arguments that lead to the same target again.
    pub(crate) arguments: String,
    /// Each host, in the order of the rollout.
    pub(crate) hosts: Vec<HostReport>,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl HostReport {
    /// The exit code of this host alone.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match &self.ended {
            Ended::Outcome(outcome) => outcome.exit_code(),
            Ended::Cancelled(_) | Ended::Cancelling | Ended::Planned | Ended::Accepted | Ended::Untouched => {
                ExitCode::Done
            }
            Ended::StillRunning(_) => ExitCode::StillRunning,
            Ended::Failed(error) => error.exit_code(),
            Ended::Interrupted { .. } => ExitCode::Interrupted,
        }
    }

    /// Whether the rollout goes on to the next host after this one.
    pub(crate) fn is_good(&self) -> bool {
        self.exit_code() == ExitCode::Done
    }

    /// How it ended, when it was seen to end.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        match &self.ended {
            Ended::Outcome(outcome) | Ended::Cancelled(outcome) => Some(outcome),
            Ended::Planned
            | Ended::Accepted
            | Ended::Cancelling
            | Ended::StillRunning(_)
            | Ended::Failed(_)
            | Ended::Interrupted { .. }
            | Ended::Untouched => None,
        }
    }
}

impl Report {
    /// The exit code of the command: the first host's that is not well.
    pub(crate) fn exit_code(&self) -> ExitCode {
        self.hosts
            .iter()
            .map(HostReport::exit_code)
            .find(|code| *code != ExitCode::Done)
            .unwrap_or(ExitCode::Done)
    }

    /// Whether every host runs already what was asked for.
    pub(crate) fn is_unchanged(&self) -> bool {
        self.hosts.iter().all(|host| {
            host.outcome()
                .is_some_and(|outcome| outcome.result == Ending::Unchanged)
        })
    }
}
