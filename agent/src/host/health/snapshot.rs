//! How services are just now, in words: for `status` and `health`.

use std::time::Duration;

use deploy_proto::names::ServiceName;
use deploy_proto::release::ServiceHealth;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::time::timeout;

use super::container::{OwnChecks, by_engine, worse, worst_state};
use super::words::age;
use super::{Health, probe};
use crate::config::Project;
use crate::deploy::verdict::{self, ContainerState};
use crate::host::engine::{Container, Result};

/// How long the checks of one service may take when somebody waits for the answer.
const CHECKS_LIMIT: Duration = Duration::from_secs(10);

/// What a snapshot goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// What the Engine says: cheap, for `status`.
    Engine,
    /// Probes and healthchecks without a verdict too, run now: for `health`.
    Now,
}

/// How a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSnapshot {
    /// The service.
    pub service: ServiceName,
    /// In one word.
    pub health: ServiceHealth,
    /// In words: `healthy for 3 days`, `exited (3) 2 seconds ago, 12 restarts`.
    pub detail: String,
    /// Its containers.
    pub containers: Vec<Container>,
}

/// What is known of one service before it is put into words.
struct Known {
    state: ContainerState,
    health: verdict::Health,
    /// The probes that passed, or the first that failed.
    probes: Option<std::result::Result<Vec<String>, String>>,
    restarts: u64,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
}

impl Health {
    /// How these services are, in their order.
    pub async fn snapshot(
        &self,
        project: &Project,
        services: &[ServiceName],
        checks: Checks,
        now: Timestamp,
    ) -> Result<Vec<ServiceSnapshot>> {
        let all = self.engine.containers(&project.name).await?;
        let snapshots = services.iter().map(|service| {
            let containers: Vec<Container> = all
                .iter()
                .filter(|container| container.service == *service && !container.one_off)
                .cloned()
                .collect();
            async move {
                let known = self.know(project, service, &containers, checks).await;
                let (health, detail) = known.in_words(containers.len(), now);
                ServiceSnapshot {
                    service: service.clone(),
                    health,
                    detail,
                    containers,
                }
            }
        });
        Ok(join_all(snapshots).await)
    }

    async fn know(
        &self,
        project: &Project,
        service: &ServiceName,
        containers: &[Container],
        checks: Checks,
    ) -> Known {
        let state = worst_state(containers);
        let by_engine = || {
            containers
                .iter()
                .filter(|container| container.state == ContainerState::Running)
                .map(|container| {
                    by_engine(container).unwrap_or_else(|| {
                        verdict::Health::Failing("the Engine has no verdict yet".to_owned())
                    })
                })
                .fold(verdict::Health::None, worse)
        };
        let (health, probes) = if checks == Checks::Now && state == ContainerState::Running {
            let mut own = OwnChecks::default();
            let probes = timeout(CHECKS_LIMIT, probe::run_all(&self.http, project, service));
            let (health, probes) = tokio::join!(own.health(&self.engine, containers, CHECKS_LIMIT), probes);
            (
                health,
                probes.unwrap_or_else(|_| Some(Err("its probes did not end in time".to_owned()))),
            )
        } else {
            (by_engine(), None)
        };
        Known {
            health,
            probes,
            restarts: containers.iter().map(|container| container.restarts).sum(),
            started_at: containers
                .iter()
                .filter_map(|container| container.started_at)
                .max(),
            finished_at: containers
                .iter()
                .filter_map(|container| container.finished_at)
                .max(),
            state,
        }
    }
}

impl Known {
    fn in_words(&self, containers: usize, now: Timestamp) -> (ServiceHealth, String) {
        let ago = |then: Option<Timestamp>| {
            then.map(|then| format!(" {} ago", age(then, now)))
                .unwrap_or_default()
        };
        let (health, mut detail) = match &self.state {
            ContainerState::Missing => (ServiceHealth::Missing, "no container".to_owned()),
            ContainerState::Created => (ServiceHealth::Unhealthy, "created, not started".to_owned()),
            ContainerState::Other(word) => (ServiceHealth::Unhealthy, word.clone()),
            ContainerState::Restarting { exit_code } => (
                ServiceHealth::Unhealthy,
                format!("restarting, exited ({exit_code}){}", ago(self.finished_at)),
            ),
            ContainerState::Exited { exit_code, stays } => {
                let health = if *exit_code == 0 && *stays {
                    ServiceHealth::Healthy
                } else {
                    ServiceHealth::Unhealthy
                };
                (health, format!("exited ({exit_code}){}", ago(self.finished_at)))
            }
            ContainerState::Running => self.running(now),
        };
        match self.restarts {
            0 => {}
            1 => detail.push_str(", 1 restart"),
            count => detail.push_str(&format!(", {count} restarts")),
        }
        if containers > 1 {
            detail = format!("{containers} containers: {detail}");
        }
        (health, detail)
    }

    fn running(&self, now: Timestamp) -> (ServiceHealth, String) {
        let long = self
            .started_at
            .map(|then| format!(" for {}", age(then, now)))
            .unwrap_or_default();
        match (&self.health, &self.probes) {
            (verdict::Health::Unhealthy(why), _) => (
                ServiceHealth::Unhealthy,
                format!("unhealthy: {why}; running{long}"),
            ),
            (verdict::Health::Failing(why), _) => (
                ServiceHealth::Starting,
                format!("starting: its healthcheck does not pass: {why}; running{long}"),
            ),
            (_, Some(Err(why))) => (ServiceHealth::Unhealthy, format!("{why}; running{long}")),
            (_, Some(Ok(words))) => (
                ServiceHealth::Healthy,
                format!("healthy{long}, {}", words.join(", ")),
            ),
            (verdict::Health::Passing, None) => (ServiceHealth::Healthy, format!("healthy{long}")),
            (verdict::Health::None, None) => (ServiceHealth::Healthy, format!("running{long}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_described_in_a_phrase() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let base = || Known {
            state: ContainerState::Running,
            health: verdict::Health::None,
            probes: None,
            restarts: 0,
            started_at: Timestamp::from_second(1_000_000 - 3 * 86_400).ok(),
            finished_at: Timestamp::from_second(1_000_000 - 2).ok(),
        };
        let exited = |exit_code| ContainerState::Exited {
            exit_code,
            stays: true,
        };
        for (known, health, words) in [
            (base(), ServiceHealth::Healthy, "running for 3 days"),
            (
                Known {
                    health: verdict::Health::Passing,
                    ..base()
                },
                ServiceHealth::Healthy,
                "healthy for 3 days",
            ),
            (
                Known {
                    state: exited(3),
                    restarts: 12,
                    ..base()
                },
                ServiceHealth::Unhealthy,
                "exited (3) 2 seconds ago, 12 restarts",
            ),
            (
                Known {
                    state: exited(0),
                    ..base()
                },
                ServiceHealth::Healthy,
                "exited (0) 2 seconds ago",
            ),
            (
                Known {
                    probes: Some(Err("GET http://127.0.0.1:1/ gave 500".to_owned())),
                    ..base()
                },
                ServiceHealth::Unhealthy,
                "GET http://127.0.0.1:1/ gave 500; running for 3 days",
            ),
        ] {
            assert_eq!(known.in_words(1, now), (health, words.to_owned()));
        }
        assert!(base().in_words(2, now).1.starts_with("2 containers: "));
    }
}
