//! Releases: what a project ran, with the exact bytes of its files and the last log lines of its containers.

use deploy_proto::event::{Event, Happened, Outcome};
use deploy_proto::image::ImageRef;
use deploy_proto::names::{DeploymentId, KeyName, ProjectName, ReleaseNumber, ServiceName, Version};
use deploy_proto::push::{RollbackTarget, Source};
use deploy_proto::release::{DeploymentKind, ReleaseState, ReleaseView, ReleasedService};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction};
use serde::{Deserialize, Serialize};

use super::journal::{OnCancel, append, go_on_unless_cancelled, to_json_sql};
use super::{History, HistoryError, bakes, from_json, parsed, sql, to_json};
use std::collections::BTreeMap;

use crate::deploy::facts::{Ran, SourceFile};
use crate::deploy::phase::Phase;
use crate::deploy::plan::Plan;
use crate::deploy::port::LogTail;

/// One release, without the bytes of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its project.
    pub project: ProjectName,
    /// Its number.
    pub number: ReleaseNumber,
    /// The release that ran when this one was made: where `rollback` goes from here.
    pub parent: Option<ReleaseNumber>,
    /// How it stands.
    pub state: ReleaseState,
    /// The caller's label.
    pub version: Option<Version>,
    /// Whose key signed it; none for the release that was found.
    pub key: Option<KeyName>,
    /// Where it came from.
    pub source: Source,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// Whether a migration that cannot be undone began with it.
    pub irreversible: bool,
    /// The image of every service.
    pub images: Vec<ReleaseImage>,
}

/// What a release says of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseImage {
    /// The service.
    pub service: ServiceName,
    /// The image as it stands in the Compose file, variables resolved.
    pub written: ImageRef,
    /// The image with its digest, where the registry gave one.
    pub image: ImageRef,
    /// Its local id, where it ran.
    pub image_id: Option<String>,
    /// Whether this release changed it.
    pub changed: bool,
    /// What it was seen to run when the release last went live; none before, and for a release of an older agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran: Option<Ran>,
}

impl ReleaseImage {
    /// The local id of the image that ran, as it was seen when the release went live or was found.
    pub fn ran_image_id(&self) -> Option<&String> {
        let ran = self.ran.as_ref().map(|ran| &ran.image_id);
        ran.or(self.image_id.as_ref())
    }
}

impl Release {
    /// The release as callers see it.
    pub fn view(&self) -> ReleaseView {
        let service = |image: &ReleaseImage| ReleasedService {
            service: image.service.clone(),
            image: image.image.clone(),
            changed: image.changed,
        };
        ReleaseView {
            number: self.number,
            state: self.state,
            version: self.version.clone(),
            created_at: self.created_at,
            key: self.key.clone(),
            source: self.source.clone(),
            irreversible: self.irreversible,
            services: self.images.iter().map(service).collect(),
        }
    }
}

