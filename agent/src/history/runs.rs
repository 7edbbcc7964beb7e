//! Which run of a pipeline was the newest to be accepted, so that an older one cannot win.

use deploy_proto::names::{DeploymentId, KeyName, ProjectName};
use deploy_proto::push::Sequence;
use jiff::Timestamp;
use rusqlite::{Row, Transaction};

use super::journal::Deployment;
use super::{History, HistoryError, parsed, sql};

/// The newest accepted run of a line of runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewestRun {
    /// Its place.
    pub sequence: Sequence,
    /// Its deployment.
    pub deployment: DeploymentId,
    /// Whose key signed it.
    pub key: KeyName,
    /// Its address, as the caller told it.
    pub run_url: Option<String>,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

impl History {
    /// The accepted run that this one comes after its time for, if there is one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn newer_run(
        &self,
        project: ProjectName,
        sequence: Sequence,
    ) -> Result<Option<NewestRun>, HistoryError> {
        self.with(move |connection| {
            let rows: Vec<Columns> = connection
                .prepare_cached(
                    "SELECT line, run, attempt, deployment, key, run_url, accepted_at FROM newest_run
                     WHERE project = ?1 ORDER BY run DESC, attempt DESC",
                )
                .and_then(|mut statement| statement.query_map([project.as_str()], Columns::read)?.collect())
                .map_err(sql("read the newest runs"))?;
            for row in rows {
                let run = row.newest_run()?;
                if sequence.is_older_than(&run.sequence) {
                    return Ok(Some(run));
                }
            }
            Ok(None)
        })
        .await
    }
}

/// Remembers an accepted deployment's run, when it is the newest of its line.
pub(super) fn remember(transaction: &Transaction<'_>, deployment: &Deployment) -> Result<(), HistoryError> {
    let Some(sequence) = deployment.request.sequence() else {
        return Ok(());
    };
    // A run is at most RUN_MAX, which fits.
    let run = i64::try_from(sequence.run).unwrap_or(i64::MAX);
    transaction
        .execute(
            "INSERT INTO newest_run (project, line, run, attempt, deployment, key, run_url, accepted_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (project, line) DO UPDATE SET run = excluded.run, attempt = excluded.attempt,
                 deployment = excluded.deployment, key = excluded.key, run_url = excluded.run_url,
                 accepted_at = excluded.accepted_at
             WHERE (excluded.run, excluded.attempt) >= (run, attempt)",
            (
                deployment.project.as_str(),
                sequence.line.as_deref().unwrap_or_default(),
                run,
                sequence.attempt,
                deployment.id().as_str(),
                deployment.key.as_str(),
                deployment.request.source().run_url.as_deref(),
                deployment.accepted_at.to_string(),
            ),
        )
        .map(drop)
        .map_err(sql("remember a run"))
}

struct Columns {
    line: String,
    run: i64,
    attempt: u32,
    deployment: String,
    key: String,
    run_url: Option<String>,
    accepted_at: String,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            line: row.get(0)?,
            run: row.get(1)?,
            attempt: row.get(2)?,
            deployment: row.get(3)?,
            key: row.get(4)?,
            run_url: row.get(5)?,
            accepted_at: row.get(6)?,
        })
    }

    fn newest_run(self) -> Result<NewestRun, HistoryError> {
        Ok(NewestRun {
            sequence: Sequence {
                run: u64::try_from(self.run).unwrap_or_default(),
                attempt: self.attempt,
                line: Some(self.line).filter(|line| !line.is_empty()),
            },
            deployment: parsed("a deployment's id", &self.deployment)?,
            key: parsed("a key's name", &self.key)?,
            run_url: self.run_url,
            accepted_at: parsed("a time", &self.accepted_at)?,
        })
    }
}
