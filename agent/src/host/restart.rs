//! Replacing containers, forward and back, with the real `docker compose up`.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use deploy_proto::event::Happened;
use deploy_proto::image::ImageRef;
use deploy_proto::names::{ProjectName, ServiceName};
use deploy_proto::problem::{Code, Problem};

use super::engine::{Container, EngineHealth};
use super::health::Older;
use super::{DockerHost, listed};
use crate::config::{Order, Project};
use crate::deploy::deadlines::BACK_ATTEMPTS;
use crate::deploy::phase::Failure;
use crate::deploy::plan::{Plan, ServicePlan};
use crate::deploy::port::{Progress, Summary};
use crate::deploy::verdict::ContainerState;

/// How long `docker compose up` may take for each service beyond its stop grace period: create and start. Less than the
/// runner's own deadline, so that Compose is the one that is named.
const UP_DEADLINE_PER_SERVICE: Duration = Duration::from_secs(80);
/// The longest stop grace period that is waited for.
const GRACE_MAX: Duration = Duration::from_mins(30);
/// What is waited for where the project's files cannot be read.
const GRACE_UNKNOWN: Duration = Duration::from_mins(5);
/// How long an Engine that is away is waited for before new images are brought up: its restart takes some seconds.
const ENGINE_PATIENCE_FORWARD: Duration = Duration::from_secs(30);
/// The same on the way back, where giving up means that a person is needed.
const ENGINE_PATIENCE_BACK: Duration = Duration::from_mins(3);
/// Before a step of the way back is tried again: what failed has to pass first.
pub(super) const BACK_PAUSE: Duration = Duration::from_secs(1);
/// The first and the longest pause between two questions whether the Engine is there.
const PING_PAUSE: Duration = Duration::from_millis(100);
const PING_PAUSE_MAX: Duration = Duration::from_secs(2);

