//! One look at a service's containers: several containers become one state, one count of restarts, one health.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::Older;
use crate::deploy::verdict::{ContainerState, Health, seconds};
use crate::host::engine::{Container, Engine, EngineHealth, Healthcheck, Ran};
use futures_util::future::join_all;

/// How long a passed run counts: running a command in a container costs the host some 50 ms of work, and six services
/// may settle at the same time.
const PASS_HOLDS: Duration = Duration::from_millis(900);
/// How much of a healthcheck's output is shown, in bytes.
const SAID_MAX_BYTES: usize = 200;

/// The state of a service: that of its container which is worst off.
pub(super) fn worst_state(containers: &[Container]) -> ContainerState {
    containers
        .iter()
        .map(|container| &container.state)
        .max_by_key(|state| badness(state))
        .cloned()
        .unwrap_or(ContainerState::Missing)
}

fn badness(state: &ContainerState) -> u8 {
    match state {
        ContainerState::Exited {
            exit_code: 0,
            stays: true,
        } => 0,
        ContainerState::Running => 1,
        ContainerState::Created => 2,
        ContainerState::Other(_) => 3,
        ContainerState::Missing => 4,
        ContainerState::Exited { .. } => 5,
        ContainerState::Restarting { .. } => 6,
    }
}

/// Which restarts count: all of a container that the deployment made, and those of an older one since it was first
/// seen.
#[derive(Debug)]
pub(super) struct Restarts<'a> {
    older: Older<'a>,
    before: HashMap<String, u64>,
}

impl<'a> Restarts<'a> {
    pub(super) fn since(older: Older<'a>) -> Self {
        Self {
            older,
            before: HashMap::new(),
        }
    }

    /// The restarts that count of these containers, together.
    pub(super) fn count(&mut self, containers: &[Container]) -> u64 {
        containers.iter().map(|container| self.count_one(container)).sum()
    }

    fn count_one(&mut self, container: &Container) -> u64 {
        if !self.older.contains(container) {
            return container.restarts;
        }
        let before = self
            .before
            .entry(container.id.clone())
            .or_insert(container.restarts);
        // Started by hand, the Engine counts from zero again.
        *before = container.restarts.min(*before);
        container.restarts - *before
    }
}

/// Runs healthchecks of containers, and remembers by id which of them passed when, and which never end: the Engine
/// cannot end a command that it runs for us, so that each try would leave a process behind.
#[derive(Debug, Default)]
pub(super) struct OwnChecks {
    endless: HashSet<String>,
    passed: HashMap<String, Instant>,
}

impl OwnChecks {
    /// The health of all running containers of a service: the worst. The Engine's word counts when it has one; else
    /// the healthcheck is run now.
    pub(super) async fn health(
        &mut self,
        engine: &Engine,
        containers: &[Container],
        limit: Duration,
    ) -> Health {
        let running = containers
            .iter()
            .filter(|container| container.state == ContainerState::Running);
        let known = &*self;
        let seen = join_all(running.map(|container| async move {
            let seen = match by_engine(container).or_else(|| known.health_of(&container.id)) {
                Some(health) => Seen::Health(health),
                None => run(engine, container, limit).await,
            };
            (container.id.clone(), seen)
        }))
        .await;
        let mut worst = Health::None;
        for (id, seen) in seen {
            let health = match seen {
                Seen::Health(health) => health,
                Seen::Passed => {
                    self.passed.insert(id, Instant::now());
                    Health::Passing
                }
                Seen::Endless(why) => {
                    self.endless.insert(id);
                    Health::Failing(why)
                }
            };
            worst = worse(worst, health);
        }
        worst
    }

    /// What an earlier run says; none when the healthcheck is to be run.
    fn health_of(&self, id: &str) -> Option<Health> {
        if self.endless.contains(id) {
            let why = "its command did not end, and the Engine has no verdict yet";
            return Some(Health::Failing(why.to_owned()));
        }
        let fresh = self.passed.get(id).is_some_and(|at| at.elapsed() < PASS_HOLDS);
        fresh.then_some(Health::Passing)
    }
}

enum Seen {
    Health(Health),
    /// The command was run, and passed.
    Passed,
    /// The command did not end.
    Endless(String),
}

/// What the Engine's word comes to; none when the healthcheck should be run now.
pub(super) fn by_engine(container: &Container) -> Option<Health> {
    match &container.health {
        EngineHealth::None => Some(Health::None),
        EngineHealth::Healthy => Some(Health::Passing),
        EngineHealth::Unhealthy(why) => Some(Health::Unhealthy(brief(why))),
        EngineHealth::Starting | EngineHealth::Wavering => None,
    }
}

