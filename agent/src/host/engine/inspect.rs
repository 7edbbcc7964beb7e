//! Looking at images and containers, and the few small changes to them that are not Compose's: tags, and what an
//! interrupted `docker compose up` left behind.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::models::ImageInspect;
use bollard::query_parameters::{
    InspectContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    TagImageOptionsBuilder,
};
use deploy_proto::image::{Digest, ImageRef, canonical_repository};
use deploy_proto::names::{ProjectName, ServiceName};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::container::{PROJECT_LABEL, SERVICE_LABEL};
use super::{ANSWER_LIMIT, Container, Engine, Error, Result};
use crate::deploy::platform::Platform;

/// How many containers are inspected at the same time: more only queue inside the Engine.
const INSPECTS_AT_ONCE: usize = 16;
/// How long a container that is to be removed by force may take to go.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(30);
/// The pause before it is tried again.
const REMOVAL_PAUSE: Duration = Duration::from_millis(100);

/// An image that is on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// Its id.
    pub id: String,
    /// What registries call it: `repository@sha256:...`.
    pub repo_digests: Vec<ImageRef>,
    /// What it is tagged as here.
    pub repo_tags: Vec<String>,
    /// What it is built for.
    pub platform: Platform,
    /// Whether the image brings a healthcheck of its own.
    pub has_healthcheck: bool,
    /// Its size on this host, in bytes.
    pub size_bytes: u64,
}

impl LocalImage {
    /// The digests under which a repository has this image: as a rule none or one.
    pub fn digests_in(&self, repository: &str) -> impl Iterator<Item = &Digest> {
        let wanted = canonical_repository(repository);
        self.repo_digests
            .iter()
            .filter(move |known| known.canonical_repository() == wanted)
            .filter_map(ImageRef::digest)
    }

    fn read(said: ImageInspect) -> Result<Self> {
        let test = said
            .config
            .and_then(|config| config.healthcheck)
            .and_then(|healthcheck| healthcheck.test)
            .unwrap_or_default();
        Ok(Self {
            id: said.id.ok_or(Error::Lacking {
                doing: "inspect an image",
                what: "Id",
            })?,
            repo_digests: said
                .repo_digests
                .unwrap_or_default()
                .iter()
                .filter_map(|known| known.parse().ok())
                .collect(),
            repo_tags: said.repo_tags.unwrap_or_default(),
            platform: Platform::new(
                &said.os.unwrap_or_default(),
                &said.architecture.unwrap_or_default(),
            ),
            has_healthcheck: test.first().is_some_and(|kind| kind != "NONE"),
            size_bytes: said.size.and_then(|size| size.try_into().ok()).unwrap_or(0),
        })
    }
}

/// A half-made container that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemovedHalfMade {
    /// Its name, `<12 hex>_project-service-1`.
    pub name: String,
}

