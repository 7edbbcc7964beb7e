//! What a caller asks for: a push of new images, or a rollback to an earlier release.

use serde::{Deserialize, Serialize};

use crate::image::ImageRef;
use crate::names::{DeploymentId, ReleaseNumber, ServiceName, Version};

/// The largest request body the agent reads, in bytes. A push of a hundred services is about 20 KiB.
pub const BODY_MAX_BYTES: usize = 64 * 1024;
/// The most images one push may name.
pub const CHANGES_MAX: usize = 256;
/// The longest text in [`Source`], in bytes.
pub const SOURCE_MAX_BYTES: usize = 512;

/// The body of `POST /v1/projects/{project}/deployments`, and of `.../plan`, which only answers what would be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Push {
    /// The caller's name for this deployment. The same id sent again deploys once.
    pub id: DeploymentId,
    /// What to change; all of it is one release.
    pub images: Vec<Change>,
    /// A label for the release, for people and for `rollback --to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Wait for a running deployment of this project to end, instead of being answered `busy`.
    #[serde(default)]
    pub queue: bool,
    /// Take Compose files that were edited by hand since the last release as the base.
    #[serde(default)]
    pub accept_edits: bool,
    /// Where the push comes from.
    #[serde(default)]
    pub source: Source,
}

/// One image to change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// The service to change; without it, every service that uses the image's repository (as the `sed` did).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// The new image.
    pub image: ImageRef,
}

/// The body of `POST /v1/projects/{project}/rollbacks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The caller's name for this deployment. The same id sent again rolls back once.
    pub id: DeploymentId,
    /// Where to.
    pub to: RollbackTarget,
    /// Wait for a running deployment of this project to end, instead of being answered `busy`.
    #[serde(default)]
    pub queue: bool,
    /// Where the request comes from.
    #[serde(default)]
    pub source: Source,
}

/// Which release a rollback goes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackTarget {
    /// So many successful releases back from the one that runs; 1 is the one before it.
    Back(u32),
    /// This release.
    Release(ReleaseNumber),
    /// The newest successful release with this version label, or in which a service ran this tag.
    Version(Version),
}

/// Where a request comes from, as the caller tells it; recorded, shown, never trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The commit that was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The CI run's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_url: Option<String>,
    /// Who started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
}

impl Source {
    /// Whether every text is short and free of control characters.
    pub fn is_well_formed(&self) -> bool {
        [&self.commit, &self.run_url, &self.actor]
            .into_iter()
            .flatten()
            .all(|text| text.len() <= SOURCE_MAX_BYTES && !text.chars().any(char::is_control))
    }
}

/// The answer to an accepted push or rollback (202), or to the same one sent again (200).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The deployment to follow at `/v1/deployments/{id}/events`.
    pub id: DeploymentId,
}
