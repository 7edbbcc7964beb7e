//! The journal and the releases, in one SQLite database.
//!
//! One connection, write-ahead log, `synchronous = FULL`: what a call answered with `Ok` is on the disk. The shapes kept
//! here are the journal's own; the wire's are in `deploy_proto` and are made from these. A disk that fails ends the
//! process ([`crate::fatal`]).

mod forget;
mod journal;
mod nonces;
mod releases;
mod runs;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, ErrorCode};

pub use journal::{Deployment, Request};
pub use nonces::NonceUse;
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
        "the database {} has format {found}, and this agent knows formats up to {known}: install the agent that wrote it, or restore a backup",
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
    /// The blocking task was cancelled: the agent is shutting down.
    #[error("the agent is shutting down")]
    ShuttingDown,
}

impl HistoryError {
    fn is_of_the_disk(&self) -> bool {
        match self {
            Self::Open { source, .. } | Self::Sql { source, .. } => disk_failed(source),
            Self::Newer { .. } | Self::Unreadable { .. } | Self::ShuttingDown => false,
        }
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
}

impl History {
    /// Opens the database, makes it when there is none, and brings an older one to the format of today.
    ///
    /// # Errors
    /// The file cannot be opened or is not a database; it was written by a newer agent.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let open = |source| HistoryError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Connection::open(path).map_err(open)?;
        schema::prepare(&mut connection, path)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs one piece of work on the connection, off the async threads (a commit waits for the disk). Every statement
    /// passes through here, and does not come back when the disk failed it.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let connection = Arc::clone(&self.connection);
        let run = move || {
            // A panic aborts the process in release builds; in tests a poisoned connection is still a sound one,
            // because every write is a transaction.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let done = work(&mut connection);
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
    move |source| HistoryError::Sql { doing, source }
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
