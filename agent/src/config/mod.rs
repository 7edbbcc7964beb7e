//! What the operator decided: the parsed, checked configuration that the rest of the agent works with.
//!
//! `file` reads a TOML file with the place of everything in it, `agent_file` and `project_file` know the shapes and turn
//! them into these types, and every mistake of every file is reported at once. After that nothing re-checks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use deploy_proto::names::{KeyName, ProjectName, ServiceName};
use deploy_proto::signing::PublicKey;
use jiff::Timestamp;

pub(crate) mod access;
mod agent_file;
mod file;
mod hook_table;
mod load;
mod mistake;
mod project_file;
mod table;
#[cfg(test)]
mod tests;
mod values;

pub use agent_file::DEFAULT_DOCKER_SOCKET;
pub use load::{
    AGENT_FILE, DEFAULT_FOLDER, PROJECTS_FOLDER, ServerPart, load, load_at_start, load_server, read_project,
};
pub use mistake::{Excerpt, Mistake, MistakeKind, Mistakes};

/// The whole configuration: `agent.toml` and every `projects.d/*.toml`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the signed API listens, and as whom.
    pub server: Server,
    /// Where monitoring is served, read-only; loopback unless told otherwise.
    pub monitor: SocketAddr,
    /// The folder of the database and the TLS key: `/var/lib/deploy-agent`.
    pub state_dir: PathBuf,
    /// The Engine's socket: `/var/run/docker.sock`.
    pub docker_socket: PathBuf,
    /// The folder with Docker's `config.json` for registry credentials: `/root/.docker`.
    pub docker_config_dir: PathBuf,
    /// The callers' keys; never empty.
    pub keys: Vec<Key>,
    /// The projects by name.
    pub projects: BTreeMap<ProjectName, Project>,
}

/// The signed API.
#[derive(Debug, Clone)]
pub struct Server {
    /// The address and port to bind.
    pub listen: SocketAddr,
    /// What a request's `@authority` may say; never empty. A name without a port stands for any port.
    pub names: Vec<String>,
    /// The operator's own certificate chain and key (PEM); without it the agent makes a self-signed one.
    pub tls: Option<TlsFiles>,
}

/// The operator's own certificate.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The key, readable by the agent only.
    pub key: PathBuf,
}

/// All of a kind, or these only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope<T> {
    /// Written `["*"]`.
    All,
    /// These only.
    Only(Vec<T>),
}

impl<T: PartialEq> Scope<T> {
    /// Whether the scope contains it.
    pub fn contains(&self, item: &T) -> bool {
        match self {
            Self::All => true,
            Self::Only(items) => items.contains(item),
        }
    }
}

/// A caller's key, and what it may do on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name, the `keyid` of its signatures; no two keys have the same.
    pub name: KeyName,
    /// The public half; no two keys have the same.
    pub public: PublicKey,
    /// The projects it may touch.
    pub projects: Scope<ProjectName>,
    /// The services it may change, and read the logs of, in them.
    pub services: Scope<ServiceName>,
    /// What it may do; never empty.
    pub allow: Vec<Action>,
    /// The first moment at which it is not taken any more: for a date, the end of that day in UTC.
    pub expires: Option<Timestamp>,
}

/// What a key may do. `status` covers status, history, health and following deployments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Push new images (and plan to).
    Push,
    /// Go back to an earlier release (and plan to).
    Rollback,
    /// Read status, history, health and events.
    Status,
    /// Read the logs of services.
    Logs,
}

impl Action {
    /// Every action, in the order in which they are shown.
    pub const ALL: [Self; 4] = [Self::Push, Self::Rollback, Self::Status, Self::Logs];

    /// The word in `allow = [...]`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Rollback => "rollback",
            Self::Status => "status",
            Self::Logs => "logs",
        }
    }
}

/// One Compose project on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Project {
    /// Its name, passed to Compose as `-p`.
    pub name: ProjectName,
    /// Its directory, absolute and resolved (no symbolic link in it); as it is written when it was not there at start.
    pub dir: PathBuf,
    /// The Compose files, relative to `dir` or absolute; empty: what Compose itself finds (`COMPOSE_FILE` in `.env`,
    /// `compose.yaml`, ..., with the override file).
    pub files: Vec<PathBuf>,
    /// The image repositories that may be deployed; `*` stands for any run of characters but `/`.
    pub images: Vec<String>,
    /// Whether `latest` and untagged images may be deployed.
    pub allow_latest: bool,
    /// How a new image is written into the Compose file.
    pub pin: Pin,
    /// How several services are restarted.
    pub order: Order,
    /// How long a service may take to become healthy.
    pub wait: Duration,
    /// How long it must stay well.
    pub settle: Duration,
    /// How long a release that went live is watched, and goes back by itself if it falls sick; zero: not at all.
    pub bake: Duration,
    /// How many successful releases can be rolled back to without a registry: their images stay on the host.
    pub keep: u32,
    /// Whether the images of older releases are removed after a deployment.
    pub remove_images: bool,
    /// Free bytes that must remain on Docker's file system after a pull.
    pub min_free_bytes: u64,
    /// Checks from outside the containers.
    pub probes: Vec<Probe>,
    /// Commands that run beside a deployment, in the order of the file.
    pub hooks: Vec<Hook>,
}

/// A command that runs beside a deployment. It comes from this file only, never from a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// What people call it; no two hooks of a project have the same.
    pub name: String,
    /// When it runs.
    pub moment: HookMoment,
    /// The service in whose new image it runs; none: on the host, as the agent's user. Never with
    /// [`HookMoment::BeforeEverything`].
    pub service: Option<ServiceName>,
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// How long it may take.
    pub deadline: Duration,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookMoment {
    /// `before = "everything"`: before anything is changed; its failure refuses.
    BeforeEverything,
    /// `before = "restart"`: before the first container is replaced; its failure rolls back.
    BeforeRestart {
        /// Whether what it does cannot be undone: from it on nothing is rolled back by itself.
        is_irreversible: bool,
    },
    /// `after = "live"`: when all services are well; its failure rolls back.
    AfterLive,
}

impl HookMoment {
    /// The moment as it is written: `before = "restart"`.
    pub fn as_written(self) -> &'static str {
        match self {
            Self::BeforeEverything => "before = \"everything\"",
            Self::BeforeRestart { .. } => "before = \"restart\"",
            Self::AfterLive => "after = \"live\"",
        }
    }
}

/// How a new image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// `repo:tag@sha256:...`: a later `docker compose up` by hand starts the very same image.
    Digest,
    /// `repo:tag` only; the release still records the digest.
    Tag,
}

/// How several services are restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One `docker compose up` for all: faster in all, and every service is away for the whole of it.
    Together,
    /// One after the other in dependency order, each well before the next is touched.
    OneByOne,
}

/// A check of a service from outside its container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The service.
    pub service: ServiceName,
    /// What is asked.
    pub check: ProbeCheck,
    /// How long one try may take.
    pub timeout: Duration,
}

/// What a probe asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeCheck {
    /// A GET that must be answered with this status, or any 2xx when none is given.
    Http {
        /// `http://` or `https://` (any certificate is taken for an address on loopback only).
        url: String,
        /// The status.
        status: Option<u16>,
    },
    /// A connection that must be accepted: `HOST:PORT`.
    Tcp {
        /// The address.
        address: String,
    },
}
