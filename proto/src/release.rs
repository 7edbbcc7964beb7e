//! What the agent tells about a project: plans, releases, deployments and the state of services.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::event::{Outcome, PhaseName};
use crate::image::{Digest, ImageRef};
use crate::names::{DeploymentId, KeyName, ProjectName, ReleaseNumber, ServiceName, Version};
use crate::push::{Sequence, Source};

/// What a push or a rollback will do, or would do (`--dry-run`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanView {
    /// The project.
    pub project: ProjectName,
    /// The release that runs now, if one is recorded.
    pub from: Option<ReleaseNumber>,
    /// The release that this makes, or goes back to. None in a dry run of a push: the number is not taken.
    pub to: Option<ReleaseNumber>,
    /// The named services, in the order they will be restarted.
    pub services: Vec<PlannedService>,
    /// The project's other services, which are not touched.
    pub untouched: Vec<ServiceName>,
    /// The lines that will change in the host's files.
    pub edits: Vec<PlannedEdit>,
    /// The commands of the host's configuration that run beside it, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookView>,
    /// What the caller should know before saying yes.
    pub warnings: Vec<String>,
    /// What was checked on the host and found to be in order, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<String>,
}

/// One service of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedService {
    /// The service.
    pub service: ServiceName,
    /// The image its Compose file names now, as `docker compose config` resolves it.
    pub now: Option<ImageRef>,
    /// The digest that its container runs now, where the registry gave it one.
    pub now_digest: Option<Digest>,
    /// The new image, with its digest.
    pub new: ImageRef,
    /// Whether anything changes for this service.
    pub changes: bool,
    /// How its health will be judged, for people: `healthcheck`, `GET http://...`, `state and restarts only`.
    pub judged_by: Vec<String>,
}

/// One change in one file of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedEdit {
    /// The file, relative to the project's directory where it lies inside.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
    /// The bytes that go, for instance `dev-3f9c1ab`.
    pub before: String,
    /// The bytes that come.
    pub after: String,
}

/// A command of the host's configuration, as callers see it: what it runs is the host's own business.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookView {
    /// What people call it.
    pub name: String,
    /// When it runs.
    pub moment: HookMoment,
    /// The service in whose new image it runs; none on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// Whether what it does cannot be undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub irreversible: bool,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookMoment {
    /// Before anything is changed.
    BeforeEverything,
    /// Before the first container is replaced.
    BeforeRestart,
    /// When all services are well.
    AfterLive,
}

impl HookMoment {
    /// The moment in words: `before the restart`.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::BeforeEverything => "before anything is changed",
            Self::BeforeRestart => "before the restart",
            Self::AfterLive => "when all services are well",
        }
    }
}

/// How a release stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    /// Its deployment is under way.
    Deploying,
    /// It runs now.
    Live,
    /// It ran, and another release replaced it.
    Replaced,
    /// It did not become healthy, or was refused: it can not be rolled back to.
    Failed,
}

/// One release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseView {
    /// Its number within the project.
    pub number: ReleaseNumber,
    /// How it stands.
    pub state: ReleaseState,
    /// The caller's label.
    pub version: Option<Version>,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// Whose key signed it; none for the release that the agent found when the project was added.
    pub key: Option<KeyName>,
    /// Where it came from.
    pub source: Source,
    /// Whether a migration that cannot be undone began with it: going back before it must be asked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub irreversible: bool,
    /// The image of every service of the project, with digest where known.
    pub services: Vec<ReleasedService>,
}

/// What a release says of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedService {
    /// The service.
    pub service: ServiceName,
    /// Its image; with a digest where the registry gave one.
    pub image: ImageRef,
    /// Whether this release changed it.
    pub changed: bool,
}

/// Whether a deployment goes to new images, back to old ones, or stays with the release that runs, and who wanted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeploymentKind {
    /// A push.
    Push,
    /// A rollback that somebody asked for.
    Rollback,
    /// Back to what the release that runs says, where the host drifted from it.
    Reconcile,
    /// A rollback that the agent began by itself: a release fell sick while it baked.
    AutoRollback,
}

impl DeploymentKind {
    /// The kind as the wire and hooks have it, for instance `rollback`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Rollback => "rollback",
            Self::Reconcile => "reconcile",
            Self::AutoRollback => "auto_rollback",
        }
    }
}

