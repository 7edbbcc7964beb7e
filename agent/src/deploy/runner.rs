//! The one loop that carries a deployment out: journal the phase, perform its action, let the phase say what follows.
//!
//! After a restart the same loop goes on from the journal: there is no other recovery path.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deploy_proto::event::{Ending, Event, Happened, Outcome, PhaseName, RunningService};
use deploy_proto::names::{DeploymentId, KeyName, ReleaseNumber, ServiceName};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::DeploymentKind;
use jiff::Timestamp;
use tokio::sync::watch;

use super::deadlines::{deadline, doing, may_be_broken_off, may_be_interrupted};
use super::ending::{outcome, release_states, settled};
use super::facts;
use super::feed::Feed;
use super::phase::{Action, Course, Failure, Phase, Seen};
use super::plan::{Moment, Plan};
use super::planning::{self, Asked, NoPlan};
use super::port::{EditFailure, Host};
use crate::config::Project;
use crate::history::{Deployment, Ended, History, HistoryError, OnCancel};

/// How often one phase is begun, counting restarts of the agent, before it counts as failed: a phase that takes the
/// agent down must not do so for ever.
pub const ATTEMPTS_MAX: u32 = 5;
/// How long the end of a deployment waits to hear what the release runs: `docker compose config` may take 30 s.
const RAN_DEADLINE: Duration = Duration::from_secs(40);

/// Who wants a running deployment cancelled; nobody, until somebody says so.
pub type Cancel = watch::Receiver<Option<KeyName>>;

/// Whether a deployment ended, or stands in the journal until the agent starts again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ran {
    /// It ended.
    Ended(Box<Outcome>),
    /// The agent is shutting down; the journal has the phase.
    Interrupted,
}

/// What is known when a deployment ends, besides its last phase.
#[derive(Debug, Default)]
struct Known {
    /// What its services run, as seen on the Engine.
    now: Vec<RunningService>,
    /// What the containers of the release that runs were made from.
    ran: Option<(ReleaseNumber, BTreeMap<ServiceName, facts::Ran>)>,
    /// The events that are not journaled yet.
    told: Vec<Happened>,
    /// How long it was worked on.
    worked: Duration,
    /// How long the project's releases are watched afterwards.
    bake: Duration,
}

/// Carries deployments out on one host.
#[derive(Debug)]
pub struct Runner<H> {
    pub(super) host: Arc<H>,
    pub(super) history: History,
    feed: Arc<Feed>,
    shutdown: watch::Receiver<bool>,
    pub(super) now: fn() -> Timestamp,
}

impl<H: Host> Runner<H> {
    /// A runner. `now` is the host's clock, for timestamps only: deadlines are monotonic.
    pub fn new(
        host: Arc<H>,
        history: History,
        feed: Arc<Feed>,
        shutdown: watch::Receiver<bool>,
        now: fn() -> Timestamp,
    ) -> Self {
        Self {
            host,
            history,
            feed,
            shutdown,
            now,
        }
    }

    /// Carries a deployment on from the phase that the journal has, until it ends.
    ///
    /// # Errors
    /// The journal cannot be written: nothing more is done, and the deployment goes on when the agent starts again.
    pub async fn run(
        &self,
        project: &Project,
        mut deployment: Deployment,
        cancel: Cancel,
    ) -> Result<Ran, HistoryError> {
        let begun = Instant::now();
        let before = self.begin(&mut deployment).await?;
        while let Some(action) = deployment.phase.action() {
            let began = Instant::now();
            let Some((seen, summary)) = self.perform(action, project, &mut deployment, &cancel).await? else {
                return Ok(Ran::Interrupted);
            };
            let mut seen = unless_cancelled(&deployment, &cancel, seen);
            let mut summary = summary;
            loop {
                self.end_hooks_unless_done(action, project, &deployment, &seen)
                    .await;
                let on_cancel = on_cancel(&deployment.phase, deployment.course(), &seen);
                let told = told(&deployment.phase, &seen, summary, began.elapsed());
                let next = deployment.phase.clone().next(seen, deployment.course());
                let recorded = if next.is_ended() {
                    let worked = before.saturating_add(begun.elapsed());
                    self.end_here(project, &deployment, next, told, worked, on_cancel)
                        .await
                        .map(Some)
                } else {
                    self.enter(&mut deployment, next, told, on_cancel)
                        .await
                        .map(|()| None)
                };
                match recorded {
                    Ok(None) => break,
                    Ok(Some(outcome)) => return Ok(Ran::Ended(Box::new(outcome))),
                    // Who cancelled while the step was on its way to the journal was told so: it is not taken.
                    Err(HistoryError::Cancelled { by }) => {
                        seen = Seen::Failed(cancelled_by(&by));
                        summary = String::new();
                    }
                    Err(error) => return Err(error),
                }
            }
            if *self.shutdown.borrow() {
                return Ok(Ran::Interrupted);
            }
        }
        // Only a deployment that had ended already comes here.
        Ok(deployment
            .outcome
            .map_or(Ran::Interrupted, |outcome| Ran::Ended(Box::new(outcome))))
    }

