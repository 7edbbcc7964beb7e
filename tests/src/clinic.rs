//! The clinic: six services in one Compose file beside databases that must never be touched, as it was deployed with
//! ssh, sed and `docker-compose up -d`. A running copy of it, under a name of its own, on ports of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::Run;
use crate::engine::Engine;
use crate::http;
use crate::images::{Image, Mode, Registry, free_port, temporary_dir, unique};
use crate::until::until;

/// The services that are deployed, in the file's order.
pub const SERVICES: [&str; 6] = [
    "auth_service",
    "user_service",
    "patient_service",
    "schedule_service",
    "api_gateway",
    "frontend_web",
];

/// The services that no deployment may touch; they run [`Mode::Database`].
pub const DATABASES: [&str; 4] = ["auth_db", "user_db", "patient_db", "redis"];

/// The one service without a healthcheck.
pub const WITHOUT_HEALTHCHECK: &str = "frontend_web";

/// The tag that a fresh clinic runs.
pub const FIRST_VERSION: &str = "dev-3f9c1ab";

const COMPOSE_FILE: &str = include_str!("../fixtures/clinic/docker-compose.yml");
const ENV_FILE: &str = include_str!("../fixtures/clinic/.env");

/// The ports that stand in the fixture, which every copy replaces by free ones.
const PORTS: [(&str, u16); 6] = [
    ("auth_service", 8001),
    ("user_service", 8002),
    ("patient_service", 8003),
    ("schedule_service", 8004),
    ("api_gateway", 8080),
    ("frontend_web", 8000),
];

/// A healthcheck with a longer interval than this is not waited for.
const CHECKED_SOON_SECONDS: u32 = 2;

/// Ten containers on a loaded machine of two cores.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// A running copy of the project. On drop its containers, volumes, networks and files go; its images go with
/// the last handle of the registry.
#[derive(Debug)]
pub struct Clinic {
    project: String,
    dir: PathBuf,
    services: Vec<&'static str>,
    ports: BTreeMap<&'static str, u16>,
    registry: Registry,
    _home: TempDir,
}

impl Clinic {
    /// Pushes all images as [`FIRST_VERSION`] and starts the project with healthchecks every second; returns when all
    /// are healthy.
    pub fn start(registry: &Registry) -> Result<Self> {
        Self::start_with(registry, &SERVICES, 1)
    }

