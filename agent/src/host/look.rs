//! Looking: the watch of a deployment with the check of what runs, status and logs.

use deploy_proto::event::{LOG_LINES_MAX, RunningService};
use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::ServiceStatus;
use futures_util::future::join_all;
use futures_util::stream::{BoxStream, StreamExt as _, select_all};
use jiff::Timestamp;
use std::time::Duration;
use tokio::sync::watch;

use super::engine::{self, Container};
use super::health::{Checks, WatchError, WellService};
use super::patience::Patience;
use super::survey::source_files;
use super::{DockerHost, listed};
use crate::config::Project;
use crate::deploy::facts::SourceFile;
use crate::deploy::phase::Failure;
use crate::deploy::plan::Plan;
use crate::deploy::port::{LogTail, Progress, Summary};
use crate::deploy::verdict::{ContainerState, seconds};
use crate::policy;

/// How long one `logs --follow` goes on; a caller that wants more asks again.
const FOLLOW_LIMIT: Duration = Duration::from_hours(12);

impl DockerHost {
    /// Watches the plan's services until all stayed well for `settle`, and checks that they run the planned images: those
    /// that were named and ran theirs already too.
    pub(super) async fn watch_new(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        let named = plan.services.iter().chain(&plan.unchanged);
        let named: Vec<ServiceName> = named.map(|service| service.service.clone()).collect();
        let well = self
            .well_for(project, plan, &named, project.settle, progress)
            .await?;
        let unchanged = plan
            .unchanged
            .iter()
            .filter_map(|service| Some((service.service.clone(), service.old_image_id.clone()?)));
        let mut expected: Vec<(ServiceName, String)> = unchanged.collect();
        for service in &plan.services {
            expected.push((service.service.clone(), self.planned_image_id(service).await?));
        }
        self.check_images(project, &expected).await?;
        Ok(in_words(&well, project.settle) + &self.ended_meanwhile(project, plan).await)
    }

    /// The services that nobody touched and that ended since the deployment began: with an Engine that was restarted,
    /// as a rule, and without a restart policy. To start them is not ours, to say so is.
    async fn ended_meanwhile(&self, project: &Project, plan: &Plan) -> String {
        let containers = self.containers(project).await.unwrap_or_default();
        let ended: std::collections::BTreeSet<&ServiceName> = containers
            .iter()
            .filter(|one| matches!(one.state, ContainerState::Exited { stays: true, .. }))
            .filter(|one| one.finished_at.is_some_and(|at| at >= plan.made_at))
            .map(|one| &one.service)
            .filter(|name| plan.services.iter().all(|service| service.service != **name))
            .collect();
        match ended.len() {
            0 => String::new(),
            1 => format!("; {} ended meanwhile and has no restart policy", listed(ended)),
            _ => format!("; {} ended meanwhile and have no restart policy", listed(ended)),
        }
    }

    /// Watches the previous containers in the same way, and checks that the files are the previous ones. A service that
    /// had no container must have none again.
    pub(super) async fn watch_previous(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.wait_for_engine(Patience::Back).await?;
        self.while_engine_is_away(Patience::Back, |attempt| async move {
            // What ended with the Engine, or with the host, and has no restart policy is brought up again by nobody else.
            if attempt > 1 || self.may_be_down(project, plan).await? {
                self.bring_back(project, plan).await?;
            }
            self.see_previous(project, plan, progress).await
        })
        .await
    }

    async fn see_previous(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        let old = plan
            .services
            .iter()
            .filter_map(|service| Some((service.service.clone(), service.old_image_id.clone()?)));
        let expected: Vec<(ServiceName, String)> = old.collect();
        // One that was not well before need not become it.
        let watched: Vec<ServiceName> = plan
            .services
            .iter()
            .filter(|service| service.old_image_id.is_some() && service.old_was_well)
            .map(|service| service.service.clone())
            .collect();
        let well = self
            .well_for(project, plan, &watched, project.settle, progress)
            .await?;
        self.check_images(project, &expected).await?;
        self.check_away(project, plan).await?;
        self.check_restored(project, plan).await?;
        Ok(in_words(&well, project.settle) + &self.ended_meanwhile(project, plan).await)
    }