    /// Ends a deployment that cannot be carried on: refused when nothing was touched yet, else stuck.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn give_up(&self, deployment: Deployment, problem: Problem) -> Result<Outcome, HistoryError> {
        let phase = deployment.phase.clone().given_up(problem.into());
        let worked = self.worked_before(&deployment).await?;
        let known = Known {
            worked,
            ..Known::default()
        };
        self.end(&deployment, phase, known, OnCancel::GoOn).await
    }

    /// Counts the attempt in the journal before anything is done, and tells watchers when it is not the first. Says how
    /// long the deployment was worked on before.
    async fn begin(&self, deployment: &mut Deployment) -> Result<Duration, HistoryError> {
        if deployment.phase.is_ended() {
            return Ok(Duration::ZERO);
        }
        deployment.attempts += 1;
        if deployment.attempts == 1 {
            return Ok(Duration::ZERO);
        }
        let before = self.worked_before(deployment).await?;
        let text = format!(
            "the agent was restarted and goes on with {}",
            deployment.phase.name().as_str()
        );
        let (id, phase) = (deployment.id().clone(), deployment.phase.clone());
        let events = self
            .history
            .enter(
                id,
                phase,
                deployment.attempts,
                (self.now)(),
                vec![Happened::Note { text }],
                OnCancel::GoOn,
            )
            .await?;
        self.tell(events);
        Ok(before)
    }

    /// How long earlier processes of the agent worked on a deployment, by its journal: the sum of its ended phases, each
    /// measured by a clock that nobody sets.
    async fn worked_before(&self, deployment: &Deployment) -> Result<Duration, HistoryError> {
        let events = self.history.events(deployment.id().clone(), 0).await?;
        let phase = |event: &Event| {
            let (Happened::PhaseDone { elapsed_ms, .. } | Happened::PhaseFailed { elapsed_ms, .. }) =
                &event.what
            else {
                return None;
            };
            Some(*elapsed_ms)
        };
        Ok(Duration::from_millis(
            events.iter().filter_map(phase).fold(0, u64::saturating_add),
        ))
    }

    async fn enter(
        &self,
        deployment: &mut Deployment,
        next: Phase,
        mut told: Vec<Happened>,
        on_cancel: OnCancel,
    ) -> Result<(), HistoryError> {
        told.push(Happened::Phase { phase: next.name() });
        let (id, at) = (deployment.id().clone(), (self.now)());
        let events = self
            .history
            .enter(id, next.clone(), 1, at, told, on_cancel)
            .await?;
        tracing::info!(phase = next.name().as_str(), "phase");
        deployment.phase = next;
        deployment.attempts = 1;
        self.tell(events);
        Ok(())
    }

    /// Ends the deployment in this phase, with what runs then.
    async fn end_here(
        &self,
        project: &Project,
        deployment: &Deployment,
        phase: Phase,
        told: Vec<Happened>,
        worked: Duration,
        on_cancel: OnCancel,
    ) -> Result<Outcome, HistoryError> {
        let services = named_services(deployment);
        let (now, ran) = tokio::join!(
            self.host.running(project, &services),
            self.ran(project, deployment, &phase)
        );
        let known = Known {
            now,
            ran,
            told,
            worked,
            bake: project.bake,
        };
        self.end(deployment, phase, known, on_cancel).await
    }

    /// Performs the phase's action within its deadline. `None`: the agent is shutting down, and the action is one that
    /// is better begun anew than waited for.
    async fn perform(
        &self,
        action: Action,
        project: &Project,
        deployment: &mut Deployment,
        cancel: &Cancel,
    ) -> Result<Option<(Seen, String)>, HistoryError> {
        if let Some(seen) = cancelled(deployment, cancel) {
            return Ok(Some((seen, String::new())));
        }
        if deployment.attempts > ATTEMPTS_MAX {
            let detail = format!(
                "the agent was stopped {ATTEMPTS_MAX} times while {}",
                deployment.phase.name().as_str()
            );
            return Ok(Some((
                Seen::Failed(Problem::new(Code::Internal, detail).into()),
                String::new(),
            )));
        }
        let deadline = deadline(action, project, deployment.plan.as_ref());
        let heeds_cancel = may_be_broken_off(action) && deployment.phase.heeds_cancel(deployment.course());
        let work = tokio::time::timeout(deadline, self.act(action, project, deployment));
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = stopping(self.shutdown.clone()), if may_be_interrupted(action) => return Ok(None),
            key = cancelling(cancel.clone()), if heeds_cancel => {
                return Ok(Some((Seen::Failed(cancelled_by(&key)), String::new())));
            }
        };
        match outcome {
            Ok(Ok(seen)) => Ok(Some(seen)),
            Ok(Err(error)) => Err(error),
            Err(_elapsed) => {
                let detail = format!("{} did not end within {}s", doing(action), deadline.as_secs());
                Ok(Some((
                    Seen::Failed(Problem::new(Code::DeadlinePassed, detail).into()),
                    String::new(),
                )))
            }
        }
    }

    async fn act(
        &self,
        action: Action,
        project: &Project,
        deployment: &mut Deployment,
    ) -> Result<(Seen, String), HistoryError> {
        if action == Action::Plan {
            return self.plan(project, deployment).await;
        }
        let Some(plan) = &deployment.plan else {
            let problem = Problem::new(Code::Internal, "the journal has no plan for this deployment");
            return Ok((Seen::Failed(problem.into()), String::new()));
        };
        let progress = self.progress(deployment.id());
        let host = &self.host;
        let done = match action {
            Action::Plan | Action::BackUp => {
                self.back_up(project, deployment, plan).await?;
                if plan.hooks_at(Moment::BeforeChange).next().is_some() {
                    return self.run_hooks(project, deployment, Moment::BeforeChange).await;
                }
                Ok(files_summary(plan))
            }
            Action::Pull => host.pull(project, plan, &progress).await,
            Action::Gate => host.gate(project, plan).await,
            Action::Edit => {
                return Ok(match host.edit(project, plan).await {
                    Ok(summary) => (Seen::Done, summary),
                    Err(EditFailure::Undone(failure)) => (Seen::Undone(failure), String::new()),
                    Err(EditFailure::NotUndone(failure)) => (Seen::Failed(failure), String::new()),
                });
            }
            Action::RunBeforeHooks => {
                return self.run_hooks(project, deployment, Moment::BeforeRestart).await;
            }
            Action::RunAfterHooks => return self.run_hooks(project, deployment, Moment::AfterLive).await,
            Action::Restart => {
                self.keep_logs(project, deployment, plan.from, plan).await;
                host.restart(project, plan, &progress).await
            }
            Action::Watch => host.watch(project, plan, &progress).await,
            Action::Restore => host.restore(project, plan).await,
            Action::RestartOld => {
                let restarted = self.reached(deployment.id(), PhaseName::Restarting).await?;
                // Before the restart there was no container of the new release to keep lines of.
                let to = Some(plan.to).filter(|_| restarted);
                self.keep_logs(project, deployment, to, plan).await;
                host.restart_old(project, plan).await
            }
            Action::WatchOld => host.watch_old(project, plan, &progress).await,
        };
        Ok(match done {
            Ok(summary) => (Seen::Done, summary),
            Err(failure) => (Seen::Failed(failure), String::new()),
        })
    }

    /// Whether a deployment came to a phase.
    async fn reached(&self, id: &DeploymentId, phase: PhaseName) -> Result<bool, HistoryError> {
        let events = self.history.events(id.clone(), 0).await?;
        let is_it = |event: &Event| event.what == Happened::Phase { phase };
        Ok(events.iter().any(is_it))
    }

    /// Passes on what an action tells of how far it is. It is for those who watch just now, so it has no number.
    pub(super) fn progress(&self, id: &DeploymentId) -> impl Fn(Happened) + Send + Sync {
        let id = id.clone();
        move |what| {
            self.feed.send(Event {
                seq: None,
                at: (self.now)(),
                deployment: id.clone(),
                what,
            });
        }
    }

    async fn plan(
        &self,
        project: &Project,
        deployment: &mut Deployment,
    ) -> Result<(Seen, String), HistoryError> {
        // A crash after the plan was recorded and before the next phase was: the plan stands.
        if deployment.plan.is_none() {
            let asked = Asked {
                request: &deployment.request,
                key: &deployment.key,
                scope: &deployment.services,
                now: (self.now)(),
            };
            let planned = match planning::plan(self.host.as_ref(), &self.history, project, &asked).await {
                Ok(planned) => planned,
                Err(NoPlan::Refused(failure)) => return Ok((Seen::Failed(failure), String::new())),
                Err(NoPlan::History(error)) => return Err(error),
            };
            self.history
                .planned(deployment.id().clone(), planned.plan.clone(), planned.releases)
                .await?;
            deployment.from = planned.plan.from;
            deployment.to = Some(planned.plan.to).filter(|_| !planned.plan.services.is_empty());
            deployment.plan = Some(planned.plan);
        }
        let Some(plan) = &deployment.plan else {
            return Ok((Seen::NothingToDo, String::new()));
        };
        let takes_number = !plan.services.is_empty();
        let event = Happened::Planned {
            plan: plan.view(&project.dir, takes_number),
        };
        self.tell(
            self.history
                .note(deployment.id().clone(), (self.now)(), event)
                .await?,
        );
        if takes_number {
            return Ok((Seen::Done, plan_summary(plan)));
        }
        // "Runs already" is said only of what is well, by the same checks as after a restart.
        let progress = self.progress(deployment.id());
        Ok(match self.host.check_unchanged(project, plan, &progress).await {
            Ok(summary) => (Seen::NothingToDo, summary),
            Err(failure) => (Seen::Failed(failure), String::new()),
        })
    }

    async fn back_up(
        &self,
        project: &Project,
        deployment: &Deployment,
        plan: &Plan,
    ) -> Result<(), HistoryError> {
        // A rollback and a reconciliation go to a release that has its files; only a push makes one.
        match deployment.request.kind() {
            DeploymentKind::Push => {}
            DeploymentKind::Rollback | DeploymentKind::Reconcile | DeploymentKind::AutoRollback => {
                return Ok(());
            }
        }
        if let Some(from) = plan.from
            && self.history.files(project.name.clone(), from).await?.is_empty()
        {
            self.history
                .back_up(project.name.clone(), from, plan.files.clone())
                .await?;
        }
        self.history
            .back_up(project.name.clone(), plan.to, plan.files_after())
            .await
    }

    /// Keeps the logs of the containers that are about to go. A convenience: its failure fails nothing. On a later
    /// attempt the containers may be the new ones already, so only the first keeps.
    async fn keep_logs(
        &self,
        project: &Project,
        deployment: &Deployment,
        release: Option<ReleaseNumber>,
        plan: &Plan,
    ) {
        let Some(release) = release.filter(|_| deployment.attempts == 1) else {
            return;
        };
        let tails = self.host.log_tails(project, &plan.service_names()).await;
        if let Err(error) = self.history.keep_logs(project.name.clone(), release, tails).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "logs not kept");
        }
    }

    /// What the release that goes live with this ending runs. Only drift is judged by it later, so that an Engine which
    /// does not tell it now fails nothing.
    async fn ran(
        &self,
        project: &Project,
        deployment: &Deployment,
        ending: &Phase,
    ) -> Option<(ReleaseNumber, BTreeMap<ServiceName, facts::Ran>)> {
        let plan = deployment.plan.as_ref().filter(|_| *ending == Phase::Live)?;
        let seen = tokio::time::timeout(RAN_DEADLINE, self.host.ran(project)).await;
        match seen {
            Ok(Ok(ran)) => Some((plan.to, ran)),
            Ok(Err(failure)) => {
                tracing::warn!(
                    problem = failure.problem.detail,
                    "what the release runs is not recorded"
                );
                None
            }
            Err(_elapsed) => {
                tracing::warn!("what the release runs is not recorded: the host did not tell it in time");
                None
            }
        }
    }

    async fn end(
        &self,
        deployment: &Deployment,
        phase: Phase,
        known: Known,
        on_cancel: OnCancel,
    ) -> Result<Outcome, HistoryError> {
        let Known {
            now,
            ran,
            mut told,
            worked,
            bake,
        } = known;
        let phase = settled(phase, deployment);
        let project = deployment.project.clone();
        let at = (self.now)();
        let elapsed_ms = u64::try_from(worked.as_millis()).unwrap_or(u64::MAX);
        let was_stuck = self.history.stuck(project.clone()).await?.is_some();
        let live = self.history.live_release(project.clone()).await?;
        // What a stuck project runs is no release, whatever was tried since.
        let live = live.filter(|_| !was_stuck).map(|release| release.number);
        let outcome = outcome(&phase, deployment, live, now, elapsed_ms, bake);
        told.push(Happened::Ended {
            outcome: outcome.clone(),
        });
        let ended = Ended {
            project,
            kind: deployment.request.kind(),
            at,
            outcome: outcome.clone(),
            releases: release_states(&phase, deployment),
            ran,
        };
        let events = self
            .history
            .finish(deployment.id().clone(), phase.clone(), ended, told, on_cancel)
            .await?;
        match outcome.result {
            Ending::Live | Ending::Unchanged => {
                tracing::info!(phase = phase.name().as_str(), "deployment ended")
            }
            Ending::Refused | Ending::RolledBack => {
                tracing::warn!(
                    phase = phase.name().as_str(),
                    reason = reason(&outcome),
                    "deployment ended"
                );
            }
            Ending::Stuck => tracing::error!(
                reason = reason(&outcome),
                "deployment is stuck: a person is needed"
            ),
        }
        self.tell(events);
        self.feed.close(deployment.id());
        Ok(outcome)
    }

    /// Passes journaled events on to those who watch.
    pub fn tell(&self, events: Vec<Event>) {
        for event in events {
            self.feed.send(event);
        }
    }
}