/// One deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeploymentView {
    /// Its id.
    pub id: DeploymentId,
    /// Its project.
    pub project: ProjectName,
    /// What for.
    pub kind: DeploymentKind,
    /// The deployment that an automatic rollback undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undoes: Option<DeploymentId>,
    /// The automatic rollback that undid it after it had gone live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_by: Option<DeploymentId>,
    /// Whose key signed it; of an automatic rollback, the key of the deployment that it undoes.
    pub key: KeyName,
    /// Where it came from.
    pub source: Source,
    /// The release that ran before.
    pub from: Option<ReleaseNumber>,
    /// The release that it makes or goes back to.
    pub to: Option<ReleaseNumber>,
    /// The caller's label.
    pub version: Option<Version>,
    /// The place of the pipeline's run among its runs, where the push said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Sequence>,
    /// Whether the push was to be let in also if a newer run had been accepted before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_older: bool,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Who asked for it to be cancelled, where somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_by: Option<KeyName>,
    /// Where it stands.
    pub phase: PhaseName,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// The answer of `GET /v1/projects/{project}/history`, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The project.
    pub project: ProjectName,
    /// Its deployments.
    pub deployments: Vec<DeploymentView>,
    /// Its releases.
    pub releases: Vec<ReleaseView>,
    /// Those of them that ran and of which images are not on the host any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingImages>,
}

/// The answer of `GET /v1/projects/{project}/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectStatus {
    /// The project.
    pub project: ProjectName,
    /// The release that runs.
    pub release: Option<ReleaseView>,
    /// Every service of the Compose project.
    pub services: Vec<ServiceStatus>,
    /// The deployment that is under way.
    pub running: Option<DeploymentView>,
    /// The last deployment that ended.
    pub last: Option<DeploymentView>,
    /// The release that is live and still watched, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baking: Option<Baking>,
    /// Set when the last deployment ended stuck, or the host's files are not those of the release.
    pub attention: Vec<String>,
    /// The kept releases of which images are not on the host any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<MissingImages>,
    /// Where the host is not as the release left it. Not looked for while a deployment is under way.
    #[serde(default)]
    pub drift: Vec<Drift>,
}

/// One thing on the host that is not as the release left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drift {
    /// What it is about.
    pub kind: DriftKind,
    /// The service; none when it is about a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The sentence for people.
    pub detail: String,
}

/// In what a host drifted from its release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    /// The service has no container.
    Missing,
    /// Its container does not run.
    NotRunning,
    /// Its container was made from another image.
    Image,
    /// Its container was made from the right image with another configuration.
    Configuration,
    /// A file of the project was edited, came or went.
    Edited,
}

/// A release that ran, and of which images are not on the host any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingImages {
    /// Its number.
    pub release: ReleaseNumber,
    /// The caller's label.
    pub version: Option<Version>,
    /// The images, at least one.
    pub images: Vec<MissingImage>,
}

/// An image that is not on the host any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingImage {
    /// The service that ran it.
    pub service: ServiceName,
    /// The image. With a digest a rollback pulls it; without one no registry ever had it, and it is lost.
    pub image: ImageRef,
}

/// A release that is live, and goes back by itself if it falls sick.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Baking {
    /// The release.
    pub release: ReleaseNumber,
    /// The deployment that made it live.
    pub deployment: DeploymentId,
    /// How long it is watched from now on, in milliseconds.
    pub left_ms: u64,
}

/// One service, as it runs now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The service.
    pub service: ServiceName,
    /// The image that the Compose file names.
    pub image: Option<ImageRef>,
    /// The digest that the container runs, where the registry gave one.
    pub digest: Option<Digest>,
    /// How it is.
    pub health: ServiceHealth,
    /// The same in words, with the reason: `healthy for 3 days`, `exited (3) 2 seconds ago, 12 restarts`.
    pub detail: String,
    /// Whether the agent may deploy it: whether its image is on the project's allow-list.
    pub managed: bool,
}

/// How a service is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceHealth {
    /// Its healthcheck and probes pass; or it has none and runs; or it is a one-shot that exited 0.
    Healthy,
    /// It started, and its healthcheck has not passed yet.
    Starting,
    /// It is stopped, restarting, or its healthcheck or a probe fails.
    Unhealthy,
    /// It has no container.
    Missing,
}

/// The answer of `GET /v1/projects/{project}/health`: every check of every service, run now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectHealth {
    /// The project.
    pub project: ProjectName,
    /// Whether all services are healthy.
    pub healthy: bool,
    /// The release that runs.
    pub release: Option<ReleaseNumber>,
    /// Every service.
    pub services: Vec<ServiceStatus>,
}

/// The answer of `GET /v1/projects`: what this key may see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projects {
    /// The agent's version.
    pub agent: String,
    /// The projects.
    pub projects: Vec<ProjectName>,
}
