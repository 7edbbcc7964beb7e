//! The journal: what was accepted, which phase each deployment is in, and every event.

use deploy_proto::event::{Event, Happened, Outcome};
use deploy_proto::names::{DeploymentId, KeyName, ProjectName, ReleaseNumber, Version};
use deploy_proto::push::{Push, Reconcile, Rollback, Sequence, Source};
use deploy_proto::release::{DeploymentKind, DeploymentView};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction};
use serde::{Deserialize, Serialize};

use super::{History, HistoryError, bakes, from_json, parsed, runs, sql, to_json};
use crate::deploy::phase::{Course, Failure, Phase};
use crate::deploy::plan::Plan;
use crate::policy::ServiceScope;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// New images.
    Push(Push),
    /// An earlier release.
    Rollback(Rollback),
    /// The release that should run.
    Reconcile(Reconcile),
    /// The release before one that fell sick while it baked; the agent itself asks for it.
    AutoRollback(AutoRollback),
}

/// What the agent asks of itself when a release falls sick while it bakes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoRollback {
    /// Drawn by the agent.
    pub id: DeploymentId,
    /// The deployment whose release fell sick.
    pub undoes: DeploymentId,
    /// That release.
    pub sick: ReleaseNumber,
    /// The release before it.
    pub to: ReleaseNumber,
    /// What was seen.
    pub cause: Failure,
    /// Where the undone deployment came from.
    pub source: Source,
}

impl Request {
    /// The deployment's id, which the caller chose.
    pub fn id(&self) -> &DeploymentId {
        match self {
            Self::Push(push) => &push.id,
            Self::Rollback(rollback) => &rollback.id,
            Self::Reconcile(reconcile) => &reconcile.id,
            Self::AutoRollback(rollback) => &rollback.id,
        }
    }

    /// What kind of deployment it makes.
    pub fn kind(&self) -> DeploymentKind {
        match self {
            Self::Push(_) => DeploymentKind::Push,
            Self::Rollback(_) => DeploymentKind::Rollback,
            Self::Reconcile(_) => DeploymentKind::Reconcile,
            Self::AutoRollback(_) => DeploymentKind::AutoRollback,
        }
    }

    /// Whether it waits for a running deployment.
    pub fn queues(&self) -> bool {
        match self {
            Self::Push(push) => push.queue,
            Self::Rollback(rollback) => rollback.queue,
            Self::Reconcile(reconcile) => reconcile.queue,
            // It begins only where nothing runs.
            Self::AutoRollback(_) => false,
        }
    }

    /// The caller's label.
    pub fn version(&self) -> Option<&Version> {
        match self {
            Self::Push(push) => push.version.as_ref(),
            Self::Rollback(_) | Self::Reconcile(_) | Self::AutoRollback(_) => None,
        }
    }

    /// The place of the pipeline's run among its runs.
    pub fn sequence(&self) -> Option<&Sequence> {
        match self {
            Self::Push(push) => push.sequence.as_ref(),
            Self::Rollback(_) | Self::Reconcile(_) | Self::AutoRollback(_) => None,
        }
    }

    /// Whether it is let in although a newer run was accepted.
    fn allows_older(&self) -> bool {
        match self {
            Self::Push(push) => push.allow_older,
            Self::Rollback(_) | Self::Reconcile(_) | Self::AutoRollback(_) => false,
        }
    }

    /// Where it came from.
    pub fn source(&self) -> &Source {
        match self {
            Self::Push(push) => &push.source,
            Self::Rollback(rollback) => &rollback.source,
            Self::Reconcile(reconcile) => &reconcile.source,
            Self::AutoRollback(rollback) => &rollback.source,
        }
    }

    /// What the agent asked of itself, when it did.
    pub fn auto_rollback(&self) -> Option<&AutoRollback> {
        match self {
            Self::AutoRollback(rollback) => Some(rollback),
            Self::Push(_) | Self::Rollback(_) | Self::Reconcile(_) => None,
        }
    }
}

