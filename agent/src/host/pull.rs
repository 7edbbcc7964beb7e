//! Pulling a plan's images, all at once, and the checks before the first change.

use std::collections::BTreeSet;

use deploy_proto::event::Happened;
use deploy_proto::image::ImageRef;
use deploy_proto::problem::{Code, Problem};
use futures_util::future::try_join_all;

use super::DockerHost;
use super::engine::PullEnd;
use super::survey::source_files;
use crate::config::Project;
use crate::deploy::phase::Failure;
use crate::deploy::plan::{self, Plan, ServicePlan};
use crate::deploy::port::{Progress, Summary};

impl DockerHost {
    /// Brings every image of the plan onto this host. What is here already costs no network, so that a rollback needs no
    /// registry.
    pub(super) async fn pull_images(&self, plan: &Plan, progress: Progress<'_>) -> Result<Summary, Failure> {
        // The plan is in the journal: nothing of it is removed from here on, but an image may be going just now.
        self.wait_for_removal().await;
        let mut images: BTreeSet<&ImageRef> = BTreeSet::new();
        for service in &plan.services {
            if !self.is_here(service).await? {
                images.insert(&service.new);
            }
        }
        let ends = try_join_all(images.iter().map(|image| self.pull_one(image, progress))).await?;
        let pulled: Vec<u64> = ends
            .iter()
            .filter_map(|end| match end {
                PullEnd::Pulled { bytes } => Some(*bytes),
                PullEnd::AlreadyHere => None,
            })
            .collect();
        Ok(match pulled.len() {
            0 => "all images are here".to_owned(),
            1 => format!("1 image, {}", megabytes(pulled.iter().sum())),
            n => format!("{n} images, {}", megabytes(pulled.iter().sum())),
        })
    }

    /// Whether the very image that an earlier release ran is still on this host.
    async fn is_here(&self, service: &ServicePlan) -> Result<bool, Problem> {
        let Some(id) = &service.new_image_id else {
            return Ok(false);
        };
        Ok(self.engine.image(id).await.map_err(Problem::from)?.is_some())
    }

    async fn pull_one(&self, image: &ImageRef, progress: Progress<'_>) -> Result<PullEnd, Problem> {
        if image.digest().is_none() {
            let detail =
                format!("{image} is not on this host any more, and no registry ever gave it a digest");
            return Err(Problem::new(Code::ImageUnavailable, detail)
                .hint("roll back to a release whose images were pushed"));
        }
        let told = |done_bytes, total_bytes| {
            progress(Happened::Pulling {
                image: image.clone(),
                done_bytes,
                total_bytes,
            })
        };
        self.engine.pull(image, told).await.map_err(Problem::from)
    }

    /// Checks, with the images here and before anything is touched: the files are as planned, the disk still has room,
    /// every image is found under what will be written.
    pub(super) async fn check_all(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        let disk = self.engine.disk_free().await.map_err(Problem::from)?;
        plan::check_space(project, disk.free_bytes)?;
        let read = self.read(project).await?;
        let now = source_files(&read.sources);
        // After a crash in Editing this phase is not begun again, so here the files must be as they were planned.
        if now != plan.files {
            let detail = "the project's files changed while the images were being pulled";
            return Err(Problem::new(Code::Edited, detail)
                .hint("push again when nobody edits them")
                .into());
        }
        for service in &plan.services {
            self.planned_image_id(service).await?;
        }
        Ok(String::new())
    }

    /// The local id of the image that a service is to run.
    pub(super) async fn planned_image_id(&self, service: &ServicePlan) -> Result<String, Problem> {
        let pinned = service
            .new
            .digest()
            .map(|digest| format!("{}@{digest}", service.new.repository()));
        for reference in pinned.iter().chain(&service.new_image_id) {
            if let Some(image) = self.engine.image(reference).await.map_err(Problem::from)? {
                return Ok(image.id);
            }
        }
        Err(Problem::new(
            Code::ImageUnavailable,
            format!("{} is not on this host", service.new),
        )
        .hint("was it removed by hand just now? Push again"))
    }
}

fn megabytes(bytes: u64) -> String {
    const MEGA: u64 = 1_000_000;
    if bytes >= 10 * MEGA {
        format!("{} MB", bytes / MEGA)
    } else {
        format!("{}.{} MB", bytes / MEGA, bytes % MEGA / (MEGA / 10))
    }
}