    /// The same file, but only these of the six are pushed and started, with what they depend on: `auth_service` alone
    /// brings two databases, and takes half the time.
    pub fn start_only(registry: &Registry, services: &[&'static str]) -> Result<Self> {
        Self::start_with(registry, services, 1)
    }

    /// All of it, with another interval of the six services' healthchecks. Returns when all services answer, which for
    /// a long interval is before the Engine calls them healthy.
    pub fn start_with_interval(registry: &Registry, interval_seconds: u32) -> Result<Self> {
        Self::start_with(registry, &SERVICES, interval_seconds)
    }

    fn start_with(registry: &Registry, services: &[&'static str], interval_seconds: u32) -> Result<Self> {
        push_first_version(registry, services)?;
        let mut tried = 0;
        loop {
            let clinic = Self::prepare(registry, services, interval_seconds)?;
            tried += 1;
            match clinic.up(interval_seconds) {
                Ok(()) => return Ok(clinic),
                // Somebody took a port between our look and the Engine's.
                Err(error) if tried < 4 && taken_port(&error) => {}
                Err(error) => return Err(error.context(clinic.state())),
            }
        }
    }

    fn prepare(registry: &Registry, services: &[&'static str], interval_seconds: u32) -> Result<Self> {
        let home = temporary_dir("clinic")?;
        let project = unique("clinic");
        let dir = home.path().join(&project);
        fs::create_dir(&dir)?;
        let mut file = COMPOSE_FILE.replace("REGISTRY/", &format!("{}/", registry.host()));
        file = file.replace("interval: 10s", &format!("interval: {interval_seconds}s"));
        file = file.replace("interval: 5s", "interval: 1s");
        let mut ports = BTreeMap::new();
        for (service, fixture) in PORTS {
            let mut port = free_port()?;
            while ports.values().any(|taken| *taken == port) {
                port = free_port()?;
            }
            file = file.replace(
                &format!("127.0.0.1:{fixture}:8080"),
                &format!("127.0.0.1:{port}:8080"),
            );
            ports.insert(service, port);
        }
        fs::write(dir.join("docker-compose.yml"), file)?;
        fs::write(dir.join(".env"), ENV_FILE)?;
        Ok(Self {
            project,
            dir,
            services: services.to_vec(),
            ports,
            registry: registry.clone(),
            _home: home,
        })
    }

    fn up(&self, interval_seconds: u32) -> Result<()> {
        // Without `--wait`, which takes 2.5 s longer than asking ourselves.
        self.compose(&["up", "-d", "--quiet-pull"])
            .args(&self.services)
            .text()?;
        for service in &self.services {
            until(&format!("{service} answers"), START_DEADLINE, || {
                Ok((self.get(service, "/health")?.0 == 200).then_some(()))
            })?;
            let is_soon_checked = interval_seconds <= CHECKED_SOON_SECONDS && *service != WITHOUT_HEALTHCHECK;
            if is_soon_checked {
                until(&format!("{service} is healthy"), START_DEADLINE, || {
                    Ok((self.health(service)? == "healthy").then_some(()))
                })?;
            }
        }
        Ok(())
    }

    /// The folder with `docker-compose.yml` and `.env`; its name is the project's.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The Compose project's name.
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The registry that its images come from.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Starts a `docker compose` command in the project's folder, with the registry's login.
    pub fn compose(&self, arguments: &[&str]) -> Run {
        self.registry
            .engine()
            .docker(["compose"])
            .args(arguments)
            .dir(&self.dir)
            .env("DOCKER_CONFIG", self.registry.docker_config())
    }

    /// The Compose file's path.
    pub fn file_path(&self) -> PathBuf {
        self.dir.join("docker-compose.yml")
    }

    /// The Compose file as it is now.
    pub fn file(&self) -> String {
        fs::read_to_string(self.file_path()).unwrap_or_default()
    }

    /// The repository of a service's image, without a tag: `127.0.0.1:PORT/drassistant/NAME`.
    pub fn repository(&self, service: &str) -> String {
        format!("{}/{}", self.registry.host(), repository(service))
    }

    /// The port of 127.0.0.1 that one of the six listens on.
    pub fn port(&self, service: &str) -> Result<u16> {
        self.ports
            .get(service)
            .copied()
            .with_context(|| format!("{service} publishes no port"))
    }

    /// GETs a path of one of the six through its published port.
    pub fn get(&self, service: &str, path: &str) -> Result<(u16, String)> {
        http::get(self.port(service)?, path)
    }

    /// The version that one of the six tells at `/`: what really serves.
    pub fn service_version(&self, service: &str) -> Result<String> {
        let (_, body) = self.get(service, "/")?;
        let identity: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
        let version = identity.get("version").and_then(Value::as_str);
        Ok(version
            .with_context(|| format!("no version in {body}"))?
            .to_owned())
    }

    /// The versions of all that were started, in their order.
    pub fn versions(&self) -> Result<Vec<String>> {
        self.services
            .iter()
            .map(|service| self.service_version(service))
            .collect()
    }

    /// How often a database started on its volume: 1 when nobody touched it.
    pub fn boots(&self, database: &str) -> Result<usize> {
        let identity = ["/service", "healthcheck", "http://127.0.0.1:8080/"];
        let said = self
            .registry
            .engine()
            .docker(["exec", &self.container_id(database)?])
            .args(identity)
            .text()?;
        let boots = said
            .split_once("\"boots\":")
            .and_then(|(_, rest)| rest.split('}').next());
        Ok(boots.with_context(|| format!("no boots in {said}"))?.parse()?)
    }

    /// The newest container of a service, running or not.
    pub fn container_id(&self, service: &str) -> Result<String> {
        container_of(self.registry.engine(), &self.project, service)
    }

    /// The containers of the databases that were started: the same before and after, or somebody touched them.
    pub fn database_ids(&self) -> Vec<String> {
        DATABASES
            .iter()
            .filter_map(|database| self.container_id(database).ok())
            .collect()
    }

    /// `docker inspect` of a service's container.
    pub fn inspect(&self, service: &str) -> Result<Value> {
        let engine = self.registry.engine();
        let text = engine
            .docker(["inspect", "--type", "container", &self.container_id(service)?])
            .text()?;
        let mut all: Vec<Value> = serde_json::from_str(&text)?;
        all.pop().context("docker inspect said nothing")
    }

    /// The id of the image that a service's container runs: the same bytes, whatever tags say.
    pub fn image_id(&self, service: &str) -> Result<String> {
        let container = self.inspect(service)?;
        let image = container.pointer("/Image").and_then(Value::as_str);
        Ok(image.context("a container without an image")?.to_owned())
    }

    /// An image of one of the six: `REPOSITORY:TAG`.
    pub fn image(&self, service: &str, tag: &str) -> String {
        format!("{}:{tag}", self.repository(service))
    }

    /// `SERVICE=REPOSITORY:TAG`, as `push --set` takes it.
    pub fn set_argument(&self, service: &str, tag: &str) -> String {
        format!("{service}={}", self.image(service, tag))
    }

    /// The Engine's word on a service: `healthy`, `unhealthy`, `starting`, or without a healthcheck `running`,
    /// `restarting`, `exited`, ...
    pub fn health(&self, service: &str) -> Result<String> {
        let container = self.inspect(service)?;
        let of = |pointer| {
            container
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        of("/State/Health/Status")
            .or_else(|| of("/State/Status"))
            .context("a container without a state")
    }

    /// Pushes a version of one service that behaves so; returns its digest.
    pub fn push_version(&self, service: &str, mode: Mode, tag: &str) -> Result<String> {
        Image::new(service, tag, mode).build_and_push(&self.registry, &repository(service), tag)
    }

    /// Pushes a good version of all that were started; returns their digests in their order.
    pub fn push_all(&self, tag: &str) -> Result<Vec<String>> {
        let images: Vec<_> = self
            .services
            .iter()
            .map(|service| (repository(service), Image::new(service, tag, Mode::Good)))
            .collect();
        push(&self.registry, &images)
    }

    /// Writes another tag into the file by hand, as an administrator would; nothing is restarted.
    pub fn set_tag(&self, service: &str, tag: &str) -> Result<()> {
        let repository = self.repository(service);
        let file = self.file();
        let rest = file
            .split_once(&format!("{repository}:"))
            .with_context(|| format!("{repository} is not in the file"))?
            .1;
        let old = rest
            .split(['"', '\'', ' ', '\n', '\r'])
            .next()
            .unwrap_or_default();
        let file = file.replace(&format!("{repository}:{old}"), &format!("{repository}:{tag}"));
        Ok(fs::write(self.file_path(), file)?)
    }

    /// All containers with their state and last log lines, for the message of a failed test.
    pub fn state(&self) -> String {
        let said = |run: Run| run.text().unwrap_or_else(|error| format!("{error:#}"));
        let containers = said(self.compose(&["ps", "--all"]));
        let logs = said(self.compose(&["logs", "--no-color", "--tail", "5"]));
        format!(
            "project {} in {}\n{containers}\n{logs}\n{}",
            self.project,
            self.dir.display(),
            self.file()
        )
    }
}

impl Drop for Clinic {
    #[allow(
        clippy::print_stderr,
        reason = "a drop cannot fail, but what it left behind must be known"
    )]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.state());
        }
        if let Err(error) = remove_project(self.registry.engine(), &self.project) {
            eprintln!("failed to remove the project {}: {error:#}", self.project);
        }
    }
}