impl Engine {
    /// Looks at an image by reference (`repo:tag`, `repo@sha256:...`) or id; none when it is not on this host.
    pub async fn image(&self, reference_or_id: &str) -> Result<Option<LocalImage>> {
        let said = self
            .call("inspect an image", ANSWER_LIMIT, |docker| {
                docker.inspect_image(reference_or_id)
            })
            .await;
        match said {
            Ok(said) => LocalImage::read(said).map(Some),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Looks at every container of a Compose project, one-off and half-made ones too, in order of service and number.
    pub async fn containers(&self, project: &ProjectName) -> Result<Vec<Container>> {
        let labels = vec![format!("{PROJECT_LABEL}={project}")];
        self.containers_with(labels).await
    }

    /// Looks at the containers of one service, without those of `docker compose run`.
    pub async fn service_containers(
        &self,
        project: &ProjectName,
        service: &ServiceName,
    ) -> Result<Vec<Container>> {
        let labels = vec![
            format!("{PROJECT_LABEL}={project}"),
            format!("{SERVICE_LABEL}={service}"),
        ];
        let mut containers = self.containers_with(labels).await?;
        containers.retain(|container| !container.one_off);
        Ok(containers)
    }

    async fn containers_with(&self, labels: Vec<String>) -> Result<Vec<Container>> {
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&HashMap::from([("label", labels)]))
            .build();
        let listed = self
            .call("list the project's containers", ANSWER_LIMIT, |docker| {
                docker.list_containers(Some(options))
            })
            .await?;
        let mut containers: Vec<Container> = stream::iter(listed.into_iter().filter_map(|one| one.id))
            .map(|id| async move { self.container(&id).await })
            .buffer_unordered(INSPECTS_AT_ONCE)
            .try_filter_map(|container| async move { Ok(container) })
            .try_collect()
            .await?;
        containers.sort_by(|a, b| (&a.service, a.number, &a.name).cmp(&(&b.service, b.number, &b.name)));
        Ok(containers)
    }

    /// Removes the containers of a project that have this label, running or not, and returns when none is left.
    ///
    /// # Errors
    /// The Engine does not answer, or one does not go within [`REMOVAL_PATIENCE`].
    pub async fn remove_labelled(&self, project: &ProjectName, label: &str) -> Result<Vec<String>> {
        let labels = || vec![format!("{PROJECT_LABEL}={project}"), label.to_owned()];
        let begun = Instant::now();
        let mut removed = Vec::new();
        loop {
            let containers = self.containers_with(labels()).await?;
            if containers.is_empty() {
                return Ok(removed);
            }
            for container in containers {
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                let gone = self
                    .call("remove a container", ANSWER_LIMIT, |docker| {
                        docker.remove_container(&container.id, Some(options))
                    })
                    .await;
                match gone {
                    Ok(()) => removed.push(container.name),
                    Err(error) if error.is_not_found() => {}
                    // One that the Engine is removing by itself is refused, and goes.
                    Err(error) if begun.elapsed() >= REMOVAL_PATIENCE => return Err(error),
                    Err(_refused) => tokio::time::sleep(REMOVAL_PAUSE).await,
                }
            }
        }
    }

    /// Looks at one container; none when it is gone, or is no Compose service's.
    pub async fn container(&self, id: &str) -> Result<Option<Container>> {
        let said = self
            .call("inspect a container", ANSWER_LIMIT, |docker| {
                docker.inspect_container(id, None::<InspectContainerOptions>)
            })
            .await;
        match said {
            Ok(said) => Container::read(said),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The digest under which a repository has the image that this container runs. None for an image that was never
    /// pulled from there. Of several, the one that the container was created with counts.
    pub async fn running_digest(&self, container: &Container, repository: &str) -> Result<Option<Digest>> {
        let Some(image) = self.image(&container.image_id).await? else {
            return Ok(None);
        };
        let named = container.image_reference.as_ref().and_then(ImageRef::digest);
        let mut known = image.digests_in(repository);
        let first = known.next();
        let exact = first
            .into_iter()
            .chain(known)
            .find(|digest| Some(*digest) == named);
        Ok(exact.or(first).cloned())
    }

    /// Tags an image that is on this host as `repository:tag`, taking the tag from whatever had it.
    ///
    /// # Errors
    /// `image` must have a tag; its digest does not matter.
    pub async fn retag(&self, image_id: &str, image: &ImageRef) -> Result<()> {
        let tag = image.tag().ok_or(Error::Lacking {
            doing: "tag an image",
            what: "tag",
        })?;
        let options = TagImageOptionsBuilder::new()
            .repo(image.repository())
            .tag(tag)
            .build();
        self.call("tag an image", ANSWER_LIMIT, |docker| {
            docker.tag_image(image_id, Some(options))
        })
        .await
    }

    /// Removes what an interrupted `docker compose up` of these services left: containers that were created to replace
    /// another and never started. Without this, every later `up` of them ends in a name conflict.
    ///
    /// The caller holds the project's lock, and no `docker compose` of its own runs there.
    pub async fn remove_half_made(
        &self,
        project: &ProjectName,
        services: &[ServiceName],
    ) -> Result<Vec<RemovedHalfMade>> {
        let mut removed = Vec::new();
        for container in self.containers(project).await? {
            if !container.half_made || !services.contains(&container.service) {
                continue;
            }
            // Without force: one that was started in the meantime is refused and stays.
            let options = RemoveContainerOptionsBuilder::new().build();
            let gone = self
                .call("remove a half-made container", ANSWER_LIMIT, |docker| {
                    docker.remove_container(&container.id, Some(options))
                })
                .await;
            match gone {
                Ok(()) => removed.push(RemovedHalfMade { name: container.name }),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_counts_only_for_its_own_repository() {
        let digest = |c: &str| format!("sha256:{}", c.repeat(64));
        let image = LocalImage {
            id: digest("0"),
            repo_digests: vec![
                format!("nginx@{}", digest("a")).parse().unwrap(),
                format!("registry.example/nginx@{}", digest("b")).parse().unwrap(),
            ],
            repo_tags: Vec::new(),
            platform: Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
            },
            has_healthcheck: false,
            size_bytes: 0,
        };
        let of = |repository| {
            image
                .digests_in(repository)
                .map(Digest::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("docker.io/library/nginx"), [digest("a")]);
        assert_eq!(of("registry.example/nginx"), [digest("b")]);
        assert!(of("registry.example/other").is_empty());
    }
}
