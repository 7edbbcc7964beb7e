//! One deployment at a time per project; at most one waits, and a newer one takes its place.

mod by_itself;

use std::collections::HashMap;
use std::sync::Arc;

use deploy_proto::event::{Ending, Happened};
use deploy_proto::names::{DeploymentId, KeyName, ProjectName};
use deploy_proto::problem::{Code, Problem};
use jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, watch};
use tracing::Instrument as _;

use crate::deploy::port::Host;
use crate::deploy::runner::{Cancel, Ran, Runner, cancelled_by};
use crate::deploy::sequence;
use crate::history::{Deployment, History, HistoryError, Request};
use crate::metrics::Metrics;
use crate::retention::Ended;
use crate::settings::Settings;
use crate::systemd::Heart;

/// What became of a request to deploy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// It is journaled, and runs or waits.
    New,
    /// The same request was accepted before.
    Known,
}

/// What is under way in one project.
#[derive(Debug)]
struct Slot {
    running: DeploymentId,
    /// Tells the running deployment that it is cancelled.
    cancel: watch::Sender<Option<KeyName>>,
    waiting: Option<Deployment>,
}

impl Slot {
    /// A slot in which this deployment runs, and what tells it that it is cancelled.
    fn of(deployment: &Deployment) -> (Self, Cancel) {
        let (cancel, cancelled) = watch::channel(deployment.cancelled_by.clone());
        let slot = Self {
            running: deployment.id().clone(),
            cancel,
            waiting: None,
        };
        (slot, cancelled)
    }
}

/// The projects' queues.
#[derive(Debug)]
pub struct Queue<H> {
    runner: Runner<H>,
    history: History,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
    slots: Mutex<HashMap<ProjectName, Slot>>,
    /// Told when the journal cannot be written any more: the agent must stop rather than act unrecorded.
    fatal: mpsc::Sender<HistoryError>,
    /// Told of every deployment that ended, for whoever cleans up after it.
    ended: mpsc::Sender<Ended>,
    /// Shown a beat by every deployment under way, for the watchdog.
    heart: Heart,
    /// Told when a project becomes busy or free.
    turns: watch::Sender<()>,
}

impl<H: Host> Queue<H> {
    /// An empty queue.
    pub fn new(
        runner: Runner<H>,
        history: History,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
        fatal: mpsc::Sender<HistoryError>,
        ended: mpsc::Sender<Ended>,
        heart: Heart,
    ) -> Self {
        Self {
            runner,
            history,
            settings,
            metrics,
            slots: Mutex::new(HashMap::new()),
            fatal,
            ended,
            heart,
            turns: watch::Sender::new(()),
        }
    }

    /// Takes a deployment over: journals it, then starts it or lets it wait. When this returns `Ok`, it is the agent's. A
    /// caller that goes away meanwhile changes nothing.
    ///
    /// # Errors
    /// The project is busy and the request does not wait; its id was used for another request; a newer run was accepted
    /// before it; the journal cannot be written.
    pub async fn accept(self: &Arc<Self>, deployment: Deployment) -> Result<Acceptance, Problem> {
        let queue = Arc::clone(self);
        to_the_end(async move { queue.take(deployment).await }).await
    }

