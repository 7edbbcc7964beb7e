//! What the checks before a deployment want to know of the host around a project. Asks, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use deploy_proto::image::ImageRef;
use deploy_proto::image::registry_host;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use futures_util::future::try_join_all;
use rustix::fs::StatVfsMountFlags;

use super::engine::{self, LocalImage};
use super::{DockerHost, listeners};
use crate::deploy::facts::{FolderFacts, HostFacts, ImageFacts};
use crate::deploy::plan::{Plan, ServicePlan};

impl DockerHost {
    /// Looks at images, disks, containers and listeners, side by side.
    pub(super) async fn surroundings_of(
        &self,
        plan: &Plan,
        ports: &BTreeSet<u16>,
    ) -> Result<HostFacts, Problem> {
        let platform = async { self.engine.host_platform().await.map_err(Problem::from) };
        let neighbours = async { self.engine.neighbours().await.map_err(Problem::from) };
        let listeners = async { Ok(listeners::on(ports, &self.surroundings.docker_socket).await) };
        let (platform, images, neighbours, listeners) =
            tokio::try_join!(platform, self.new_images(plan), neighbours, listeners)?;
        Ok(HostFacts {
            platform: Some(platform),
            images,
            neighbours,
            listeners,
            folders: folders_of(plan, &self.state_dir)?,
        })
    }

    async fn new_images(&self, plan: &Plan) -> Result<BTreeMap<ServiceName, ImageFacts>, Problem> {
        let facts = try_join_all(plan.services.iter().map(|service| self.new_image(service))).await?;
        let names = plan.services.iter().map(|service| service.service.clone());
        Ok(names.zip(facts).collect())
    }

    async fn new_image(&self, service: &ServicePlan) -> Result<ImageFacts, Problem> {
        if let Some(here) = self.find_planned(service).await? {
            return Ok(ImageFacts::Here(here.platform));
        }
        let old = match &service.old_image_id {
            Some(id) => self.engine.image(id).await?,
            None => None,
        };
        Ok(ImageFacts::Away {
            old_bytes: old.map(|old| old.size_bytes),
        })
    }

    /// The image that a service is to run, when it is on this host.
    pub(super) async fn find_planned(&self, service: &ServicePlan) -> Result<Option<LocalImage>, Problem> {
        let pinned = service
            .new
            .digest()
            .map(|digest| format!("{}@{digest}", service.new.repository()));
        for reference in pinned.iter().chain(&service.new_image_id) {
            if let Some(image) = self.engine.image(reference).await? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// What a person is told when a registry does not give an image: with the very command where a login is wanting.
    pub(super) fn registry_problem(&self, image: &ImageRef, error: engine::Error) -> Problem {
        let wants_login = error.is_about_login();
        let problem = Problem::from(error);
        if !wants_login {
            return problem;
        }
        let login = format!(
            "log this host in: docker --config {} login {} (that folder is docker.config_dir in agent.toml)",
            self.surroundings.docker_config_dir.display(),
            registry_host(image.repository())
        );
        match problem.hint.clone() {
            Some(hint) => problem.hint(format!("{hint}; {login}")),
            None => problem.hint(login),
        }
    }
}

/// The folders that are written to: temporary files are made beside those they replace.
fn folders_of(plan: &Plan, state_dir: &Path) -> Result<Vec<FolderFacts>, Problem> {
    let edited = plan.edits.iter().filter_map(|edit| edit.path.parent());
    let folders: BTreeSet<&Path> = edited.chain([state_dir]).collect();
    folders
        .into_iter()
        .map(|folder| folder_facts(folder.to_owned()))
        .collect()
}

fn folder_facts(path: PathBuf) -> Result<FolderFacts, Problem> {
    let stat = rustix::fs::statvfs(&path).map_err(|errno| {
        let error = std::io::Error::from(errno);
        Problem::new(
            Code::HostUnfit,
            format!("failed to read the free space of {}: {error}", path.display()),
        )
    })?;
    Ok(FolderFacts {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        // A file system without a fixed number of them says 0 in all.
        has_free_files: stat.f_files == 0 || stat.f_favail > 0,
        is_read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        path,
    })
}
