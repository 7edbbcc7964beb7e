//! What a person runs on the host beside the service: `add`, `check`, `pin`, `backup` and `restore`.
//!
//! Each is a function of its parsed arguments and a writer; nothing here prints by itself or decides an exit code.

use std::path::PathBuf;

use crate::config::DEFAULT_FOLDER;

pub mod add;
mod add_text;
pub mod backup;
pub mod check;
pub mod pin;
pub mod restore;
#[cfg(test)]
mod tests;

/// Where the configuration is.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigFolder {
    /// The folder with agent.toml and projects.d
    #[arg(long = "config", value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub path: PathBuf,
}
