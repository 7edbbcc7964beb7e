//! What happens in a deployment, as the journal keeps it, the agent streams it and `deployctl` prints it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::exit_code::ExitCode;
use crate::image::ImageRef;
use crate::names::{DeploymentId, KeyName, ProjectName, ReleaseNumber, ServiceName, Version};
use crate::problem::{Code, Problem};
use crate::release::{DeploymentKind, PlanView};

/// The most log lines of a sick service that an outcome carries.
pub const LOG_LINES_MAX: usize = 50;
/// The longest log line that an outcome carries, in bytes; the rest of a longer one is cut.
pub const LOG_LINE_MAX_BYTES: usize = 2_000;

/// One event of one deployment.
///
/// Events with a number are in the journal, in order and without gaps, and a stream resumes after one of them
/// (`Last-Event-ID`). Progress has no number: it is only for those who are watching.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The place in the deployment's journal, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// When it happened, by the host's clock.
    pub at: Timestamp,
    /// The deployment.
    pub deployment: DeploymentId,
    /// What happened.
    #[serde(flatten)]
    pub what: Happened,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Happened {
    /// The agent took the deployment over; from here on it ends by itself.
    Accepted {
        /// The project.
        project: ProjectName,
        /// Push or rollback.
        kind: DeploymentKind,
        /// Whose key signed it.
        key: KeyName,
        /// The caller's label.
        version: Option<Version>,
    },
    /// Somebody asked for it to be cancelled.
    Cancelling {
        /// Whose key signed that.
        key: KeyName,
    },
    /// It waits for another deployment of the project.
    Queued {
        /// The deployment that runs.
        behind: DeploymentId,
    },
    /// The agent knows what it will do.
    Planned {
        /// What.
        plan: PlanView,
    },
    /// A phase began.
    Phase {
        /// Which.
        phase: PhaseName,
    },
    /// A phase ended well.
    PhaseDone {
        /// Which.
        phase: PhaseName,
        /// What was done, for people: `2 images, 41 MB`.
        summary: String,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
    },
    /// A phase failed; what follows puts things back, or nothing had been changed.
    PhaseFailed {
        /// Which.
        phase: PhaseName,
        /// Why.
        problem: Problem,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
    },
    /// Something the watcher should know, for instance that the agent was restarted and goes on.
    Note {
        /// The sentence.
        text: String,
    },
    /// A line that a hook wrote. Not journaled.
    HookSaid {
        /// The hook.
        hook: String,
        /// The service in whose image it runs; none on the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<ServiceName>,
        /// The line, at most [`LOG_LINE_MAX_BYTES`] of it.
        line: String,
    },
    /// A hook ended well.
    HookDone {
        /// The hook.
        hook: String,
        /// The service in whose image it ran; none on the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<ServiceName>,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
        /// What it wrote last, oldest first, at most [`LOG_LINES_MAX`] lines; left out for a key that may not read logs.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        last_lines: Vec<String>,
    },
    /// How far an image is pulled. Not journaled.
    Pulling {
        /// The image.
        image: ImageRef,
        /// Bytes here so far.
        done_bytes: u64,
        /// Bytes known to be needed so far; it grows as the registry tells about layers.
        total_bytes: u64,
    },
    /// What the watch sees of a service. Not journaled.
    Watching {
        /// The service.
        service: ServiceName,
        /// In words: `healthy`, `GET http://... gave 503`.
        seen: String,
    },
    /// The deployment ended. The last event.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

impl Happened {
    /// Whether the event is in the journal (and so has a number), or only for those who watch just now.
    pub fn is_journaled(&self) -> bool {
        match self {
            Self::Accepted { .. }
            | Self::Cancelling { .. }
            | Self::Queued { .. }
            | Self::Planned { .. }
            | Self::Phase { .. }
            | Self::PhaseDone { .. }
            | Self::PhaseFailed { .. }
            | Self::Note { .. }
            | Self::HookDone { .. }
            | Self::Ended { .. } => true,
            Self::HookSaid { .. } | Self::Pulling { .. } | Self::Watching { .. } => false,
        }
    }
}

/// Where a deployment stands, as the wire and people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseName {
    /// Taken over, not yet planned; or waiting for its turn.
    Accepted,
    /// Images are being pulled.
    Pulling,
    /// What can be checked before anything is touched is being checked.
    Gating,
    /// The release, with the old and new bytes of the files, is being recorded.
    BackingUp,
    /// The files are being edited.
    Editing,
    /// The commands that come before the restart run, in the new images.
    BeforeHook,
    /// Containers are being replaced.
    Restarting,
    /// The new containers are being watched.
    Watching,
    /// The commands that try the new release out run.
    AfterHook,
    /// The new release runs.
    Live,
    /// The files are being put back.
    Restoring,
    /// The old containers are being brought back.
    RestartingOld,
    /// The old containers are being checked.
    WatchingOld,
    /// The previous release runs again.
    RolledBack,
    /// Nothing was changed.
    Refused,
    /// The previous release could not be put back: a person is needed.
    Stuck,
}

