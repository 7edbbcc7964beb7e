//! Baking: a release that went live is watched for a while, and when it falls sick the queue is asked to take it back.
//!
//! The database says which releases bake, the queue which projects are free: from both follows which watches run, after
//! every change anew. A watch decides nothing but how its release is.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deploy_proto::names::{DeploymentId, ProjectName, ReleaseNumber};
use deploy_proto::release::Baking;
use jiff::Timestamp;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::Instant;

use crate::app::App;
use crate::config::Project;
use crate::deploy::phase::Failure;
use crate::deploy::plan::Plan;
use crate::history::{AutoRollback, Bake, Deployment, HistoryError, Request};
use crate::host::health::{BakeEnd, BakeTerms};
use crate::systemd::Heart;

/// The pause before a database that was locked or full is asked again. Nothing is lost meanwhile: a release whose
/// sickness could not be recorded bakes still, and is found sick again.
const DATABASE_PAUSE: Duration = Duration::from_secs(5);

/// The releases that are watched just now, for those who ask.
#[derive(Debug, Default)]
pub struct Bakes {
    now: Mutex<BTreeMap<ProjectName, Until>>,
}

#[derive(Debug)]
struct Until {
    release: ReleaseNumber,
    deployment: DeploymentId,
    end: Instant,
}

