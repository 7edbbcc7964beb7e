//! What is known of a project before a deployment, and which edits would write the wanted images. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use futures_util::future::{join_all, try_join_all};

use super::compose::{self, ComposeService, Healthcheck, Model, Sources};
use super::engine::{Container, EngineHealth};
use super::patience::Patience;
use super::{DockerHost, Read};
use crate::config::Project;
use crate::deploy::facts::{Facts, Held, Offered, Ran, RunningFacts, ServiceFacts, SourceFile};
use crate::deploy::phase::Failure;
use crate::deploy::plan::Edits;
use crate::deploy::ports::HostPorts;
use crate::deploy::verdict::ContainerState;

impl DockerHost {
    /// Reads files, model, containers and disk, side by side.
    pub(super) async fn survey(&self, project: &Project) -> Result<Facts, Failure> {
        let containers = async { self.engine.containers(&project.name).await.map_err(Problem::from) };
        let disk = async { self.engine.disk_free().await.map_err(Problem::from) };
        let (read, containers, disk) = tokio::try_join!(self.read(project), containers, disk)?;
        let services = read.model.services.iter().map(|(name, service)| {
            let mine: Vec<&Container> = containers
                .iter()
                .filter(|one| &one.service == name && !one.one_off && !one.half_made)
                .collect();
            self.service_facts(name, service, mine)
        });
        Ok(Facts {
            services: try_join_all(services).await?.into_iter().collect(),
            files: source_files(&read.sources),
            free_bytes: disk.free_bytes,
            unset_variables: read.model.unset_variables.iter().cloned().collect(),
        })
    }

    async fn service_facts(
        &self,
        name: &ServiceName,
        service: &ComposeService,
        containers: Vec<&Container>,
    ) -> Result<(ServiceName, ServiceFacts), Problem> {
        let image: Option<ImageRef> = service.image.as_deref().and_then(|text| text.parse().ok());
        let first = containers.first();
        let running = match first {
            Some(container) => Some(self.running_facts(container, image.as_ref(), &containers).await?),
            None => None,
        };
        let has_healthcheck = match service.healthcheck {
            Healthcheck::Defined => true,
            Healthcheck::Disabled => false,
            Healthcheck::FromImage => first.is_some_and(|container| container.healthcheck.is_some()),
        };
        let ports = service
            .published
            .iter()
            .filter_map(|port| HostPorts::read(&port.address, &port.published, &port.protocol));
        let holding = || containers.iter().filter(|container| keeps_ports(container));
        let holds = Held {
            ports: holding()
                .flat_map(|container| container.publishes.clone())
                .collect(),
            any: holding().any(|container| container.on_host_network),
        };
        let facts = ServiceFacts {
            image,
            has_profile: !service.profiles.is_empty(),
            depends_on: service.depends_on.keys().cloned().collect(),
            has_healthcheck,
            ports: ports.collect(),
            container_name: service.container_name.clone(),
            platform: service.platform.clone(),
            running,
            holds,
        };
        Ok((name.clone(), facts))
    }

    async fn running_facts(
        &self,
        first: &Container,
        image: Option<&ImageRef>,
        all: &[&Container],
    ) -> Result<RunningFacts, Problem> {
        let repository = image.or(first.image_reference.as_ref()).map(ImageRef::repository);
        let digest = match repository {
            Some(repository) => match self.engine.running_digest(first, repository).await {
                Ok(digest) => digest,
                Err(error) if error.is_outage() => return Err(error.into()),
                // An image that cannot be looked at has no digest that we know of; the release then holds its local id.
                Err(_) => None,
            },
            None => None,
        };
        Ok(RunningFacts {
            image_id: first.image_id.clone(),
            image_ids: all.iter().map(|container| container.image_id.clone()).collect(),
            digest,
            containers: all.iter().map(|container| container.id.clone()).collect(),
            config_hashes: all
                .iter()
                .filter_map(|container| container.config_hash.clone())
                .collect(),
            does_run: all.iter().all(|container| does_run(container)),
            // A service whose containers run several images is not as it should be.
            is_well: all
                .iter()
                .all(|container| is_well(container) && container.image_id == first.image_id),
        })
    }

    /// What the registries have under these names, asked for all at once. An image that is named by digest and is on
    /// this host already needs no registry.
    pub(super) async fn offers(
        &self,
        images: &BTreeSet<ImageRef>,
    ) -> BTreeMap<ImageRef, Result<Offered, Problem>> {
        let offers = join_all(images.iter().map(|image| self.offer_once_it_can(image))).await;
        images.iter().cloned().zip(offers).collect()
    }

    async fn offer_once_it_can(&self, image: &ImageRef) -> Result<Offered, Problem> {
        let offer = |_| async { Ok(self.offer(image).await?) };
        let offered = self.while_engine_is_away(Patience::Unchanged, offer).await;
        offered.map_err(|failure: Failure| failure.problem)
    }

