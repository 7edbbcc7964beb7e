//! Compose: reading a project, editing its image lines, restarting its services with the real `docker compose`.
//!
//! Reading and deciding is pure: `yaml`, `template` and `dotenv` know where every byte of a value is written,
//! `locate` (with `paths` and `layers`) finds each service's image through all files, `image_line`, `splice` and `edit` work out the bytes that change,
//! `model` and `difference` compare what Compose resolves before and after. `sources` reads files, `cli` calls Compose. Containers
//! and images belong to `engine`; this room does not know bollard.

mod cli;
mod difference;
mod dotenv;
mod edit;
mod failure;
mod image_line;
mod layers;
mod locate;
mod model;
mod paths;
mod refusal;
mod sources;
mod splice;
mod template;
mod yaml;

use std::path::PathBuf;
use std::process::ExitStatus;

use deploy_proto::names::ProjectName;
use deploy_proto::problem::{Code, Problem};

use crate::host::files::FilesError;
use crate::host::process::ProcessError;

pub use cli::{Compose, ComposeProject, Once, Surroundings, VERSION_MIN, Version};
pub use difference::{Difference, beyond, differences};
pub use edit::edit;
pub use model::{ComposeService, Condition, Fingerprint, Healthcheck, Model, ModelError, PublishedPort};
pub use refusal::EditRefusal;
pub use sources::{FILES_MAX, FILES_MAX_BYTES, Sources};

/// Why a project could not be read or restarted.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// There is no Compose.
    #[error("Docker Compose is not installed")]
    NotInstalled,
    /// There is only the old `docker-compose`.
    #[error("only docker-compose v1 is installed, which has been dead since 2023")]
    OnlyV1,
    /// It lacks options that are needed.
    #[error("Docker Compose {found} is too old; {VERSION_MIN} is the oldest that works")]
    TooOld {
        /// The version found.
        found: Version,
    },
    /// The folder has no Compose file.
    #[error("there is no Compose file in {}", dir.display())]
    NoComposeFile {
        /// The folder.
        dir: PathBuf,
    },
    /// The resolved project is larger than is read.
    #[error(
        "`docker compose config` printed more than {} bytes",
        crate::host::process::HEAD_MAX_BYTES
    )]
    ConfigTooLarge,
    /// Compose ended with an error.
    #[error("`docker compose` of project {project} ended with {status}: {}", problem.detail)]
    Failed {
        /// The project.
        project: ProjectName,
        /// How it ended.
        status: ExitStatus,
        /// What it means.
        problem: Problem,
    },
    /// Compose could not be run, or did not end.
    #[error("failed to run `docker compose`")]
    Process(#[from] ProcessError),
    /// A file could not be read.
    #[error("failed to read the project's files")]
    Files(#[from] FilesError),
    /// The files cannot be used.
    #[error("failed to use the project's files")]
    Refused(#[from] EditRefusal),
    /// What Compose printed could not be read.
    #[error("failed to read what `docker compose config` printed")]
    Model(#[from] ModelError),
}

impl From<&ComposeError> for Problem {
    fn from(error: &ComposeError) -> Self {
        const INSTALL: &str = "install the Compose plugin: the package docker-compose-plugin of Docker's repository, \
                               or docker-compose of Debian 13 and newer";
        match error {
            ComposeError::NotInstalled | ComposeError::OnlyV1 | ComposeError::TooOld { .. } => {
                Self::new(Code::HostUnfit, error.to_string()).hint(INSTALL)
            }
            ComposeError::NoComposeFile { .. } => Self::new(Code::ComposeFile, error.to_string())
                .hint("correct `dir` in the project's configuration, or name the files in `files`"),
            ComposeError::ConfigTooLarge => Self::new(Code::ComposeFile, error.to_string()),
            ComposeError::Failed { problem, .. } => problem.clone(),
            ComposeError::Process(error) => error.into(),
            ComposeError::Files(error) => error.into(),
            ComposeError::Refused(refusal) => refusal.into(),
            ComposeError::Model(ModelError::Name(name)) => Self::new(
                Code::ComposeFile,
                format!("{}: {name}", ModelError::Name(name.clone())),
            ),
            ComposeError::Model(error @ (ModelError::Json { .. } | ModelError::NoServices)) => {
                Self::new(Code::ComposeFile, error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod edit_tests;
