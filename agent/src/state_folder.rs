//! The state folder: its owner's alone, and used by one process at a time.
//!
//! The lock is `flock(2)` on a file in it. The kernel lets go of it when the process ends, however it ends, so that
//! there is no stale lock, and what is written in the file is for people only.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The file that is locked.
const LOCK_FILE: &str = "lock";
/// How long the lock of a process that is just ending is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// What is read of the lock's file: a process id.
const HOLDER_MAX_BYTES: u64 = 32;

/// The state folder, taken by this process for as long as this lives.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// The lock is the open file's.
    _lock: File,
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateFolderError {
    /// It cannot be made, or made its owner's alone.
    #[error("make the folder {}", path.display())]
    Make {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its lock cannot be taken at all.
    #[error("lock {}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it.
    #[error("use {}: {holder} uses it", path.display())]
    Taken {
        /// The folder.
        path: PathBuf,
        /// Who: `process 4711`, as far as the lock's file says.
        holder: String,
    },
}

impl StateFolderError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Taken { .. } => Some(
                "two agents on one state folder would act against each other: stop the other one first (`systemctl stop deploy-agent`), or give this one a state_dir and projects of its own"
                    .to_owned(),
            ),
            Self::Make { .. } | Self::Lock { .. } => None,
        }
    }
}

impl StateFolder {
    /// Makes the folder when there is none, for its owner alone: the releases in it hold the bytes of `.env` files. Then
    /// takes it.
    ///
    /// # Errors
    /// It cannot be made, or another process has it.
    pub fn take(path: &Path) -> Result<Self, StateFolderError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        let private = made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)));
        private.map_err(|source| StateFolderError::Make {
            path: path.to_owned(),
            source,
        })?;
        let file = path.join(LOCK_FILE);
        let failed = |source| StateFolderError::Lock {
            path: file.clone(),
            source,
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .map_err(failed)?;
        let patience_ends = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < patience_ends => thread::sleep(LOCK_PAUSE),
                Err(Errno::WOULDBLOCK) => {
                    return Err(StateFolderError::Taken {
                        path: path.to_owned(),
                        holder: holder(&lock),
                    });
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        database(&self.path)
    }
}

/// The database of a state folder that need not be taken.
pub fn database(state_dir: &Path) -> PathBuf {
    state_dir.join("history.db")
}

fn holder(lock: &File) -> String {
    let mut text = String::new();
    match lock.take(HOLDER_MAX_BYTES).read_to_string(&mut text) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => format!("process {}", text.trim()),
        Ok(_) | Err(_) => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make the files that a host has")]

    use super::*;

    #[test]
    fn it_is_taken_once_and_free_again_when_its_holder_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateFolder::take(&path).unwrap();
        let error = StateFolder::take(&path).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("process {} uses it", std::process::id())),
            "{error}"
        );
        drop(first);
        // What a killed process left in the file is no lock.
        fs::write(
            path.join(LOCK_FILE),
            "99999999 and more than that, longer than it will be\n",
        )
        .unwrap();
        let again = StateFolder::take(&path).unwrap();
        assert_eq!(
            fs::read_to_string(path.join(LOCK_FILE)).unwrap().trim(),
            std::process::id().to_string()
        );
        assert_eq!(
            fs::metadata(again.path()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }
}
