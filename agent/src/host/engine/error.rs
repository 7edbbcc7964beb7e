//! What can go wrong with the Engine, in one enum, and what a person is told about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy_proto::image::{ImageRef, registry_host};

use super::trouble::RegistryTrouble;
use crate::deploy::verdict::seconds;

/// The most of another program's words that an error keeps, in bytes.
pub(super) const SAID_MAX_BYTES: usize = 1_000;

/// What this room's functions answer.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong between us and the Engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket's path cannot be used.
    #[error("use {}: the path is not UTF-8", socket.display())]
    SocketPath {
        /// The path.
        socket: PathBuf,
    },
    /// Nobody answers at the socket, or the connection broke.
    #[error("{doing}: the Docker Engine at {} cannot be reached", socket.display())]
    Unreachable {
        /// What we were doing.
        doing: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: bollard::errors::Error,
    },
    /// The Engine is there and does not answer in time.
    #[error("{doing}: the Docker Engine gave no answer within {}", seconds(*limit))]
    NoAnswer {
        /// What we were doing.
        doing: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The Engine answered with an error.
    #[error("{doing}: the Docker Engine answered {status}: {message}")]
    Refused {
        /// What we were doing.
        doing: &'static str,
        /// The HTTP status.
        status: u16,
        /// Its words, shortened.
        message: String,
    },
    /// The Engine's answer is not one we understand.
    #[error("{doing}: the Docker Engine's answer is not understood")]
    Answer {
        /// What we were doing.
        doing: &'static str,
        /// Why.
        source: bollard::errors::Error,
    },
    /// The Engine's answer lacks something or has it in an unknown form.
    #[error("{doing}: the Docker Engine's answer has no usable {what}")]
    Lacking {
        /// What we were doing.
        doing: &'static str,
        /// What is missing.
        what: &'static str,
    },
    /// The Engine is older than 20.10.
    #[error("use the Docker Engine {engine}: its API {api} is older than 1.41")]
    TooOld {
        /// Its version.
        engine: String,
        /// Its newest API.
        api: String,
    },
    /// The image could not be looked up or pulled.
    #[error("get {image}: {}: {said}", trouble.words())]
    Registry {
        /// The image.
        image: Box<ImageRef>,
        /// What kind of trouble.
        trouble: RegistryTrouble,
        /// The Engine's words, shortened.
        said: String,
    },
    /// The registry did not answer in time, or the pull stood still.
    #[error("get {image}: nothing came from the registry for {}", seconds(*limit))]
    Stalled {
        /// The image.
        image: Box<ImageRef>,
        /// How long nothing came.
        limit: Duration,
    },
    /// An image without a digest was to be pulled.
    #[error("pull {image}: it has no digest, and a tag may move")]
    NoDigest {
        /// The image.
        image: Box<ImageRef>,
    },
    /// The pull ended well, and the image is not there.
    #[error("pull {image}: the Engine says it is pulled, and it is not there under that digest")]
    NotThere {
        /// The image.
        image: Box<ImageRef>,
    },
    /// The host's docker configuration cannot be read.
    #[error("read the registry credentials in {}: {reason}", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why, without any of its content.
        reason: String,
    },
    /// A credential helper failed.
    #[error("get the credentials for {registry} from {program}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// The registry.
        registry: String,
        /// Why.
        reason: String,
    },
    /// The free space of Docker's file system could not be read.
    #[error("read the free space of {}", path.display())]
    Disk {
        /// Docker's root directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "bollard's enum grows with its features; everything else is an answer we could not read"
    )]
    pub(super) fn of_bollard(doing: &'static str, socket: &Path, source: bollard::errors::Error) -> Self {
        use bollard::errors::Error as B;
        match source {
            B::DockerResponseServerError { status_code, message } => Self::Refused {
                doing,
                status: status_code,
                message: shortened(&message),
            },
            B::DockerStreamError { error } => Self::Refused {
                doing,
                status: 200,
                message: shortened(&error),
            },
            B::RequestTimeoutError => Self::NoAnswer {
                doing,
                limit: Duration::from_secs(super::HEAD_LIMIT_SECONDS),
            },
            B::SocketNotFoundError(_)
            | B::IOError { .. }
            | B::HyperLegacyError { .. }
            | B::HyperResponseError { .. } => Self::Unreachable {
                doing,
                socket: socket.to_owned(),
                source,
            },
            _ => Self::Answer { doing, source },
        }
    }

    /// Whether the Engine was not there to answer, so that asking again later may help.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NoAnswer { .. } => true,
            Self::Refused { status, .. } => *status == 503,
            Self::SocketPath { .. }
            | Self::Answer { .. }
            | Self::Lacking { .. }
            | Self::TooOld { .. }
            | Self::Registry { .. }
            | Self::Stalled { .. }
            | Self::NoDigest { .. }
            | Self::NotThere { .. }
            | Self::Credentials { .. }
            | Self::Helper { .. }
            | Self::Disk { .. } => false,
        }
    }

    /// Whether a login, or another one, would help.
    pub fn is_about_login(&self) -> bool {
        matches!(
            self,
            Self::Registry {
                trouble: RegistryTrouble::NoCredentials | RegistryTrouble::Denied,
                ..
            }
        )
    }

    /// What is wrong with the image or its registry, where that is what is wrong.
    pub fn registry_trouble(&self) -> Option<RegistryTrouble> {
        if let Self::Registry { trouble, .. } = self {
            Some(*trouble)
        } else {
            None
        }
    }

    /// Whether the Engine said that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The same trouble as an image's: the Engine's words read for what the registry did.
    pub(super) fn about(self, image: &ImageRef) -> Self {
        if let Self::Refused { message, .. } = self {
            Self::Registry {
                image: Box::new(image.clone()),
                trouble: RegistryTrouble::of(&without_name(&message, image)),
                said: message,
            }
        } else {
            self
        }
    }
}

/// The text on one line, at most [`SAID_MAX_BYTES`] long.
pub(super) fn shortened(text: &str) -> String {
    let one_line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    match one_line.char_indices().find(|(at, _)| *at >= SAID_MAX_BYTES) {
        None => one_line,
        Some((cut, _)) => format!("{}...", one_line.get(..cut).unwrap_or_default()),
    }
}

/// The text without the image's own name, which may contain any word.
fn without_name(text: &str, image: &ImageRef) -> String {
    let repository = image.repository();
    let path = repository
        .strip_prefix(registry_host(repository))
        .unwrap_or(repository);
    let tag = image.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    text.replace(repository, "").replace(path, "").replace(&tag, "")
}
