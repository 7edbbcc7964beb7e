//! Watching services until all are well or one is sick: woken by the Engine's events, never by its healthcheck
//! schedule.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use deploy_proto::names::{ProjectName, ServiceName};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::container::{OwnChecks, Restarts, by_engine, worse, worst_state};
use super::{ENGINE_PATIENCE, Health, Terms, WatchError, WellService, probe};
use crate::config::Project;
use crate::deploy::verdict::{self, ContainerState, Judge, Limits, Sample, Verdict, seconds};
use crate::host::engine::{Container, ContainerEvent, Engine, Error, EventKind};

/// The pause after the first look; it doubles with each look.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two looks while a service is not well yet.
const WAITING_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause while it settles: one that is well and sick by turns is not to be seen at its good times only.
const SETTLING_PAUSE: Duration = Duration::from_millis(250);
/// The shortest time that a look's checks get, however little is left of `wait`.
const CHECKS_AT_LEAST: Duration = Duration::from_secs(1);
/// How long ago a look with all checks still counts when the last service has become well.
const LAST_LOOK_AFTER: Duration = Duration::from_millis(500);
/// An answer of the Engine that takes longer is not counted on the service's time.
const SLOW_ANSWER: Duration = Duration::from_secs(1);
/// The pause before the Engine's events are asked for again.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_millis(200);

impl Health {
    /// Watches services, all at the same time, until each has been well for `settle`, or one is sick.
    ///
    /// The first look is at once; with `settle` zero and all well it is the only one. Healthchecks that the Engine has
    /// no verdict of and probes are run by us with every look. A service that became well is watched for crashes until
    /// all are, and then looked at once more. `on_seen` is told what is seen of a service whenever that changes.
    ///
    /// # Errors
    /// [`WatchError::Sick`] with the first service that is, at once.
    pub async fn watch(
        &self,
        project: &Project,
        services: &[ServiceName],
        terms: Terms<'_>,
        on_seen: impl Fn(&ServiceName, &str) + Sync,
    ) -> Result<Vec<WellService>, WatchError> {
        if services.is_empty() {
            return Ok(Vec::new());
        }
        let begun = Instant::now();
        let mut well = self.all_well(project, services, terms, begun, &on_seen).await?;
        // Those that were well first were since watched for crashes only: one more look at all, with all checks.
        if well.values().any(|since| since.at.elapsed() > LAST_LOOK_AFTER) {
            let one_look = Terms {
                settle: Duration::ZERO,
                ..terms
            };
            self.all_well(project, services, one_look, begun, &on_seen)
                .await?;
        }
        Ok(services
            .iter()
            .filter_map(|service| well.remove_entry(service))
            .map(|(service, since)| WellService {
                service,
                in_words: since.in_words,
            })
            .collect())
    }