impl DockerHost {
    /// Brings the new images up, together or one after the other, each well before the next is touched.
    pub(super) async fn up_new(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.wait_for_engine(ENGINE_PATIENCE_FORWARD).await?;
        self.clean_up_interrupted(project).await?;
        for service in &plan.services {
            let image_id = self.planned_image_id(service).await?;
            self.name_locally(&service.written, &image_id).await?;
        }
        self.nothing_is_unfinished_yet(&project.name);
        let names = plan.service_names();
        match project.order {
            Order::Together => self.up(project, &names, Replace::Changed).await?,
            Order::OneByOne => {
                for (at, name) in names.iter().enumerate() {
                    self.up(project, std::slice::from_ref(name), Replace::Changed)
                        .await?;
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
    pub(super) async fn up_old(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        self.while_engine_is_away(|| self.bring_back(project, plan)).await
    }

    async fn bring_back(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        self.clean_up_interrupted(project).await?;
        let containers = self.containers(project).await?;
        let unfinished = self.unfinished(project, plan);
        let (mut stay, mut back, mut away) = (Vec::new(), Vec::new(), Vec::new());
        for service in &plan.services {
            let name = service.service.clone();
            let Some(image_id) = &service.old_image_id else {
                away.push(name);
                continue;
            };
            self.bring_old_image_back(service, image_id).await?;
            if !unfinished.contains(&name) && runs_as_before(&containers, &name, image_id) {
                stay.push(name);
            } else {
                back.push(name);
            }
        }
        // An Engine that was told to stop a container stops it, also when Compose was ended meanwhile: what may be being
        // stopped is replaced, which waits for that. What was never touched is left running.
        self.up(project, &back, Replace::All).await?;
        self.up(project, &stay, Replace::Changed).await?;
        let compose = self.compose(project).await?;
        compose
            .remove(&away, self.deadline(project, &away).await)
            .await
            .map_err(|error| Problem::from(&error))?;
        Ok(back_to(plan, &away))
    }

    async fn up(&self, project: &Project, services: &[ServiceName], replace: Replace) -> Result<(), Failure> {
        let compose = self.compose(project).await?;
        let deadline = self.deadline(project, services).await;
        self.note_unfinished(&project.name, |unfinished| {
            unfinished.extend(services.iter().cloned());
        });
        let done = match replace {
            Replace::Changed => compose.up(services, deadline).await,
            Replace::All => compose.up_anew(services, deadline).await,
        };
        match done {
            Ok(()) => {
                self.note_unfinished(&project.name, |unfinished| {
                    unfinished.retain(|service| !services.contains(service));
                });
                Ok(())
            }
            Err(error) => {
                let mut failure = Failure::from(Problem::from(&error));
                failure.service = self.culprit(project, services, &failure.problem.detail).await;
                if let Some(service) = &failure.service {
                    failure.log_lines = self.last_lines(project, service).await;
                }
                Err(failure)
            }
        }
    }

    /// The service whose lines will help: the only one, or the one that Compose named, or the first that does not run.
    async fn culprit(&self, project: &Project, services: &[ServiceName], said: &str) -> Option<ServiceName> {
        if let [service] = services {
            return Some(service.clone());
        }
        if let Some(named) = named_in(said, &project.name, services) {
            return Some(named.clone());
        }
        let containers = self.containers(project).await.unwrap_or_default();
        containers
            .into_iter()
            .find(|container| services.contains(&container.service) && !runs_well(container))
            .map(|container| container.service)
    }

    /// How long Compose may take to replace or remove these services' containers.
    async fn deadline(&self, project: &Project, services: &[ServiceName]) -> Duration {
        let read = self.read(project).await;
        if let Err(problem) = &read {
            tracing::warn!(problem = problem.detail, "stop grace periods are not known");
        }
        let grace = |service| match &read {
            Ok(read) => read
                .model
                .services
                .get(service)
                .map_or(GRACE_UNKNOWN, |service| service.stop_grace_period),
            Err(_) => GRACE_UNKNOWN,
        };
        services
            .iter()
            .map(|service| UP_DEADLINE_PER_SERVICE + grace(service).min(GRACE_MAX))
            .sum()
    }

    /// Waits until the Engine answers; its last error when it does not.
    async fn wait_for_engine(&self, patience: Duration) -> Result<(), Problem> {
        let begun = Instant::now();
        let mut pause = PING_PAUSE;
        loop {
            let Err(problem) = self.ping().await else {
                return Ok(());
            };
            if begun.elapsed() >= patience {
                return Err(problem);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PING_PAUSE_MAX);
        }
    }

    /// Performs a step of the way back, and again when the Engine was away meanwhile or a file could not be read.
    pub(super) async fn while_engine_is_away<F>(&self, step: impl Fn() -> F) -> Result<Summary, Failure>
    where
        F: Future<Output = Result<Summary, Failure>>,
    {
        let mut attempt = 1;
        loop {
            self.wait_for_engine(ENGINE_PATIENCE_BACK).await?;
            let failure = match step().await {
                Ok(summary) => return Ok(summary),
                Err(failure) => failure,
            };
            // Compose has many ways to say that the Engine went away under it.
            let passes = may_pass(&failure.problem) || self.ping().await.is_err();
            if attempt == BACK_ATTEMPTS || !passes {
                return Err(failure);
            }
            tracing::warn!(
                attempt,
                problem = failure.problem.detail,
                "a step of the way back is tried again"
            );
            tokio::time::sleep(BACK_PAUSE).await;
            attempt += 1;
        }
    }

    fn nothing_is_unfinished_yet(&self, project: &ProjectName) {
        self.note_unfinished(project, |_| ());
    }

    fn note_unfinished(&self, project: &ProjectName, note: impl FnOnce(&mut BTreeSet<ServiceName>)) {
        let mut all = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        note(all.entry(project.clone()).or_default());
    }

    /// The services whose containers may be being stopped still: those of every `up` that did not end well, and all of
    /// the plan's when an earlier run of the agent began it, of which nothing is known.
    fn unfinished(&self, project: &Project, plan: &Plan) -> BTreeSet<ServiceName> {
        let all = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&project.name)
            .cloned()
            .unwrap_or_else(|| plan.service_names().into_iter().collect())
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

    /// Makes a name that stands in a Compose file mean this image. With a digest it does already; the tag beside the
    /// digest is for people, so it is given only when no image has it.
    async fn name_locally(&self, written: &ImageRef, image_id: &str) -> Result<(), Problem> {
        let tagged = match (written.tag(), written.digest()) {
            (Some(_), _) => written.without_digest(),
            (None, Some(_)) => return Ok(()),
            (None, None) => latest(written),
        };
        if written.digest().is_some() && self.engine.image(&tagged.to_string()).await?.is_some() {
            return Ok(());
        }
        Ok(self.engine.retag(image_id, &tagged).await?)
    }

    /// Makes the name that stands in the restored file mean the image that ran, also when the tag has moved since. An
    /// image that is gone from this host is pulled by its digest; that is the only case that needs a registry.
    async fn bring_old_image_back(&self, service: &ServicePlan, image_id: &str) -> Result<(), Problem> {
        let Some(old) = &service.old else { return Ok(()) };
        if self.engine.image(image_id).await?.is_none() {
            let digest = service.old_digest.as_ref().or(old.digest());
            let pinned = digest.map_or_else(|| old.clone(), |digest| old.with_digest(digest.clone()));
            self.engine
                .pull(&pinned, service.platform.as_deref(), |_done, _total| ())
                .await?;
        }
        self.name_locally(old, image_id).await
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
        let older = containers_before(plan);
        let terms = super::health::Terms {
            settle,
            wait: project.wait,
            since: plan.made_at,
            older: older
                .as_ref()
                .map_or(Older::CreatedBefore(plan.made_at), Older::Ids),
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

/// Whether a step of the way back may go well when it is tried again: the Engine comes back, a file can be read or
/// written a moment later, a `docker compose` that something killed is not killed twice. A sick service is sick.
pub(super) fn may_pass(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::Engine | Code::Internal | Code::HostUnfit | Code::ComposeFile | Code::RestartFailed
    )
}

/// Which containers `docker compose up` replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replace {
    /// Those whose image or configuration is another.
    Changed,
    /// All, so that one that is being stopped is waited for.
    All,
}

/// The ids of the containers that were there before the deployment; none when its plan does not say.
fn containers_before(plan: &Plan) -> Option<HashSet<&str>> {
    let mut ids = HashSet::new();
    for service in plan.services.iter().chain(&plan.unchanged) {
        ids.extend(service.old_containers.as_ref()?.iter().map(String::as_str));
    }
    Some(ids)
}

/// What Docker means by a name without a tag.
fn latest(image: &ImageRef) -> ImageRef {
    format!("{}:latest", image.repository())
        .parse()
        .unwrap_or_else(|_| image.clone())
}

/// Whether a service's containers run this image and are not known to be sick.
fn runs_as_before(containers: &[Container], service: &ServiceName, image_id: &str) -> bool {
    let mut mine = containers
        .iter()
        .filter(|container| &container.service == service)
        .peekable();
    mine.peek().is_some() && mine.all(|container| runs_well(container) && container.image_id == image_id)
}

fn runs_well(container: &Container) -> bool {
    container.state == ContainerState::Running && !matches!(container.health, EngineHealth::Unhealthy { .. })
}

/// The service that Compose names as `Container <project>-<service>-<number>`.
fn named_in<'s>(said: &str, project: &ProjectName, services: &'s [ServiceName]) -> Option<&'s ServiceName> {
    services.iter().find(|service| {
        let container = format!("Container {project}-{service}-");
        said.match_indices(&container).any(|(at, _)| {
            let behind = said.get(at + container.len()..).unwrap_or_default();
            let number = behind.split_whitespace().next().unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_that_compose_names_is_found_by_its_whole_name() {
        let project: ProjectName = "shop".parse().unwrap();
        let services: Vec<ServiceName> = ["web", "web-2", "api"].map(|name| name.parse().unwrap()).into();
        let find = |said: &str| named_in(said, &project, &services).map(ServiceName::as_str);
        for (said, named) in [
            ("failed: Container shop-api-1  Error | x", Some("api")),
            ("Container shop-web-2-1  Error while starting", Some("web-2")),
            ("Container shop-web-12  Error", Some("web")),
            ("Container other-api-1  Error", None),
            ("no space left on device", None),
        ] {
            assert_eq!(find(said), named, "{said}");
        }
    }
}
