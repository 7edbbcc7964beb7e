//! Watching a release that is live: seldom as long as all is well, at once when the Engine tells of an end, and closely
//! when something is not as it should be. The verdict is `deploy::bake`'s.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deploy_proto::names::{ProjectName, ServiceName};
use futures_util::StreamExt;
use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::container::{OwnChecks, Restarts, by_engine};
use super::{Health, Older, probe};
use crate::config::Project;
use crate::deploy::bake::{End, Judge, Look, Seen, Verdict};
use crate::deploy::verdict;
use crate::history::Containers;
use crate::host::engine::{Container, ContainerEvent, Engine, Error, EventKind};

/// The pause between two looks while all is well: with a probe of each service, next to nothing for the host.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The pause while something is not as it should be.
const LOOK_CLOSELY_EVERY: Duration = Duration::from_secs(1);
/// The pause after an event of the Engine: `stop` is told shortly after `die`, and says that somebody wanted it.
const EVENT_PAUSE: Duration = Duration::from_millis(300);
/// How long all checks of one look may take; a probe has its own limit, which is at most a minute.
const CHECKS_LIMIT: Duration = Duration::from_secs(65);
/// The pause before an Engine that is away is asked again.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);

/// What a watch goes by.
#[derive(Debug, Clone)]
pub struct BakeTerms {
    /// How long it takes when all is well.
    pub bake: Duration,
    /// When the release's deployment began, by the host's clock: from then on the Engine's events are wanted.
    pub since: Timestamp,
    /// The containers that were there before it, by id: they may have restarted before. One that it made never restarts
    /// without being sick. None in a deployment of an agent that told them by their age.
    pub older: Option<HashSet<String>>,
    /// What runs the release.
    pub containers: Containers,
}

/// How a bake ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BakeEnd {
    /// The time is over, and all is well.
    Over,
    /// A service is sick.
    Sick {
        /// The service.
        service: ServiceName,
        /// Why, in words.
        reason: String,
    },
    /// Somebody stopped or replaced it.
    Gone {
        /// The service.
        service: ServiceName,
        /// What was done, in words.
        what: String,
    },
}

impl Health {
    /// The containers of these services, as they are now: waits for an Engine that is away.
    pub async fn containers_to_bake(&self, project: &Project, services: &[ServiceName]) -> Containers {
        loop {
            match self.engine.containers(&project.name).await {
                Ok(containers) => return by_service(&containers, services),
                Err(error) => wait_for_engine(&error).await,
            }
        }
    }

    /// Watches a release until its time is over, or it is sick, or it is not the release any more. An Engine that is
    /// away, or is restarted, is waited for.
    pub async fn bake(&self, project: &Project, terms: &BakeTerms) -> BakeEnd {
        let ears = Ears::default();
        let mut watch = Watch::new(self, project, terms, &ears);
        tokio::select! {
            end = watch.until_the_end() => end,
            never = listen(&self.engine, &project.name, terms, &ears) => match never {},
        }
    }
}

fn by_service(containers: &[Container], services: &[ServiceName]) -> Containers {
    let of = |service: &ServiceName| {
        let ids = containers
            .iter()
            .filter(|container| is_one_of(container, service))
            .map(|container| container.id.clone());
        (service.clone(), ids.collect())
    };
    services.iter().map(of).collect()
}

fn is_one_of(container: &Container, service: &ServiceName) -> bool {
    container.service == *service && !container.one_off && !container.half_made
}

async fn wait_for_engine(error: &Error) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "the Engine does not answer; the release is watched again when it does"
    );
    sleep(ENGINE_PAUSE).await;
}

/// What was heard from the Engine.
#[derive(Default)]
struct Ears {
    /// Something happened: look soon.
    changed: Notify,
    /// A process ended: leave the checks that are being made, and look.
    died: Notify,
    /// How containers ended last, by id.
    ends: Mutex<HashMap<String, Heard>>,
}

/// What was heard of one container since its last start.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    /// A signal was sent to it that ends a process as a rule.
    told_to_end: bool,
    /// It ended.
    ended: bool,
    /// It was stopped.
    stopped: bool,
    exit_code: Option<i64>,
}

impl Heard {
    fn end(self) -> End {
        match self {
            Self { stopped: true, .. } => End::FromOutside,
            Self { ended: false, .. } => End::NotHeard,
            Self {
                told_to_end: true, ..
            } => End::FromOutside,
            Self {
                told_to_end: false, ..
            } => End::ByItself,
        }
    }
}