impl History {
    /// Records a deployment's plan, and the new releases that go with it: the one that a push makes, and, at a
    /// project's first push, the one that was found.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn planned(
        &self,
        id: DeploymentId,
        plan: Plan,
        releases: Vec<Release>,
    ) -> Result<(), HistoryError> {
        self.with(move |connection| {
            let to = Some(plan.to).filter(|_| !plan.services.is_empty());
            let transaction = connection.transaction().map_err(sql("begin to record a plan"))?;
            transaction
                .execute(
                    "UPDATE deployment SET plan = ?2, from_release = ?3, to_release = ?4 WHERE id = ?1",
                    (
                        id.as_str(),
                        to_json("a plan", &plan)?,
                        plan.from.map(|from| from.0),
                        to.map(|to| to.0),
                    ),
                )
                .map_err(sql("record a plan"))?;
            for release in &releases {
                insert(&transaction, release)?;
            }
            transaction.commit().map_err(sql("commit a plan"))
        })
        .await
    }

    /// Records the exact bytes of a release's files, and the last log lines of the containers it is about to replace.
    /// Doing it again changes nothing.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn back_up(
        &self,
        project: ProjectName,
        number: ReleaseNumber,
        files: Vec<SourceFile>,
    ) -> Result<(), HistoryError> {
        self.with(move |connection| {
            let transaction = connection.transaction().map_err(sql("begin to back files up"))?;
            for file in &files {
                transaction
                    .execute(
                        "INSERT OR REPLACE INTO release_file (project, number, path, bytes) VALUES (?1, ?2, ?3, ?4)",
                        (project.as_str(), number.0, file.path.to_string_lossy(), &file.bytes),
                    )
                    .map_err(sql("back a file up"))?;
            }
            transaction.commit().map_err(sql("commit a backup"))
        })
        .await
    }

    /// Keeps the last log lines of a release's containers, which are about to go.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn keep_logs(
        &self,
        project: ProjectName,
        number: ReleaseNumber,
        tails: Vec<LogTail>,
    ) -> Result<(), HistoryError> {
        self.with(move |connection| {
            let transaction = connection.transaction().map_err(sql("begin to keep logs"))?;
            for tail in &tails {
                transaction
                    .execute(
                        "INSERT OR REPLACE INTO release_log (project, number, service, lines) VALUES (?1, ?2, ?3, ?4)",
                        (project.as_str(), number.0, tail.service.as_str(), to_json("log lines", &tail.lines)?),
                    )
                    .map_err(sql("keep a log"))?;
            }
            transaction.commit().map_err(sql("commit kept logs"))
        })
        .await
    }

    /// The kept log lines of a release's service.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn kept_log(
        &self,
        project: ProjectName,
        number: ReleaseNumber,
        service: ServiceName,
    ) -> Result<Option<Vec<String>>, HistoryError> {
        self.with(move |connection| {
            let text: Option<String> = connection
                .query_row(
                    "SELECT lines FROM release_log WHERE project = ?1 AND number = ?2 AND service = ?3",
                    (project.as_str(), number.0, service.as_str()),
                    |row| row.get(0),
                )
                .optional()
                .map_err(sql("read a kept log"))?;
            text.map(|text| from_json("log lines", &text)).transpose()
        })
        .await
    }

    /// The bytes of a release's files.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn files(
        &self,
        project: ProjectName,
        number: ReleaseNumber,
    ) -> Result<Vec<SourceFile>, HistoryError> {
        self.with(move |connection| {
            connection
                .prepare_cached(
                    "SELECT path, bytes FROM release_file WHERE project = ?1 AND number = ?2 ORDER BY path",
                )
                .and_then(|mut statement| {
                    let read = |row: &Row<'_>| {
                        Ok(SourceFile {
                            path: row.get::<_, String>(0)?.into(),
                            bytes: row.get(1)?,
                        })
                    };
                    statement.query_map((project.as_str(), number.0), read)?.collect()
                })
                .map_err(sql("read a release's files"))
        })
        .await
    }

    /// The release that runs, by the journal.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn live_release(&self, project: ProjectName) -> Result<Option<Release>, HistoryError> {
        self.with(move |connection| {
            let found = select(
                connection,
                "WHERE project = ?1 AND state = 'live'",
                [project.as_str()],
            )?;
            Ok(found.into_iter().next())
        })
        .await
    }

    /// The project's releases, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn releases(&self, project: ProjectName, limit: u32) -> Result<Vec<Release>, HistoryError> {
        self.with(move |connection| {
            select(
                connection,
                "WHERE project = ?1 ORDER BY number DESC LIMIT ?2",
                (project.as_str(), limit),
            )
        })
        .await
    }

    /// The release that a rollback means: only one that was live can be gone back to.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn rollback_target(
        &self,
        project: ProjectName,
        target: RollbackTarget,
    ) -> Result<Option<Release>, HistoryError> {
        self.with(move |connection| {
            let releases = select(
                connection,
                "WHERE project = ?1 ORDER BY number DESC",
                [project.as_str()],
            )?;
            Ok(target_among(releases, &target))
        })
        .await
    }

    /// Records that a migration which cannot be undone begins with this release.
    ///
    /// # Errors
    /// The database cannot be written: the migration must then not begin.
    pub async fn mark_irreversible(
        &self,
        project: ProjectName,
        number: ReleaseNumber,
    ) -> Result<(), HistoryError> {
        self.with(move |connection| {
            connection
                .execute(
                    "UPDATE release SET irreversible = 1 WHERE project = ?1 AND number = ?2",
                    (project.as_str(), number.0),
                )
                .map(drop)
                .map_err(sql("record that a migration begins"))
        })
        .await
    }

    /// The releases after this one with which a migration began that cannot be undone, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn migrations_since(
        &self,
        project: ProjectName,
        number: ReleaseNumber,
    ) -> Result<Vec<Release>, HistoryError> {
        self.with(move |connection| {
            let filter = "WHERE project = ?1 AND number > ?2 AND irreversible = 1 ORDER BY number";
            select(connection, filter, (project.as_str(), number.0))
        })
        .await
    }

    /// Records that a deployment ended, and with it how its releases stand.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn finish(
        &self,
        id: DeploymentId,
        phase: Phase,
        ended: Ended,
        events: Vec<Happened>,
        on_cancel: OnCancel,
    ) -> Result<Vec<Event>, HistoryError> {
        self.with(move |connection| {
            let transaction = connection
                .transaction()
                .map_err(sql("begin to end a deployment"))?;
            go_on_unless_cancelled(&transaction, &id, on_cancel)?;
            transaction
                .prepare_cached("UPDATE deployment SET phase = ?2, ended_at = ?3, outcome = ?4 WHERE id = ?1")
                .and_then(|mut statement| {
                    let (at, outcome) = (ended.at.to_string(), to_json_sql(&ended.outcome)?);
                    statement.execute((id.as_str(), to_json_sql(&phase)?, at, outcome))
                })
                .map_err(sql("record an ending"))?;
            for (number, state) in &ended.releases {
                transaction
                    .execute(
                        "UPDATE release SET state = ?3 WHERE project = ?1 AND number = ?2",
                        (ended.project.as_str(), number.0, state_text(*state)),
                    )
                    .map_err(sql("record a release's state"))?;
            }
            bakes::follow(&transaction, &id, &phase, &ended)?;
            if let Some((number, ran)) = ended.ran {
                record_ran(&transaction, &ended.project, number, ran)?;
            }
            let events = append(&transaction, &id, ended.at, events)?;
            transaction.commit().map_err(sql("commit an ending"))?;
            Ok(events)
        })
        .await
    }
}