    async fn take(self: &Arc<Self>, deployment: Deployment) -> Result<Acceptance, Problem> {
        let id = deployment.id().clone();
        // Held until the journal has it: two requests with one id, or for one project, are taken one after the other.
        let mut slots = self.slots.lock().await;
        if let Some(known) = self
            .history
            .deployment(id.clone())
            .await
            .map_err(|error| cannot_journal(&error))?
        {
            return if is_same(&known, &deployment) {
                Ok(Acceptance::Known)
            } else {
                Err(id_reused(&id))
            };
        }
        let mut events = vec![Happened::Accepted {
            project: deployment.project.clone(),
            kind: deployment.request.kind(),
            key: deployment.key.clone(),
            version: deployment.request.version().cloned(),
        }];
        if let Some(allowed) = self
            .check_sequence(&deployment.project, &deployment.request)
            .await?
        {
            events.push(Happened::Note { text: allowed });
        }
        let running = slots.get(&deployment.project).map(|slot| slot.running.clone());
        match running {
            Some(running) if !deployment.request.queues() => return Err(busy(&deployment.project, &running)),
            Some(behind) => {
                let waiting = slots
                    .get(&deployment.project)
                    .and_then(|slot| slot.waiting.as_ref());
                if let Some(waiting) = waiting.filter(|waiting| !gives_way(waiting, &deployment)) {
                    return Err(busy(&deployment.project, waiting.id()));
                }
                events.push(Happened::Queued { behind });
            }
            None => {}
        }
        self.history
            .accept(deployment.clone(), events)
            .await
            .map_err(|error| cannot_journal(&error))?;
        tracing::info!(
            deployment = id.as_str(),
            project = deployment.project.as_str(),
            key = deployment.key.as_str(),
            "deployment accepted"
        );
        match slots.get_mut(&deployment.project) {
            None => {
                let (slot, cancelled) = Slot::of(&deployment);
                slots.insert(deployment.project.clone(), slot);
                self.turns.send_replace(());
                self.start(deployment, cancelled);
            }
            Some(slot) => {
                let older = slot.waiting.replace(deployment);
                drop(slots);
                if let Some(older) = older {
                    self.supersede(older, &id).await;
                }
            }
        }
        Ok(Acceptance::New)
    }

    /// Refuses a push of an older run than the newest that was accepted. One that is let in all the same is told of.
    ///
    /// # Errors
    /// `stale`; the journal cannot be read.
    pub async fn check_sequence(
        &self,
        project: &ProjectName,
        request: &Request,
    ) -> Result<Option<String>, Problem> {
        let Request::Push(push) = request else {
            return Ok(None);
        };
        let Some(sequence) = &push.sequence else {
            return Ok(None);
        };
        let newer = self.history.newer_run(project.clone(), sequence.clone()).await;
        match newer.map_err(|error| cannot_journal(&error))? {
            None => Ok(None),
            Some(newer) if push.allow_older => Ok(Some(sequence::allowed(sequence, &newer))),
            Some(newer) => Err(sequence::stale(project, sequence, &newer)),
        }
    }

    /// Cancels a deployment: one that waits ends refused at once; one that runs stops where its phase heeds that, and
    /// ends refused or goes back. When this returns `Ok`, it is in the journal. A caller that goes away meanwhile changes
    /// nothing.
    ///
    /// # Errors
    /// `too_late`; the journal cannot be written.
    pub async fn cancel(
        self: &Arc<Self>,
        deployment: Deployment,
        key: KeyName,
        now: Timestamp,
    ) -> Result<(), Problem> {
        let queue = Arc::clone(self);
        to_the_end(async move { queue.take_back(&deployment, &key, now).await }).await
    }

    async fn take_back(&self, deployment: &Deployment, key: &KeyName, now: Timestamp) -> Result<(), Problem> {
        let id = deployment.id();
        let mut slots = self.slots.lock().await;
        let Some(slot) = slots.get_mut(&deployment.project) else {
            return Err(self.out_of_reach(id).await);
        };
        if deployment.request.auto_rollback().is_some() {
            return Err(too_late(id, "it takes a release away that fell sick"));
        }
        if slot.running == *id {
            // Read under the lock: what the caller saw may be a while ago.
            let known = self.history.deployment(id.clone()).await;
            let known = known.map_err(|error| cannot_journal(&error))?;
            let past = known.and_then(|known| known.phase.past_cancelling(known.course()));
            if let Some(reason) = past {
                return Err(too_late(id, reason));
            }
            self.note_cancelled(id, key, now).await?;
            slot.cancel.send_replace(Some(key.clone()));
            return Ok(());
        }
        if slot.waiting.as_ref().is_none_or(|waiting| waiting.id() != id) {
            return Err(self.out_of_reach(id).await);
        }
        self.note_cancelled(id, key, now).await?;
        let waiting = slot.waiting.take();
        drop(slots);
        if let Some(waiting) = waiting {
            self.end_waiting(waiting, cancelled_by(key).problem).await;
        }
        Ok(())
    }

