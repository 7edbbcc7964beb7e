//! How the tests watch: with everything that was said, and how long it took.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use deploy_agent::host::health::{Health, Older, Terms, WatchError, WellService};
use deploy_proto::names::ServiceName;

use super::support::{Fixture, service};

/// Longer than any test waits.
pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const UP: &str = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
pub(crate) const ALWAYS: [&str; 2] = ["--restart", "always"];

pub(crate) fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub(crate) struct Seen {
    pub(crate) end: Result<Vec<WellService>, (ServiceName, String)>,
    pub(crate) took: Duration,
    pub(crate) said: Vec<String>,
}

impl Seen {
    pub(crate) fn sick(&self) -> (&str, &str) {
        match &self.end {
            Err((service, reason)) => (service.as_str(), reason.as_str()),
            Ok(well) => panic!("well: {well:?}, said {:?}", self.said),
        }
    }

    pub(crate) fn well(&self) -> &str {
        match &self.end {
            Ok(well) => &well[0].in_words,
            Err((service, reason)) => panic!("{service} is sick: {reason}, said {:?}", self.said),
        }
    }
}

pub(crate) async fn watch_with(
    health: &Health,
    fixture: &Fixture,
    services: &[&str],
    settle: Duration,
    wait: Duration,
) -> Seen {
    let services: Vec<_> = services.iter().map(|name| service(name)).collect();
    let said = Mutex::new(Vec::new());
    let begun = Instant::now();
    let terms = Terms {
        settle,
        wait,
        since: fixture.since,
        older: Older::CreatedBefore(fixture.since),
    };
    let end = health
        .watch(&fixture.project, &services, terms, |service, seen| {
            said.lock().unwrap().push(format!("{service}: {seen}"));
        })
        .await;
    Seen {
        took: begun.elapsed(),
        end: end.map_err(|error| match error {
            WatchError::Sick { service, reason } => (service, reason),
            error @ (WatchError::Down { .. } | WatchError::Engine(_)) => panic!("{error:?}"),
        }),
        said: said.into_inner().unwrap(),
    }
}

pub(crate) async fn watch(fixture: &Fixture, services: &[&str], settle: Duration, wait: Duration) -> Seen {
    watch_with(
        &Health::new(fixture.engine.clone()),
        fixture,
        services,
        settle,
        wait,
    )
    .await
}
