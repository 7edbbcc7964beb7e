//! Replacing containers, forward and back, with the real `docker compose up`.

use std::time::Duration;

use deploy_proto::event::Happened;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::Problem;

use super::{DockerHost, listed};
use crate::config::{Order, Project};
use crate::deploy::phase::Failure;
use crate::deploy::plan::{Plan, ServicePlan};
use crate::deploy::port::{Progress, Summary};

/// How long `docker compose up` may take for each service: its stop grace period (10 s by default, some set a minute),
/// create and start. A little less than the runner's own deadline, so that Compose is the one that is named.
const UP_DEADLINE_PER_SERVICE: Duration = Duration::from_secs(80);

impl DockerHost {
    /// Brings the new images up, together or one after the other, each well before the next is touched.
    pub(super) async fn up_new(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.clean_up_interrupted(project).await?;
        for service in &plan.services {
            self.tag_as_written(service).await?;
        }
        let names = plan.service_names();
        match project.order {
            Order::Together => self.up(project, &names).await?,
            Order::OneByOne => {
                for (at, name) in names.iter().enumerate() {
                    self.up(project, std::slice::from_ref(name)).await?;
                    // The last one is watched by the next phase, with all others.
                    if at + 1 < names.len() {
                        self.well_for(
                            project,
                            plan,
                            std::slice::from_ref(name),
                            Duration::ZERO,
                            progress,
                        )
                        .await?;
                    }
                }
            }
        }
        Ok(listed(&names))
    }

    /// Brings the previous images back, and removes the containers of services that had none.
    pub(super) async fn up_old(
        &self,
        project: &Project,
        plan: &Plan,
        _progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.clean_up_interrupted(project).await?;
        let (mut back, mut away) = (Vec::new(), Vec::new());
        for service in &plan.services {
            match &service.old_image_id {
                Some(image_id) => {
                    self.bring_old_image_back(service, image_id).await?;
                    back.push(service.service.clone());
                }
                None => away.push(service.service.clone()),
            }
        }
        self.up(project, &back).await?;
        let compose = self.compose(project).await?;
        compose
            .remove(&away, deadline(&away))
            .await
            .map_err(|error| Problem::from(&error))?;
        Ok(back_to(plan, &away))
    }

    async fn up(&self, project: &Project, services: &[ServiceName]) -> Result<(), Failure> {
        let compose = self.compose(project).await?;
        match compose.up(services, deadline(services)).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let mut failure = Failure::from(Problem::from(&error));
                // With one service there is no doubt whose lines will help.
                if let [service] = services {
                    failure.log_lines = self.last_lines(project, service).await;
                    failure.service = Some(service.clone());
                }
                Err(failure)
            }
        }
    }

    /// Removes what an interrupted `docker compose up` of this project left, or every later one ends in a conflict.
    async fn clean_up_interrupted(&self, project: &Project) -> Result<(), Problem> {
        let removed = self
            .engine
            .remove_half_made(&project.name)
            .await
            .map_err(Problem::from)?;
        for container in removed {
            tracing::warn!(
                container = container.name,
                "a half-made container of an interrupted restart was removed"
            );
        }
        Ok(())
    }

    /// Gives the name that stands in the Compose file to the image that the plan means. With a digest in the file the
    /// name means that image already.
    async fn tag_as_written(&self, service: &ServicePlan) -> Result<(), Problem> {
        let image_id = self.planned_image_id(service).await?;
        if service.written.digest().is_some() || service.written.tag().is_none() {
            return Ok(());
        }
        self.engine
            .retag(&image_id, &service.written)
            .await
            .map_err(Problem::from)
    }

    /// Makes the name that stands in the restored file mean the image that ran, also when the tag has moved since. An
    /// image that is gone from this host is pulled by its digest; that is the only case that needs a registry.
    async fn bring_old_image_back(&self, service: &ServicePlan, image_id: &str) -> Result<(), Problem> {
        let Some(old) = &service.old else { return Ok(()) };
        let here = self.engine.image(image_id).await.map_err(Problem::from)?;
        if here.is_none() {
            let digest = service.old_digest.as_ref().or(old.digest());
            let pinned = digest.map_or_else(|| old.clone(), |digest| old.with_digest(digest.clone()));
            return self
                .engine
                .pull(&pinned, |_done, _total| ())
                .await
                .map(drop)
                .map_err(Problem::from);
        }
        if old.digest().is_some() {
            return Ok(());
        }
        let named = if old.tag().is_some() {
            old.clone()
        } else {
            latest(old)
        };
        self.engine.retag(image_id, &named).await.map_err(Problem::from)
    }

    /// Waits until these services are well.
    pub(super) async fn well_for(
        &self,
        project: &Project,
        plan: &Plan,
        services: &[ServiceName],
        settle: Duration,
        progress: Progress<'_>,
    ) -> Result<Vec<super::health::WellService>, Failure> {
        let terms = super::health::Terms {
            settle,
            wait: project.wait,
            since: plan.made_at,
        };
        let seen = |service: &ServiceName, seen: &str| {
            progress(Happened::Watching {
                service: service.clone(),
                seen: seen.to_owned(),
            });
        };
        match self.health.watch(project, services, terms, seen).await {
            Ok(well) => Ok(well),
            Err(error) => Err(self.sickness(project, error).await),
        }
    }
}

/// What Docker means by a name without a tag.
fn latest(image: &deploy_proto::image::ImageRef) -> deploy_proto::image::ImageRef {
    format!("{}:latest", image.repository())
        .parse()
        .unwrap_or_else(|_| image.clone())
}

fn deadline(services: &[ServiceName]) -> Duration {
    UP_DEADLINE_PER_SERVICE.saturating_mul(u32::try_from(services.len().max(1)).unwrap_or(u32::MAX))
}

fn back_to(plan: &Plan, away: &[ServiceName]) -> Summary {
    let back = plan
        .services
        .iter()
        .filter(|service| service.old_image_id.is_some());
    let mut parts: Vec<String> = back
        .map(|service| {
            format!(
                "{} to {}",
                service.service,
                service.old.as_ref().map_or("what ran", |old| old.version())
            )
        })
        .collect();
    parts.extend(away.iter().map(|service| format!("{service} removed")));
    parts.join(", ")
}