/// One deployment, as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment {
    /// The project.
    pub project: ProjectName,
    /// What was asked for.
    pub request: Request,
    /// Whose key signed it.
    pub key: KeyName,
    /// The services the key could change when it was accepted.
    pub services: ServiceScope,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// Who asked for it to be cancelled, where somebody did.
    pub cancelled_by: Option<KeyName>,
    /// Where it stands.
    pub phase: Phase,
    /// How often this phase was begun before, counting restarts of the agent. The row of a fresh deployment says 1
    /// already, so that its first run needs no write of its own.
    pub attempts: u32,
    /// What it does; none until it is planned, and none in a list of deployments: it holds whole files.
    pub plan: Option<Plan>,
    /// The release that ran before.
    pub from: Option<ReleaseNumber>,
    /// The release that it makes or goes back to; none until it is planned.
    pub to: Option<ReleaseNumber>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl Deployment {
    /// A deployment that was just accepted.
    pub fn accepted(
        project: ProjectName,
        request: Request,
        key: KeyName,
        services: ServiceScope,
        now: Timestamp,
    ) -> Self {
        Self {
            project,
            request,
            key,
            services,
            accepted_at: now,
            cancelled_by: None,
            phase: Phase::Accepted,
            attempts: 0,
            plan: None,
            from: None,
            to: None,
            ended_at: None,
            outcome: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> &DeploymentId {
        self.request.id()
    }

    /// What its plan says of its way; before there is one, that it is an ordinary one.
    pub fn course(&self) -> Course {
        self.plan.as_ref().map(Plan::course).unwrap_or_default()
    }

    /// The deployment as callers see it.
    pub fn view(&self) -> DeploymentView {
        DeploymentView {
            id: self.id().clone(),
            project: self.project.clone(),
            kind: self.request.kind(),
            undoes: self
                .request
                .auto_rollback()
                .map(|rollback| rollback.undoes.clone()),
            undone_by: None,
            key: self.key.clone(),
            source: self.request.source().clone(),
            from: self.from,
            to: self.to,
            version: self.request.version().cloned(),
            sequence: self.request.sequence().cloned(),
            allow_older: self.request.allows_older(),
            accepted_at: self.accepted_at,
            cancelled_by: self.cancelled_by.clone(),
            phase: self.phase.name(),
            ended_at: self.ended_at,
            outcome: self.outcome.clone(),
        }
    }
}

const COLUMNS: &str = "project, request, key, services, accepted_at, cancelled_by, phase, attempts, plan, from_release, to_release, ended_at, outcome";
/// For lists: a plan holds the bytes of all files, before and after.
const COLUMNS_WITHOUT_PLAN: &str = "project, request, key, services, accepted_at, cancelled_by, phase, attempts, NULL, from_release, to_release, ended_at, outcome";

/// The deployments that left the project otherwise than they found it: not refused, something to do, not put back.
pub(super) const LEFT_OTHERWISE: &str =
    "ended_at IS NOT NULL AND json_extract(phase, '$.phase') NOT IN ('refused', 'unchanged', 'rolled_back')";

impl History {
    /// Records an accepted deployment and its first events.
    ///
    /// # Errors
    /// The database cannot be written; the deployment is then not accepted.
    pub async fn accept(
        &self,
        deployment: Deployment,
        events: Vec<Happened>,
    ) -> Result<Vec<Event>, HistoryError> {
        self.with(move |connection| {
            let transaction = connection.transaction().map_err(sql("begin to accept a deployment"))?;
            transaction
                .execute(
                    "INSERT INTO deployment (id, project, request, key, services, accepted_at, phase, attempts)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 1)",
                    (
                        deployment.id().as_str(),
                        deployment.project.as_str(),
                        to_json("a request", &deployment.request)?,
                        deployment.key.as_str(),
                        to_json("a scope", &deployment.services)?,
                        deployment.accepted_at.to_string(),
                        to_json("a phase", &deployment.phase)?,
                    ),
                )
                .map_err(sql("record a deployment"))?;
            runs::remember(&transaction, &deployment)?;
            if deployment.request.auto_rollback().is_some() {
                bakes::end(&transaction, &deployment.project)?;
            }
            let events = append(&transaction, deployment.id(), deployment.accepted_at, events)?;
            transaction.commit().map_err(sql("commit a deployment"))?;
            Ok(events)
        })
        .await
    }

    /// Records the phase that a deployment enters, before anything is done in it, with the events that tell of it.
    ///
    /// # Errors
    /// The database cannot be written, or it is cancelled; nothing may then be done in the phase.
    pub async fn enter(
        &self,
        id: DeploymentId,
        phase: Phase,
        attempts: u32,
        at: Timestamp,
        events: Vec<Happened>,
        on_cancel: OnCancel,
    ) -> Result<Vec<Event>, HistoryError> {
        self.with(move |connection| {
            let transaction = connection.transaction().map_err(sql("begin to enter a phase"))?;
            go_on_unless_cancelled(&transaction, &id, on_cancel)?;
            transaction
                .prepare_cached("UPDATE deployment SET phase = ?2, attempts = ?3 WHERE id = ?1")
                .and_then(|mut statement| statement.execute((id.as_str(), to_json_sql(&phase)?, attempts)))
                .map_err(sql("record a phase"))?;
            let events = append(&transaction, &id, at, events)?;
            transaction.commit().map_err(sql("commit a phase"))?;
            Ok(events)
        })
        .await
    }

    /// Records that somebody wants a deployment cancelled; the first one counts. `None`: it has ended.
    ///
    /// # Errors
    /// The database cannot be written; the deployment then goes on.
    pub async fn cancel(
        &self,
        id: DeploymentId,
        key: KeyName,
        at: Timestamp,
    ) -> Result<Option<Vec<Event>>, HistoryError> {
        self.with(move |connection| {
            let transaction = connection
                .transaction()
                .map_err(sql("begin to cancel a deployment"))?;
            let open: Option<bool> = transaction
                .query_row(
                    "SELECT cancelled_by IS NULL FROM deployment WHERE id = ?1 AND ended_at IS NULL",
                    [id.as_str()],
                    |row| row.get(0),
                )
                .optional()
                .map_err(sql("look for a deployment to cancel"))?;
            let told = match open {
                None => return Ok(None),
                Some(false) => Vec::new(),
                Some(true) => {
                    transaction
                        .execute(
                            "UPDATE deployment SET cancelled_by = ?2 WHERE id = ?1",
                            (id.as_str(), key.as_str()),
                        )
                        .map_err(sql("cancel a deployment"))?;
                    vec![Happened::Cancelling { key }]
                }
            };
            let events = append(&transaction, &id, at, told)?;
            transaction.commit().map_err(sql("commit a cancellation"))?;
            Ok(Some(events))
        })
        .await
    }

    /// Records an event that changes no phase.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn note(
        &self,
        id: DeploymentId,
        at: Timestamp,
        event: Happened,
    ) -> Result<Vec<Event>, HistoryError> {
        self.with(move |connection| {
            let transaction = connection
                .transaction()
                .map_err(sql("begin to record an event"))?;
            let events = append(&transaction, &id, at, vec![event])?;
            transaction.commit().map_err(sql("commit an event"))?;
            Ok(events)
        })
        .await
    }

    /// When the journal last wrote of a deployment of any project but this one: when the newest ended or was accepted.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn newest_time(&self, but: DeploymentId) -> Result<Option<Timestamp>, HistoryError> {
        self.with(move |connection| {
            let newest: Option<String> = connection
                .query_row(
                    "SELECT coalesce(ended_at, accepted_at) FROM deployment WHERE id <> ?1
                     ORDER BY ordinal DESC LIMIT 1",
                    [but.as_str()],
                    |row| row.get(0),
                )
                .optional()
                .map_err(sql("read the newest time"))?;
            newest.map(|text| parsed("a time", &text)).transpose()
        })
        .await
    }

    /// One deployment.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn deployment(&self, id: DeploymentId) -> Result<Option<Deployment>, HistoryError> {
        self.with(move |connection| {
            let found = select(connection, COLUMNS, "WHERE id = ?1", [id.as_str()])?;
            Ok(found.into_iter().next())
        })
        .await
    }

    /// The project's deployments, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn deployments(
        &self,
        project: ProjectName,
        limit: u32,
    ) -> Result<Vec<Deployment>, HistoryError> {
        self.with(move |connection| {
            select(
                connection,
                COLUMNS_WITHOUT_PLAN,
                "WHERE project = ?1 ORDER BY ordinal DESC LIMIT ?2",
                (project.as_str(), limit),
            )
        })
        .await
    }

    /// The plan of the last push or rollback that went live: it knows the files as the agent left them. A reconciliation
    /// takes no edit as the base, so it does not count.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn last_live_plan(&self, project: ProjectName) -> Result<Option<Plan>, HistoryError> {
        self.with(move |connection| {
            let filter = "WHERE project = ?1 AND phase = ?2 AND json_type(request, '$.reconcile') IS NULL
                ORDER BY ordinal DESC LIMIT 1";
            let found = select(
                connection,
                COLUMNS,
                filter,
                (project.as_str(), to_json("a phase", &Phase::Live)?),
            )?;
            Ok(found.into_iter().next().and_then(|deployment| deployment.plan))
        })
        .await
    }

    /// The deployment that the project is stuck in: the last one that left it otherwise than it was found, when that ended
    /// stuck.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn stuck(&self, project: ProjectName) -> Result<Option<Deployment>, HistoryError> {
        self.with(move |connection| {
            let filter = format!("WHERE project = ?1 AND {LEFT_OTHERWISE} ORDER BY ordinal DESC LIMIT 1");
            let touched = select(connection, COLUMNS_WITHOUT_PLAN, &filter, [project.as_str()])?
                .into_iter()
                .next();
            Ok(touched.filter(|last| matches!(last.phase, Phase::Stuck { .. })))
        })
        .await
    }

    /// The project's deployment that runs: the oldest that has not ended, for a newer one waits behind it.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn under_way(&self, project: ProjectName) -> Result<Option<Deployment>, HistoryError> {
        self.with(move |connection| {
            let filter = "WHERE project = ?1 AND ended_at IS NULL ORDER BY ordinal LIMIT 1";
            let found = select(connection, COLUMNS_WITHOUT_PLAN, filter, [project.as_str()])?;
            Ok(found.into_iter().next())
        })
        .await
    }

    /// Every deployment that has not ended, in the order in which they were accepted.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn unfinished(&self) -> Result<Vec<Deployment>, HistoryError> {
        self.with(|connection| select(connection, COLUMNS, "WHERE ended_at IS NULL ORDER BY ordinal", []))
            .await
    }

    /// The events of a deployment that follow number `after`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn events(&self, id: DeploymentId, after: u64) -> Result<Vec<Event>, HistoryError> {
        self.with(move |connection| {
            let after = i64::try_from(after).unwrap_or(i64::MAX);
            let texts: Vec<String> = connection
                .prepare_cached("SELECT event FROM event WHERE deployment = ?1 AND seq > ?2 ORDER BY seq")
                .and_then(|mut statement| {
                    statement
                        .query_map((id.as_str(), after), |row| row.get(0))?
                        .collect()
                })
                .map_err(sql("read events"))?;
            texts.iter().map(|text| from_json("an event", text)).collect()
        })
        .await
    }

    /// The release number that the project's next push takes.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn next_release(&self, project: ProjectName) -> Result<ReleaseNumber, HistoryError> {
        self.with(move |connection| {
            connection
                .query_row(
                    "SELECT coalesce(max(number), 0) + 1 FROM release WHERE project = ?1",
                    [project.as_str()],
                    |row| row.get(0),
                )
                .map(ReleaseNumber)
                .map_err(sql("number a release"))
        })
        .await
    }
}