impl Bakes {
    /// The project's release that is watched, and for how long still.
    pub fn of(&self, project: &ProjectName) -> Option<Baking> {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let until = now.get(project)?;
        let left = until.end.saturating_duration_since(Instant::now());
        Some(Baking {
            release: until.release,
            deployment: until.deployment.clone(),
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn set(&self, project: &ProjectName, until: Option<Until>) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        match until {
            Some(until) => now.insert(project.clone(), until),
            None => now.remove(project),
        };
    }
}

/// Watches what bakes until the agent stops. What is cut short then begins anew at the next start.
pub async fn run(app: Arc<App>, heart: Heart) {
    let mut shutdown = app.shutdown.clone();
    let mut oven = Oven {
        app: Arc::clone(&app),
        heart,
        tasks: JoinSet::new(),
        running: BTreeMap::new(),
    };
    loop {
        tokio::select! {
            Err(error) = oven.work() => tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the database cannot be used; what bakes is looked at again soon"
            ),
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(DATABASE_PAUSE) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

/// The watches that run.
struct Oven {
    app: Arc<App>,
    heart: Heart,
    tasks: JoinSet<Result<Ended, HistoryError>>,
    running: BTreeMap<ProjectName, Running>,
}

struct Running {
    bake: Bake,
    project: Project,
    task: AbortHandle,
}

/// How a watch ended.
enum Ended {
    Over,
    Gone(String),
    Sick(Failure),
}

impl Oven {
    async fn work(&mut self) -> Result<Infallible, HistoryError> {
        let mut turns: watch::Receiver<()> = self.app.queue.turns();
        let mut pulse = self.heart.register("bakes");
        loop {
            turns.mark_unchanged();
            self.adjust().await?;
            loop {
                tokio::select! {
                    () = pulse.wanted() => pulse.beat(),
                    Ok(()) = turns.changed() => break,
                    Some(joined) = self.tasks.join_next_with_id() => self.take_out(joined).await?,
                }
            }
        }
    }

    /// Begins the watches that should run, and stops those that should not.
    async fn adjust(&mut self) -> Result<(), HistoryError> {
        let config = self.app.settings.config();
        let mut wanted = BTreeMap::new();
        for bake in self.app.history.bakes().await? {
            match config.projects.get(&bake.project) {
                Some(project) if !project.bake.is_zero() => {
                    if !self.app.queue.is_busy(&bake.project).await {
                        wanted.insert(bake.project.clone(), (bake, project.clone()));
                    }
                }
                Some(_) | None => {
                    tracing::info!(
                        project = bake.project.as_str(),
                        release = bake.release.0,
                        "bake ended: the configuration wants none any more"
                    );
                    self.app.history.end_bake(bake.deployment).await?;
                }
            }
        }
        let stays = |name: &ProjectName, running: &Running| {
            let same = |(bake, project): &(Bake, Project)| {
                bake.deployment == running.bake.deployment && *project == running.project
            };
            wanted.get(name).is_some_and(same)
        };
        let gone: Vec<ProjectName> = self
            .running
            .iter()
            .filter(|(name, running)| !stays(name, running))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(running) = self.forget(&name) {
                running.task.abort();
            }
        }
        for (name, (bake, project)) in wanted {
            if !self.running.contains_key(&name) {
                self.begin(name, bake, project);
            }
        }
        Ok(())
    }

    fn begin(&mut self, name: ProjectName, bake: Bake, project: Project) {
        tracing::info!(
            project = name.as_str(),
            release = bake.release.0,
            deployment = bake.deployment.as_str(),
            seconds = project.bake.as_secs(),
            "bake began"
        );
        let until = Until {
            release: bake.release,
            deployment: bake.deployment.clone(),
            end: Instant::now() + project.bake,
        };
        self.app.bakes.set(&name, Some(until));
        self.app.metrics.bakes(&name, true);
        let watch = watch_one(Arc::clone(&self.app), bake.clone(), project.clone());
        let mut pulse = self.heart.register("bake");
        let task = self
            .tasks
            .spawn(async move { Box::pin(pulse.while_doing(watch)).await });
        let running = Running { bake, project, task };
        self.running.insert(name, running);
    }

    fn forget(&mut self, name: &ProjectName) -> Option<Running> {
        self.app.bakes.set(name, None);
        self.app.metrics.bakes(name, false);
        self.running.remove(name)
    }

    /// Does what follows from the end of a watch. It is never cut short: what is journaled is started too.
    async fn take_out(
        &mut self,
        joined: Result<(tokio::task::Id, Result<Ended, HistoryError>), JoinError>,
    ) -> Result<(), HistoryError> {
        // One that was stopped, or whose place another has taken, has nothing to say any more.
        let Ok((id, ended)) = joined else { return Ok(()) };
        let mine = self.running.iter().find(|(_, running)| running.task.id() == id);
        let Some(name) = mine.map(|(name, _)| name.clone()) else {
            return Ok(());
        };
        let Some(running) = self.forget(&name) else {
            return Ok(());
        };
        let (project, release) = (name.as_str(), running.bake.release.0);
        match ended? {
            Ended::Over => {
                tracing::info!(project, release, "bake ended: the release stayed well");
                self.app.history.end_bake(running.bake.deployment).await
            }
            Ended::Gone(what) => {
                tracing::warn!(
                    project,
                    release,
                    what,
                    "bake ended: somebody stopped or replaced what it watched"
                );
                self.app.history.end_bake(running.bake.deployment).await
            }
            Ended::Sick(cause) => {
                tracing::error!(
                    project,
                    release,
                    reason = cause.problem.detail,
                    "the release fell sick after it had gone live"
                );
                self.take_back(running.bake, cause).await
            }
        }
    }

    /// Has the queue put the previous release back, unless a newer deployment was faster: then the bake waits for how
    /// that ends.
    async fn take_back(&self, bake: Bake, cause: Failure) -> Result<(), HistoryError> {
        let undone = self.app.history.deployment(bake.deployment.clone()).await?;
        let before = undone.as_ref().and_then(|undone| undone.from);
        let (Some(undone), Some(to)) = (undone, before) else {
            tracing::error!(
                project = bake.project.as_str(),
                release = bake.release.0,
                "there is no release before it to go back to"
            );
            return self.app.history.end_bake(bake.deployment).await;
        };
        let request = Request::AutoRollback(AutoRollback {
            id: draw_id(self.app.now),
            undoes: bake.deployment,
            sick: bake.release,
            to,
            cause,
            source: undone.request.source().clone(),
        });
        let deployment = Deployment::accepted(
            bake.project,
            request,
            undone.key,
            undone.services,
            (self.app.now)(),
        );
        let (id, project) = (deployment.id().clone(), deployment.project.clone());
        let begun = self.app.queue.roll_back_by_itself(deployment).await?;
        if begun {
            tracing::warn!(
                deployment = id.as_str(),
                project = project.as_str(),
                "automatic rollback began"
            );
        }
        Ok(())
    }
}

/// Watches one release.
async fn watch_one(app: Arc<App>, bake: Bake, project: Project) -> Result<Ended, HistoryError> {
    let Some(deployment) = app.history.deployment(bake.deployment.clone()).await? else {
        return Ok(Ended::Gone("its deployment is not in the journal".to_owned()));
    };
    let containers = match bake.containers {
        Some(containers) => containers,
        None => {
            let services = deployment.plan.as_ref().map(|plan| plan.service_names());
            let services = services.unwrap_or_default();
            let containers = app.host.containers_to_bake(&project, &services).await;
            app.history
                .bake_watches(bake.deployment, containers.clone())
                .await?;
            containers
        }
    };
    let terms = BakeTerms {
        bake: project.bake,
        since: deployment.accepted_at,
        older: deployment.plan.as_ref().and_then(Plan::containers_before),
        containers,
    };
    Ok(match app.host.bake(&project, &terms).await {
        BakeEnd::Over => Ended::Over,
        BakeEnd::Gone { service, what } => Ended::Gone(format!("{service}: {what}")),
        BakeEnd::Sick { service, reason } => {
            Ended::Sick(app.host.baked_sick(&project, service, &reason).await)
        }
    })
}

/// An id as callers draw theirs. Without the kernel's random numbers, which it never lacks once it has started, the
/// clock's nanoseconds do: the id is no secret.
fn draw_id(now: fn() -> Timestamp) -> DeploymentId {
    let mut bits = [0; 8];
    match SystemRandom::new().fill(&mut bits) {
        Ok(()) => DeploymentId::from_bits(u64::from_be_bytes(bits)),
        Err(_) => {
            let nanoseconds = now().as_nanosecond().unsigned_abs();
            DeploymentId::from_bits(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
        }
    }
}
