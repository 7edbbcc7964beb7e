//! `deploy-agent restore`: a backup takes the history's place, while no agent runs.

use std::io::{self, Write};
use std::path::PathBuf;

use jiff::Timestamp;

use super::ConfigFolder;
use super::backup::in_words;
use crate::config::{self, Mistakes};
use crate::deploy::restored;
use crate::history::backup::{Contents, replace, stage};
use crate::history::{History, HistoryError, OnCancel};
use crate::state_folder::{StateFolder, StateFolderError};

/// Put a backup in the place of the history
///
/// The agent must not run. The old history is kept beside the new one. What was under way when the backup was made is
/// ended, and requests that were signed before now are refused.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// A file of `deploy-agent backup`
    pub file: PathBuf,
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigFolder,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The configuration has mistakes that concern the server.
    #[error("read the configuration")]
    Config(#[source] Mistakes),
    /// The state folder cannot be used, or an agent uses it.
    #[error(transparent)]
    StateFolder(StateFolderError),
    /// The backup is not one, or the history could not be replaced.
    #[error("restore the history")]
    History(#[source] HistoryError),
    /// What was done could not be printed.
    #[error("print what was restored")]
    Print(#[source] io::Error),
}

impl RestoreError {
    /// What to do about it; mistakes have their own hints.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::StateFolder(StateFolderError::Taken { .. }) => {
                Some("stop the agent first: systemctl stop deploy-agent".to_owned())
            }
            Self::StateFolder(error) => error.hint(),
            Self::History(HistoryError::Damaged { .. }) => {
                Some("nothing was changed; is there an older backup?".to_owned())
            }
            Self::History(HistoryError::Foreign { .. }) => {
                Some("nothing was changed; is it a file of `deploy-agent backup`?".to_owned())
            }
            Self::History(HistoryError::Newer { .. }) => {
                Some("nothing was changed; install the agent that wrote it, or a newer one".to_owned())
            }
            Self::History(error) => error.hint(),
            Self::Config(_) | Self::Print(_) => None,
        }
    }
}

/// Restores, and prints what it did.
///
/// # Errors
/// An agent runs; the backup is damaged, foreign or too new; a file cannot be written. The history is then as it was.
pub async fn restore(args: &Args, now: Timestamp, out: &mut dyn Write) -> Result<(), RestoreError> {
    let part = config::load_server(&args.config.path).map_err(RestoreError::Config)?;
    let state = StateFolder::take(&part.state_dir).map_err(RestoreError::StateFolder)?;
    let database = state.database();
    let (staged, contents) = stage(&args.file, &database).map_err(RestoreError::History)?;
    let ended = bring_up_to_date(&staged, &contents, now)
        .await
        .map_err(RestoreError::History)?;
    let kept = replace(&staged, &database, now).map_err(RestoreError::History)?;

    let mut lines = vec![format!(
        "restored {}: {}",
        args.file.display(),
        in_words(&contents)
    )];
    if let Some(kept) = kept {
        lines.push(format!("the history before is {}", kept.display()));
    }
    lines.extend(
        ended
            .iter()
            .map(|what| format!("ended as stuck, how it went on is not known: {what}")),
    );
    lines.push(format!("requests that were signed before {now:.0} are refused"));
    lines.push("start the agent, and compare what runs with `deployctl status`".to_owned());
    writeln!(out, "{}", lines.join("\n")).map_err(RestoreError::Print)
}

/// Makes a history of then into one that an agent may act on now: today's format, nothing under way, no nonce of before
/// taken again.
async fn bring_up_to_date(
    staged: &std::path::Path,
    contents: &Contents,
    now: Timestamp,
) -> Result<Vec<String>, HistoryError> {
    let history = History::open(staged)?;
    let mut ended = Vec::new();
    for deployment in history.unfinished().await? {
        let (phase, end, events) = restored::end(&deployment, contents.newest.unwrap_or(now), now);
        history
            .finish(deployment.id().clone(), phase, end, events, OnCancel::GoOn)
            .await?;
        ended.push(format!(
            "deployment {} of {}",
            deployment.id(),
            deployment.project
        ));
    }
    history.mark_restored(now).await?;
    Ok(ended)
}
