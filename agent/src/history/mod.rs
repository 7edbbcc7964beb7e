//! The journal and the releases, in one SQLite database.
//!
//! One connection, write-ahead log, `synchronous = FULL`: what a call answered with `Ok` is on the disk. The shapes kept
//! here are the journal's own; the wire's are in `deploy_proto` and are made from these. A disk that fails ends the
//! process ([`crate::fatal`]).

pub mod backup;
mod bakes;
mod forget;
mod journal;
mod nonces;
mod opening;
mod patience;
mod releases;
mod runs;
mod schema;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use deploy_proto::names::KeyName;
use deploy_proto::problem::{Code, Problem};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::Semaphore;

pub use bakes::{Bake, Containers};
pub use journal::{AutoRollback, Deployment, OnCancel, Request};
pub use nonces::{Nonce, NonceUse};
use patience::Patience;
pub use releases::{Ended, Release, ReleaseImage};
pub use runs::NewestRun;

/// The most deployments and releases that one answer of history holds.
pub const HISTORY_MAX: u32 = 500;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It could not be opened.
    #[error("open the database {}", path.display())]
    Open {
        /// Its file.
        path: PathBuf,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// It was written by a newer agent.
    #[error(
        "the database {} has format {found}, and this agent knows formats up to {known}",
        path.display()
    )]
    Newer {
        /// Its file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Its bytes are not what SQLite wrote, or a part of it is gone.
    #[error("the database {} is damaged: {what}", path.display())]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What was found, by SQLite's check or by our look at the file.
        what: String,
    },
    /// It is a database, of another program.
    #[error("{} is a database, but not one of this agent", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file's or folder's permissions, or a read-only file system.
    #[error("the database {} may not be read and written", path.display())]
    NotPermitted {
        /// Its file.
        path: PathBuf,
        /// What the system or SQLite says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another program holds it, or the work before did not end in time. Nothing was changed.
    #[error("{doing}: the database is locked")]
    Busy {
        /// What we were doing.
        doing: &'static str,
    },
    /// Something beside SQLite's own work on the file failed.
    #[error("{doing} {}", path.display())]
    File {
        /// What we were doing.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A statement failed.
    #[error("{doing}")]
    Sql {
        /// What we were doing.
        doing: &'static str,
        /// SQLite's reason.
        source: rusqlite::Error,
    },
    /// What stands in the database cannot be read back.
    #[error("read {what} back from the database")]
    Unreadable {
        /// What.
        what: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing was recorded: somebody had the deployment cancelled first. Only where [`OnCancel::Stop`] was given.
    #[error("the deployment was cancelled by {by}")]
    Cancelled {
        /// Whose key signed that.
        by: KeyName,
    },
    /// The blocking task was cancelled: the agent is shutting down.
    #[error("the agent is shutting down")]
    ShuttingDown,
}

impl HistoryError {
    fn is_of_the_disk(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Sql { source, .. } => disk_failed(source),
            Self::Newer { .. }
            | Self::Damaged { .. }
            | Self::Foreign { .. }
            | Self::NotPermitted { .. }
            | Self::Busy { .. }
            | Self::Unreadable { .. }
            | Self::File { .. }
            | Self::Cancelled { .. }
            | Self::ShuttingDown => false,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Newer { .. } => Some(
                "install the agent that wrote it, or a newer one, or `deploy-agent restore FILE` with a backup of this agent's"
                    .to_owned(),
            ),
            Self::Damaged { .. } => Some(
                "put a backup in its place: `deploy-agent restore FILE`, which keeps the damaged one aside. With no backup, move history.db, history.db-wal and history.db-shm away: the agent then starts with an empty history"
                    .to_owned(),
            ),
            Self::Foreign { .. } => {
                Some("is state_dir in agent.toml the agent's own folder?".to_owned())
            }
            Self::NotPermitted { .. } => {
                Some("the agent needs to read and write the file and its folder: look at their owner and mode, and whether the file system is mounted read-only".to_owned())
            }
            Self::Busy { .. } => {
                Some("end the program that has it open, for instance sqlite3 (`fuser -v history.db` names it)".to_owned())
            }
            Self::Open { .. }
            | Self::Sql { .. }
            | Self::Unreadable { .. }
            | Self::File { .. }
            | Self::Cancelled { .. }
            | Self::ShuttingDown => None,
        }
    }

    /// The same for a caller, who hears nothing of the host's files.
    pub fn problem(&self) -> Problem {
        if matches!(self, Self::Busy { .. }) {
            return Problem::new(
                Code::DatabaseBusy,
                "the agent's database is held by another program on the host; nothing was changed",
            )
            .hint("try again in a moment; the host's log says more: journalctl -u deploy-agent");
        }
        Problem::new(Code::Internal, "the agent cannot use its database")
            .hint("see the agent's log on the host: journalctl -u deploy-agent")
    }
}

/// Whether the disk did not keep what it was given. A full disk is none of these: SQLite undoes the whole transaction,
/// and what was written before is where it was.
fn disk_failed(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
    )
}