/// Whether a step is recorded of a deployment that somebody asked to be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCancel {
    /// It is: the step leads back, or it is too late.
    GoOn,
    /// It is not. Who cancels is told so in a transaction, and so is who goes on: whichever is first wins.
    Stop,
}

/// Fails when a cancellation keeps a step from being recorded.
pub(super) fn go_on_unless_cancelled(
    transaction: &Transaction<'_>,
    id: &DeploymentId,
    on_cancel: OnCancel,
) -> Result<(), HistoryError> {
    if on_cancel == OnCancel::GoOn {
        return Ok(());
    }
    let key: Option<String> = transaction
        .prepare_cached("SELECT cancelled_by FROM deployment WHERE id = ?1")
        .and_then(|mut statement| statement.query_row([id.as_str()], |row| row.get(0)))
        .map_err(sql("look for a cancellation"))?;
    match key {
        None => Ok(()),
        Some(text) => Err(HistoryError::Cancelled {
            by: parsed("a key's name", &text)?,
        }),
    }
}

/// Appends events to a deployment's journal, and gives them back with their numbers.
pub(super) fn append(
    transaction: &Transaction<'_>,
    id: &DeploymentId,
    at: Timestamp,
    events: Vec<Happened>,
) -> Result<Vec<Event>, HistoryError> {
    let last: i64 = transaction
        .prepare_cached("SELECT coalesce(max(seq), 0) FROM event WHERE deployment = ?1")
        .and_then(|mut statement| statement.query_row([id.as_str()], |row| row.get(0)))
        .map_err(sql("number an event"))?;
    let mut numbered = Vec::with_capacity(events.len());
    for (seq, what) in (last + 1..).zip(events) {
        let event = Event {
            seq: u64::try_from(seq).ok(),
            at,
            deployment: id.clone(),
            what,
        };
        transaction
            .prepare_cached("INSERT INTO event (deployment, seq, event) VALUES (?1, ?2, ?3)")
            .and_then(|mut statement| statement.execute((id.as_str(), seq, to_json_sql(&event)?)))
            .map_err(sql("record an event"))?;
        numbered.push(event);
    }
    Ok(numbered)
}

