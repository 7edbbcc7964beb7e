//! Files that belong to the host: read with a bound, replaced as a whole or not at all.
//!
//! A replaced file keeps its owner, group and mode. A reader sees the old bytes or the new ones, never between, also
//! after a power cut. What cannot be flushed to the disk ends the process ([`crate::fatal`]): it is never asked twice.
//! These functions block (fsync): async callers run them on a blocking thread.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use deploy_proto::problem::{Code, Problem};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
use tempfile::NamedTempFile;

/// The largest file that is read: Compose files are a few KiB, the largest seen in public is under 200 KiB.
pub const FILE_MAX_BYTES: u64 = 2 * 1024 * 1024;

/// What a replacement found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaced {
    /// The file held the expected bytes and holds the new ones now.
    Written,
    /// The file held the new bytes already.
    AlreadyThere,
}

/// Why a file of the host was not read or not replaced. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// There is no such file.
    #[error("{} does not exist", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a folder, a device or a pipe.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It is larger than is ever read.
    #[error("{} is larger than {limit_bytes} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit_bytes: u64,
    },
    /// Someone changed it since it was read.
    #[error("{} was changed by someone else in the meantime", path.display())]
    EditedMeanwhile {
        /// The file.
        path: PathBuf,
    },
    /// The file system is mounted read-only (or the unit's sandbox makes it so).
    #[error("{} is on a read-only file system", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// The agent's user may not do this.
    #[error("the agent may not {action} {}", path.display())]
    Denied {
        /// What was tried.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// The new file could not be given to the owner of the old one.
    #[error("failed to keep the owner {uid}:{gid} of {}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// The old file's user.
        uid: u32,
        /// The old file's group.
        gid: u32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file system is full.
    #[error("no space is left to write {}", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The file is a mount point of its own (bind-mounted), so that it cannot be replaced by a rename.
    #[error("{} is mounted by itself and cannot be replaced", path.display())]
    Mounted {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl FilesError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "ErrorKind is open-ended")]
    fn of(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Denied { action, path },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
            io::ErrorKind::ResourceBusy => Self::Mounted { path },
            _ => Self::Io { action, path, source },
        }
    }
}

impl From<&FilesError> for Problem {
    fn from(error: &FilesError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            FilesError::Missing { .. } | FilesError::NotAFile { .. } | FilesError::TooLarge { .. } => {
                problem(Code::ComposeFile).hint("see `dir` and `files` of the project's configuration")
            }
            FilesError::EditedMeanwhile { .. } => {
                problem(Code::Edited).hint("look at what was changed, then push again")
            }
            FilesError::ReadOnly { path } => problem(Code::HostUnfit).hint(format!(
                "add ReadWritePaths={} to the agent's unit (`deploy-agent add` writes the drop-in), or remount it writable",
                path.parent().unwrap_or(path).display()
            )),
            FilesError::Denied { .. } => problem(Code::HostUnfit)
                .hint("let the agent's user read the file and write its folder, or run the agent as root"),
            FilesError::Owner { source, .. } => Self::new(Code::HostUnfit, format!("{error}: {source}"))
                .hint("make the agent's user the owner of the file, or run the agent as root"),
            FilesError::Full { .. } => problem(Code::HostUnfit).hint("free some space, then push again"),
            FilesError::Mounted { .. } => {
                problem(Code::HostUnfit).hint("mount the folder that holds the file, not the file alone")
            }
            FilesError::Io { source, .. } => Self::new(Code::Internal, format!("{error}: {source}")),
        }
    }
}

/// Reads a whole regular file of at most [`FILE_MAX_BYTES`]; a symbolic link is followed.
///
/// # Errors
/// It does not exist, is no regular file, is too large, or cannot be read.
pub fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let failed = |source| FilesError::of("read", path, source);
    // A look before opening: opening a pipe would block for ever.
    regular(path, &fs::metadata(path).map_err(failed)?)?;
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(FilesError::TooLarge {
            path: path.to_owned(),
            limit_bytes: FILE_MAX_BYTES,
        });
    }
    Ok(bytes)
}

