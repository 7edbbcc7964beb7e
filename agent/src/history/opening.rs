//! Opening the database's file: made whole when there is none, looked through when there is one.
//!
//! A new database is made under another name and renamed, so that `history.db` is never half a database of ours: what is
//! empty or cut short was damaged, and is not taken for a first start.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::backup::STAGED;
use super::patience::Patience;
use super::{HistoryError, schema};

/// What SQLite appends to the names of the files that belong to a database.
const COMPANIONS: [&str; 3] = ["-wal", "-shm", "-journal"];
/// How many of the check's findings are told.
const FINDINGS_MAX: u32 = 3;
/// A table that every database of ours has had since format 1.
const OUR_TABLES: [&str; 4] = ["deployment", "event", "nonce", "release"];

/// Opens the database, or makes it when there is none. What comes back was checked, and may be of an older format.
pub(super) fn open_or_create(path: &Path) -> Result<Connection, HistoryError> {
    match fs::metadata(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
        Err(source) => return Err(not_permitted(path, Box::new(source))),
    }
    let connection = open(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    check(&connection, path)?;
    let is_read_only = connection
        .is_readonly(rusqlite::MAIN_DB)
        .map_err(|error| cannot_open(path, error))?;
    if is_read_only {
        // SQLite opens what it may not write for reading, and would fail in the middle of the first deployment.
        return Err(not_permitted(
            path,
            Box::new(io::Error::from(io::ErrorKind::PermissionDenied)),
        ));
    }
    Ok(connection)
}

/// Opens an existing database in a way, with a request's patience.
pub(super) fn open(path: &Path, way: OpenFlags) -> Result<Connection, HistoryError> {
    let mut connection = Connection::open_with_flags(path, way | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .map_err(|error| cannot_open(path, error))?;
    Patience::OfARequest.set(&mut connection)?;
    Ok(connection)
}

fn create(path: &Path) -> Result<(), HistoryError> {
    let staged = with_suffix(path, STAGED);
    if let Some(left) = companions(path)
        .into_iter()
        .chain([staged])
        .find(|left| left.exists())
    {
        return Err(HistoryError::Damaged {
            path: path.to_owned(),
            what: format!("it is gone, and {} is still there", left.display()),
        });
    }
    let new = with_suffix(path, ".new");
    for left in companions(&new).iter().chain([&new]) {
        // Of a first start that did not come to its end.
        remove_if_there(left)?;
    }
    let way = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = open(&new, way)?;
    schema::prepare(&mut connection, &new)?;
    // The last one to close it writes the log into the database and removes it.
    connection
        .close()
        .map_err(|(_connection, error)| cannot_open(&new, error))?;
    rename(&new, path)
}

/// Looks for everything that would make this database a danger later. Reads all of it: 0.15 s for 100 MB that the
/// kernel has in its memory, 2 s for those it has not.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), HistoryError> {
    let open = |error| cannot_open(path, error);
    let length = fs::metadata(path).map_err(|source| HistoryError::File {
        doing: "look at",
        path: path.to_owned(),
        source,
    })?;
    if length.len() == 0 {
        return Err(damaged(path, "it is empty"));
    }
    let found: u32 = connection
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(open)?;
    let known = schema::newest_format();
    if found > known {
        return Err(HistoryError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    let mut findings: Vec<String> = Vec::new();
    connection
        .pragma(None, "quick_check", FINDINGS_MAX, |row| {
            findings.push(row.get(0)?);
            Ok(())
        })
        .map_err(open)?;
    if findings != ["ok"] {
        return Err(damaged(path, &findings.join("; ")));
    }
    let has = |table: &str| connection.table_exists(None, table).map_err(open);
    for table in OUR_TABLES {
        if found == 0 || !has(table)? {
            return Err(HistoryError::Foreign {
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

/// Puts SQLite's reason into a kind that has a hint.
pub(super) fn cannot_open(path: &Path, source: rusqlite::Error) -> HistoryError {
    match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => damaged(path, &source.to_string()),
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            not_permitted(path, Box::new(source))
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => HistoryError::Busy {
            doing: "open the database",
        },
        Some(_) | None => HistoryError::Open {
            path: path.to_owned(),
            source,
        },
    }
}

fn damaged(path: &Path, what: &str) -> HistoryError {
    HistoryError::Damaged {
        path: path.to_owned(),
        what: what.to_owned(),
    }
}

fn not_permitted(path: &Path, source: Box<dyn std::error::Error + Send + Sync>) -> HistoryError {
    HistoryError::NotPermitted {
        path: path.to_owned(),
        source,
    }
}

/// The files that belong to a database.
pub(super) fn companions(path: &Path) -> [PathBuf; 3] {
    COMPANIONS.map(|suffix| with_suffix(path, suffix))
}

/// `history.db` and `.new` are `history.db.new`.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), HistoryError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(HistoryError::File {
            doing: "remove",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Renames, and makes sure that the name outlives a power cut.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), HistoryError> {
    let renamed = fs::rename(from, to).and_then(|()| sync_folder(to));
    renamed.map_err(|source| HistoryError::File {
        doing: "put in its place",
        path: to.to_owned(),
        source,
    })
}

/// Flushes the folder that a file is in.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make the files that a host has")]

    use std::os::unix::fs::FileExt as _;

    use super::*;
    use crate::history::History;

    fn error_of(path: &Path) -> HistoryError {
        match History::open(path) {
            Ok(_) => panic!("{} was opened", path.display()),
            Err(error) => error,
        }
    }

    /// A database with some content, closed, so that all of it is in the one file.
    fn sound(folder: &Path) -> PathBuf {
        let path = folder.join("history.db");
        drop(History::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                 INSERT INTO nonce SELECT 'key', printf('nonce-%030d', i), i FROM n;",
            )
            .unwrap();
        connection.close().unwrap();
        path
    }

    fn is_damaged(error: &HistoryError) -> bool {
        matches!(error, HistoryError::Damaged { .. })
    }

    #[test]
    fn a_sound_database_is_opened_again_and_a_new_one_leaves_nothing_half_made() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("history.db.new"), b"half a database").unwrap();
        let path = sound(folder.path());
        drop(History::open(&path).unwrap());
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["history.db"]);
    }

    #[test]
    fn damage_of_every_kind_is_found_at_start_and_the_hint_says_restore() {
        type Harm = fn(&Path);
        let harms: [(&str, Harm); 6] = [
            ("header", |path| {
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&[0xA5; 100], 0).unwrap();
            }),
            ("truncated", |path| {
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                let length = file.metadata().unwrap().len();
                file.set_len(length / 2).unwrap();
            }),
            ("page", |path| {
                let file = fs::OpenOptions::new().write(true).open(path).unwrap();
                let pages = file.metadata().unwrap().len() / 4096;
                // Every page but the first, so that none of the tables is spared.
                for page in 1..pages {
                    file.write_all_at(&[0x5A; 64], page * 4096).unwrap();
                }
            }),
            ("empty", |path| fs::write(path, b"").unwrap()),
            ("text", |path| {
                fs::write(path, "this is a letter to a friend\n".repeat(1000)).unwrap();
            }),
            ("gone, its log is there", |path| {
                fs::rename(path, with_suffix(path, "-wal")).unwrap();
            }),
        ];
        for (name, harm) in harms {
            let folder = tempfile::tempdir().unwrap();
            let path = sound(folder.path());
            harm(&path);
            let error = error_of(&path);
            assert!(is_damaged(&error), "{name}: {error:?}");
            assert!(error.to_string().contains("history.db"), "{name}: {error}");
            assert!(
                error
                    .hint()
                    .is_some_and(|hint| hint.contains("deploy-agent restore")),
                "{name}"
            );
        }
    }

    #[test]
    fn newer_and_foreign_databases_are_refused_and_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let newer = sound(folder.path());
        let connection = Connection::open(&newer).unwrap();
        connection.pragma_update(None, "user_version", 1000).unwrap();
        connection.close().unwrap();
        let before = fs::read(&newer).unwrap();
        let error = error_of(&newer);
        assert!(
            matches!(error, HistoryError::Newer { found: 1000, .. }),
            "{error:?}"
        );
        assert_eq!(fs::read(&newer).unwrap(), before);

        let foreign = folder.path().join("foreign.db");
        let connection = Connection::open(&foreign).unwrap();
        connection
            .execute_batch("CREATE TABLE bookmark (url TEXT)")
            .unwrap();
        connection.close().unwrap();
        let before = fs::read(&foreign).unwrap();
        let error = error_of(&foreign);
        assert!(matches!(error, HistoryError::Foreign { .. }), "{error:?}");
        assert_eq!(fs::read(&foreign).unwrap(), before);
    }

    #[test]
    fn what_is_no_file_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.db");
        fs::create_dir(&path).unwrap();
        let error = error_of(&path);
        assert!(matches!(error, HistoryError::NotPermitted { .. }), "{error:?}");
    }
}
