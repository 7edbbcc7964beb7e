//! The releases that are live and still watched: written in the transaction that makes them live, so that a crash in
//! between loses none.

use std::collections::{BTreeMap, BTreeSet};

use deploy_proto::names::{DeploymentId, ProjectName, ReleaseNumber, ServiceName};
use deploy_proto::release::DeploymentKind;
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::releases::Ended;
use super::{History, HistoryError, from_json, parsed, sql, to_json};
use crate::deploy::phase::Phase;

/// The containers of a release, by service: their ids.
pub type Containers = BTreeMap<ServiceName, BTreeSet<String>>;

/// A release that is live and still watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bake {
    /// The project.
    pub project: ProjectName,
    /// The deployment that made the release live.
    pub deployment: DeploymentId,
    /// The release.
    pub release: ReleaseNumber,
    /// When it went live.
    pub started_at: Timestamp,
    /// Its containers, once they were looked at: what replaces them is not the release any more.
    pub containers: Option<Containers>,
}

impl History {
    /// Every release that is still watched.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn bakes(&self) -> Result<Vec<Bake>, HistoryError> {
        self.with(|connection| {
            let rows: Vec<Columns> = connection
                .prepare_cached(
                    "SELECT project, deployment, release, started_at, containers FROM bake ORDER BY project",
                )
                .and_then(|mut statement| statement.query_map([], Columns::read)?.collect())
                .map_err(sql("read the bakes"))?;
            rows.into_iter().map(Columns::bake).collect()
        })
        .await
    }

    /// Records the containers that a bake watches.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn bake_watches(
        &self,
        deployment: DeploymentId,
        containers: Containers,
    ) -> Result<(), HistoryError> {
        self.with(move |connection| {
            connection
                .execute(
                    "UPDATE bake SET containers = ?2 WHERE deployment = ?1",
                    (deployment.as_str(), to_json("containers", &containers)?),
                )
                .map(drop)
                .map_err(sql("record what a bake watches"))
        })
        .await
    }

    /// Ends the bake of a deployment's release, if there still is one.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn end_bake(&self, deployment: DeploymentId) -> Result<(), HistoryError> {
        self.with(move |connection| {
            connection
                .execute("DELETE FROM bake WHERE deployment = ?1", [deployment.as_str()])
                .map(drop)
                .map_err(sql("end a bake"))
        })
        .await
    }

    /// The automatic rollback that put the previous release back after this deployment had gone live.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn undone_by(&self, id: DeploymentId) -> Result<Option<DeploymentId>, HistoryError> {
        self.with(move |connection| {
            let found: Option<String> = connection
                .query_row(
                    "SELECT id FROM deployment
                     WHERE project = (SELECT project FROM deployment WHERE id = ?1)
                     AND json_extract(request, '$.auto_rollback.undoes') = ?1
                     AND json_extract(outcome, '$.result') = 'rolled_back'",
                    [id.as_str()],
                    |row| row.get(0),
                )
                .optional()
                .map_err(sql("look for an automatic rollback"))?;
            found.map(|text| parsed("a deployment's id", &text)).transpose()
        })
        .await
    }
}

/// Ends the project's bake.
pub(super) fn end(transaction: &Transaction<'_>, project: &ProjectName) -> Result<(), HistoryError> {
    transaction
        .execute("DELETE FROM bake WHERE project = ?1", [project.as_str()])
        .map(drop)
        .map_err(sql("end a bake"))
}

/// What a deployment's end does to the project's bake: what went live takes its place, and begins one of its own where
/// the project bakes; what touched nothing leaves it; what was rolled back, or reconciled with the baking release, leaves
/// that in new containers.
pub(super) fn follow(
    transaction: &Transaction<'_>,
    id: &DeploymentId,
    phase: &Phase,
    ended: &Ended,
) -> Result<(), HistoryError> {
    let project = &ended.project;
    match phase {
        Phase::Refused { .. } | Phase::Unchanged => return Ok(()),
        Phase::RolledBack { .. } => return in_new_containers(transaction, project),
        Phase::Live if ended.kind == DeploymentKind::Reconcile => {
            return in_new_containers(transaction, project);
        }
        Phase::Live
        | Phase::Stuck { .. }
        | Phase::Accepted
        | Phase::Pulling
        | Phase::Gating
        | Phase::BackingUp
        | Phase::Editing
        | Phase::BeforeHook
        | Phase::Restarting
        | Phase::Watching
        | Phase::AfterHook
        | Phase::Restoring { .. }
        | Phase::RestartingOld { .. }
        | Phase::WatchingOld { .. } => end(transaction, project)?,
    }
    let Some(release) = ended.outcome.release.filter(|_| ended.outcome.bake_ms.is_some()) else {
        return Ok(());
    };
    transaction
        .execute(
            "INSERT INTO bake (project, deployment, release, started_at) VALUES (?1, ?2, ?3, ?4)",
            (project.as_str(), id.as_str(), release.0, ended.at.to_string()),
        )
        .map(drop)
        .map_err(sql("begin a bake"))
}

/// The project's baking release, if there is one, runs in containers that nobody has looked at yet.
fn in_new_containers(transaction: &Transaction<'_>, project: &ProjectName) -> Result<(), HistoryError> {
    transaction
        .execute(
            "UPDATE bake SET containers = NULL WHERE project = ?1",
            [project.as_str()],
        )
        .map(drop)
        .map_err(sql("record that a bake has new containers"))
}

struct Columns {
    project: String,
    deployment: String,
    release: u32,
    started_at: String,
    containers: Option<String>,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            project: row.get(0)?,
            deployment: row.get(1)?,
            release: row.get(2)?,
            started_at: row.get(3)?,
            containers: row.get(4)?,
        })
    }

    fn bake(self) -> Result<Bake, HistoryError> {
        Ok(Bake {
            project: parsed("a project's name", &self.project)?,
            deployment: parsed("a deployment's id", &self.deployment)?,
            release: ReleaseNumber(self.release),
            started_at: parsed("a time", &self.started_at)?,
            containers: self
                .containers
                .as_deref()
                .map(|text| from_json("containers", text))
                .transpose()?,
        })
    }
}