/// What is recorded when a deployment ends.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its project.
    pub project: ProjectName,
    /// What it was for.
    pub kind: DeploymentKind,
    /// When.
    pub at: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// The releases whose state changes by it.
    pub releases: Vec<(ReleaseNumber, ReleaseState)>,
    /// What the release that went live was seen to run.
    pub ran: Option<(ReleaseNumber, BTreeMap<ServiceName, Ran>)>,
}

/// Records what a release was seen to run. A service that it does not know is none of its business.
fn record_ran(
    transaction: &Transaction<'_>,
    project: &ProjectName,
    number: ReleaseNumber,
    mut ran: BTreeMap<ServiceName, Ran>,
) -> Result<(), HistoryError> {
    let found = select(
        transaction,
        "WHERE project = ?1 AND number = ?2",
        (project.as_str(), number.0),
    )?;
    let Some(release) = found.into_iter().next() else {
        return Ok(());
    };
    let mut images = release.images;
    for image in &mut images {
        image.ran = ran.remove(&image.service);
    }
    transaction
        .execute(
            "UPDATE release SET images = ?3 WHERE project = ?1 AND number = ?2",
            (project.as_str(), number.0, to_json("images", &images)?),
        )
        .map(drop)
        .map_err(sql("record what a release runs"))
}

/// Picks a rollback's target from the project's releases, newest first.
fn target_among(releases: Vec<Release>, target: &RollbackTarget) -> Option<Release> {
    let was_live = |release: &Release| matches!(release.state, ReleaseState::Replaced | ReleaseState::Live);
    let mut candidates = releases.into_iter().filter(was_live);
    match target {
        RollbackTarget::Back(steps) => back(candidates.collect(), *steps),
        RollbackTarget::Release(number) => candidates.find(|release| release.number == *number),
        RollbackTarget::Version(version) => candidates.find(|release| {
            let tagged = |image: &ReleaseImage| image.changed && image.image.tag() == Some(version.as_str());
            release.version.as_ref() == Some(version) || release.images.iter().any(tagged)
        }),
    }
}

