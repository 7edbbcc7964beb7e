//! Files that belong to the host: read with a bound, replaced as a whole or not at all.
//!
//! A replaced file keeps its owner, group and mode. A reader sees the old bytes or the new ones, never between, also
//! after a power cut. These functions block (fsync): async callers run them on a blocking thread.

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

/// Why a file of the host was not read or not replaced. The file is as it was, except after [`FilesError::Fsync`].
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
    /// The kernel could not bring the bytes to the disk. What is on the disk is unknown; trying again would only
    /// report success without having written (fsync clears the error).
    #[error("failed to flush {} to the disk", path.display())]
    Fsync {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
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
            FilesError::Fsync { source, .. } => Self::new(Code::Internal, format!("{error}: {source}"))
                .hint("the disk may be failing: see the kernel's log before anything else"),
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

/// Replaces a file's bytes atomically and durably, if it still holds the bytes that the caller read.
///
/// A symbolic link stays, its target is replaced. Doing it twice is the same as once. A file with several hard links
/// is separated from the others.
///
/// # Errors
/// [`FilesError::EditedMeanwhile`] when it holds neither the expected nor the new bytes. On every error but
/// [`FilesError::Fsync`] the file is untouched.
pub fn replace(path: &Path, new: &[u8], expected: &[u8]) -> Result<Replaced, FilesError> {
    let target = fs::canonicalize(path).map_err(|source| FilesError::of("find", path, source))?;
    let folder = target.parent().unwrap_or(Path::new("/"));
    sweep(folder, &target);
    if holds(&target, new, expected)? == Replaced::AlreadyThere {
        // A crash may have come between the rename and the flush.
        flush(&target)?;
        flush(folder)?;
        return Ok(Replaced::AlreadyThere);
    }
    let temporary = write_beside(&target, folder, new)?;
    // As late as possible: a person's editor may have saved while the new file was being written.
    if holds(&target, new, expected)? == Replaced::Written {
        temporary
            .persist(&target)
            .map_err(|failed| FilesError::of("replace", &target, failed.error))?;
    }
    flush(folder)?;
    Ok(Replaced::Written)
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
    let old = fs::metadata(target).map_err(failed("read"))?;
    let mut temporary = tempfile::Builder::new()
        .prefix(&prefix(target))
        .tempfile_in(folder)
        .map_err(|source| FilesError::of("write into", folder, source))?;
    temporary.write_all(new).map_err(failed("write"))?;
    take_over(temporary.as_file(), &old, target)?;
    temporary
        .as_file()
        .sync_all()
        .map_err(|source| FilesError::Fsync {
            path: target.to_owned(),
            source,
        })?;
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

fn flush(path: &Path) -> Result<(), FilesError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|source| FilesError::Fsync {
            path: path.to_owned(),
            source,
        })
}

/// What a crash left behind. Only one deployment of a project runs at a time, so none of these is in use.
fn sweep(folder: &Path, target: &Path) {
    let prefix = prefix(target);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes())
        {
            // A leftover that cannot be removed harms nobody; what matters will fail with its own reason.
            drop(fs::remove_file(entry.path()));
        }
    }
}

fn prefix(target: &Path) -> std::ffi::OsString {
    let mut prefix = std::ffi::OsString::from(".deploy-agent-");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".");
    prefix
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
