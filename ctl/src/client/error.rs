//! What can go wrong between here and an agent.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::signing::SignError;

use super::sse::Overlong;
use super::tls::{tls_error, wrong_pin};
use crate::pin::Pin;
use crate::render::text::clean;
use crate::target::host::Host;

/// How far the clocks may differ before a refused signature is put down to them, in seconds.
const SKEW_SECONDS: i64 = 30;

/// Why an agent gave no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("failed to set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("failed to set up the HTTP client")]
    Http(#[source] reqwest::Error),
    #[error("this machine has no certificates to trust, and no pin is given")]
    Roots(#[source] reqwest::Error),
    #[error("failed to sign the request")]
    Sign(#[source] SignError),
    #[error("failed to draw a deployment id")]
    Randomness,
    #[error("{host} cannot be reached at {url}")]
    Unreachable {
        host: String,
        url: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{host} presented another key than the pinned one")]
    WrongPin {
        host: String,
        expected: Vec<Pin>,
        presented: Pin,
    },
    #[error("{host} presented a certificate that this machine does not trust, and no pin is given")]
    Untrusted {
        host: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("the connection to {host} was lost")]
    Lost {
        host: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{host} did not answer within {seconds} s")]
    Silent { host: String, seconds: u64 },
    #[error("{host}: {}", clean(&problem.detail))]
    Answered {
        host: String,
        problem: Box<Problem>,
        /// Seconds by which this machine's clock is ahead of the host's.
        ahead_seconds: Option<i64>,
    },
    #[error("{host} gave an answer that is not a deploy-agent's: {what}")]
    Foreign { host: String, what: String },
    #[error("{host} gave an answer that cannot be read")]
    Unreadable {
        host: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("failed to follow the deployment on {host}")]
    Stream {
        host: String,
        #[source]
        source: Overlong,
    },
}

impl ClientError {
    /// Sorts a failed request by what the caller can do about it.
    pub(super) fn of_request(host: &Host, pins: &[Pin], source: reqwest::Error) -> Self {
        let name = host.name.clone();
        if let Some(tls) = tls_error(&source) {
            return match wrong_pin(tls) {
                Some(wrong) => Self::WrongPin {
                    host: name,
                    expected: pins.to_vec(),
                    presented: wrong.presented,
                },
                None if matches!(tls, rustls::Error::InvalidCertificate(_)) && pins.is_empty() => {
                    Self::Untrusted { host: name, source }
                }
                None if source.is_connect() => Self::Unreachable {
                    host: name,
                    url: host.url.to_string(),
                    source,
                },
                None => Self::Lost { host: name, source },
            };
        }
        if source.is_connect() {
            Self::Unreachable {
                host: name,
                url: host.url.to_string(),
                source,
            }
        } else {
            Self::Lost { host: name, source }
        }
    }

    /// Whether the request cannot have reached the agent.
    pub(crate) fn never_sent(&self) -> bool {
        match self {
            Self::Tls(_)
            | Self::Http(_)
            | Self::Roots(_)
            | Self::Sign(_)
            | Self::Randomness
            | Self::Unreachable { .. }
            | Self::WrongPin { .. }
            | Self::Untrusted { .. } => true,
            Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Answered { .. }
            | Self::Foreign { .. }
            | Self::Unreadable { .. }
            | Self::Stream { .. } => false,
        }
    }

    /// Whether the same request may go well a little later: the network, a restart of the agent, a proxy before it.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => tls_error(source).is_none(),
            Self::Lost { .. } | Self::Silent { .. } => true,
            Self::Answered { problem, .. } => problem.code == Code::ShuttingDown,
            Self::Tls(_)
            | Self::Http(_)
            | Self::Roots(_)
            | Self::Sign(_)
            | Self::Randomness
            | Self::WrongPin { .. }
            | Self::Untrusted { .. }
            | Self::Foreign { .. }
            | Self::Unreadable { .. }
            | Self::Stream { .. } => false,
        }
    }

    /// The exit code of a command that ends with this.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Tls(_) | Self::Http(_) | Self::Sign(_) | Self::Randomness => ExitCode::Unexpected,
            Self::Roots(_)
            | Self::Unreachable { .. }
            | Self::WrongPin { .. }
            | Self::Untrusted { .. }
            | Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Foreign { .. }
            | Self::Unreadable { .. }
            | Self::Stream { .. } => ExitCode::Unreachable,
            Self::Answered { problem, .. } => problem.code.exit_code(),
        }
    }

    /// The stable word for scripts.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Tls(_) | Self::Http(_) | Self::Sign(_) | Self::Randomness => "client",
            Self::Unreachable { .. } => "unreachable",
            Self::WrongPin { .. } => "wrong_pin",
            Self::Untrusted { .. } | Self::Roots(_) => "untrusted",
            Self::Lost { .. } => "connection_lost",
            Self::Silent { .. } => "no_answer",
            Self::Answered { problem, .. } => problem.code.as_str(),
            Self::Foreign { .. } | Self::Unreadable { .. } | Self::Stream { .. } => "foreign_answer",
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { host, .. } => Some(format!(
                "on {host}: systemctl status deploy-agent; is its port open from here?"
            )),
            Self::WrongPin {
                expected, presented, ..
            } => {
                let expected: Vec<_> = expected.iter().map(Pin::to_string).collect();
                Some(format!(
                    "pinned     {}\n        presented  {presented}\n        \
                     if the agent's key was renewed, compare with `deploy-agent pin` on the host and pin the new one; \
                     if not, somebody is in between",
                    expected.join(", ")
                ))
            }
            Self::Untrusted { .. } | Self::Roots(_) => Some(
                "print the agent's pin on the host with `deploy-agent pin`, then give it as --pin, DEPLOYCTL_PIN or \
                 pin = \"...\" in deploy.toml"
                    .to_owned(),
            ),
            Self::Answered {
                problem,
                ahead_seconds: Some(ahead),
                ..
            } if problem.code == Code::NotAuthenticated && ahead.abs() > SKEW_SECONDS => {
                let way = if *ahead > 0 { "ahead of" } else { "behind" };
                Some(format!(
                    "this machine's clock is {} s {way} the host's: set it right, signatures are valid for a minute",
                    ahead.abs()
                ))
            }
            Self::Answered { problem, .. } => problem.hint.as_deref().map(clean),
            Self::Foreign { .. } | Self::Unreadable { .. } => {
                Some("is it the agent's port, and are agent and deployctl of the same version?".to_owned())
            }
            Self::Tls(_)
            | Self::Http(_)
            | Self::Sign(_)
            | Self::Randomness
            | Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Stream { .. } => None,
        }
    }

    /// What the host answered, when it did.
    pub(crate) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Answered { problem, .. } => Some(problem),
            Self::Tls(_)
            | Self::Http(_)
            | Self::Roots(_)
            | Self::Sign(_)
            | Self::Randomness
            | Self::Unreachable { .. }
            | Self::WrongPin { .. }
            | Self::Untrusted { .. }
            | Self::Lost { .. }
            | Self::Silent { .. }
            | Self::Foreign { .. }
            | Self::Unreadable { .. }
            | Self::Stream { .. } => None,
        }
    }

    /// The host's answer, when it gave one with this code.
    pub(crate) fn is_answer(&self, code: Code) -> bool {
        matches!(self, Self::Answered { problem, .. } if problem.code == code)
    }
}