    /// Checks that services without a container before have none.
    async fn check_away(&self, project: &Project, plan: &Plan) -> Result<(), Problem> {
        let containers = self.containers(project).await?;
        let came = containers.iter().find(|container| {
            plan.services
                .iter()
                .any(|service| service.service == container.service && service.old_image_id.is_none())
        });
        match came {
            None => Ok(()),
            Some(container) => Err(Problem::new(
                Code::RestartFailed,
                format!(
                    "{} had no container before, and {} is there still",
                    container.service, container.name
                ),
            )),
        }
    }

    /// Compares what runs, container by container, with what should.
    async fn check_images(
        &self,
        project: &Project,
        expected: &[(ServiceName, String)],
    ) -> Result<(), Problem> {
        let containers = self.containers(project).await?;
        for (service, image_id) in expected {
            let mut mine = containers
                .iter()
                .filter(|container| &container.service == service)
                .peekable();
            if mine.peek().is_none() {
                return Err(Problem::new(
                    Code::RestartFailed,
                    format!("{service} has no container"),
                ));
            }
            if let Some(other) = mine.find(|container| &container.image_id != image_id) {
                let detail = format!(
                    "container {} of {service} runs another image than was deployed",
                    other.name
                );
                return Err(Problem::new(Code::RestartFailed, detail)
                    .hint("did somebody run docker compose meanwhile?"));
            }
        }
        Ok(())
    }

    /// The project's containers, less one-off and half-made ones.
    pub(super) async fn containers(&self, project: &Project) -> Result<Vec<Container>, Problem> {
        let containers = self
            .engine
            .containers(&project.name)
            .await
            .map_err(Problem::from)?;
        Ok(containers
            .into_iter()
            .filter(|container| !container.one_off && !container.half_made)
            .collect())
    }

    /// Turns a watch that ended badly into a failure with the sick service's last lines.
    pub(super) async fn sickness(&self, project: &Project, error: WatchError) -> Failure {
        let service = match &error {
            WatchError::Sick { service, .. } | WatchError::Down { service } => Some(service.clone()),
            WatchError::Engine(_) => None,
        };
        let log_lines = match &service {
            Some(service) => self.last_lines(project, service).await,
            None => Vec::new(),
        };
        Failure {
            problem: error.into(),
            service,
            log_lines,
        }
    }

    /// The last lines of a service's first container. A log that cannot be read is no reason to fail anything.
    pub(super) async fn last_lines(&self, project: &Project, service: &ServiceName) -> Vec<String> {
        let containers = self.containers(project).await.unwrap_or_default();
        let Some(container) = containers.iter().find(|container| &container.service == service) else {
            return Vec::new();
        };
        self.engine
            .tail(&container.id, LOG_LINES_MAX)
            .await
            .unwrap_or_else(|error| {
                tracing::warn!(
                    service = service.as_str(),
                    error = &error as &dyn std::error::Error,
                    "log not read"
                );
                Vec::new()
            })
    }

    pub(super) async fn tails(&self, project: &Project, services: &[ServiceName]) -> Vec<LogTail> {
        let tail = |service: &ServiceName| {
            let service = service.clone();
            async move {
                let lines = self.last_lines(project, &service).await;
                LogTail { service, lines }
            }
        };
        join_all(services.iter().map(tail)).await
    }

    pub(super) async fn running_now(
        &self,
        project: &Project,
        services: &[ServiceName],
    ) -> Vec<RunningService> {
        let containers = match self.containers(project).await {
            Ok(containers) => containers,
            Err(problem) => {
                tracing::warn!(problem = problem.detail, "what runs now is not known");
                let unknown = |service: &ServiceName| RunningService {
                    service: service.clone(),
                    image: None,
                    state: Some("not known".to_owned()),
                };
                return services.iter().map(unknown).collect();
            }
        };
        let running = |service: &ServiceName| {
            let (service, containers) = (service.clone(), &containers);
            async move {
                let mut mine = containers.iter().filter(|container| container.service == service);
                let first = mine.clone().next();
                let (image, state) = match mine.find(|container| does_its_work(container)) {
                    Some(container) => (self.image_of(container).await, None),
                    None => (None, first.map(|container| in_state(&container.state))),
                };
                RunningService {
                    service,
                    image,
                    state,
                }
            }
        };
        join_all(services.iter().map(running)).await
    }

    /// The image that a container was created with, with its digest where the registry gave one.
    async fn image_of(&self, container: &Container) -> Option<ImageRef> {
        let image = container.image_reference.clone()?;
        let digest = self
            .engine
            .running_digest(container, image.repository())
            .await
            .ok()
            .flatten();
        Some(digest.map_or_else(|| image.clone(), |digest| image.with_digest(digest)))
    }