/// Goes from the live release to the one that ran when it was made, and so on. A release that was rolled back from is not
/// on that way: it was rejected once.
fn back(releases: Vec<Release>, steps: u32) -> Option<Release> {
    let mut number = releases
        .iter()
        .find(|release| release.state == ReleaseState::Live)?
        .number;
    for _ in 0..steps.max(1) {
        number = releases.iter().find(|release| release.number == number)?.parent?;
    }
    releases.into_iter().find(|release| release.number == number)
}

fn insert(transaction: &Transaction<'_>, release: &Release) -> Result<(), HistoryError> {
    if release.state == ReleaseState::Live {
        // Found to run: what was thought to run does not.
        transaction
            .execute(
                "UPDATE release SET state = 'replaced' WHERE project = ?1 AND state = 'live'",
                [release.project.as_str()],
            )
            .map_err(sql("record what runs"))?;
    }
    transaction
        .execute(
            "INSERT INTO release (project, number, parent, state, version, key, source, created_at, irreversible, images)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            (
                release.project.as_str(),
                release.number.0,
                release.parent.map(|parent| parent.0),
                state_text(release.state),
                release.version.as_ref().map(Version::as_str),
                release.key.as_ref().map(KeyName::as_str),
                to_json("a source", &release.source)?,
                release.created_at.to_string(),
                release.irreversible,
                to_json("images", &release.images)?,
            ),
        )
        .map_err(sql("record a release"))?;
    Ok(())
}

fn select(
    connection: &Connection,
    filter: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Release>, HistoryError> {
    let columns = "project, number, parent, state, version, key, source, created_at, irreversible, images";
    let rows: Vec<Columns> = connection
        .prepare_cached(&format!("SELECT {columns} FROM release {filter}"))
        .and_then(|mut statement| statement.query_map(parameters, Columns::read)?.collect())
        .map_err(sql("read releases"))?;
    rows.into_iter().map(Columns::release).collect()
}

struct Columns {
    project: String,
    number: u32,
    parent: Option<u32>,
    state: String,
    version: Option<String>,
    key: Option<String>,
    source: String,
    created_at: String,
    irreversible: bool,
    images: String,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            project: row.get(0)?,
            number: row.get(1)?,
            parent: row.get(2)?,
            state: row.get(3)?,
            version: row.get(4)?,
            key: row.get(5)?,
            source: row.get(6)?,
            created_at: row.get(7)?,
            irreversible: row.get(8)?,
            images: row.get(9)?,
        })
    }

    fn release(self) -> Result<Release, HistoryError> {
        Ok(Release {
            project: parsed("a project's name", &self.project)?,
            number: ReleaseNumber(self.number),
            parent: self.parent.map(ReleaseNumber),
            state: state_from(&self.state)?,
            version: self
                .version
                .as_deref()
                .map(|text| parsed("a version", text))
                .transpose()?,
            key: self
                .key
                .as_deref()
                .map(|text| parsed("a key's name", text))
                .transpose()?,
            source: from_json("a source", &self.source)?,
            created_at: parsed("a time", &self.created_at)?,
            irreversible: self.irreversible,
            images: from_json("images", &self.images)?,
        })
    }
}

fn state_text(state: ReleaseState) -> &'static str {
    match state {
        ReleaseState::Deploying => "deploying",
        ReleaseState::Live => "live",
        ReleaseState::Replaced => "replaced",
        ReleaseState::Failed => "failed",
    }
}

fn state_from(text: &str) -> Result<ReleaseState, HistoryError> {
    match text {
        "deploying" => Ok(ReleaseState::Deploying),
        "live" => Ok(ReleaseState::Live),
        "replaced" => Ok(ReleaseState::Replaced),
        "failed" => Ok(ReleaseState::Failed),
        other => Err(HistoryError::Unreadable {
            what: "a release's state",
            source: other.into(),
        }),
    }
}
