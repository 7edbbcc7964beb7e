//! What the database forgets, so that it stops growing: old deployments with their events, plans that were carried out,
//! the files and log lines of releases that are not at hand any more.
//!
//! In small transactions, so that a deployment's journal never waits long. The pages that become free stay in the file
//! and are written again: it stops growing, and does not shrink. Shrinking would rewrite all of it (`VACUUM`: twice the
//! space, and everything waits) or move pages at every commit (`auto_vacuum`), to give back what the next deployments
//! take again.

use std::collections::BTreeSet;

use deploy_proto::names::{ProjectName, ReleaseNumber};
use rusqlite::{Params, Transaction, named_params};

use super::journal::LEFT_OTHERWISE;
use super::{History, HistoryError, sql, to_json};
use crate::deploy::phase::Phase;

/// How much of a project stays.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Deployments with their events.
    pub(super) deployments: u32,
    /// Plans of deployments that ended; each holds the project's files twice.
    pub(super) plans: u32,
    /// Releases that are not at hand: their numbers, images and versions.
    pub(super) releases: u32,
    /// Lines of pipeline runs, of each of which the newest run is known.
    pub(super) lines: u32,
}

/// Years of a busy project, at a few KiB each. A request is taken for its repetition by its id, but no older than minutes:
/// its signature expires.
const LIMITS: Limits = Limits {
    deployments: 1000,
    plans: 20,
    releases: 1000,
    lines: 1000,
};
/// Rows of a transaction.
const BATCH: u32 = 50;
/// Transactions of one kind in one go: the rest is done after the next deployment.
const BATCHES_MAX: u32 = 40;

/// The ended deployments of a project that nothing asks for, from the place in `:place` on, counted from the newest.
/// What is under way or bakes stays, and so do the last push or rollback that went live (its plan knows the files as they were
/// left) and the last one that changed anything (it tells whether the project is stuck). Both as `last_live_plan` and
/// `stuck` of the journal ask for them.
fn old_deployments() -> String {
    format!(
        "project = :project AND ended_at IS NOT NULL
        AND ordinal <= (SELECT ordinal FROM deployment WHERE project = :project ORDER BY ordinal DESC LIMIT 1 OFFSET :place)
        AND id NOT IN (SELECT deployment FROM bake)
        AND ordinal <> coalesce((SELECT max(ordinal) FROM deployment WHERE project = :project AND phase = :live
            AND json_type(request, '$.reconcile') IS NULL), -1)
        AND ordinal <> coalesce((SELECT max(ordinal) FROM deployment WHERE project = :project AND {LEFT_OTHERWISE}), -1)"
    )
}

impl History {
    /// Forgets what is older than the limits. Of releases, the files and log lines of all that are not in `at_hand` go;
    /// those after `newest` were made since that was decided, and stay.
    ///
    /// # Errors
    /// The database cannot be written; what was forgotten by then is.
    pub async fn forget(
        &self,
        project: ProjectName,
        at_hand: BTreeSet<ReleaseNumber>,
        newest: Option<ReleaseNumber>,
    ) -> Result<(), HistoryError> {
        self.forget_beyond(LIMITS, project, at_hand, newest).await
    }

    pub(super) async fn forget_beyond(
        &self,
        limits: Limits,
        project: ProjectName,
        at_hand: BTreeSet<ReleaseNumber>,
        newest: Option<ReleaseNumber>,
    ) -> Result<(), HistoryError> {
        let live = to_json("a phase", &Phase::Live)?;
        let name = project.clone();
        let phase = live.clone();
        self.in_batches(move |transaction| forget_plans(transaction, &name, &phase, limits.plans))
            .await?;
        let name = project.clone();
        self.in_batches(move |transaction| forget_deployments(transaction, &name, &live, limits.deployments))
            .await?;
        let name = project.clone();
        self.in_batches(move |transaction| forget_lines(transaction, &name, limits.lines))
            .await?;
        let Some(newest) = newest else { return Ok(()) };
        let oldest = at_hand.first().map_or(newest.0, |oldest| oldest.0);
        let numbers: Vec<u32> = at_hand.iter().map(|number| number.0).collect();
        let kept = to_json("release numbers", &numbers)?;
        let name = project.clone();
        self.in_batches(move |transaction| forget_files(transaction, &name, &kept, newest))
            .await?;
        // All below one number or none: a migration that cannot be undone stays known to every older release.
        let below = oldest.min(newest.0.saturating_sub(limits.releases));
        self.in_batches(move |transaction| forget_releases(transaction, &project, below))
            .await
    }