    /// How every service of the project is, and the project's files. With `checks` now, healthchecks and probes are run.
    ///
    /// # Errors
    /// The Compose files cannot be read, or the Engine does not answer.
    pub async fn services(
        &self,
        project: &Project,
        checks: Checks,
    ) -> Result<(Vec<ServiceStatus>, Vec<SourceFile>), Problem> {
        let read = self.read(project).await?;
        let names: Vec<ServiceName> = read.model.services.keys().cloned().collect();
        let snapshots = self
            .health
            .snapshot(project, &names, checks, Timestamp::now())
            .await;
        let snapshots = snapshots.map_err(Problem::from)?;
        let mut services = Vec::with_capacity(snapshots.len());
        for snapshot in snapshots {
            let image: Option<ImageRef> = read
                .model
                .services
                .get(&snapshot.service)
                .and_then(|service| service.image.as_deref()?.parse().ok());
            let digest = match (snapshot.containers.first(), &image) {
                (Some(container), Some(image)) => self
                    .engine
                    .running_digest(container, image.repository())
                    .await
                    .map_err(Problem::from)?,
                (Some(_) | None, _) => None,
            };
            services.push(ServiceStatus {
                managed: image
                    .as_ref()
                    .is_some_and(|image| policy::is_listed(project, image.repository())),
                service: snapshot.service,
                image,
                digest,
                health: snapshot.health,
                detail: snapshot.detail,
            });
        }
        Ok((services, source_files(&read.sources)))
    }

    /// The log of all containers of a service, as bytes come. It ends with the containers, when the agent stops, after
    /// twelve hours, and, without `follow`, after the lines that are there.
    ///
    /// # Errors
    /// The service has no container, or the Engine does not answer.
    pub async fn log_stream(
        &self,
        project: &Project,
        service: &ServiceName,
        tail: u32,
        follow: bool,
        shutdown: watch::Receiver<bool>,
    ) -> Result<BoxStream<'static, engine::Result<Vec<u8>>>, Problem> {
        let containers = self.containers(project).await?;
        let mine: Vec<&Container> = containers
            .iter()
            .filter(|container| &container.service == service)
            .collect();
        if mine.is_empty() {
            let services: std::collections::BTreeSet<&ServiceName> =
                containers.iter().map(|container| &container.service).collect();
            let detail = format!("{service} has no container in project {}", project.name);
            return Err(Problem::new(Code::UnknownService, detail)
                .hint(format!("containers are there for {}", listed(services))));
        }
        let tail = usize::try_from(tail).unwrap_or(usize::MAX);
        let mut streams = Vec::new();
        for container in mine {
            let stream = self.engine.logs(&container.id, tail, follow).await;
            streams.push(stream.map_err(Problem::from)?);
        }
        Ok(select_all(streams).take_until(Box::pin(ended(shutdown))).boxed())
    }
}

/// When a followed log ends by itself.
async fn ended(mut shutdown: watch::Receiver<bool>) {
    let stopped = async {
        if shutdown.wait_for(|stop| *stop).await.is_err() {
            std::future::pending().await
        }
    };
    drop(tokio::time::timeout(FOLLOW_LIMIT, stopped).await);
}

/// Whether a container runs, or is a one-shot that did what it is for.
fn does_its_work(container: &Container) -> bool {
    matches!(
        container.state,
        ContainerState::Running
            | ContainerState::Exited {
                exit_code: 0,
                stays: true
            }
    )
}

fn in_state(state: &ContainerState) -> String {
    match state {
        ContainerState::Running => "running".to_owned(),
        ContainerState::Missing => "no container".to_owned(),
        ContainerState::Created => "created, not started".to_owned(),
        ContainerState::Restarting { exit_code } => {
            format!("exited with code {exit_code}, being restarted")
        }
        ContainerState::Exited { exit_code, .. } => format!("exited with code {exit_code}"),
        ContainerState::Other(word) => word.clone(),
    }
}

fn in_words(well: &[WellService], settle: Duration) -> Summary {
    match well {
        [] => "nothing to watch".to_owned(),
        [one] => format!("{}: {}", one.service, one.in_words),
        many if settle.is_zero() => format!("{} are well", listed(many.iter().map(|well| &well.service))),
        many => format!(
            "{} are well, steady for {}",
            listed(many.iter().map(|well| &well.service)),
            seconds(settle)
        ),
    }
}
