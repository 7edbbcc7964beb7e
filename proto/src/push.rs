//! What a caller asks for: a push of new images, a rollback to an earlier release, or to reconcile with the one that
//! should run.

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
    /// The place of the pipeline's run among its runs; none for a person's push, which is compared with nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Sequence>,
    /// Deploy although a newer run was accepted already.
    #[serde(default)]
    pub allow_older: bool,
    /// The release that must run, or the push is stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_release: Option<ReleaseNumber>,
    /// Where the push comes from.
    #[serde(default)]
    pub source: Source,
}

/// The place of a pipeline's run among its runs: a later run has a greater one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sequence {
    /// The run, for instance `GITHUB_RUN_ID`; at most [`RUN_MAX`].
    pub run: u64,
    /// The attempt within the run, for instance `GITHUB_RUN_ATTEMPT`; counted from 1.
    pub attempt: u32,
    /// Whose runs are counted, for instance `GITHUB_REPOSITORY`: the numbers of two repositories say nothing about each
    /// other. Without it the run is compared with every other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
}

/// The greatest number of a run: what the journal can keep.
pub const RUN_MAX: u64 = i64::MAX as u64;

impl Sequence {
    /// Whether it is known to come before another.
    pub fn is_older_than(&self, other: &Self) -> bool {
        let comparable = match (&self.line, &other.line) {
            (Some(mine), Some(theirs)) => mine == theirs,
            (None, _) | (_, None) => true,
        };
        comparable && (self.run, self.attempt) < (other.run, other.attempt)
    }

    /// Whether its line is a short text without control characters and its run can be kept.
    pub fn is_well_formed(&self) -> bool {
        let line_fits = |line: &String| {
            !line.is_empty() && line.len() <= SOURCE_MAX_BYTES && !line.chars().any(char::is_control)
        };
        self.run <= RUN_MAX && self.line.as_ref().is_none_or(line_fits)
    }
}

impl std::fmt::Display for Sequence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.run, self.attempt)
    }
}

/// A text that is no sequence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it must be RUN or RUN.ATTEMPT, whole numbers: 4711 or 4711.2")]
pub struct BadSequence;

impl std::str::FromStr for Sequence {
    type Err = BadSequence;

    /// Reads `RUN` or `RUN.ATTEMPT`; without an attempt it is the first.
    fn from_str(text: &str) -> Result<Self, BadSequence> {
        let (run, attempt) = text.split_once('.').unwrap_or((text, "1"));
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_number(run) || !is_number(attempt) {
            return Err(BadSequence);
        }
        let run = run.parse().ok().filter(|run| *run <= RUN_MAX);
        Ok(Self {
            run: run.ok_or(BadSequence)?,
            attempt: attempt.parse().map_err(|_| BadSequence)?,
            line: None,
        })
    }
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
    /// Go back also across a migration that cannot be undone.
    #[serde(default)]
    pub across_migration: bool,
    /// Where the request comes from.
    #[serde(default)]
    pub source: Source,
}

/// The body of `POST /v1/projects/{project}/reconciliations`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconcile {
    /// The caller's name for this deployment. The same id sent again reconciles once.
    pub id: DeploymentId,
    /// Wait for a running deployment of this project to end, instead of being answered `busy`.
    #[serde(default)]
    pub queue: bool,
    /// Give the files the bytes that the last push or rollback left, instead of putting back the image lines only.
    #[serde(default)]
    pub discard_edits: bool,
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

/// The answer to an accepted push, rollback or reconciliation (202), or to the same one sent again (200).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The deployment to follow at `/v1/deployments/{id}/events`.
    pub id: DeploymentId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, line: Option<&str>) -> Sequence {
        Sequence {
            line: line.map(str::to_owned),
            ..text.parse().unwrap()
        }
    }

    #[test]
    fn a_run_is_older_by_run_then_attempt_and_only_within_its_line() {
        for (a, b, older) in [
            (run("9", None), run("10", None), true),
            (run("10", None), run("9", None), false),
            (run("10.1", None), run("10.2", None), true),
            (run("10", None), run("10.1", None), false),
            (run("9", Some("acme/a")), run("10", Some("acme/a")), true),
            (run("9", Some("acme/a")), run("10", Some("acme/b")), false),
            (run("9", None), run("10", Some("acme/b")), true),
            (run("9", Some("acme/a")), run("10", None), true),
        ] {
            assert_eq!(a.is_older_than(&b), older, "{a:?} {b:?}");
        }
    }

    #[test]
    fn only_whole_numbers_are_a_sequence() {
        for bad in [
            "",
            ".",
            "1.",
            ".1",
            "1.2.3",
            "-1",
            "+1",
            "1e3",
            "9223372036854775808",
            "1.4294967296",
            " 1",
        ] {
            assert_eq!(bad.parse::<Sequence>(), Err(BadSequence), "{bad:?}");
        }
        assert_eq!(
            run("9223372036854775807.3", None).to_string(),
            "9223372036854775807.3"
        );
    }
}