/// The kernel could not bring the bytes to the disk: what is there now is unknown.
#[derive(Debug, thiserror::Error)]
#[error("failed to flush {} to the disk", path.display())]
struct NotFlushed {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Replaces a file's bytes atomically and durably, if it still holds the bytes that the caller read.
///
/// A symbolic link stays, its target is replaced. Doing it twice is the same as once. A file with several hard links
/// is separated from the others.
///
/// # Errors
/// [`FilesError::EditedMeanwhile`] when it holds neither the expected nor the new bytes. On every error the file is
/// untouched. When the disk does not take the bytes, the process ends.
pub fn replace(path: &Path, new: &[u8], expected: &[u8]) -> Result<Replaced, FilesError> {
    let target = fs::canonicalize(path).map_err(|source| FilesError::of("find", path, source))?;
    let folder = target.parent().unwrap_or(Path::new("/"));
    let opened = File::open(folder).map_err(|source| FilesError::of("open", folder, source))?;
    let found = holds(&target, new, expected)?;
    // Also when the new bytes are there: the process that wrote them may have ended because it could not flush them,
    // and only what is written anew is really flushed. Where nothing can be written (a full disk, a read-only one) what
    // is there has to do.
    let temporary = match write_beside(&target, folder, new) {
        Err(_) if found == Replaced::AlreadyThere => {
            flush(&opened, folder);
            return Ok(found);
        }
        written => written?,
    };
    // As late as possible: a person's editor may have saved while the new file was being written.
    let found = holds(&target, new, expected)?;
    temporary
        .persist(&target)
        .map_err(|failed| FilesError::of("replace", &target, failed.error))?;
    flush(&opened, folder);
    Ok(found)
}

/// Removes what a replacement of this file left beside it that was cut off by a crash. Only one deployment of a project
/// runs at a time, so it is nobody's.
pub fn remove_leftover(path: &Path) {
    let Ok(target) = fs::canonicalize(path) else {
        return;
    };
    let beside = beside(&target);
    if fs::symlink_metadata(&beside).is_ok_and(|found| found.is_file()) {
        // A leftover that cannot be removed harms nobody; what matters will fail with its own reason.
        drop(fs::remove_file(beside));
    }
}

/// What is to be done: `Written` when the expected bytes are there.
fn holds(target: &Path, new: &[u8], expected: &[u8]) -> Result<Replaced, FilesError> {
    let now = read(target)?;
    if now == new {
        Ok(Replaced::AlreadyThere)
    } else if now == expected {
        Ok(Replaced::Written)
    } else {
        Err(FilesError::EditedMeanwhile {
            path: target.to_owned(),
        })
    }
}

/// A flushed file with the new bytes, and the owner and mode of the old one.
fn write_beside(target: &Path, folder: &Path, new: &[u8]) -> Result<NamedTempFile, FilesError> {
    let failed = |action| move |source| FilesError::of(action, target, source);
    remove_leftover(target);
    let old = fs::metadata(target).map_err(failed("read"))?;
    let mut temporary = tempfile::Builder::new()
        .prefix(beside(target).file_name().unwrap_or_default())
        .rand_bytes(0)
        .tempfile_in(folder)
        .map_err(|source| FilesError::of("write into", folder, source))?;
    temporary.write_all(new).map_err(failed("write"))?;
    take_over(temporary.as_file(), &old, target)?;
    flush(temporary.as_file(), target);
    Ok(temporary)
}

fn take_over(file: &File, old: &Metadata, target: &Path) -> Result<(), FilesError> {
    let fresh = file
        .metadata()
        .map_err(|source| FilesError::of("read", target, source))?;
    if (fresh.uid(), fresh.gid()) != (old.uid(), old.gid()) {
        // Before the mode: changing the owner clears the set-id bits.
        let (uid, gid) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
        fchown(file, Some(uid), Some(gid)).map_err(|errno| FilesError::Owner {
            path: target.to_owned(),
            uid: old.uid(),
            gid: old.gid(),
            source: errno.into(),
        })?;
    }
    fchmod(file, Mode::from_raw_mode(old.permissions().mode()))
        .map_err(|errno| FilesError::of("set the mode of", target, errno.into()))
}

/// Comes back when the disk has it.
fn flush(file: &File, path: &Path) {
    if let Err(source) = file.sync_all() {
        let path = path.to_owned();
        crate::fatal::disk_failed(&NotFlushed { path, source });
    }
}

/// The one name that the new bytes of a file have until they take its place: what a crash leaves is found again, and
/// nobody else's file is taken for it.
fn beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".deploy-agent-");
    name.push(target.file_name().unwrap_or_default());
    name.push(".new");
    target.with_file_name(name)
}

fn regular(path: &Path, metadata: &Metadata) -> Result<(), FilesError> {
    if metadata.is_file() {
        Ok(())
    } else {
        Err(FilesError::NotAFile {
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
