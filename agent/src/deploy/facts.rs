//! What is known of a project on its host before a deployment: what the plan is made from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use deploy_proto::image::{Digest, ImageRef};
use deploy_proto::names::ServiceName;
use serde::{Deserialize, Serialize};

use super::base64_bytes;
use super::platform::Platform;
use super::ports::{HostPorts, TakenPort};

/// A project on its host, as it is before a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every service of the resolved Compose model.
    pub services: BTreeMap<ServiceName, ServiceFacts>,
    /// Every file that the model is made of, with its bytes.
    pub files: Vec<SourceFile>,
    /// Free bytes where the Engine keeps its images.
    pub free_bytes: u64,
    /// The variables that the model uses and that are set nowhere: Compose takes them as blank.
    pub unset_variables: Vec<String>,
}

/// One file of a project.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Absolute.
    pub path: PathBuf,
    /// All its bytes.
    #[serde(with = "base64_bytes")]
    pub bytes: Vec<u8>,
}

impl fmt::Debug for SourceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// One service, as it is before a deployment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceFacts {
    /// The image that the model names; none when it is only built, or names no valid image.
    pub image: Option<ImageRef>,
    /// Whether it belongs to a profile, and so is not started with the others.
    pub has_profile: bool,
    /// The services it depends on.
    pub depends_on: Vec<ServiceName>,
    /// Whether it has a healthcheck, in the Compose file or (as far as a container shows) in its image.
    pub has_healthcheck: bool,
    /// The host's ports it publishes, but for those that the Engine chooses.
    pub ports: Vec<HostPorts>,
    /// A fixed container name.
    pub container_name: Option<String>,
    /// `platform:`, where the file says it.
    pub platform: Option<String>,
    /// What runs.
    pub running: Option<RunningFacts>,
    /// What its containers hold of the host's ports and give back when they are replaced.
    pub holds: Held,
}

/// What containers hold of the host's ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// What they are configured to publish: a container that the Engine is just starting again has it in a moment.
    pub ports: Vec<HostPorts>,
    /// Whether one shares the host's network, and so listens where it likes.
    pub any: bool,
}

/// What a registry says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offered {
    /// The digest of its tag.
    pub digest: Digest,
    /// What it is built for; empty when that was not asked for.
    pub platforms: Vec<Platform>,
}

/// The host around a project: what the checks before a deployment look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// What images must be built for.
    pub platform: Option<Platform>,
    /// Of each service that is about to change, what is here of its new image.
    pub images: BTreeMap<ServiceName, ImageFacts>,
    /// Every container of this host.
    pub neighbours: Vec<Neighbour>,
    /// The ports that processes listen on, published ones of containers included; none: they cannot be seen from here.
    pub listeners: Option<Vec<TakenPort>>,
    /// The folders that are written to: the edited files', the agent's own.
    pub folders: Vec<FolderFacts>,
}

/// What is on this host of a service's new image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFacts {
    /// It is here, and built for this.
    Here(Platform),
    /// It must be pulled.
    Away {
        /// How large the image is that the service runs now, where it runs one.
        old_bytes: Option<u64>,
    },
}

/// A container, by what it keeps others from having.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its name.
    pub name: String,
    /// The Compose project and service it belongs to; none for what Compose did not make, and for one-off containers.
    pub owner: Option<(String, String)>,
    /// The ports that it has now.
    pub ports: Vec<TakenPort>,
}

/// A folder that is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FolderFacts {
    /// Absolute.
    pub path: PathBuf,
    /// Free bytes there.
    pub free_bytes: u64,
    /// Whether another file can be made: some file systems run out of inodes first.
    pub has_free_files: bool,
    /// Whether it is mounted read-only, for the agent at least.
    pub is_read_only: bool,
}

/// What a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningFacts {
    /// The local image id of its container (of the first, when it is scaled).
    pub image_id: String,
    /// The local image ids of all its containers.
    pub image_ids: BTreeSet<String>,
    /// The registry's digest of that image in the service's repository.
    pub digest: Option<Digest>,
    /// The ids of its containers.
    pub containers: Vec<String>,
    /// What Compose's label says of the configuration that each container was made from.
    pub config_hashes: BTreeSet<String>,
    /// Whether every container of it runs or is being restarted, or is a one-shot that exited 0.
    pub does_run: bool,
    /// Whether every container of it runs (or is a one-shot that exited 0) and none is unhealthy.
    pub is_well: bool,
}

/// What a service of a release was seen to run when the release went live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The local id of its image.
    pub image_id: String,
    /// The hashes of its configuration: that of its container, and the one that Compose gives a container which is made
    /// together with what it depends on. Empty where Compose told none.
    pub config_hashes: BTreeSet<String>,
}