impl Ears {
    fn hear(&self, event: ContainerEvent) {
        let died = matches!(event.kind, EventKind::Died { .. } | EventKind::OutOfMemory);
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = ends.entry(event.container).or_default();
        match event.kind {
            // The exit code stays: it is that of the run before.
            EventKind::Started => {
                *heard = Heard {
                    exit_code: heard.exit_code,
                    ..Heard::default()
                }
            }
            EventKind::Died { exit_code } => {
                heard.ended = true;
                heard.exit_code = exit_code;
            }
            // SIGINT, SIGQUIT, SIGKILL and SIGTERM; what another one means only the image knows, and `stop` tells.
            EventKind::Signalled { signal } => heard.told_to_end |= matches!(signal, Some(2 | 3 | 9 | 15)),
            EventKind::Stopped => heard.stopped = true,
            EventKind::OutOfMemory | EventKind::Health { .. } => {}
        }
        drop(ends);
        if died {
            self.died.notify_one();
        }
        self.changed.notify_one();
    }

    fn of(&self, container: &str) -> Heard {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(container).copied().unwrap_or_default()
    }
}

/// Follows the Engine's events of the services that bake.
async fn listen(engine: &Engine, project: &ProjectName, terms: &BakeTerms, ears: &Ears) -> Infallible {
    loop {
        if let Ok(mut events) = engine.events(project, terms.since).await {
            while let Some(Ok(event)) = events.next().await {
                if terms.containers.contains_key(&event.service) {
                    ears.hear(event);
                }
            }
        }
        sleep(ENGINE_PAUSE).await;
    }
}

/// The watch of a release.
struct Watch<'a> {
    health: &'a Health,
    project: &'a Project,
    terms: &'a BakeTerms,
    ears: &'a Ears,
    begun: Instant,
    services: BTreeMap<&'a ServiceName, Watched<'a>>,
}

/// What is remembered of one service.
struct Watched<'a> {
    judge: Judge,
    restarts: Restarts<'a>,
    own: OwnChecks,
}

/// What one look at all services came to.
enum Sum {
    Well,
    Doubtful,
    End(BakeEnd),
}

impl<'a> Watch<'a> {
    fn new(health: &'a Health, project: &'a Project, terms: &'a BakeTerms, ears: &'a Ears) -> Self {
        let watched = |(service, mine): (&'a ServiceName, &BTreeSet<String>)| {
            let has_probes = project.probes.iter().any(|probe| probe.service == *service);
            let watched = Watched {
                judge: Judge::new(mine.clone(), has_probes),
                restarts: Restarts::since(
                    terms
                        .older
                        .as_ref()
                        .map_or(Older::CreatedBefore(terms.since), Older::Ids),
                ),
                own: OwnChecks::default(),
            };
            (service, watched)
        };
        Self {
            health,
            project,
            terms,
            ears,
            begun: Instant::now(),
            services: terms.containers.iter().map(watched).collect(),
        }
    }

    async fn until_the_end(&mut self) -> BakeEnd {
        loop {
            let ears = self.ears;
            let look = tokio::select! {
                look = self.look() => look,
                // A check may hang where a process has ended: begin the look anew.
                () = ears.died.notified() => {
                    sleep(EVENT_PAUSE).await;
                    continue;
                }
            };
            let is_over = self.begun.elapsed() >= self.terms.bake;
            let pause = match look {
                Ok(Sum::End(end)) => return end,
                Ok(Sum::Well) if is_over => return BakeEnd::Over,
                Ok(Sum::Well) => LOOK_EVERY.min(self.terms.bake.saturating_sub(self.begun.elapsed())),
                // Also when the time is over: it does not end in the middle of a doubt.
                Ok(Sum::Doubtful) => LOOK_CLOSELY_EVERY,
                Err(error) => {
                    for watched in self.services.values_mut() {
                        watched.judge.pause();
                    }
                    wait_for_engine(&error).await;
                    continue;
                }
            };
            tokio::select! {
                () = ears.changed.notified() => sleep(EVENT_PAUSE).await,
                () = sleep(pause) => {}
            }
        }
    }