    async fn all_well(
        &self,
        project: &Project,
        services: &[ServiceName],
        terms: Terms<'_>,
        begun: Instant,
        on_seen: &(impl Fn(&ServiceName, &str) + Sync),
    ) -> Result<BTreeMap<ServiceName, WellSince>, WatchError> {
        let wakes: BTreeMap<&ServiceName, Wake> =
            services.iter().map(|name| (name, Wake::default())).collect();
        let well = WellSoFar::default();
        let mut watching: FuturesUnordered<_> = wakes
            .iter()
            .map(|(service, wake)| {
                let mut watch = Watch::new(self, project, service, wake, terms, begun);
                let (well, wanted) = (&well, wakes.len());
                async move {
                    let words = watch.until_well(on_seen).await?;
                    well.add(service, words, wanted);
                    watch.until_sick().await
                }
            })
            .collect();
        tokio::select! {
            biased;
            Some(end) = watching.next() => match end {
                Ok(never) => match never {},
                Err(error) => return Err(error),
            },
            () = well.all.notified() => {}
            never = listen(&self.engine, &project.name, terms, &wakes) => match never {},
        }
        drop(watching);
        Ok(well.services.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When a service became well, and how that is known.
struct WellSince {
    at: Instant,
    in_words: String,
}

/// The services that became well.
#[derive(Default)]
struct WellSoFar {
    services: Mutex<BTreeMap<ServiceName, WellSince>>,
    all: Notify,
}

impl WellSoFar {
    fn add(&self, service: &ServiceName, in_words: String, wanted: usize) {
        let mut all = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        all.insert(service.clone(), WellSince { at, in_words });
        if all.len() == wanted {
            self.all.notify_one();
        }
    }
}

/// What an event of the Engine does to the watch of a service. Each keeps one call for whoever comes to wait.
#[derive(Default)]
struct Wake {
    /// Something happened: look now.
    changed: Notify,
    /// A process ended: leave the checks that are being made, and look.
    died: Notify,
    /// How containers ended last, by id: the next look may come after their restart.
    exits: Mutex<HashMap<String, i64>>,
}

impl Wake {
    fn take(&self, event: ContainerEvent) {
        match event.kind {
            EventKind::Died { exit_code } => {
                if let Some(code) = exit_code {
                    let mut exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
                    exits.insert(event.container, code);
                }
                self.died.notify_one();
            }
            EventKind::OutOfMemory => self.died.notify_one(),
            EventKind::Started | EventKind::Health { .. } => {}
            // What follows from it is told too.
            EventKind::Signalled { .. } | EventKind::Stopped => return,
        }
        self.changed.notify_one();
    }

    fn last_exit(&self, containers: &[Container]) -> Option<i64> {
        let exits = self.exits.lock().unwrap_or_else(PoisonError::into_inner);
        containers
            .iter()
            .find_map(|container| exits.get(&container.id).copied())
    }
}

/// Follows the Engine's events and wakes the watches. An Engine that is away is asked again; the watches notice by
/// themselves.
async fn listen(
    engine: &Engine,
    project: &ProjectName,
    terms: Terms<'_>,
    wakes: &BTreeMap<&ServiceName, Wake>,
) -> Infallible {
    loop {
        // From the deployment's beginning on, and again after a break: a look too many costs little.
        if let Ok(mut events) = engine.events(project, terms.since).await {
            while let Some(Ok(event)) = events.next().await {
                if let Some(wake) = wakes.get(&event.service) {
                    wake.take(event);
                }
            }
            // It ends only with the Engine, whose next run remembers no events: whoever waits for one looks.
            engine.note_outage();
            wakes.values().for_each(|wake| wake.changed.notify_one());
        }
        sleep(RESUBSCRIBE_PAUSE).await;
    }
}

/// The watch of one service.
struct Watch<'a> {
    health: &'a Health,
    project: &'a Project,
    service: &'a ServiceName,
    wake: &'a Wake,
    terms: Terms<'a>,
    begun: Instant,
    judge: Judge,
    restarts: Restarts<'a>,
    own: OwnChecks,
    /// When the Engine last answered.
    answered: Instant,
    /// Its absences that the judge knows of.
    outages: u64,
}

/// What one look saw.
struct Look {
    sample: Sample,
    /// What passes, in words.
    passing: Vec<String>,
    out_of_memory: bool,
}

/// What the health of a container that does not run comes to. One with a healthcheck is no one-shot, whose end would be
/// the end of its work.
fn without_checks(container: &Container) -> verdict::Health {
    by_engine(container).unwrap_or_else(|| verdict::Health::Failing("it does not run".to_owned()))
}

impl<'a> Watch<'a> {
    fn new(
        health: &'a Health,
        project: &'a Project,
        service: &'a ServiceName,
        wake: &'a Wake,
        terms: Terms<'a>,
        begun: Instant,
    ) -> Self {
        Self {
            health,
            project,
            service,
            wake,
            terms,
            begun,
            judge: Judge::new(Limits {
                settle: terms.settle,
                wait: terms.wait,
            }),
            restarts: Restarts::since(terms.older),
            own: OwnChecks::default(),
            answered: begun,
            outages: health.engine.outages(),
        }
    }

    /// Looks until the service was well for `settle`; then says how that is known.
    async fn until_well(&mut self, on_seen: impl Fn(&ServiceName, &str)) -> Result<String, WatchError> {
        let mut pause = FIRST_PAUSE;
        let mut shown = String::new();
        loop {
            let seen = match self.look().await {
                Ok(look) => match self.judge.see(&look.sample) {
                    Verdict::Healthy => return Ok(self.well(&look)),
                    Verdict::Sick(reason) => return Err(self.sick(&look, &reason)),
                    Verdict::Down => return Err(self.down()),
                    Verdict::Wait(words) => words,
                },
                Err(error) => self.be_patient(error)?,
            };
            if seen != shown {
                on_seen(self.service, &seen);
                shown = seen;
            }
            let steady_for = self.judge.steady_for(self.begun.elapsed());
            let longest = if self.judge.is_settling() {
                SETTLING_PAUSE
            } else {
                WAITING_PAUSE
            };
            tokio::select! {
                () = self.wake.changed.notified() => pause = FIRST_PAUSE,
                () = sleep(pause.min(longest).min(steady_for)) => pause = pause.min(longest) * 2,
            }
        }
    }

    /// Waits, after it became well, for it to crash or become unhealthy; the other services may take longer.
    async fn until_sick(&mut self) -> Result<Infallible, WatchError> {
        loop {
            self.wake.changed.notified().await;
            match self.look_at_containers().await {
                Ok((containers, mut look)) => {
                    look.sample.health = containers
                        .iter()
                        .map(|container| by_engine(container).unwrap_or(verdict::Health::Passing))
                        .fold(verdict::Health::None, worse);
                    look.sample.probes = self.has_probes().then_some(Ok(()));
                    match self.judge.see(&look.sample) {
                        Verdict::Sick(reason) => return Err(self.sick(&look, &reason)),
                        Verdict::Down => return Err(self.down()),
                        Verdict::Healthy | Verdict::Wait(_) => {}
                    }
                }
                Err(error) => {
                    self.be_patient(error)?;
                    sleep(RESUBSCRIBE_PAUSE).await;
                    self.wake.changed.notify_one();
                }
            }
        }
    }

    /// One look with all checks. A container that dies meanwhile is looked at again, its checks are left.
    async fn look(&mut self) -> Result<Look, Error> {
        loop {
            let (containers, mut look) = self.look_at_containers().await?;
            if look.sample.state != ContainerState::Running || look.sample.restarts > 0 {
                look.sample.probes = self.has_probes().then(|| Err("it does not run".to_owned()));
                look.sample.health = containers
                    .iter()
                    .map(without_checks)
                    .fold(verdict::Health::None, worse);
                return Ok(look);
            }
            let wake = self.wake;
            tokio::select! {
                biased;
                () = wake.died.notified() => {}
                () = self.check(&containers, &mut look) => return Ok(look),
            }
        }
    }

    async fn look_at_containers(&mut self) -> Result<(Vec<Container>, Look), Error> {
        let engine = &self.health.engine;
        let asked = Instant::now();
        let answer = engine.service_containers(&self.project.name, self.service).await;
        if asked.elapsed() > SLOW_ANSWER {
            self.begun += asked.elapsed();
        }
        let containers = answer?;
        self.answered = Instant::now();
        let outages = engine.outages();
        if outages != self.outages {
            self.outages = outages;
            self.judge.lose_sight();
        }
        let sample = Sample {
            at: self.begun.elapsed(),
            state: worst_state(&containers),
            ended_with_engine: containers.iter().any(|one| engine.took_down(one)),
            restarts: self.restarts.count(&containers),
            last_exit: self.wake.last_exit(&containers),
            health: verdict::Health::None,
            probes: None,
        };
        let look = Look {
            sample,
            passing: Vec::new(),
            out_of_memory: containers.iter().any(|container| container.out_of_memory),
        };
        Ok((containers, look))
    }

    /// Runs the healthchecks and the probes at the same time.
    async fn check(&mut self, containers: &[Container], look: &mut Look) {
        let left = self
            .terms
            .wait
            .saturating_sub(self.begun.elapsed())
            .max(CHECKS_AT_LEAST);
        let health = self.own.health(&self.health.engine, containers, left);
        let probes = timeout(
            left,
            probe::run_all(&self.health.http, self.project, self.service),
        );
        let (health, probes) = tokio::join!(health, probes);
        if health == verdict::Health::Passing {
            look.passing.push("healthcheck passes".to_owned());
        }
        look.sample.health = health;
        look.sample.probes = match probes {
            Ok(None) => None,
            Ok(Some(Ok(words))) => {
                look.passing.extend(words);
                Some(Ok(()))
            }
            Ok(Some(Err(why))) => Some(Err(why)),
            Err(_) => Some(Err("its probes did not end in time".to_owned())),
        };
        look.sample.at = self.begun.elapsed();
    }

    fn has_probes(&self) -> bool {
        self.project
            .probes
            .iter()
            .any(|probe| probe.service == *self.service)
    }

    fn well(&self, look: &Look) -> String {
        let mut words = match (&look.sample.state, look.passing.is_empty()) {
            (ContainerState::Exited { .. }, _) => return "did its work and exited with code 0".to_owned(),
            (_, true) => "runs".to_owned(),
            (_, false) => look.passing.join(", "),
        };
        if !self.terms.settle.is_zero() {
            words.push_str(&format!("; steady for {}", seconds(self.terms.settle)));
        }
        words
    }

    fn sick(&self, look: &Look, reason: &str) -> WatchError {
        let memory = if look.out_of_memory {
            " (it ran out of memory)"
        } else {
            ""
        };
        WatchError::Sick {
            service: self.service.clone(),
            reason: format!("{reason}{memory}"),
        }
    }

    fn down(&self) -> WatchError {
        WatchError::Down {
            service: self.service.clone(),
        }
    }

    /// What is shown while the Engine is away; the error when it is away for too long, or cannot be understood.
    fn be_patient(&self, error: Error) -> Result<String, WatchError> {
        if error.is_outage() && self.answered.elapsed() < ENGINE_PATIENCE {
            Ok("the Docker Engine does not answer; asking again".to_owned())
        } else {
            Err(WatchError::Engine(error))
        }
    }
}