/// The database. Clones share one connection.
#[derive(Debug, Clone)]
pub struct History {
    connection: Arc<Mutex<Connection>>,
    /// Whose turn it is. One piece of work at a time, in the order of asking, and asking ends: a database that somebody
    /// else locked must not gather threads.
    turn: Arc<Semaphore>,
    patience: Patience,
}

impl History {
    /// Opens the database, makes it when there is none, checks it, and brings an older one to the format of today.
    ///
    /// # Errors
    /// The file cannot be opened, is damaged or no database of ours; it was written by a newer agent.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let mut connection = opening::open_or_create(path)?;
        schema::prepare(&mut connection, path)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
            turn: Arc::new(Semaphore::new(1)),
            patience: Patience::OfARequest,
        })
    }

    /// The same database for deployments under way: they wait for it for minutes rather than stop half-way.
    #[must_use]
    pub fn patient(&self) -> Self {
        Self {
            patience: Patience::OfADeployment,
            ..self.clone()
        }
    }

    /// Runs one piece of work on the connection, off the async threads (a commit waits for the disk). Every statement
    /// passes through here, and does not come back when the disk failed it.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let patience = self.patience;
        let turn = tokio::time::timeout(patience.limit(), Arc::clone(&self.turn).acquire_owned());
        let Ok(turn) = turn.await else {
            return Err(HistoryError::Busy {
                doing: "wait for the database",
            });
        };
        let connection = Arc::clone(&self.connection);
        let run = move || {
            let _turn = turn;
            // A panic aborts the process in release builds; in tests a poisoned connection is still a sound one,
            // because every write is a transaction.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let done = patience.set(&mut connection).and_then(|()| work(&mut connection));
            if let Err(error) = &done
                && error.is_of_the_disk()
            {
                // Here, before the connection is free for the next one.
                crate::fatal::disk_failed(error);
            }
            done
        };
        tokio::task::spawn_blocking(run)
            .await
            .map_err(|_cancelled| HistoryError::ShuttingDown)?
    }
}

/// Names what a statement was for in its error.
fn sql(doing: &'static str) -> impl Fn(rusqlite::Error) -> HistoryError {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => HistoryError::Busy { doing },
        Some(_) | None => HistoryError::Sql { doing, source },
    }
}

/// Reads a JSON column back.
fn from_json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T, HistoryError> {
    serde_json::from_str(text).map_err(|source| HistoryError::Unreadable {
        what,
        source: Box::new(source),
    })
}

/// Writes a JSON column.
fn to_json<T: serde::Serialize>(what: &'static str, value: &T) -> Result<String, HistoryError> {
    serde_json::to_string(value).map_err(|source| HistoryError::Unreadable {
        what,
        source: Box::new(source),
    })
}

/// Reads a name back.
fn parsed<T>(what: &'static str, text: &str) -> Result<T, HistoryError>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().map_err(|source: T::Err| HistoryError::Unreadable {
        what,
        source: Box::new(source),
    })
}