    /// One look at all services, with all checks.
    async fn look(&mut self) -> Result<Sum, Error> {
        let containers = self.health.engine.containers(&self.project.name).await?;
        let mut looks = Vec::new();
        for (service, watched) in &mut self.services {
            let mine = containers
                .iter()
                .filter(|container| is_one_of(container, service));
            let mine: Vec<Container> = mine.cloned().collect();
            let seen = watched.see(&mine, &self.health.engine, self.ears);
            // Before any check of any service, which may hang.
            if let Some(reason) = watched.judge.sickness(&seen) {
                let service = (*service).clone();
                return Ok(Sum::End(BakeEnd::Sick { service, reason }));
            }
            looks.push((*service, watched, mine, seen));
        }
        let (health, project, begun) = (self.health, self.project, self.begun);
        let checked = looks
            .into_iter()
            .map(|(service, watched, mine, seen)| async move {
                let failing = watched.check(health, project, service, &mine).await;
                let look = Look {
                    at: begun.elapsed(),
                    containers: seen,
                    failing,
                };
                (service, watched.judge.see(&look))
            });
        Ok(sum(join_all(checked).await))
    }
}

fn sum(verdicts: Vec<(&ServiceName, Verdict)>) -> Sum {
    let mut sum = Sum::Well;
    for (service, verdict) in verdicts {
        match verdict {
            Verdict::Sick(reason) => {
                return Sum::End(BakeEnd::Sick {
                    service: service.clone(),
                    reason,
                });
            }
            Verdict::Gone(what) if !matches!(sum, Sum::End(_)) => {
                let service = service.clone();
                sum = Sum::End(BakeEnd::Gone { service, what });
            }
            Verdict::Doubtful(why) if matches!(sum, Sum::Well) => {
                tracing::debug!(service = service.as_str(), why, "looking closely");
                sum = Sum::Doubtful;
            }
            Verdict::Gone(_) | Verdict::Doubtful(_) | Verdict::Well => {}
        }
    }
    sum
}

impl Watched<'_> {
    fn see(&mut self, containers: &[Container], engine: &Engine, ears: &Ears) -> Vec<Seen> {
        let seen = |container: &Container| {
            let heard = ears.of(&container.id);
            Seen {
                id: container.id.clone(),
                state: container.state.clone(),
                restarts: self.restarts.count(std::slice::from_ref(container)),
                last_exit: heard.exit_code,
                end: if engine.took_down(container) {
                    End::FromOutside
                } else {
                    heard.end()
                },
                out_of_memory: container.out_of_memory,
                health: by_engine(container).unwrap_or(verdict::Health::Passing),
            }
        };
        containers.iter().map(seen).collect()
    }

    /// The first check that fails, in words: a healthcheck of which the Engine has no verdict, or a probe.
    async fn check(
        &mut self,
        health: &Health,
        project: &Project,
        service: &ServiceName,
        containers: &[Container],
    ) -> Option<String> {
        let own = self.own.health(&health.engine, containers, CHECKS_LIMIT);
        let probes = timeout(CHECKS_LIMIT, probe::run_all(&health.http, project, service));
        let (own, probes) = tokio::join!(own, probes);
        let by_probes = match probes {
            Ok(None | Some(Ok(_))) => None,
            Ok(Some(Err(why))) => Some(why),
            Err(_) => Some("its probes did not end in time".to_owned()),
        };
        match own {
            verdict::Health::Failing(why) => Some(format!("its healthcheck does not pass: {why}")),
            verdict::Health::None | verdict::Health::Passing | verdict::Health::Unhealthy(_) => by_probes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(kinds: &[EventKind]) -> Heard {
        let ears = Ears::default();
        for kind in kinds {
            ears.hear(ContainerEvent {
                container: "a".to_owned(),
                service: "web".parse().unwrap(),
                kind: kind.clone(),
            });
        }
        ears.of("a")
    }

    #[test]
    fn an_end_is_by_hand_when_a_signal_or_a_stop_was_asked_for() {
        let (start, stop) = (EventKind::Started, EventKind::Stopped);
        let die = EventKind::Died { exit_code: Some(143) };
        let signal = |signal| EventKind::Signalled { signal: Some(signal) };
        for (kinds, end) in [
            (vec![start.clone()], End::NotHeard),
            (vec![start.clone(), die.clone()], End::ByItself),
            (vec![start.clone(), signal(15), die.clone()], End::FromOutside),
            // SIGHUP means read the configuration again; what ends later ends by itself.
            (vec![start.clone(), signal(1), die.clone()], End::ByItself),
            // An image with a stop signal of its own.
            (
                vec![start.clone(), signal(28), die.clone(), stop.clone()],
                End::FromOutside,
            ),
            (
                vec![signal(15), die.clone(), stop, start.clone(), die.clone()],
                End::ByItself,
            ),
            (vec![die, start], End::NotHeard),
        ] {
            assert_eq!(heard(&kinds).end(), end, "{kinds:?}");
        }
    }
}
