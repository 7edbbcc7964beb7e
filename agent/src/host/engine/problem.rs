//! What a person is told about an error of the Engine: its code, its whole chain of causes once, and a hint.

use std::error::Error as _;

use deploy_proto::image::registry_host;
use deploy_proto::problem::{Code, Problem};

use super::Error;
use super::error::shortened;
use super::trouble::RegistryTrouble;

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

impl Error {
    fn code(&self) -> Code {
        match self {
            Self::Registry { trouble, .. } => trouble.code(),
            Self::Stalled { .. } | Self::NotThere { .. } | Self::Credentials { .. } | Self::Helper { .. } => {
                Code::ImageUnavailable
            }
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

/// Whether an I/O error of missing permission is among the causes.
fn denied(error: &bollard::errors::Error) -> bool {
    let missing = |io: &std::io::Error| io.kind() == std::io::ErrorKind::PermissionDenied;
    // This variant is transparent: it is no cause of itself.
    if let bollard::errors::Error::IOError { err } = error {
        return missing(err);
    }
    let mut cause = error.source();
    while let Some(this) = cause {
        if let Some(io) = this.downcast_ref::<std::io::Error>() {
            return missing(io);
        }
        cause = this.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use deploy_proto::image::ImageRef;

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
            doing: "ping the Engine",
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
            long.starts_with("a b [31m") && long.len() < crate::host::engine::error::SAID_MAX_BYTES + 8,
            "{long}"
        );
    }
}