    /// Does a piece of work again and again, each time in a transaction of its own, until it finds little to do.
    async fn in_batches(
        &self,
        work: impl Fn(&Transaction<'_>) -> rusqlite::Result<usize> + Clone + Send + 'static,
    ) -> Result<(), HistoryError> {
        for _ in 0..BATCHES_MAX {
            let work = work.clone();
            let done = self
                .with(move |connection| {
                    let transaction = connection.transaction().map_err(sql("begin to forget"))?;
                    let done = work(&transaction).map_err(sql("forget what is old"))?;
                    if done > 0 {
                        transaction.commit().map_err(sql("commit what was forgotten"))?;
                    }
                    Ok(done)
                })
                .await?;
            if u32::try_from(done).is_ok_and(|done| done < BATCH) {
                break;
            }
        }
        Ok(())
    }
}

fn forget_plans(
    transaction: &Transaction<'_>,
    project: &ProjectName,
    live: &str,
    keep: u32,
) -> rusqlite::Result<usize> {
    let old = old_deployments();
    let statement = format!(
        "UPDATE deployment SET plan = NULL WHERE ordinal IN
            (SELECT ordinal FROM deployment WHERE plan IS NOT NULL AND {old} LIMIT :batch)"
    );
    execute(
        transaction,
        &statement,
        named_params! {":project": project.as_str(), ":live": live, ":place": keep, ":batch": BATCH},
    )
}

fn forget_deployments(
    transaction: &Transaction<'_>,
    project: &ProjectName,
    live: &str,
    keep: u32,
) -> rusqlite::Result<usize> {
    let old = old_deployments();
    let old = format!("SELECT ordinal FROM deployment WHERE {old} ORDER BY ordinal LIMIT :batch");
    let parameters =
        named_params! {":project": project.as_str(), ":live": live, ":place": keep, ":batch": BATCH};
    execute(
        transaction,
        &format!(
            "DELETE FROM event WHERE deployment IN (SELECT id FROM deployment WHERE ordinal IN ({old}))"
        ),
        parameters,
    )?;
    execute(
        transaction,
        &format!("DELETE FROM deployment WHERE ordinal IN ({old})"),
        parameters,
    )
}

fn forget_lines(transaction: &Transaction<'_>, project: &ProjectName, keep: u32) -> rusqlite::Result<usize> {
    execute(
        transaction,
        "DELETE FROM newest_run WHERE project = :project AND line IN
            (SELECT line FROM newest_run WHERE project = :project
             ORDER BY julianday(accepted_at) DESC LIMIT :batch OFFSET :place)",
        named_params! {":project": project.as_str(), ":place": keep, ":batch": BATCH},
    )
}

fn forget_files(
    transaction: &Transaction<'_>,
    project: &ProjectName,
    kept: &str,
    newest: ReleaseNumber,
) -> rusqlite::Result<usize> {
    let mut forgotten = 0;
    for table in ["release_file", "release_log"] {
        let statement = format!(
            "DELETE FROM {table} WHERE rowid IN
                (SELECT rowid FROM {table} WHERE project = :project AND number <= :newest
                 AND number NOT IN (SELECT value FROM json_each(:kept)) LIMIT :batch)"
        );
        let parameters = named_params! {
            ":project": project.as_str(), ":newest": newest.0, ":kept": kept, ":batch": BATCH,
        };
        forgotten += execute(transaction, &statement, parameters)?;
    }
    Ok(forgotten)
}

fn forget_releases(
    transaction: &Transaction<'_>,
    project: &ProjectName,
    below: u32,
) -> rusqlite::Result<usize> {
    // One that still has a file waits until that is forgotten.
    execute(
        transaction,
        "DELETE FROM release WHERE project = :project AND number IN
            (SELECT number FROM release WHERE project = :project AND number < :below
             AND NOT EXISTS (SELECT 1 FROM release_file AS file
                             WHERE file.project = release.project AND file.number = release.number)
             ORDER BY number LIMIT :batch)",
        named_params! {":project": project.as_str(), ":below": below, ":batch": BATCH},
    )
}

fn execute(
    transaction: &Transaction<'_>,
    statement: &str,
    parameters: impl Params,
) -> rusqlite::Result<usize> {
    transaction.prepare_cached(statement)?.execute(parameters)
}

#[cfg(test)]
mod tests;