impl PhaseName {
    /// The phase as the wire has it, for instance `rolled_back`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Pulling => "pulling",
            Self::Gating => "gating",
            Self::BackingUp => "backing_up",
            Self::Editing => "editing",
            Self::BeforeHook => "before_hook",
            Self::Restarting => "restarting",
            Self::Watching => "watching",
            Self::AfterHook => "after_hook",
            Self::Live => "live",
            Self::Restoring => "restoring",
            Self::RestartingOld => "restarting_old",
            Self::WatchingOld => "watching_old",
            Self::RolledBack => "rolled_back",
            Self::Refused => "refused",
            Self::Stuck => "stuck",
        }
    }
}

/// How a deployment ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// In one word.
    pub result: Ending,
    /// The release that runs now.
    pub release: Option<ReleaseNumber>,
    /// Why it did not go live. None only when it did, or nothing was to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// When stuck: why the previous release could not be put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Problem>,
    /// The service that was sick.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sick_service: Option<ServiceName>,
    /// Its last log lines before it was replaced, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log_lines: Vec<String>,
    /// The named services as they run now: seen on the Engine, not inferred.
    pub now: Vec<RunningService>,
    /// How long it was worked on, in milliseconds: without its time in the queue, and without that in which the agent
    /// did not run. No clock that is set counts in it.
    pub elapsed_ms: u64,
    /// How long the release that went live is watched from now on and goes back by itself if it falls sick, in
    /// milliseconds (`bake`). None when it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake_ms: Option<u64>,
    /// The release that fell sick after it had gone live, and that an automatic rollback takes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<ReleaseNumber>,
}

/// What a service runs at the end of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningService {
    /// The service.
    pub service: ServiceName,
    /// Its image, with digest where known; none when it does not run.
    pub image: Option<ImageRef>,
    /// Why no image is named, where it is not for want of a container: `not known`, `exited with code 1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// How a deployment ended, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The new release runs and is healthy.
    Live,
    /// Everything asked for runs already, and is healthy.
    Unchanged,
    /// Refused before anything was touched.
    Refused,
    /// The previous release runs again, and was checked.
    RolledBack,
    /// Neither: a person is needed.
    Stuck,
}

impl Outcome {
    /// Whether it ended so because somebody cancelled it.
    pub fn is_cancelled(&self) -> bool {
        let problem = self.problem.as_ref();
        problem.is_some_and(|problem| problem.code == Code::Cancelled)
    }

    /// The exit code of the command that waited for this deployment.
    pub fn exit_code(&self) -> ExitCode {
        match self.result {
            Ending::Live | Ending::Unchanged => ExitCode::Done,
            Ending::RolledBack => ExitCode::RolledBack,
            Ending::Stuck => ExitCode::Stuck,
            Ending::Refused => self
                .problem
                .as_ref()
                .map_or(ExitCode::Gate, |problem| problem.code.exit_code()),
        }
    }
}