/// Removes the containers, networks and volumes of a project. By label, so that it works with a file that a test broke
/// and with half-made containers.
pub(crate) fn remove_project(engine: &Engine, project: &str) -> Result<()> {
    let label = format!("label=com.docker.compose.project={project}");
    let remove = |list: &[&str], remove: &[&str]| -> Result<()> {
        let ids = engine.docker(list).args(["--quiet", "--filter", &label]).text()?;
        if ids.is_empty() {
            Ok(())
        } else {
            engine.docker(remove).args(ids.lines()).text().map(drop)
        }
    };
    // Each is tried even when the one before failed.
    let removed = [
        remove(&["ps", "--all"], &["rm", "--force", "--volumes"]),
        remove(&["network", "ls"], &["network", "rm"]),
        remove(&["volume", "ls"], &["volume", "rm", "--force"]),
    ];
    removed.into_iter().collect()
}

/// The newest container of a service of a project, running or not.
pub(crate) fn container_of(engine: &Engine, project: &str, service: &str) -> Result<String> {
    let project = format!("label=com.docker.compose.project={project}");
    let service_label = format!("label=com.docker.compose.service={service}");
    let ids = engine
        .docker(["ps", "--all", "--quiet", "--no-trunc"])
        .args(["--filter", &project, "--filter", &service_label])
        .args(["--filter", "label=com.docker.compose.oneoff=False"])
        .text()?;
    let newest = ids.lines().next();
    Ok(newest
        .with_context(|| format!("{service} has no container"))?
        .to_owned())
}

fn taken_port(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("port is already allocated") || text.contains("address already in use")
}

fn repository(service: &str) -> String {
    format!("drassistant/{service}")
}

fn push_first_version(registry: &Registry, services: &[&'static str]) -> Result<()> {
    let mut images: Vec<_> = services
        .iter()
        .map(|service| {
            (
                repository(service),
                Image::new(service, FIRST_VERSION, Mode::Good),
            )
        })
        .collect();
    for (name, version) in [("postgres", "15"), ("redis", "7")] {
        images.push((
            format!("library/{name}"),
            Image::new(name, version, Mode::Database),
        ));
    }
    push(registry, &images).map(drop)
}

/// Builds and pushes all at once, each tagged with its version; the Engine does the work.
fn push(registry: &Registry, images: &[(String, Image)]) -> Result<Vec<String>> {
    thread::scope(|scope| {
        let pushing: Vec<_> = images
            .iter()
            .map(|(repository, image)| {
                scope.spawn(|| image.build_and_push(registry, repository, &image.version))
            })
            .collect();
        pushing
            .into_iter()
            .map(|one| one.join().map_err(|_| anyhow!("a push panicked"))?)
            .collect()
    })
}
