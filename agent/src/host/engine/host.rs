//! What the Engine's machine is and has: its platform, the free space under Docker's root, the names and ports taken.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerSummary, ContainerSummaryStateEnum};
use bollard::query_parameters::ListContainersOptionsBuilder;

use super::container::{PROJECT_LABEL, SERVICE_LABEL};
use super::{ANSWER_LIMIT, Engine, Error, Result};

/// What an image is built for, or a host is: `linux/amd64`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// The operating system in Go's words: `linux`.
    pub os: String,
    /// The architecture in Go's words: `amd64`, `arm64`.
    pub architecture: String,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Platform {
    /// Whether it says what it is for; the attestations beside images do not.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.architecture.as_str(), "" | "unknown")
    }

    /// Whether a host of this platform runs an image of that one: the same, or its 32-bit forerunner.
    pub fn runs(&self, image: &Self) -> bool {
        let forerunner = matches!(
            (self.architecture.as_str(), image.architecture.as_str()),
            ("amd64", "386") | ("arm64", "arm")
        );
        self.os == image.os && (self.architecture == image.architecture || forerunner)
    }
}

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

/// A container of anybody's, by what it keeps others from having.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occupied {
    /// Its name, without the slash.
    pub name: String,
    /// The Compose project it belongs to.
    pub project: Option<String>,
    /// The Compose service.
    pub service: Option<String>,
    /// Whether it runs, so that its ports are taken now.
    pub running: bool,
    /// The ports it publishes; empty when it does not run.
    pub ports: Vec<PublishedPort>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedPort {
    /// The host's address it is bound to, `0.0.0.0` for all.
    pub address: String,
    /// The port on the host.
    pub port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
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

    /// Every container of this host, running or not, with its name and published ports.
    pub async fn occupied(&self) -> Result<Vec<Occupied>> {
        let options = ListContainersOptionsBuilder::new().all(true).build();
        let all = self
            .call("list all containers", ANSWER_LIMIT, |docker| {
                docker.list_containers(Some(options))
            })
            .await?;
        Ok(all.into_iter().map(occupied).collect())
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

fn occupied(summary: ContainerSummary) -> Occupied {
    let labels = summary.labels.unwrap_or_default();
    let name = summary
        .names
        .unwrap_or_default()
        .into_iter()
        .next()
        .unwrap_or_default();
    // One published port is listed once for IPv4 and once for IPv6.
    let ports: BTreeMap<PublishedPort, ()> = summary
        .ports
        .unwrap_or_default()
        .into_iter()
        .filter_map(|port| {
            let published = PublishedPort {
                address: port.ip.unwrap_or_default(),
                port: port.public_port?,
                protocol: port.typ.map(|typ| typ.to_string()).unwrap_or_default(),
            };
            Some((published, ()))
        })
        .collect();
    Occupied {
        name: name.trim_start_matches('/').to_owned(),
        project: labels.get(PROJECT_LABEL).cloned(),
        service: labels.get(SERVICE_LABEL).cloned(),
        running: summary.state == Some(ContainerSummaryStateEnum::RUNNING),
        ports: ports.into_keys().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_runs_its_own_platform_and_the_32_bit_one_before_it() {
        let of = |text: &str| {
            let (os, architecture) = text.split_once('/').unwrap();
            Platform {
                os: os.into(),
                architecture: architecture.into(),
            }
        };
        for (host, image, runs) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/amd64", "linux/386", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/arm64", "linux/arm", true),
            ("linux/arm64", "linux/amd64", false),
            ("linux/amd64", "windows/amd64", false),
        ] {
            assert_eq!(of(host).runs(&of(image)), runs, "{image} on {host}");
        }
    }
}
