//! What is known of a project on its host before a deployment: what the plan is made from.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use deploy_proto::image::{Digest, ImageRef};
use deploy_proto::names::ServiceName;
use serde::{Deserialize, Serialize};

use super::base64_bytes;

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
    /// The fixed host ports it publishes.
    pub fixed_ports: Vec<u16>,
    /// What runs.
    pub running: Option<RunningFacts>,
}

/// What a service runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningFacts {
    /// The local image id of its container (of the first, when it is scaled).
    pub image_id: String,
    /// The registry's digest of that image in the service's repository.
    pub digest: Option<Digest>,
    /// The ids of its containers.
    pub containers: Vec<String>,
    /// Whether every container of it runs (or is a one-shot that exited 0) and none is unhealthy.
    pub is_well: bool,
}