pub(super) fn worse(a: Health, b: Health) -> Health {
    let badness = |health: &Health| match health {
        Health::None => 0,
        Health::Passing => 1,
        Health::Failing(_) => 2,
        Health::Unhealthy(_) => 3,
    };
    if badness(&b) > badness(&a) { b } else { a }
}

async fn run(engine: &Engine, container: &Container, limit: Duration) -> Seen {
    let Some(Healthcheck { argv, timeout }) = &container.healthcheck else {
        return Seen::Health(Health::Failing("the Engine has no verdict yet".to_owned()));
    };
    let limit = limit.min(*timeout);
    match engine.exec(&container.id, argv, limit).await {
        Ok(Ran::Ended { code: 0, .. }) => Seen::Passed,
        Ok(Ran::Ended { code, output }) => Seen::Health(Health::Failing(match brief(&output) {
            said if said.is_empty() => format!("exit code {code}"),
            said => said,
        })),
        Ok(Ran::StillRunning { .. }) => {
            Seen::Endless(format!("its command did not end within {}", seconds(limit)))
        }
        // The container went away or is being restarted: the next look tells.
        Err(error) => Seen::Health(Health::Failing(brief(&error.to_string()))),
    }
}

/// The last line that says something, shortened.
fn brief(output: &str) -> String {
    let line = output
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let mut text: String = line.trim().chars().filter(|c| !c.is_control()).collect();
    let mut cut = SAID_MAX_BYTES.min(text.len());
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text.truncate(cut);
    text
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;

    use jiff::Timestamp;

    use super::*;

    /// A container that runs without a healthcheck.
    pub(in crate::host::health) fn running(id: &str, created_second: i64) -> Container {
        Container {
            publishes: Vec::new(),
            on_host_network: false,
            id: id.to_owned(),
            name: format!("shop-api-{id}"),
            service: "api".parse().unwrap(),
            number: 1,
            config_hash: None,
            one_off: false,
            half_made: false,
            image_id: "sha256:0".to_owned(),
            image_reference: None,
            state: ContainerState::Running,
            out_of_memory: false,
            restarts: 0,
            health: EngineHealth::None,
            healthcheck: None,
            created_at: Timestamp::from_second(created_second).unwrap(),
            started_at: Timestamp::from_second(created_second).ok(),
            finished_at: None,
        }
    }

    #[test]
    fn a_service_is_as_bad_as_its_worst_container() {
        let with = |state: &ContainerState| Container {
            state: state.clone(),
            ..running("a", 0)
        };
        let done = ContainerState::Exited {
            exit_code: 0,
            stays: true,
        };
        let died = ContainerState::Exited {
            exit_code: 1,
            stays: true,
        };
        assert_eq!(worst_state(&[]), ContainerState::Missing);
        assert_eq!(
            worst_state(&[with(&done), with(&ContainerState::Running)]),
            ContainerState::Running
        );
        assert_eq!(worst_state(&[with(&ContainerState::Running), with(&died)]), died);
        assert_eq!(worst_state(&[with(&done)]), done);
    }

    #[test]
    fn restarts_of_new_containers_all_count_and_of_old_ones_those_since_the_first_look() {
        let old = HashSet::from(["old".to_owned()]);
        // By id, whatever the clock said when they were made; and by age, as older plans have it.
        check_restarts(Older::Ids(&old), 10_000);
        check_restarts(Older::CreatedBefore(Timestamp::from_second(100).unwrap()), 50);
    }

    fn check_restarts(older: Older<'_>, old_created: i64) {
        let mut restarts = Restarts::since(older);
        let with = |id: &str, created, restarts| Container {
            restarts,
            ..running(id, created)
        };
        assert_eq!(
            restarts.count(&[with("old", old_created, 7), with("new", 100, 1)]),
            1
        );
        assert_eq!(
            restarts.count(&[with("old", old_created, 8), with("new", 100, 1)]),
            2
        );
        // Started by hand: from zero again.
        assert_eq!(restarts.count(&[with("old", old_created, 0)]), 0);
        assert_eq!(restarts.count(&[with("old", old_created, 1)]), 1);
    }

    #[test]
    fn the_last_line_of_an_output_is_shown_short() {
        assert_eq!(
            brief("a\nwget: server returned 500\n\n"),
            "wget: server returned 500"
        );
        assert_eq!(brief(&"é".repeat(500)).len(), SAID_MAX_BYTES);
    }
}