    /// Why a deployment that neither runs nor waits cannot be cancelled.
    async fn out_of_reach(&self, id: &DeploymentId) -> Problem {
        match self.history.deployment(id.clone()).await {
            Ok(Some(known)) if known.ended_at.is_none() => Problem::new(
                Code::ShuttingDown,
                "the agent is being restarted, and goes on with it then",
            )
            .hint("try again in a few seconds"),
            Ok(_) => too_late(id, "it has ended"),
            Err(error) => cannot_journal(&error),
        }
    }

    async fn note_cancelled(&self, id: &DeploymentId, key: &KeyName, now: Timestamp) -> Result<(), Problem> {
        let noted = self.history.cancel(id.clone(), key.clone(), now).await;
        match noted.map_err(|error| cannot_journal(&error))? {
            Some(events) => self.runner.tell(events),
            None => return Err(too_late(id, "it has ended")),
        }
        Ok(())
    }

    /// Goes on with what the journal says was under way when the agent stopped.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn resume(self: &Arc<Self>) -> Result<(), HistoryError> {
        let mut slots = self.slots.lock().await;
        for deployment in self.history.unfinished().await? {
            tracing::info!(
                deployment = deployment.id().as_str(),
                phase = deployment.phase.name().as_str(),
                "resuming"
            );
            match slots.get_mut(&deployment.project) {
                None => {
                    let (slot, cancelled) = Slot::of(&deployment);
                    slots.insert(deployment.project.clone(), slot);
                    self.start(deployment, cancelled);
                }
                Some(slot) => {
                    let id = deployment.id().clone();
                    if let Some(older) = slot.waiting.replace(deployment) {
                        self.supersede(older, &id).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// The deployments that run now, by project.
    pub async fn running(&self) -> Vec<(ProjectName, DeploymentId)> {
        self.slots
            .lock()
            .await
            .iter()
            .map(|(project, slot)| (project.clone(), slot.running.clone()))
            .collect()
    }

    /// Waits until no deployment is being carried out: all ended, or stand in the journal at a phase's boundary.
    pub async fn drained(&self) {
        while !self.slots.lock().await.is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    fn start(self: &Arc<Self>, deployment: Deployment, cancelled: Cancel) {
        let queue = Arc::clone(self);
        drop(tokio::spawn(Box::pin(queue.carry_out(deployment, cancelled))));
    }

    /// Carries a deployment out, and then whatever waits behind it.
    async fn carry_out(self: Arc<Self>, first: Deployment, cancelled: Cancel) {
        let project = first.project.clone();
        let mut next = Some((first, cancelled));
        while let Some((deployment, cancelled)) = next.take() {
            let span = tracing::info_span!(
                "deployment",
                deployment = deployment.id().as_str(),
                project = project.as_str(),
                key = deployment.key.as_str()
            );
            let mut pulse = self.heart.register("deployment");
            let kind = deployment.request.kind();
            let running = self.run_one(deployment, cancelled).instrument(span);
            match Box::pin(pulse.while_doing(running)).await {
                Ok(Ran::Ended(outcome)) => {
                    self.metrics.deployment_ended(&project, kind, &outcome);
                    // When there is no room, the next deployment makes up for it.
                    drop(self.ended.try_send(Ended {
                        project: project.clone(),
                        went_live: outcome.result == Ending::Live,
                    }));
                }
                Ok(Ran::Interrupted) => return self.leave(&project).await,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "the journal cannot be written"
                    );
                    // A full channel means that the agent is stopping for this very reason already.
                    drop(self.fatal.try_send(error));
                    return self.leave(&project).await;
                }
            }
            // Under one lock: once the slot is gone, another deployment of this project may have begun.
            let mut slots = self.slots.lock().await;
            let waiting = slots.remove(&project).and_then(|slot| slot.waiting);
            next = waiting.map(|deployment| {
                let (slot, cancelled) = Slot::of(&deployment);
                slots.insert(project.clone(), slot);
                (deployment, cancelled)
            });
            drop(slots);
            self.turns.send_replace(());
        }
    }

    /// Gives the project up while the agent stops: whatever waits stands in the journal.
    async fn leave(&self, project: &ProjectName) {
        self.slots.lock().await.remove(project);
    }

    async fn run_one(&self, deployment: Deployment, cancelled: Cancel) -> Result<Ran, HistoryError> {
        let config = self.settings.config();
        match config.projects.get(&deployment.project) {
            Some(project) => Box::pin(self.runner.run(project, deployment, cancelled)).await,
            None => self
                .runner
                .give_up(deployment, project_removed())
                .await
                .map(Box::new)
                .map(Ran::Ended),
        }
    }

    async fn supersede(&self, older: Deployment, by: &DeploymentId) {
        let problem = Problem::new(
            Code::Superseded,
            format!("a newer deployment, {by}, took its place in the queue"),
        );
        self.end_waiting(older, problem).await;
    }

    /// Ends a deployment that waited, and so touched nothing.
    async fn end_waiting(&self, deployment: Deployment, problem: Problem) {
        let (project, kind) = (deployment.project.clone(), deployment.request.kind());
        match self.runner.give_up(deployment, problem).await {
            Ok(outcome) => self.metrics.deployment_ended(&project, kind, &outcome),
            Err(error) => drop(self.fatal.try_send(error)),
        }
    }
}

/// Does something to its end though its caller may go away: an HTTP server drops a handler whose connection has closed, in
/// the middle of whatever it awaits.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|_| Err(Problem::new(Code::ShuttingDown, "the agent is being restarted")))
}

fn too_late(id: &DeploymentId, reason: &str) -> Problem {
    Problem::new(
        Code::TooLate,
        format!("deployment {id} cannot be cancelled: {reason}"),
    )
    .hint(format!("see how it ends: deployctl watch {id}"))
}

/// Whether what waits gives its place up to another request. A push does not push out what a person waits for, nor an older
/// run that was let in a newer one.
fn gives_way(waiting: &Deployment, new: &Deployment) -> bool {
    match (&waiting.request, &new.request) {
        (Request::Push(waiting), Request::Push(new)) => match (&waiting.sequence, &new.sequence) {
            (Some(waiting), Some(new)) => !new.is_older_than(waiting),
            (None, _) | (_, None) => true,
        },
        (Request::Rollback(_) | Request::Reconcile(_) | Request::AutoRollback(_), Request::Push(_)) => false,
        (_, Request::Rollback(_) | Request::Reconcile(_) | Request::AutoRollback(_)) => true,
    }
}

/// Whether two requests with the same id ask for the same.
fn is_same(known: &Deployment, new: &Deployment) -> bool {
    known.project == new.project && known.request == new.request && known.key == new.key
}

fn id_reused(id: &DeploymentId) -> Problem {
    Problem::new(
        Code::IdReused,
        format!("deployment id {id} was used before, for another request"),
    )
    .hint("leave --id out: deployctl draws a new one for each deployment")
}

fn busy(project: &ProjectName, running: &DeploymentId) -> Problem {
    Problem::new(
        Code::Busy,
        format!("deployment {running} of project {project} is under way"),
    )
    .hint(format!(
        "wait for it with --queue, or follow it: deployctl watch {running}"
    ))
}

fn project_removed() -> Problem {
    Problem::new(
        Code::UnknownProject,
        "the project was taken out of this host's configuration while the deployment was under way",
    )
    .hint("this deployment has ended and does not go on: compare the project's files and containers with its last release by hand; put its projects.d file back, run `systemctl reload deploy-agent` and push again")
}

fn cannot_journal(error: &HistoryError) -> Problem {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "the journal cannot be used"
    );
    error.problem()
}
