//! Acting: the only room that touches Docker and the host's files.
//!
//! `engine` speaks to the Engine, `compose` reads and restarts Compose projects, `health` looks at services, `files`
//! replaces files, `process` spawns. This file puts them together as the `Host` that the runner drives; each action has
//! its own file: `survey` (facts and edits), `preflight` (the host around), `pull`, `change` (edit and restore), `restart` (forward and back), `look`
//! (watch, status, logs).

mod bake;
mod change;
pub mod compose;
pub mod engine;
pub mod files;
pub mod health;
mod hooks;
mod images;
mod listeners;
mod look;
mod patience;
mod preflight;
pub mod process;
mod pull;
mod restart;
mod survey;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use deploy_proto::event::RunningService;
use deploy_proto::image::ImageRef;
use deploy_proto::names::{ProjectName, ServiceName};
use deploy_proto::problem::Problem;
use tokio::sync::{Mutex as AsyncMutex, OnceCell};

use crate::config::{Config, Project};
use crate::deploy::facts::{Facts, HostFacts, Offered, Ran};
use crate::deploy::phase::Failure;
use crate::deploy::plan::{Edits, Plan, PlannedHook};
use crate::deploy::port::{EditFailure, Host, LogTail, Progress, Summary};
use compose::{Compose, ComposeProject, Model, Sources, Surroundings};
use engine::{Engine, Logins};
use health::Health;
use patience::Patience;

/// Why the host cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The Engine's socket has an impossible path.
    #[error("use the Engine's socket")]
    Engine(#[source] engine::Error),
}

/// What the agent takes from its own environment for the processes that it starts; they see nothing else of it.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `PATH`.
    pub path: OsString,
    /// `HOME`.
    pub home: PathBuf,
}

/// Docker and the files of this host.
#[derive(Debug)]
pub struct DockerHost {
    engine: Engine,
    surroundings: Surroundings,
    /// The agent's own folder, which the journal is in.
    state_dir: PathBuf,
    health: Health,
    compose: OnceCell<Compose>,
    /// What `docker compose config` said of the files as they were last read: asking again takes 20 to 45 ms, which is
    /// most of a push that changes nothing.
    models: Mutex<HashMap<ProjectName, Read>>,
    /// By project, the services of a `docker compose up` that has not ended well: the Engine may be stopping their
    /// containers still. No entry: this run of the agent has restarted nothing there.
    unfinished: Mutex<HashMap<ProjectName, BTreeSet<ServiceName>>>,
    /// Held while an image is being removed.
    removing: AsyncMutex<()>,
}

/// A project's files and what Compose makes of them.
#[derive(Debug, Clone)]
struct Read {
    sources: Arc<Sources>,
    model: Arc<Model>,
    /// Whether Compose was asked just now, or earlier about the same bytes. What Compose reads beside them (`env_file`)
    /// may have changed since.
    is_fresh: bool,
}

impl DockerHost {
    /// A host with the Engine that the configuration names. Nothing is connected yet.
    ///
    /// # Errors
    /// The socket's path is not UTF-8.
    pub fn new(config: &Config, environment: Environment) -> Result<Self, HostError> {
        let Environment { path, home } = environment;
        let helpers = vec![
            ("PATH".into(), path.clone()),
            ("HOME".into(), home.clone().into()),
        ];
        let logins = Logins {
            config_dir: config.docker_config_dir.clone(),
            environment: helpers,
        };
        let surroundings = Surroundings {
            path,
            home,
            docker_socket: config.docker_socket.clone(),
            docker_config_dir: config.docker_config_dir.clone(),
        };
        let engine = Engine::connect(&config.docker_socket, logins).map_err(HostError::Engine)?;
        Ok(Self {
            health: Health::new(engine.clone()),
            engine,
            surroundings,
            state_dir: config.state_dir.clone(),
            compose: OnceCell::new(),
            models: Mutex::default(),
            unfinished: Mutex::default(),
            removing: AsyncMutex::default(),
        })
    }

