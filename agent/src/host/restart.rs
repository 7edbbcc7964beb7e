//! Replacing containers, forward and back, with the real `docker compose up`.

use std::collections::{BTreeSet, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use deploy_proto::event::Happened;
use deploy_proto::image::ImageRef;
use deploy_proto::names::{ProjectName, ServiceName};
use deploy_proto::problem::Problem;
use jiff::Timestamp;

use super::engine::{Container, EngineHealth};
use super::health::{Older, WatchError};
use super::patience::Patience;
use super::{DockerHost, listed};
use crate::config::{Order, Project};
use crate::deploy::deadlines::WATCHES_MAX;
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

impl DockerHost {
    /// Brings the new images up, together or one after the other, each well before the next is touched.
    pub(super) async fn up_new(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.wait_for_engine(Patience::Forward).await?;
        self.clean_up_interrupted(project, plan).await?;
        for service in &plan.services {
            let image_id = self.planned_image_id(service).await?;
            self.name_locally(&service.written, &image_id).await?;
        }
        let names = plan.service_names();
        self.all_may_be_unfinished(&project.name, &names);
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
        self.wait_for_engine(Patience::Back).await?;
        self.while_engine_is_away(Patience::Back, |_| self.bring_back(project, plan))
            .await
    }

    pub(super) async fn bring_back(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        if !plan.hooks.is_empty() {
            self.end_all_hooks(project).await?;
        }
        self.clean_up_interrupted(project, plan).await?;
        let containers = self.containers(project).await?;
        let unfinished = self.unfinished(project, plan);
        let before = plan.containers_before();
        let (mut stay, mut back, mut away) = (Vec::new(), Vec::new(), Vec::new());
        for service in &plan.services {
            let name = service.service.clone();
            let Some(image_id) = &service.old_image_id else {
                away.push(name);
                continue;
            };
            self.bring_old_image_back(service, image_id).await?;
            let is_finished = !unfinished.contains(&name);
            let is_untouched = is_finished && was_there(&containers, &name, image_id, before.as_ref());
            let stands = stands_as_before(&containers, &name, image_id, plan.made_at);
            // What nobody touched is left, also when it was sick or stopped before. `up --no-deps` would make a container
            // anew that a person's plain `up` made (Compose counts what it depends on as a part of its configuration),
            // and would run a job once more that is done.
            if is_untouched && (stands || !service.old_was_well) {
                continue;
            }
            if is_finished && stands {
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
                let mut failure = Failure::from(self.went_away(Problem::from(&error)).await);
                failure.service = self.culprit(project, services, &failure.problem.detail).await;
                if let Some(service) = &failure.service {
                    failure.log_lines = self.last_lines(project, service).await;
                }
                Err(failure)
            }
        }
    }

    /// What Compose said, and that it was the Engine's doing when the Engine does not answer any more.
    async fn went_away(&self, said: Problem) -> Problem {
        match self.ping().await {
            Ok(()) => said,
            Err(away) => Problem {
                detail: format!(
                    "the Docker Engine went away while containers were replaced: {}",
                    said.detail
                ),
                ..away
            },
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

    /// A deployment begins to change the project: none of its containers was touched yet.
    pub(super) fn nothing_is_unfinished_yet(&self, project: &ProjectName) {
        let mut all = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(project.clone(), BTreeSet::new());
    }

    /// Where an earlier run of the agent began to replace these services' containers, which it got to is not known.
    fn all_may_be_unfinished(&self, project: &ProjectName, services: &[ServiceName]) {
        let mut all = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(project.clone())
            .or_insert_with(|| services.iter().cloned().collect());
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

    /// Removes what an interrupted `docker compose up` of the plan's services left, or every later one ends in a conflict.
    async fn clean_up_interrupted(&self, project: &Project, plan: &Plan) -> Result<(), Problem> {
        let removed = self
            .engine
            .remove_half_made(&project.name, &plan.service_names())
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
    pub(super) async fn name_locally(&self, written: &ImageRef, image_id: &str) -> Result<(), Problem> {
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
            let platform = service.platform.as_deref();
            self.while_registry_is_busy(&pinned, || {
                self.engine.pull(&pinned, platform, |_done, _total| ())
            })
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
        let older = plan.containers_before();
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
        // What the Engine's absence took of `wait` is not the services' fault, and what ended with it is started again, by
        // the Engine where the restart policy says so and else by us: the watch begins anew.
        for _ in 1..WATCHES_MAX {
            let outages = self.engine.outages();
            let error = match self.health.watch(project, services, terms, seen).await {
                Ok(well) => return Ok(well),
                Err(error) => error,
            };
            let is_down = matches!(error, WatchError::Down { .. });
            if !is_down && self.engine.outages() == outages {
                return Err(self.sickness(project, error).await);
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the Docker Engine was away; the watch begins anew"
            );
            self.wait_for_engine(Patience::Forward).await?;
            self.start_what_ended_with_engine(project, services).await?;
        }
        match self.health.watch(project, services, terms, seen).await {
            Ok(well) => Ok(well),
            Err(error) => Err(self.sickness(project, error).await),
        }
    }

    /// Starts those of these services again that ended with the Engine and that it leaves so.
    async fn start_what_ended_with_engine(
        &self,
        project: &Project,
        services: &[ServiceName],
    ) -> Result<(), Failure> {
        let containers = self.containers(project).await?;
        let is_down = |container: &Container| {
            matches!(container.state, ContainerState::Exited { stays: true, .. })
                && self.engine.took_down(container)
        };
        let down: BTreeSet<&ServiceName> = containers
            .iter()
            .filter(|container| is_down(container))
            .map(|container| &container.service)
            .collect();
        let down: Vec<ServiceName> = services
            .iter()
            .filter(|service| down.contains(service))
            .cloned()
            .collect();
        self.up(project, &down, Replace::Changed).await
    }

    /// Whether services that are to run the previous images do not, as far as this run of the agent knows: it did not
    /// bring them up itself, and the host may have been restarted since another did.
    pub(super) async fn may_be_down(&self, project: &Project, plan: &Plan) -> Result<bool, Problem> {
        let is_known = self
            .unfinished
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(&project.name);
        if is_known {
            return Ok(false);
        }
        let containers = self.containers(project).await?;
        Ok(plan.services.iter().any(|service| {
            let image_id = service.old_image_id.as_ref();
            image_id.is_some_and(|image_id| {
                let stands = stands_as_before(&containers, &service.service, image_id, plan.made_at);
                service.old_was_well && !stands
            })
        }))
    }
}

/// Which containers `docker compose up` replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replace {
    /// Those whose image or configuration is another.
    Changed,
    /// All, so that one that is being stopped is waited for.
    All,
}

/// What Docker means by a name without a tag.
fn latest(image: &ImageRef) -> ImageRef {
    format!("{}:latest", image.repository())
        .parse()
        .unwrap_or_else(|_| image.clone())
}

/// Whether a service's containers are of this image and run without being known to be sick, or had done their work before
/// the plan was made.
fn stands_as_before(
    containers: &[Container],
    service: &ServiceName,
    image_id: &str,
    made_at: Timestamp,
) -> bool {
    let mut mine = of_service(containers, service).peekable();
    mine.peek().is_some()
        && mine.all(|container| {
            container.image_id == image_id && (runs_well(container) || was_done(container, made_at))
        })
}

/// Whether all containers of a service were there before the deployment, and are of this image.
fn was_there(
    containers: &[Container],
    service: &ServiceName,
    image_id: &str,
    before: Option<&HashSet<String>>,
) -> bool {
    let mut mine = of_service(containers, service).peekable();
    let is_old = |container: &Container, before: &HashSet<String>| {
        container.image_id == image_id && before.contains(&container.id)
    };
    mine.peek().is_some() && before.is_some_and(|before| mine.all(|container| is_old(container, before)))
}

fn of_service<'c>(
    containers: &'c [Container],
    service: &'c ServiceName,
) -> impl Iterator<Item = &'c Container> {
    containers
        .iter()
        .filter(move |container| &container.service == service)
}

/// Whether it is a job that was done before then.
fn was_done(container: &Container, then: Timestamp) -> bool {
    let is_done = matches!(
        container.state,
        ContainerState::Exited {
            exit_code: 0,
            stays: true
        }
    );
    is_done && container.finished_at.is_some_and(|at| at < then)
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