    async fn offer(&self, image: &ImageRef) -> Result<Offered, Problem> {
        if let Some(digest) = image.digest()
            && self
                .engine
                .image(&format!("{}@{digest}", image.repository()))
                .await?
                .is_some()
        {
            return Ok(Offered {
                digest: digest.clone(),
                platforms: Vec::new(),
            });
        }
        let remote = self
            .while_registry_is_busy(image, || self.engine.remote_image(image))
            .await?;
        Ok(Offered {
            digest: remote.digest,
            platforms: remote.platforms,
        })
    }

    /// What every service with a container runs.
    pub(super) async fn seen_to_run(&self, project: &Project) -> Result<BTreeMap<ServiceName, Ran>, Problem> {
        let hashes = async {
            let compose = self.compose(project).await?;
            compose
                .config_hashes()
                .await
                .map_err(|error| Problem::from(&error))
        };
        let (containers, mut hashes) = tokio::try_join!(self.containers(project), hashes)?;
        let mut ran = BTreeMap::new();
        for container in containers {
            let seen = ran.entry(container.service.clone()).or_insert_with(|| Ran {
                image_id: container.image_id,
                config_hashes: hashes.remove(&container.service).into_iter().collect(),
            });
            seen.config_hashes.extend(container.config_hash);
        }
        Ok(ran)
    }

    /// Reads the project's files, and what Compose makes of them unless it was asked about the same bytes before.
    pub(super) async fn read(&self, project: &Project) -> Result<Read, Problem> {
        let sources = self.sources(project).await?;
        let known = self
            .models
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&project.name)
            .cloned();
        match known {
            Some(known) if *known.sources == sources => Ok(Read {
                is_fresh: false,
                ..known
            }),
            Some(_) | None => self.ask_compose(project, sources).await,
        }
    }

    /// Asks Compose, whatever is known.
    pub(super) async fn read_afresh(&self, project: &Project) -> Result<Read, Problem> {
        let sources = self.sources(project).await?;
        self.ask_compose(project, sources).await
    }

    async fn sources(&self, project: &Project) -> Result<Sources, Problem> {
        let project = project.clone();
        let load = tokio::task::spawn_blocking(move || {
            Sources::load(&project).map_err(|error| Problem::from(&error))
        });
        load.await
            .map_err(|_cancelled| Problem::new(Code::ShuttingDown, "the agent is being restarted"))?
    }

    async fn ask_compose(&self, project: &Project, sources: Sources) -> Result<Read, Problem> {
        let compose = self.compose(project).await?;
        let model: Model = compose.config().await.map_err(|error| Problem::from(&error))?;
        let read = Read {
            sources: Arc::new(sources),
            model: Arc::new(model),
            is_fresh: true,
        };
        self.models
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(project.name.clone(), read.clone());
        Ok(read)
    }

    /// Works out which bytes of which files write these images.
    pub(super) async fn work_out_edits(
        &self,
        project: &Project,
        wanted: &BTreeMap<ServiceName, ImageRef>,
    ) -> Result<Edits, Problem> {
        let read = self.read(project).await?;
        compose::edit(&read.sources, &read.model, wanted).map_err(|refusal| Problem::from(&refusal))
    }
}

/// The files of a project with their bytes.
pub(super) fn source_files(sources: &Sources) -> Vec<SourceFile> {
    sources
        .files()
        .map(|(path, bytes)| SourceFile {
            path: path.to_owned(),
            bytes: bytes.to_vec(),
        })
        .collect()
}

/// Whether it has its ports, or gets them back in a moment because the Engine starts it again.
fn keeps_ports(container: &Container) -> bool {
    match container.state {
        ContainerState::Running
        | ContainerState::Restarting { .. }
        | ContainerState::Other(_)
        | ContainerState::Exited { stays: false, .. } => true,
        ContainerState::Missing | ContainerState::Created | ContainerState::Exited { stays: true, .. } => {
            false
        }
    }
}

/// Whether nobody stopped it: one that the Engine restarts again and again is sick, and that is another matter.
fn does_run(container: &Container) -> bool {
    match container.state {
        ContainerState::Running
        | ContainerState::Restarting { .. }
        | ContainerState::Exited {
            exit_code: 0,
            stays: true,
        } => true,
        ContainerState::Missing
        | ContainerState::Created
        | ContainerState::Exited { .. }
        | ContainerState::Other(_) => false,
    }
}

fn is_well(container: &Container) -> bool {
    let runs = match container.state {
        ContainerState::Running
        | ContainerState::Exited {
            exit_code: 0,
            stays: true,
        } => true,
        ContainerState::Missing
        | ContainerState::Created
        | ContainerState::Restarting { .. }
        | ContainerState::Exited { .. }
        | ContainerState::Other(_) => false,
    };
    runs && !matches!(container.health, EngineHealth::Unhealthy { .. })
}
