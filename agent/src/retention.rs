//! What is done when a deployment has ended and its caller has the answer: images that nothing needs any more are removed,
//! and the journal forgets what nobody asks for. It also looks whether the kept releases still have their images.
//!
//! One task for all projects, apart from the queue: a push waits for it only while an image that it needs is being removed, and nothing it fails at fails a deployment.
//! It remembers nothing: what a crash or a failure left is found again after the project's next deployment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use deploy_proto::names::ProjectName;
use deploy_proto::problem::Problem;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::deploy::plan::Plan;
use crate::deploy::retention::{self, ImagesHere, Records, Removal};
use crate::history::{History, HistoryError};
use crate::host::DockerHost;
use crate::host::engine::Removed;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// How many ended deployments may wait to be cleaned up after. One that finds no room is made up for by the next.
pub const WAITING_MAX: usize = 64;
/// The most images that are removed after one deployment: the first one after an upgrade may find years of them, and the
/// Engine has other things to do.
const REMOVALS_MAX: usize = 50;
/// How long one clean-up may take.
const CLEAN_DEADLINE: Duration = Duration::from_mins(10);
/// How often it is looked whether the kept releases have their images: people prune by the day.
const LOOK_EVERY: Duration = Duration::from_mins(15);

/// A deployment that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its project.
    pub project: ProjectName,
    /// Whether its release runs now, so that older ones moved a place back.
    pub went_live: bool,
}

/// Why a clean-up was not done to its end.
#[derive(Debug, thiserror::Error)]
enum CleanError {
    #[error("read the releases")]
    History(#[source] HistoryError),
    #[error("{}", .0.detail)]
    Engine(Problem),
    #[error("the clean-up did not end within {}s", CLEAN_DEADLINE.as_secs())]
    Deadline,
}

/// The task that cleans up.
#[derive(Debug)]
pub struct Retention {
    history: History,
    host: Arc<DockerHost>,
    settings: Arc<Settings>,
    metrics: Arc<Metrics>,
}

impl Retention {
    /// The task, not yet running.
    pub fn new(
        history: History,
        host: Arc<DockerHost>,
        settings: Arc<Settings>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            history,
            host,
            settings,
            metrics,
        }
    }

    /// Cleans up after every deployment that is told of, until the agent stops.
    pub async fn run(self, mut ended: mpsc::Receiver<Ended>, mut stopping: watch::Receiver<bool>) {
        let work = async {
            let mut look = tokio::time::interval(LOOK_EVERY);
            look.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    told = ended.recv() => match told {
                        Some(ended) => self.clean_up_after(&ended).await,
                        None => return,
                    },
                    _ = look.tick() => self.look().await,
                }
            }
        };
        // Breaking off is safe: each removal and each piece of forgetting is whole by itself.
        tokio::select! {
            () = work => {}
            _ = stopping.wait_for(|stop| *stop) => {}
        }
    }

    async fn clean_up_after(&self, ended: &Ended) {
        if let Err(error) = self.forget(&ended.project).await {
            tracing::warn!(
                project = ended.project.as_str(),
                error = &error as &dyn std::error::Error,
                "old deployments not forgotten"
            );
        }
        if !ended.went_live {
            return;
        }
        let cleaned = tokio::time::timeout(CLEAN_DEADLINE, self.remove_images(&ended.project)).await;
        if let Err(error) = cleaned.unwrap_or(Err(CleanError::Deadline)) {
            self.metrics.image_cleanup_failed(&ended.project);
            tracing::warn!(
                project = ended.project.as_str(),
                error = &error as &dyn std::error::Error,
                "old images not removed"
            );
        }
        self.look().await;
    }

    /// Shortens the journal of a project.
    async fn forget(&self, project: &ProjectName) -> Result<(), HistoryError> {
        let config = self.settings.config();
        let Some(project) = config.projects.get(project) else {
            return Ok(());
        };
        let releases = self.history.releases(project.name.clone(), u32::MAX).await?;
        let at_hand = retention::at_hand(project, &releases);
        let newest = releases.first().map(|release| release.number);
        self.history.forget(project.name.clone(), at_hand, newest).await
    }

    /// Removes images that nothing needs, one at a time; before each all is asked anew, while no deployment can begin to
    /// rely on it.
    async fn remove_images(&self, project: &ProjectName) -> Result<(), CleanError> {
        let mut tried = BTreeSet::new();
        let mut first_trouble = None;
        let mut gone = 0_usize;
        while tried.len() < REMOVALS_MAX {
            let held = self.host.hold_pulls().await;
            let removable = self.removable(project).await?;
            let Some(removal) = removable
                .into_iter()
                .find(|removal| !tried.contains(&removal.image_id))
            else {
                break;
            };
            tried.insert(removal.image_id.clone());
            let (image, id) = (&removal.shown, &removal.image_id);
            match self.host.remove_image(&held, &removal).await {
                Ok(Removed::Gone) => {
                    gone += 1;
                    self.metrics.image_removed(project);
                    tracing::info!(project = project.as_str(), image, id, "image removed");
                }
                Ok(Removed::Kept(why)) => {
                    tracing::info!(
                        project = project.as_str(),
                        image,
                        id,
                        why,
                        "image left: it is needed"
                    );
                }
                Err(problem) => {
                    tracing::warn!(
                        project = project.as_str(),
                        image,
                        id,
                        problem = problem.detail,
                        "image not removed"
                    );
                    first_trouble.get_or_insert(problem);
                }
            }
        }
        if !tried.is_empty() {
            tracing::info!(
                project = project.as_str(),
                removed = gone,
                tried = tried.len(),
                "clean-up ended"
            );
        }
        first_trouble.map_or(Ok(()), |problem| Err(CleanError::Engine(problem)))
    }

    async fn removable(&self, project: &ProjectName) -> Result<Vec<Removal>, CleanError> {
        let here = self.host.images_here().await.map_err(CleanError::Engine)?;
        let all = self.records().await.map_err(CleanError::History)?;
        let under_way: Vec<Plan> = self
            .history
            .unfinished()
            .await
            .map_err(CleanError::History)?
            .into_iter()
            .filter_map(|deployment| deployment.plan)
            .collect();
        Ok(retention::removable(project, &all, &under_way, &here))
    }

    /// Everything that is recorded of the configured projects.
    async fn records(&self) -> Result<Vec<Records>, HistoryError> {
        let config = self.settings.config();
        let mut all = Vec::with_capacity(config.projects.len());
        for project in config.projects.values() {
            all.push(Records {
                project: project.clone(),
                releases: self.history.releases(project.name.clone(), u32::MAX).await?,
            });
        }
        Ok(all)
    }

    /// Notes for every project how many kept releases lack images.
    async fn look(&self) {
        let looked = async {
            let here = self.host.images_here().await.map_err(CleanError::Engine)?;
            let all = self.records().await.map_err(CleanError::History)?;
            Ok::<_, CleanError>((here, all))
        };
        match looked.await {
            Ok((here, all)) => {
                for records in &all {
                    self.note_missing(records, &here);
                }
            }
            Err(error) => tracing::info!(
                error = &error as &dyn std::error::Error,
                "kept images not looked for"
            ),
        }
    }

    fn note_missing(&self, records: &Records, here: &ImagesHere) {
        let missing = retention::missing_of_kept(records, here);
        self.metrics
            .kept_without_images(&records.project.name, missing.len());
    }
}
