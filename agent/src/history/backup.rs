//! Copies of the whole database: made while the agent runs, and put in its place when it does not.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags};

use super::opening::{
    cannot_open, check, companions, open, remove_if_there, rename, sync_folder, with_suffix,
};
use super::{History, HistoryError, sql};

/// What a new database is called until it takes the old one's place.
pub(super) const STAGED: &str = ".restoring";

/// What a database holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// How many releases.
    pub releases: u64,
    /// How many deployments.
    pub deployments: u64,
    /// When the last deployment in it began or ended; none when there is none.
    pub newest: Option<Timestamp>,
    /// The file's length.
    pub bytes: u64,
}

/// Copies the database into a file, as it is at one moment, also while the agent writes to it. The file appears whole,
/// on the disk, and readable by its owner alone: it holds the bytes of `.env` files.
///
/// # Errors
/// The database cannot be read or is damaged; the file is there already and `overwrite` is false; the disk is full.
pub fn back_up(database: &Path, to: &Path, overwrite: bool) -> Result<Contents, HistoryError> {
    let failed = |doing, source| HistoryError::File {
        doing,
        path: to.to_owned(),
        source,
    };
    fs::metadata(database).map_err(|source| HistoryError::File {
        doing: "find the database",
        path: database.to_owned(),
        source,
    })?;
    let folder = match to.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let new = tempfile::NamedTempFile::new_in(folder).map_err(|source| failed("write", source))?;
    let connection = open(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    // Into an empty file that is ours alone (mode 0600) already.
    let name = new.path().to_string_lossy();
    connection
        .execute("VACUUM INTO ?1", [&name])
        .map_err(|error| cannot_open(database, error))?;
    drop(connection);
    let contents = contents_of(new.path())?;
    new.as_file()
        .sync_all()
        .map_err(|source| failed("write", source))?;
    let named = if overwrite {
        new.persist(to).map_err(|error| error.error)
    } else {
        new.persist_noclobber(to).map_err(|error| error.error)
    };
    named
        .and_then(|_file| sync_folder(to))
        .map_err(|source| failed("write", source))?;
    Ok(contents)
}

/// Copies a backup beside the database, and checks that it is one of ours and whole. [`replace`] ends it.
///
/// # Errors
/// It is damaged, or no database of ours, or of a newer agent; the copy cannot be written.
pub fn stage(backup: &Path, database: &Path) -> Result<(PathBuf, Contents), HistoryError> {
    let log = with_suffix(backup, "-wal");
    if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        return Err(HistoryError::Damaged {
            path: backup.to_owned(),
            what: format!(
                "it is a part of a database, whose other part is {}: make a copy with `deploy-agent backup`",
                log.display()
            ),
        });
    }
    let staged = with_suffix(database, STAGED);
    for left in companions(&staged).iter().chain([&staged]) {
        remove_if_there(left)?;
    }
    copy(backup, &staged).map_err(|source| HistoryError::File {
        doing: "copy",
        path: backup.to_owned(),
        source,
    })?;
    let looked = look_through(&staged);
    match looked {
        Ok(contents) => Ok((staged, contents)),
        Err(error) => {
            remove_if_there(&staged)?;
            // The caller knows the file by its own name.
            Err(error.about(backup))
        }
    }
}

/// Puts the staged database in the place of the old one, which is kept under another name with all its parts. A crash at
/// any point loses neither: the agent then says that the restore has to be done again.
///
/// # Errors
/// A file cannot be renamed.
pub fn replace(staged: &Path, database: &Path, now: Timestamp) -> Result<Option<PathBuf>, HistoryError> {
    if let Some(log) = companions(staged).into_iter().find(|part| part.exists()) {
        return Err(HistoryError::File {
            doing: "finish writing",
            path: log,
            source: io::ErrorKind::AlreadyExists.into(),
        });
    }
    let aside = with_suffix(
        database,
        &format!(".before-restore-{}", now.strftime("%Y%m%dT%H%M%SZ")),
    );
    let mut kept = None;
    let parts = [database.to_owned()].into_iter().chain(companions(database));
    let names = [aside.clone()].into_iter().chain(companions(&aside));
    for (part, name) in parts.zip(names) {
        if part.exists() {
            rename(&part, &name)?;
            kept = Some(aside.clone());
        }
    }
    rename(staged, database)?;
    Ok(kept)
}

impl History {
    /// Remembers that this database was restored from a backup at this time: what was signed before is not let in. What
    /// baked then is not taken back: other releases came after it.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn mark_restored(&self, at: Timestamp) -> Result<(), HistoryError> {
        self.with(move |connection| {
            let transaction = connection
                .transaction()
                .map_err(sql("begin to record a restore"))?;
            transaction
                .execute("DELETE FROM restored", [])
                .and_then(|_| transaction.execute("DELETE FROM bake", []))
                .and_then(|_| transaction.execute("INSERT INTO restored (at) VALUES (?1)", [at.as_second()]))
                .map_err(sql("record a restore"))?;
            transaction.commit().map_err(sql("commit a restore"))
        })
        .await
    }
}

impl HistoryError {
    /// The same error about a copy's original.
    fn about(self, original: &Path) -> Self {
        let path = original.to_owned();
        match self {
            Self::Damaged { what, .. } => Self::Damaged { path, what },
            Self::Foreign { .. } => Self::Foreign { path },
            Self::Newer { found, known, .. } => Self::Newer { path, found, known },
            Self::Open { source, .. } => Self::Open { path, source },
            other @ (Self::NotPermitted { .. }
            | Self::Busy { .. }
            | Self::File { .. }
            | Self::Sql { .. }
            | Self::Unreadable { .. }
            | Self::Cancelled { .. }
            | Self::ShuttingDown) => other,
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut new = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    io::copy(&mut File::open(from)?, &mut new)?;
    new.sync_all()
}

fn look_through(path: &Path) -> Result<Contents, HistoryError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    let mut findings: Vec<String> = Vec::new();
    connection
        .pragma(None, "integrity_check", 1, |row| {
            findings.push(row.get(0)?);
            Ok(())
        })
        .map_err(|error| cannot_open(path, error))?;
    if findings != ["ok"] {
        return Err(HistoryError::Damaged {
            path: path.to_owned(),
            what: findings.join("; "),
        });
    }
    drop(connection);
    contents_of(path)
}

fn contents_of(path: &Path) -> Result<Contents, HistoryError> {
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    check(&connection, path)?;
    let count = |connection: &Connection, table: &str| -> Result<u64, HistoryError> {
        let rows: i64 = connection
            .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))
            .map_err(sql("count what the database holds"))?;
        Ok(u64::try_from(rows).unwrap_or(0))
    };
    let newest: Option<String> = connection
        .query_row(
            "SELECT max(coalesce(ended_at, accepted_at)) FROM deployment",
            [],
            |row| row.get(0),
        )
        .map_err(sql("find the newest deployment"))?;
    let length = fs::metadata(path).map_err(|source| HistoryError::File {
        doing: "look at",
        path: path.to_owned(),
        source,
    })?;
    Ok(Contents {
        releases: count(&connection, "release")?,
        deployments: count(&connection, "deployment")?,
        newest: newest.and_then(|text| text.parse().ok()),
        bytes: length.len(),
    })
}
