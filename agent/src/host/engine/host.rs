//! What the Engine's machine is and has: its platform, the free space under Docker's root, the names and ports taken.

use std::path::{Path, PathBuf};

use bollard::models::ContainerSummary;
use bollard::query_parameters::ListContainersOptionsBuilder;

use super::container::{ONE_OFF_LABEL, PROJECT_LABEL, SERVICE_LABEL};
use super::{ANSWER_LIMIT, Engine, Error, Result};
use crate::deploy::facts::Neighbour;
use crate::deploy::platform::Platform;
use crate::deploy::ports::TakenPort;

/// The file system that holds Docker's images and containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Docker's root directory, `/var/lib/docker`.
    pub root: PathBuf,
    /// Bytes that a process without privileges may still use.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

impl Engine {
    /// What this host's images must be built for.
    pub async fn host_platform(&self) -> Result<Platform> {
        self.negotiated().await?;
        self.inner.platform.get().cloned().ok_or(Error::Lacking {
            doing: "ask the Engine for its platform",
            what: "Os and Arch",
        })
    }

    /// How much room is left where Docker keeps images.
    pub async fn disk_free(&self) -> Result<Disk> {
        if let Some(root) = self.inner.root.get()
            && let Ok(disk) = free_of(root)
        {
            return Ok(disk);
        }
        let info = self
            .call(
                "ask the Engine for its root directory",
                ANSWER_LIMIT,
                bollard::Docker::info,
            )
            .await?;
        let root = info
            .docker_root_dir
            .filter(|root| !root.is_empty())
            .ok_or(Error::Lacking {
                doing: "ask the Engine for its root directory",
                what: "DockerRootDir",
            })?;
        let root = PathBuf::from(root);
        let disk = free_of(&root)?;
        // Asked once, for `info` counts every image and container: 10 to 17 ms, twice in a deployment. A folder that the
        // Engine leaves while the agent runs is asked for anew when it is gone.
        drop(self.inner.root.set(root));
        Ok(disk)
    }

    /// Every container of this host, running or not, with its name and the ports it has now.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let all = self
            .call("list all containers", ANSWER_LIMIT, |docker| {
                docker.list_containers(Some(options))
            })
            .await?;
        Ok(all.into_iter().map(neighbour).collect())
    }
}

fn free_of(root: &Path) -> Result<Disk> {
    let stat = rustix::fs::statvfs(root).map_err(|errno| Error::Disk {
        path: root.to_owned(),
        source: errno.into(),
    })?;
    Ok(Disk {
        root: root.to_owned(),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

fn neighbour(summary: ContainerSummary) -> Neighbour {
    let labels = summary.labels.unwrap_or_default();
    let is_one_off = labels
        .get(ONE_OFF_LABEL)
        .is_some_and(|word| word.eq_ignore_ascii_case("true"));
    let owner = labels
        .get(PROJECT_LABEL)
        .cloned()
        .zip(labels.get(SERVICE_LABEL).cloned());
    let name = summary
        .names
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default();
    let ports = summary.ports.unwrap_or_default().into_iter().filter_map(|port| {
        let protocol = port.typ.map(|typ| typ.to_string()).unwrap_or_default();
        Some(TakenPort::read(
            &port.ip.unwrap_or_default(),
            port.public_port?,
            &protocol,
        ))
    });
    Neighbour {
        name: name.trim_start_matches('/').to_owned(),
        owner: owner.filter(|_| !is_one_off),
        ports: ports.collect(),
    }
}