/// Ends when the agent is to stop; never, when nobody can say so any more.
async fn stopping(mut shutdown: watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        std::future::pending().await
    }
}

/// Tells who wants the deployment cancelled; waits for ever, when nobody can say so any more.
async fn cancelling(mut cancel: Cancel) -> KeyName {
    let key = cancel
        .wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|key| key.clone());
    match key {
        Some(key) => key,
        None => std::future::pending().await,
    }
}

/// How a phase ends that heeds a cancellation, when there is one.
fn cancelled(deployment: &Deployment, cancel: &Cancel) -> Option<Seen> {
    let key = cancel.borrow().clone()?;
    let heeds = deployment.phase.heeds_cancel(deployment.course());
    heeds.then(|| Seen::Failed(cancelled_by(&key)))
}

/// What an action came to that may have been cancelled too late to be broken off. An edit is done, and then put back.
fn unless_cancelled(deployment: &Deployment, cancel: &Cancel, seen: Seen) -> Seen {
    let key = cancel.borrow().clone();
    let past = deployment.phase.past_cancelling(deployment.course());
    match (seen, key, past) {
        (Seen::Done | Seen::NothingToDo, Some(key), None) => Seen::Failed(cancelled_by(&key)),
        (seen, _, _) => seen,
    }
}

