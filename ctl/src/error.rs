//! Why a command failed: kind, cause and hint, and from the kind the exit code.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::names::DeploymentId;
use deploy_proto::problem::{Code, Problem};

use crate::client::ClientError;
use crate::client::deliver::DeliverError;
use crate::client::follow::FollowError;
use crate::key::KeyError;
use crate::target::TargetError;

/// How the errors begin with which libraries wrap the one that says something.
const OUTER_TEXTS: [&str; 3] = [
    "error sending request",
    "client error (",
    "error decoding response body",
];

/// Any failure of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The arguments do not say what to do.
    #[error("{what}")]
    Usage { what: String, hint: Option<String> },
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Deliver(#[from] DeliverError),
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The agent took the cancellation, and the deployment was past heeding it.
    #[error("deployment {id} was not cancelled: {how}")]
    NotCancelled {
        id: DeploymentId,
        how: &'static str,
        hint: Option<String>,
    },
    /// A person said no.
    #[error("not confirmed: nothing was sent")]
    Declined,
    #[error("failed to print")]
    Output(#[source] std::io::Error),
    #[error("failed to write JSON")]
    Json(#[source] serde_json::Error),
    #[error("failed to start")]
    Runtime(#[source] std::io::Error),
}

impl Error {
    /// Wrong arguments, with what to type instead.
    pub(crate) fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// The exit code of a command that fails with this.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage { .. } | Self::Target(_) | Self::Key(_) => ExitCode::Usage,
            Self::Client(error)
            | Self::Deliver(DeliverError::NotAccepted(error))
            | Self::Follow(FollowError::Client(error)) => error.exit_code(),
            Self::Deliver(DeliverError::Unknown(_)) | Self::Follow(FollowError::StillRunning) => {
                ExitCode::StillRunning
            }
            Self::NotCancelled { .. } | Self::Declined => ExitCode::Gate,
            Self::Output(_) | Self::Json(_) | Self::Runtime(_) => ExitCode::Unexpected,
        }
    }

    /// Whether the reader of standard output has gone, as `head` does: nothing to complain about.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(source) if source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// The stable word for scripts: the agent's code where the agent answered.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Usage { .. } => "usage",
            Self::Target(_) => "configuration",
            Self::Key(_) => "key",
            Self::Client(error)
            | Self::Deliver(DeliverError::NotAccepted(error))
            | Self::Follow(FollowError::Client(error)) => error.code(),
            Self::Deliver(DeliverError::Unknown(_)) => "unknown",
            Self::Follow(FollowError::StillRunning) => "still_running",
            Self::NotCancelled { .. } => "too_late",
            Self::Declined => "declined",
            Self::Output(_) | Self::Json(_) | Self::Runtime(_) => "unexpected",
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { hint, .. } => hint.clone(),
            Self::Target(error) => error.hint(),
            Self::Key(error) => error.hint(),
            Self::Client(error)
            | Self::Deliver(DeliverError::NotAccepted(error))
            | Self::Follow(FollowError::Client(error)) => error.hint(),
            Self::NotCancelled { hint, .. } => hint.clone(),
            Self::Deliver(DeliverError::Unknown(_))
            | Self::Follow(FollowError::StillRunning)
            | Self::Declined
            | Self::Output(_)
            | Self::Json(_)
            | Self::Runtime(_) => None,
        }
    }

    /// Whether the host has certainly not taken the deployment: it said so, or never heard of it.
    pub(crate) fn is_certainly_not_accepted(&self) -> bool {
        match self {
            Self::Client(error) | Self::Deliver(DeliverError::NotAccepted(error)) => {
                // What is too late to cancel was accepted long ago.
                error.never_sent()
                    || matches!(error, ClientError::Answered { problem, .. } if problem.code != Code::TooLate)
            }
            Self::Usage { .. } | Self::Target(_) | Self::Key(_) | Self::Declined => true,
            Self::Deliver(DeliverError::Unknown(_))
            | Self::NotCancelled { .. }
            | Self::Follow(_)
            | Self::Output(_)
            | Self::Json(_)
            | Self::Runtime(_) => false,
        }
    }

    /// What the agent said, where it answered.
    pub(crate) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Client(error)
            | Self::Deliver(DeliverError::NotAccepted(error))
            | Self::Follow(FollowError::Client(error)) => error.problem(),
            Self::Usage { .. }
            | Self::Target(_)
            | Self::Key(_)
            | Self::Deliver(DeliverError::Unknown(_))
            | Self::Follow(FollowError::StillRunning)
            | Self::NotCancelled { .. }
            | Self::Declined
            | Self::Output(_)
            | Self::Json(_)
            | Self::Runtime(_) => None,
        }
    }

    /// What stands behind it, outermost first, without what was said already.
    pub(crate) fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let text = error.to_string();
            // Some libraries repeat their source in their own text: the innermost is the one that says it best.
            causes.retain(|cause| !cause.contains(&text));
            causes.push(text);
            next = error.source();
        }
        // The outer texts of reqwest and hyper only repeat what is said already.
        causes.retain(|cause| !OUTER_TEXTS.iter().any(|outer| cause.starts_with(outer)));
        causes
    }
}
