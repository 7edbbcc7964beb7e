//! The watch of a release that is live, put together for the task that asks for it.

use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};

use super::DockerHost;
use super::health::{BakeEnd, BakeTerms};
use crate::config::Project;
use crate::deploy::phase::Failure;
use crate::history::Containers;

impl DockerHost {
    /// The containers of these services, as they are now. Waits for an Engine that is away.
    pub async fn containers_to_bake(&self, project: &Project, services: &[ServiceName]) -> Containers {
        self.health.containers_to_bake(project, services).await
    }

    /// Watches a release until its time is over, it is sick, or it is not the release any more.
    pub async fn bake(&self, project: &Project, terms: &BakeTerms) -> BakeEnd {
        self.health.bake(project, terms).await
    }

    /// What is said of a service that fell sick while it baked, with its last lines.
    pub async fn baked_sick(&self, project: &Project, service: ServiceName, reason: &str) -> Failure {
        let problem = Problem::new(
            Code::Unhealthy,
            format!("{service}: {reason} (after it had gone live)"),
        );
        Failure {
            problem,
            log_lines: self.last_lines(project, &service).await,
            service: Some(service),
        }
    }
}
