//! What every request handler needs, put together once at start.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::deploy::feed::Feed;
use crate::history::History;
use crate::host::DockerHost;
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::settings::Settings;
use crate::watch::bake::Bakes;

/// The agent, as its request handlers see it.
#[derive(Debug)]
pub struct App {
    /// The configuration in force.
    pub settings: Arc<Settings>,
    /// The journal and the releases.
    pub history: History,
    /// The queues.
    pub queue: Arc<Queue<DockerHost>>,
    /// Docker and the files.
    pub host: Arc<DockerHost>,
    /// Events for those who watch.
    pub feed: Arc<Feed>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The releases that are live and still watched.
    pub bakes: Bakes,
    /// True when the agent is to stop.
    pub shutdown: watch::Receiver<bool>,
    /// The host's clock, for timestamps and signatures.
    pub now: fn() -> Timestamp,
}
