//! What can go wrong with the Engine, in one enum, and what a person is told about it.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy_proto::image::{ImageRef, registry_host};
use deploy_proto::problem::{Code, Problem};

use super::host::Platform;
use super::trouble::RegistryTrouble;
use crate::deploy::verdict::seconds;

/// The most of another program's words that an error keeps, in bytes.
const SAID_MAX_BYTES: usize = 1_000;

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
    /// The image is for another platform.
    #[error("get {image}: it is built for {}, this host is {host}", list(has))]
    WrongPlatform {
        /// The image.
        image: Box<ImageRef>,
        /// What it is built for.
        has: Vec<Platform>,
        /// What the host is.
        host: Platform,
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
            source if broke_off(&source) => Self::Unreachable {
                doing,
                socket: socket.to_owned(),
                source,
            },
            source => Self::Answer { doing, source },
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
            | Self::WrongPlatform { .. }
            | Self::Stalled { .. }
            | Self::NoDigest { .. }
            | Self::NotThere { .. }
            | Self::Credentials { .. }
            | Self::Helper { .. }
            | Self::Disk { .. } => false,
        }
    }

    /// Whether the Engine said that there is no such thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// The same trouble as an image's: the Engine's words read for what the registry did.
    pub(super) fn about(self, image: &ImageRef) -> Self {
        match self {
            Self::Refused { message, .. } => Self::Registry {
                image: Box::new(image.clone()),
                trouble: RegistryTrouble::of(&without_name(&message, image)),
                said: message,
            },
            Self::NoAnswer { limit, .. } => Self::Stalled {
                image: Box::new(image.clone()),
                limit,
            },
            other => other,
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::Registry { trouble, .. } => trouble.code(),
            Self::WrongPlatform { .. }
            | Self::Stalled { .. }
            | Self::NotThere { .. }
            | Self::Credentials { .. }
            | Self::Helper { .. } => Code::ImageUnavailable,
            Self::TooOld { .. } => Code::HostUnfit,
            Self::NoDigest { .. } | Self::SocketPath { .. } => Code::Internal,
            Self::Unreachable { .. }
            | Self::NoAnswer { .. }
            | Self::Refused { .. }
            | Self::Answer { .. }
            | Self::Lacking { .. }
            | Self::Disk { .. } => Code::Engine,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Unreachable { source, .. } if denied(source) => {
                "the agent's user may not open the socket: put it into the group docker".to_owned()
            }
            Self::Unreachable { .. } => {
                "check that Docker runs on the host: systemctl status docker".to_owned()
            }
            Self::NoAnswer { .. } => {
                "the Engine hangs or is overloaded: look at its log on the host, journalctl -u docker"
                    .to_owned()
            }
            Self::TooOld { .. } => "install Docker Engine 20.10 or newer on the host".to_owned(),
            Self::Registry { image, trouble, .. } => trouble.hint(registry_host(image.repository())),
            Self::WrongPlatform { host, .. } => {
                format!("build the image for {host} (docker buildx build --platform {host})")
            }
            Self::Stalled { image, .. } => {
                RegistryTrouble::Unreachable.hint(registry_host(image.repository()))
            }
            Self::Credentials { .. } => "repair the file, or log in again with `docker login`".to_owned(),
            Self::Helper { program, .. } => {
                format!("check that {program} is installed where the agent's service finds it, and works")
            }
            Self::SocketPath { .. }
            | Self::Refused { .. }
            | Self::Answer { .. }
            | Self::Lacking { .. }
            | Self::NoDigest { .. }
            | Self::NotThere { .. }
            | Self::Disk { .. } => return None,
        };
        Some(hint)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let problem = Self::new(error.code(), format!("failed to {}", chain(&error)));
        match error.hint() {
            Some(hint) => problem.hint(hint),
            None => problem,
        }
    }
}

/// The error with its causes, each once.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        let said = deeper.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = deeper.source();
    }
    shortened(&text)
}

/// At most [`SAID_MAX_BYTES`], on one line.
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

fn list(platforms: &[Platform]) -> String {
    let all: Vec<String> = platforms.iter().map(Platform::to_string).collect();
    all.join(", ")
}

/// Whether bollard's error is about the connection and not about what came over it.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "bollard's enum grows with its features; everything else is an answer we could not read"
)]
fn broke_off(error: &bollard::errors::Error) -> bool {
    use bollard::errors::Error as B;
    match error {
        B::SocketNotFoundError(_)
        | B::IOError { .. }
        | B::HyperLegacyError { .. }
        | B::HyperResponseError { .. } => true,
        _ => false,
    }
}

/// Whether an I/O error of missing permission is among the causes.
fn denied(error: &bollard::errors::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::PermissionDenied;
        }
        cause = this.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_the_cause_once_and_what_to_do() {
        let image: ImageRef = "registry.example/acme/api:v9".parse().unwrap();
        let refused = Error::Refused {
            doing: "look up an image",
            status: 404,
            message: "manifest unknown: manifest unknown".into(),
        };
        let problem = Problem::from(refused.about(&image));
        assert_eq!(problem.code, Code::ImageUnavailable);
        assert_eq!(
            problem.detail,
            "failed to get registry.example/acme/api:v9: the registry has no such tag: manifest unknown: manifest unknown"
        );
        assert!(problem.hint.unwrap().contains("pushed this tag"));
    }

    #[test]
    fn words_in_an_images_name_do_not_count() {
        let image: ImageRef = "registry.example/acme/forbidden:unauthorized".parse().unwrap();
        let refused = Error::Refused {
            doing: "look up an image",
            status: 404,
            message: "manifest for registry.example/acme/forbidden:unauthorized not found: manifest unknown"
                .into(),
        };
        let about = refused.about(&image);
        assert!(
            matches!(
                about,
                Error::Registry {
                    trouble: RegistryTrouble::NoSuchTag,
                    ..
                }
            ),
            "{about:?}"
        );
    }

    #[test]
    fn a_socket_that_may_not_be_opened_has_another_hint_than_one_that_is_missing() {
        let unreachable = |kind| Error::Unreachable {
            doing: "ping it",
            socket: "/run/docker.sock".into(),
            source: bollard::errors::Error::from(std::io::Error::from(kind)),
        };
        let hint = |kind| Problem::from(unreachable(kind)).hint.unwrap();
        assert!(hint(std::io::ErrorKind::PermissionDenied).contains("group docker"));
        assert!(hint(std::io::ErrorKind::ConnectionRefused).contains("systemctl status docker"));
    }

    #[test]
    fn the_words_of_others_are_shortened_and_hold_no_control_characters() {
        let long = shortened(&format!("a\nb\u{1b}[31m{}", "é".repeat(2000)));
        assert!(
            long.starts_with("a b [31m") && long.len() < SAID_MAX_BYTES + 8,
            "{long}"
        );
    }
}