    /// Asks the Engine whether it is there.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn ping(&self) -> Result<(), Problem> {
        self.engine.ping().await.map_err(Problem::from)
    }

    /// The host's Compose, looked for until it is found.
    async fn compose(&self, project: &Project) -> Result<ComposeProject, Problem> {
        let found = self
            .compose
            .get_or_try_init(|| Compose::find(&self.surroundings))
            .await;
        found
            .map(|compose| compose.project(project))
            .map_err(|error| Problem::from(&error))
    }
}

impl Host for DockerHost {
    async fn facts(&self, project: &Project) -> Result<Facts, Failure> {
        self.while_engine_is_away(Patience::Unchanged, |_| self.survey(project))
            .await
    }

    async fn resolve(&self, images: &BTreeSet<ImageRef>) -> BTreeMap<ImageRef, Result<Offered, Problem>> {
        self.offers(images).await
    }

    async fn look_around(&self, plan: &Plan, ports: &BTreeSet<u16>) -> Result<HostFacts, Failure> {
        self.while_engine_is_away(Patience::Unchanged, |_| async {
            Ok(self.surroundings_of(plan, ports).await?)
        })
        .await
    }

    async fn edits(
        &self,
        project: &Project,
        wanted: &BTreeMap<ServiceName, ImageRef>,
    ) -> Result<Edits, Failure> {
        Ok(self.work_out_edits(project, wanted).await?)
    }

    async fn check_unchanged(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        let services: Vec<ServiceName> = plan
            .unchanged
            .iter()
            .map(|service| service.service.clone())
            .collect();
        self.well_for(project, plan, &services, Duration::ZERO, progress)
            .await?;
        Ok("runs already, and is well".to_owned())
    }

    async fn pull(&self, project: &Project, plan: &Plan, progress: Progress<'_>) -> Result<Summary, Failure> {
        self.while_engine_is_away(Patience::Unchanged, |_| self.pull_images(project, plan, progress))
            .await
    }

    async fn gate(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        self.while_engine_is_away(Patience::Unchanged, |_| self.check_all(project, plan))
            .await
    }

    async fn run_hook(
        &self,
        project: &Project,
        plan: &Plan,
        hook: &PlannedHook,
        environment: &[(String, String)],
        progress: Progress<'_>,
    ) -> Result<Vec<String>, Failure> {
        self.run_one_hook(project, plan, hook, environment, progress)
            .await
    }

    async fn end_hooks(&self, project: &Project) -> Result<(), Failure> {
        self.end_all_hooks(project).await
    }

    async fn edit(&self, project: &Project, plan: &Plan) -> Result<Summary, EditFailure> {
        // Nothing of this deployment was restarted: on a way back from here the containers are left as they are.
        self.nothing_is_unfinished_yet(&project.name);
        self.change_files(project, plan).await
    }

    async fn restart(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.up_new(project, plan, progress).await
    }

    async fn watch(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.watch_new(project, plan, progress).await
    }

    async fn restore(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        self.restore_files(project, plan).await
    }

    async fn restart_old(&self, project: &Project, plan: &Plan) -> Result<Summary, Failure> {
        self.up_old(project, plan).await
    }

    async fn watch_old(
        &self,
        project: &Project,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        self.watch_previous(project, plan, progress).await
    }

    async fn running(&self, project: &Project, services: &[ServiceName]) -> Vec<RunningService> {
        self.running_now(project, services).await
    }

    async fn ran(&self, project: &Project) -> Result<BTreeMap<ServiceName, Ran>, Failure> {
        Ok(self.seen_to_run(project).await?)
    }

    async fn log_tails(&self, project: &Project, services: &[ServiceName]) -> Vec<LogTail> {
        self.tails(project, services).await
    }
}

/// `auth_service`, `auth_service and user_service`, `a, b and c`.
fn listed<'a>(names: impl IntoIterator<Item = &'a ServiceName>) -> String {
    let names: Vec<&str> = names.into_iter().map(ServiceName::as_str).collect();
    match names.as_slice() {
        [] => "nothing".to_owned(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
