//! The database's tables, and how an older format becomes the one of today.

use std::path::Path;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, TransactionBehavior};

use super::opening::cannot_open;
use super::{HistoryError, disk_failed, sql};

/// How long the write-ahead log may become before it is written into the database: SQLite's own default, 4 MiB.
const WAL_MAX_PAGES: i32 = 1000;

/// Each entry brings the database from the format of its index to the next. Entries are only ever added.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE nonce (
        key TEXT NOT NULL,
        nonce TEXT NOT NULL,
        expires INTEGER NOT NULL,
        PRIMARY KEY (key, nonce)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX nonce_expires ON nonce (expires);

    CREATE TABLE deployment (
        ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        project TEXT NOT NULL,
        request TEXT NOT NULL,
        key TEXT NOT NULL,
        services TEXT NOT NULL,
        accepted_at TEXT NOT NULL,
        phase TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        plan TEXT,
        from_release INTEGER,
        to_release INTEGER,
        ended_at TEXT,
        outcome TEXT
    ) STRICT;
    CREATE INDEX deployment_project ON deployment (project, ordinal);

    CREATE TABLE event (
        deployment TEXT NOT NULL REFERENCES deployment (id),
        seq INTEGER NOT NULL,
        event TEXT NOT NULL,
        PRIMARY KEY (deployment, seq)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE release (
        project TEXT NOT NULL,
        number INTEGER NOT NULL,
        parent INTEGER,
        state TEXT NOT NULL,
        version TEXT,
        key TEXT,
        source TEXT NOT NULL,
        created_at TEXT NOT NULL,
        images TEXT NOT NULL,
        PRIMARY KEY (project, number)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE release_file (
        project TEXT NOT NULL,
        number INTEGER NOT NULL,
        path TEXT NOT NULL,
        bytes BLOB NOT NULL,
        PRIMARY KEY (project, number, path),
        FOREIGN KEY (project, number) REFERENCES release (project, number)
    ) STRICT;

    CREATE TABLE release_log (
        project TEXT NOT NULL,
        number INTEGER NOT NULL,
        service TEXT NOT NULL,
        lines TEXT NOT NULL,
        PRIMARY KEY (project, number, service)
    ) STRICT;
",
    "
    ALTER TABLE deployment ADD COLUMN cancelled_by TEXT;
    ALTER TABLE release ADD COLUMN irreversible INTEGER NOT NULL DEFAULT 0;

    -- The newest accepted run of every line of runs; a line without a name is ''.
    CREATE TABLE newest_run (
        project TEXT NOT NULL,
        line TEXT NOT NULL,
        run INTEGER NOT NULL,
        attempt INTEGER NOT NULL,
        deployment TEXT NOT NULL,
        key TEXT NOT NULL,
        run_url TEXT,
        accepted_at TEXT NOT NULL,
        PRIMARY KEY (project, line)
    ) STRICT, WITHOUT ROWID;
",
    "
    -- The times of expiry, in Unix seconds, of nonces that are not kept any more: what expires between may be a replay.
    CREATE TABLE forgotten_nonces (first INTEGER NOT NULL, last INTEGER NOT NULL) STRICT;
    -- When this database was restored from a backup, in Unix seconds: nonces of before are unknown.
    CREATE TABLE restored (at INTEGER NOT NULL) STRICT;
",
    "
    -- The release of a project that is live and still watched, with the containers that it runs once they are known.
    CREATE TABLE bake (
        project TEXT NOT NULL PRIMARY KEY,
        deployment TEXT NOT NULL REFERENCES deployment (id),
        release INTEGER NOT NULL,
        started_at TEXT NOT NULL,
        containers TEXT
    ) STRICT, WITHOUT ROWID;
",
];

/// The newest format that this agent knows.
pub(super) fn newest_format() -> u32 {
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// Sets the connection up and migrates.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<(), HistoryError> {
    let open = |error| cannot_open(path, error);
    // A transaction that reads first and writes then would fail at once, without waiting, when another program wrote
    // in between.
    connection.set_transaction_behavior(TransactionBehavior::Immediate);
    let mode: String = connection
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .map_err(open)?;
    let had_a_log = mode.eq_ignore_ascii_case("wal");
    connection
        .pragma_update(None, "journal_mode", "WAL")
        .map_err(open)?;
    connection
        .pragma_update(None, "synchronous", "FULL")
        .map_err(open)?;
    // What an earlier process could not flush is written once more, into the database itself: of the log's own pages the
    // kernel may believe that they are on the disk (docs/decisions/0007-failed-fsync-is-fatal.md). A reader that is in
    // the way is no reason not to start.
    if had_a_log {
        connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
            .map_err(open)?;
    }
    connection.wal_hook(Some(checkpoint)).map_err(open)?;
    connection
        .pragma_update(None, "foreign_keys", "ON")
        .map_err(open)?;
    // The journal is small; 1 MiB of page cache (negative: KiB) is plenty and keeps the agent light.
    connection
        .pragma_update(None, "cache_size", -1024)
        .map_err(open)?;

    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(open)?;
    for (format, migration) in (1_u32..)
        .zip(MIGRATIONS)
        .skip(usize::try_from(found).unwrap_or(usize::MAX))
    {
        let transaction = connection
            .transaction()
            .map_err(sql("begin a migration of the database"))?;
        transaction
            .execute_batch(migration)
            .map_err(sql("migrate the database"))?;
        transaction
            .pragma_update(None, "user_version", format)
            .map_err(sql("record the database's format"))?;
        transaction
            .commit()
            .map_err(sql("commit a migration of the database"))?;
    }
    Ok(())
}

/// Writes a long log into the database, as SQLite would by itself; but SQLite tells nobody that it failed.
fn checkpoint(wal: &mut Wal, pages: i32) -> rusqlite::Result<()> {
    if pages < WAL_MAX_PAGES {
        return Ok(());
    }
    match wal.checkpoint() {
        // Here: the commit that came here would answer with no more than "SQL logic error".
        Err(source) if disk_failed(&source) => {
            let doing = "write the log into the database";
            crate::fatal::disk_failed(&HistoryError::Sql { doing, source })
        }
        // Busy or full: the log becomes longer, and the next commit tries again.
        Ok(()) | Err(_) => Ok(()),
    }
}
