//! Whether services are well: what the Engine says of their containers, their own healthchecks run by us, and probes
//! from outside. It looks and reports; the verdict is `deploy::verdict`'s, and nothing is started or stopped here.

mod bake;
mod container;
mod http;
mod probe;
mod snapshot;
mod tcp;
mod watch;
mod words;

use std::collections::HashSet;
use std::time::Duration;

use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use jiff::Timestamp;

pub use bake::{BakeEnd, BakeTerms};
pub use snapshot::{Checks, ServiceSnapshot};

use super::engine::{self, Engine};

/// How long an Engine that stopped answering is waited for during a watch: longer than its own restart takes.
pub const ENGINE_PATIENCE: Duration = Duration::from_secs(60);

/// Looks at services.
#[derive(Debug, Clone)]
pub struct Health {
    engine: Engine,
    http: http::Http,
}

/// What a watch goes by.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// How long each service must stay well.
    pub settle: Duration,
    /// By when each must have become well.
    pub wait: Duration,
    /// From when on the Engine's events are wanted. An Engine with another clock tells too few or too many of those that
    /// were before the watch: each only makes it look once more.
    pub since: Timestamp,
    /// The containers that were there before the deployment.
    pub older: Older<'a>,
}

/// Which containers were there before the deployment. They may have restarted before; a restart of any other is a
/// crash, even one before the first look.
#[derive(Debug, Clone, Copy)]
pub enum Older<'a> {
    /// Those with these ids.
    Ids(&'a HashSet<String>),
    /// Those that were created before this time: for plans of an agent that did not write the ids down.
    CreatedBefore(Timestamp),
}

impl Older<'_> {
    fn contains(&self, container: &engine::Container) -> bool {
        match self {
            Self::Ids(ids) => ids.contains(&container.id),
            Self::CreatedBefore(time) => container.created_at < *time,
        }
    }
}

/// A service that is well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WellService {
    /// The service.
    pub service: ServiceName,
    /// How that is known: `healthcheck passes, GET http://... gave 200 in 3 ms; steady for 7s`.
    pub in_words: String,
}

/// Why a watch did not end well.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// A service is sick.
    #[error("keep {service} healthy: {reason}")]
    Sick {
        /// The service, the first one that was.
        service: ServiceName,
        /// Why, in words: `it exited with code 3 and is being restarted`.
        reason: String,
    },
    /// A service ended with the Engine, and nobody starts it again.
    #[error(
        "keep {service} healthy: it ended with the Docker Engine, and its restart policy does not start it again"
    )]
    Down {
        /// The service, the first one that did.
        service: ServiceName,
    },
    /// The Engine could not be asked, for [`ENGINE_PATIENCE`] or for good.
    #[error("watch the containers")]
    Engine(#[source] engine::Error),
}

impl From<WatchError> for Problem {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Sick { service, reason } => {
                Self::new(Code::Unhealthy, format!("{service}: {reason}"))
            }
            WatchError::Down { service } => Self::new(
                Code::Unhealthy,
                format!(
                    "{service}: it ended with the Docker Engine, and its restart policy does not start it again"
                ),
            ),
            WatchError::Engine(source) => source.into(),
        }
    }
}

impl Health {
    /// Health by this Engine. Cheap: HTTP clients are made when a probe first needs one.
    pub fn new(engine: Engine) -> Self {
        Self {
            engine,
            http: http::Http::default(),
        }
    }
}