/// Whether a cancellation that the journal has by then keeps the next step from being recorded: one forward from a phase
/// that heeds it.
fn on_cancel(phase: &Phase, course: Course, seen: &Seen) -> OnCancel {
    match (seen, phase.past_cancelling(course)) {
        (Seen::Done | Seen::NothingToDo, None) => OnCancel::Stop,
        (Seen::Failed(_) | Seen::Undone(_), _) | (_, Some(_)) => OnCancel::GoOn,
    }
}

/// Why a deployment ends that somebody cancelled.
pub fn cancelled_by(key: &KeyName) -> Failure {
    Problem::new(Code::Cancelled, format!("cancelled by {key}")).into()
}

fn reason(outcome: &Outcome) -> &str {
    outcome.problem.as_ref().map_or("", |problem| &problem.detail)
}

/// The event that tells how a phase went.
fn told(phase: &Phase, seen: &Seen, summary: String, elapsed: Duration) -> Vec<Happened> {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    let phase = phase.name();
    vec![match seen {
        Seen::Done | Seen::NothingToDo => Happened::PhaseDone {
            phase,
            summary,
            elapsed_ms,
        },
        Seen::Failed(failure) | Seen::Undone(failure) => Happened::PhaseFailed {
            phase,
            problem: failure.problem.clone(),
            elapsed_ms,
        },
    }]
}

fn plan_summary(plan: &Plan) -> String {
    let names: Vec<_> = plan
        .services
        .iter()
        .map(|service| service.service.as_str())
        .collect();
    format!("release {}: {}", plan.to, names.join(", "))
}

fn files_summary(plan: &Plan) -> String {
    match plan.files.len() {
        1 => "1 file".to_owned(),
        n => format!("{n} files"),
    }
}

fn named_services(deployment: &Deployment) -> Vec<ServiceName> {
    let Some(plan) = &deployment.plan else {
        return Vec::new();
    };
    plan.services
        .iter()
        .chain(&plan.unchanged)
        .map(|service| service.service.clone())
        .collect()
}
