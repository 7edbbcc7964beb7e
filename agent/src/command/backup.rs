//! `deploy-agent backup`: a copy of the history, made beside the running agent.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::ConfigFolder;
use crate::config::{self, Mistakes};
use crate::history::HistoryError;
use crate::history::backup::{Contents, back_up};
use crate::state_folder;

/// Copy the history (journal and releases) into a file
///
/// Works while the agent runs. The file holds the bytes of your Compose files and `.env`: keep it as secret as they
/// are. The TLS key and the configuration are not in it.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where to write it
    pub file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigFolder,
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The configuration has mistakes that concern the server.
    #[error("read the configuration")]
    Config(#[source] Mistakes),
    /// The file is there already.
    #[error("write {}: it is there already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file is one of the agent's own.
    #[error("write {}: it is in the agent's state folder", path.display())]
    Own {
        /// The file.
        path: PathBuf,
    },
    /// The database could not be copied.
    #[error("back the history up")]
    History(#[source] HistoryError),
    /// What it holds could not be printed.
    #[error("print what it holds")]
    Print(#[source] io::Error),
}

impl BackupError {
    /// What to do about it; mistakes have their own hints.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { .. } => Some("choose another name, or replace it with --force".to_owned()),
            Self::Own { .. } => {
                Some("a backup belongs on another disk, or at least in another folder".to_owned())
            }
            Self::History(error) => error.hint(),
            Self::Config(_) | Self::Print(_) => None,
        }
    }
}

/// Writes the backup, and prints what it holds.
///
/// # Errors
/// Mistakes in the configuration, a database that cannot be read, a file that cannot be written.
pub fn backup(args: &Args, out: &mut dyn Write) -> Result<(), BackupError> {
    let part = config::load_server(&args.config.path).map_err(BackupError::Config)?;
    if is_in(&args.file, &part.state_dir) {
        return Err(BackupError::Own {
            path: args.file.clone(),
        });
    }
    if !args.force && args.file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists {
            path: args.file.clone(),
        });
    }
    let database = state_folder::database(&part.state_dir);
    let contents = back_up(&database, &args.file, args.force).map_err(BackupError::History)?;
    writeln!(out, "{}: {}", args.file.display(), in_words(&contents)).map_err(BackupError::Print)
}

/// What a backup holds, for people.
pub(super) fn in_words(contents: &Contents) -> String {
    let newest = contents
        .newest
        .map(|at| format!(", the last of {at:.0}"))
        .unwrap_or_default();
    format!(
        "{} releases and {} deployments{newest}; {} KiB",
        contents.releases,
        contents.deployments,
        contents.bytes.div_ceil(1024)
    )
}

fn is_in(file: &Path, folder: &Path) -> bool {
    let parent = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    match (parent.canonicalize(), folder.canonicalize()) {
        (Ok(parent), Ok(folder)) => parent == folder,
        (Ok(_) | Err(_), _) => false,
    }
}