/// Serialises inside a chain of SQLite calls.
pub(super) fn to_json_sql<T: Serialize>(value: &T) -> Result<String, rusqlite::Error> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

fn select(
    connection: &Connection,
    columns: &str,
    filter: &str,
    parameters: impl rusqlite::Params,
) -> Result<Vec<Deployment>, HistoryError> {
    let rows: Vec<Columns> = connection
        .prepare_cached(&format!("SELECT {columns} FROM deployment {filter}"))
        .and_then(|mut statement| statement.query_map(parameters, Columns::read)?.collect())
        .map_err(sql("read deployments"))?;
    rows.into_iter().map(Columns::deployment).collect()
}

/// A row as text, before it is parsed.
struct Columns {
    project: String,
    request: String,
    key: String,
    services: String,
    accepted_at: String,
    cancelled_by: Option<String>,
    phase: String,
    attempts: u32,
    plan: Option<String>,
    from: Option<u32>,
    to: Option<u32>,
    ended_at: Option<String>,
    outcome: Option<String>,
}

impl Columns {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            project: row.get(0)?,
            request: row.get(1)?,
            key: row.get(2)?,
            services: row.get(3)?,
            accepted_at: row.get(4)?,
            cancelled_by: row.get(5)?,
            phase: row.get(6)?,
            attempts: row.get(7)?,
            plan: row.get(8)?,
            from: row.get(9)?,
            to: row.get(10)?,
            ended_at: row.get(11)?,
            outcome: row.get(12)?,
        })
    }

    fn deployment(self) -> Result<Deployment, HistoryError> {
        Ok(Deployment {
            project: parsed("a project's name", &self.project)?,
            request: from_json("a request", &self.request)?,
            key: parsed("a key's name", &self.key)?,
            services: from_json("a scope", &self.services)?,
            accepted_at: parsed("a time", &self.accepted_at)?,
            cancelled_by: self
                .cancelled_by
                .as_deref()
                .map(|text| parsed("a key's name", text))
                .transpose()?,
            phase: from_json("a phase", &self.phase)?,
            attempts: self.attempts,
            plan: self
                .plan
                .as_deref()
                .map(|text| from_json("a plan", text))
                .transpose()?,
            from: self.from.map(ReleaseNumber),
            to: self.to.map(ReleaseNumber),
            ended_at: self
                .ended_at
                .as_deref()
                .map(|text| parsed("a time", text))
                .transpose()?,
            outcome: self
                .outcome
                .as_deref()
                .map(|text| from_json("an outcome", text))
                .transpose()?,
        })
    }
}
