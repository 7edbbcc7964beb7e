//! What the runner needs of a host: one method per action. `host::DockerHost` does it; the tests' `FakeHost` says yes,
//! no or nothing at all, and never imitates Docker.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;

use deploy_proto::event::{Happened, RunningService};
use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::Problem;

use super::facts::{Facts, HostFacts, Offered, Ran};
use super::phase::Failure;
use super::plan::{Edits, Plan, PlannedHook};
use crate::config::Project;

/// What an action did, for people: `2 images, 41 MB`.
pub type Summary = String;

/// Where an action tells how far it is. Cheap, never blocks, may drop.
pub type Progress<'a> = &'a (dyn Fn(Happened) + Send + Sync);

/// The last lines of a service's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTail {
    /// The service.
    pub service: ServiceName,
    /// Oldest first.
    pub lines: Vec<String>,
}

/// Whether an edit that failed left the files as they were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EditFailure {
    /// The files were shown to hold their old bytes.
    Undone(Failure),
    /// They could not be put back here.
    NotUndone(Failure),
}

/// A host that deployments are carried out on. Every action may be performed again after a crash: what is done already
/// is found done.
pub trait Host: Send + Sync + 'static {
    /// Gathers what is known of the project.
    fn facts(&self, project: &Project) -> impl Future<Output = Result<Facts, Failure>> + Send;

    /// Asks the registries for the digests of these images, all at once; each has an answer of its own.
    fn resolve(
        &self,
        images: &BTreeSet<ImageRef>,
    ) -> impl Future<Output = BTreeMap<ImageRef, Result<Offered, Problem>>> + Send;

    /// Looks at the host around the project, for the checks before a deployment: at its images, disks, containers and,
    /// for these ports, at what listens. Changes nothing.
    fn look_around(
        &self,
        plan: &Plan,
        ports: &BTreeSet<u16>,
    ) -> impl Future<Output = Result<HostFacts, Failure>> + Send;

    /// Works out the edits that write these images. Changes nothing.
    fn edits(
        &self,
        project: &Project,
        wanted: &BTreeMap<ServiceName, ImageRef>,
    ) -> impl Future<Output = Result<Edits, Failure>> + Send;

    /// Checks that the services that run what was asked for already are well, as after a restart.
    fn check_unchanged(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Pulls the plan's images that are not here yet.
    fn pull(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Checks all that can be checked before the first change.
    fn gate(&self, project: &Project, plan: &Plan) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Runs one of the plan's commands to its end, with these variables in its environment; what it wrote last. Whatever
    /// of the project's commands still runs from earlier is ended first: there are never two at a time.
    fn run_hook(
        &self,
        project: &Project,
        plan: &Plan,
        hook: &PlannedHook,
        environment: &[(String, String)],
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send;

    /// Ends what is left of the project's commands: processes, and the containers that they ran in.
    fn end_hooks(&self, project: &Project) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Changes the files and checks that Compose sees the named images changed and nothing else.
    fn edit(
        &self,
        project: &Project,
        plan: &Plan,
    ) -> impl Future<Output = Result<Summary, EditFailure>> + Send;

    /// Replaces the containers of the plan's services.
    fn restart(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Watches them until all are well, or one is sick; checks that they run the planned images.
    fn watch(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Gives the files their old bytes; where a person edited a file meanwhile, only the images are put back.
    fn restore(
        &self,
        project: &Project,
        plan: &Plan,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Brings the previous images' containers back, and removes those that were not there before.
    fn restart_old(
        &self,
        project: &Project,
        plan: &Plan,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// Watches them until all are well; checks that they run the previous images.
    fn watch_old(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> impl Future<Output = Result<Summary, Failure>> + Send;

    /// What the services run, as seen on the Engine now.
    fn running(
        &self,
        project: &Project,
        services: &[ServiceName],
    ) -> impl Future<Output = Vec<RunningService>> + Send;

    /// What every service with a container runs, for the record of a release.
    fn ran(
        &self,
        project: &Project,
    ) -> impl Future<Output = Result<BTreeMap<ServiceName, Ran>, Failure>> + Send;

    /// The last log lines of the services' containers, to be kept when the containers go.
    fn log_tails(
        &self,
        project: &Project,
        services: &[ServiceName],
    ) -> impl Future<Output = Vec<LogTail>> + Send;
}
