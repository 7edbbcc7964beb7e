//! Errors as a caller sees them: RFC 9457 problem documents with a stable code, a cause and a hint.

use serde::{Deserialize, Serialize};

use crate::exit_code::ExitCode;

/// The media type of a problem document (RFC 9457 section 3).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// The most lines that a problem carries beside its one sentence.
pub const LINES_MAX: usize = 50;

/// The stable kinds of error. The text form is what scripts match; codes are only ever added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The request is not well-formed: JSON, a name, an image reference, an unknown field.
    BadRequest,
    /// The body is larger than the agent reads.
    TooLarge,
    /// The signature is missing, malformed, stale, replayed, or by a key that is not known here. One answer for all.
    NotAuthenticated,
    /// The key is known, but may not do this here.
    NotAllowed,
    /// The image's repository is not on the project's allow-list.
    ImageNotAllowed,
    /// The tag is `latest` or missing, and the project does not allow that.
    TagNotAllowed,
    /// There is no such project on this host.
    UnknownProject,
    /// The project has no such service, or none that uses this repository.
    UnknownService,
    /// There is no such deployment.
    UnknownDeployment,
    /// There is no such release, or it cannot be rolled back to.
    UnknownRelease,
    /// There is no such path.
    NotFound,
    /// Another deployment of this project is running.
    Busy,
    /// A newer push took this one's place in the queue.
    Superseded,
    /// This deployment id was used before, for another request.
    IdReused,
    /// A newer run of the pipeline was accepted before this one, or another release runs than was expected.
    Stale,
    /// Somebody cancelled the deployment.
    Cancelled,
    /// The deployment has ended, or goes back already, or is past what can be undone: it cannot be cancelled.
    TooLate,
    /// A person edited the Compose file or `.env` since the last release.
    Edited,
    /// The Compose file cannot be read or changed as asked.
    ComposeFile,
    /// The edit would change more than the named images.
    OtherServices,
    /// The image does not exist, cannot be pulled with the host's credentials, or is for another architecture.
    ImageUnavailable,
    /// The host lacks what the deployment needs: disk space, a free port, a sane clock, Compose v2.
    HostUnfit,
    /// A command that the host's configuration runs beside a deployment failed.
    HookFailed,
    /// A migration that cannot be undone is in the way back.
    Irreversible,
    /// A container could not be created or started.
    RestartFailed,
    /// A service did not become or stay healthy.
    Unhealthy,
    /// The agent's own deadline for a phase passed.
    DeadlinePassed,
    /// The Docker Engine does not answer or failed.
    Engine,
    /// The agent's database is held by another program on the host. Nothing was changed.
    DatabaseBusy,
    /// The agent is shutting down.
    ShuttingDown,
    /// A defect or an I/O error in the agent.
    Internal,
}

impl Code {
    /// The HTTP status of an answer with this code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotAuthenticated => 401,
            Self::NotAllowed | Self::ImageNotAllowed | Self::TagNotAllowed => 403,
            Self::UnknownProject
            | Self::UnknownService
            | Self::UnknownDeployment
            | Self::UnknownRelease
            | Self::NotFound => 404,
            Self::Busy
            | Self::Superseded
            | Self::IdReused
            | Self::Stale
            | Self::Cancelled
            | Self::TooLate => 409,
            Self::TooLarge => 413,
            Self::Edited
            | Self::ComposeFile
            | Self::OtherServices
            | Self::ImageUnavailable
            | Self::HostUnfit
            | Self::HookFailed
            | Self::Irreversible
            | Self::RestartFailed
            | Self::Unhealthy => 422,
            Self::Internal => 500,
            Self::Engine | Self::DatabaseBusy | Self::ShuttingDown => 503,
            Self::DeadlinePassed => 504,
        }
    }

    /// The exit code of a command that was answered, or a deployment that was refused, with this code.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::BadRequest | Self::TooLarge | Self::NotFound => ExitCode::Usage,
            Self::NotAuthenticated
            | Self::NotAllowed
            | Self::ImageNotAllowed
            | Self::TagNotAllowed
            | Self::UnknownProject => ExitCode::Refused,
            Self::Busy | Self::Superseded | Self::IdReused | Self::Stale => ExitCode::Busy,
            Self::UnknownService
            | Self::UnknownRelease
            | Self::Edited
            | Self::ComposeFile
            | Self::OtherServices
            | Self::ImageUnavailable
            | Self::HostUnfit
            | Self::Cancelled
            | Self::TooLate
            | Self::HookFailed
            | Self::Irreversible
            | Self::RestartFailed
            | Self::Unhealthy
            | Self::DeadlinePassed
            | Self::Engine
            | Self::DatabaseBusy => ExitCode::Gate,
            Self::UnknownDeployment | Self::ShuttingDown => ExitCode::StillRunning,
            Self::Internal => ExitCode::Unexpected,
        }
    }

    /// The code as scripts see it, for instance `image_not_allowed`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::NotAuthenticated => "not_authenticated",
            Self::NotAllowed => "not_allowed",
            Self::ImageNotAllowed => "image_not_allowed",
            Self::TagNotAllowed => "tag_not_allowed",
            Self::UnknownProject => "unknown_project",
            Self::UnknownService => "unknown_service",
            Self::UnknownDeployment => "unknown_deployment",
            Self::UnknownRelease => "unknown_release",
            Self::NotFound => "not_found",
            Self::Busy => "busy",
            Self::Superseded => "superseded",
            Self::IdReused => "id_reused",
            Self::Stale => "stale",
            Self::Cancelled => "cancelled",
            Self::TooLate => "too_late",
            Self::Edited => "edited",
            Self::ComposeFile => "compose_file",
            Self::OtherServices => "other_services",
            Self::ImageUnavailable => "image_unavailable",
            Self::HostUnfit => "host_unfit",
            Self::HookFailed => "hook_failed",
            Self::Irreversible => "irreversible",
            Self::RestartFailed => "restart_failed",
            Self::Unhealthy => "unhealthy",
            Self::DeadlinePassed => "deadline_passed",
            Self::Engine => "engine",
            Self::DatabaseBusy => "database_busy",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
        }
    }
}

/// Why something was refused or failed, in words for a person, with a code for a script.
///
/// This one shape is the body of an error answer (with `status` and `title` added), the reason of a refused or failed
/// deployment in an event, and a line in history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The stable kind.
    pub code: Code,
    /// What went wrong: one sentence, with names and values.
    pub detail: String,
    /// What to do about it, where the agent knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// More of what went wrong, a line each, at most [`LINES_MAX`]: the lines of a difference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lines: Vec<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            hint: None,
            lines: Vec::new(),
        }
    }

    /// The same problem with more of what went wrong, of which the first [`LINES_MAX`] lines are kept.
    pub fn lines(self, lines: Vec<String>) -> Self {
        let lines = lines.into_iter().take(LINES_MAX).collect();
        Self { lines, ..self }
    }

    /// The same problem with what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// A [`Problem`] as the body of an HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemDocument {
    /// Always `about:blank`: the code says more than a page would (RFC 9457 section 4.2.1).
    pub r#type: String,
    /// The status code's phrase.
    pub title: String,
    /// The HTTP status, repeated.
    pub status: u16,
    /// Code, detail and hint.
    #[serde(flatten)]
    pub problem: Problem,
}
