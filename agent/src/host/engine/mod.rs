//! The Docker Engine, over its Unix socket: images, containers, logs, events. The only room that names `bollard`.
//!
//! It tells what is and does what it is told; it decides nothing. Every call negotiates the API version once, has a
//! deadline, and answers in our own types.

mod container;
mod credentials;
mod error;
mod events;
mod exec;
mod host;
mod inspect;
mod logs;
mod outages;
mod problem;
mod pull;
mod removal;
mod trouble;

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bollard::{ClientVersion, Docker};
use tokio::sync::Mutex;

use crate::deploy::platform::Platform;
use crate::deploy::verdict::ContainerState;

pub use container::{Container, EngineHealth, Healthcheck};
pub use credentials::{Credential, Logins};
pub use error::{Error, Result};
pub use events::{ContainerEvent, EventKind};
pub use exec::{EXEC_OUTPUT_MAX_BYTES, Ran};
pub use host::Disk;
pub use inspect::{LocalImage, RemovedHalfMade};
pub use pull::{LOOK_UP_LIMIT, PULL_STALL, PullEnd, RemoteImage};
pub use removal::Removed;
pub use trouble::RegistryTrouble;

use outages::{Moment, Outages};

/// How long the Engine may take to answer a question about its own state. Milliseconds as a rule; an Engine that is
/// unpacking large layers onto a slow disk was seen to take seconds.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The oldest API that has what we use: Engine 20.10.
const API_OLDEST: u32 = 41;
/// The newest API that `bollard`'s types were generated for.
const API_NEWEST: u32 = 53;
/// bollard's own limit on the head of an answer. Ours are shorter where it matters; a pull's head comes with its first
/// event, which `pull` waits for by its own limit.
const HEAD_LIMIT_SECONDS: u64 = 600;

/// A handle on the Engine of this host. Cheap to clone; a connection is made for each call.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    socket: PathBuf,
    logins: Logins,
    /// bollard refuses to make a client while the socket does not exist; ours outlives a stopped Engine.
    client: OnceLock<Docker>,
    /// The negotiated minor API version (`1.N`), 0 while it is not known.
    api: Arc<AtomicU32>,
    /// What the host's images must be built for, learned with the version.
    platform: OnceLock<Platform>,
    /// Where the Engine keeps its data, once it was asked.
    root: OnceLock<PathBuf>,
    negotiating: Mutex<()>,
    outages: Outages,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("socket", &self.inner.socket)
            .finish()
    }
}

/// What the Engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its version, for instance `20.10.24+dfsg1`.
    pub engine: String,
    /// The newest API it speaks, for instance `1.41`.
    pub api: String,
    /// What its images must be built for.
    pub platform: Platform,
}

impl Engine {
    /// A handle on the Engine behind this socket. Nothing is opened or read yet: the Engine may be started later.
    ///
    /// # Errors
    /// Only for a path that is not UTF-8.
    pub fn connect(socket: &Path, logins: Logins) -> Result<Self> {
        if socket.to_str().is_none() {
            return Err(Error::SocketPath {
                socket: socket.to_owned(),
            });
        }
        Ok(Self {
            inner: Arc::new(Inner {
                socket: socket.to_owned(),
                logins,
                client: OnceLock::new(),
                api: Arc::new(AtomicU32::new(0)),
                platform: OnceLock::new(),
                root: OnceLock::new(),
                negotiating: Mutex::new(()),
                outages: Outages::none(Moment::now()),
            }),
        })
    }

    /// Asks the Engine for its version and platform.
    pub async fn version(&self) -> Result<Version> {
        let docker = self.client()?;
        let said = self
            .answered("ask the Engine for its version", ANSWER_LIMIT, docker.version())
            .await?;
        Ok(Version {
            engine: said.version.unwrap_or_default(),
            api: said.api_version.unwrap_or_default(),
            platform: Platform::new(&said.os.unwrap_or_default(), &said.arch.unwrap_or_default()),
        })
    }

    /// Asks the Engine whether it is there.
    pub async fn ping(&self) -> Result<()> {
        let docker = self.client()?;
        self.answered("ping the Engine", ANSWER_LIMIT, docker.ping())
            .await?;
        Ok(())
    }

    /// How often, since the agent's start, the Engine was seen to be away: a connection that broke or was refused, or no
    /// answer. A number that stays the same means that containers did not end because the Engine did.
    pub fn outages(&self) -> u64 {
        self.inner.outages.count()
    }

    /// Notes one that shows only elsewhere, in a stream that ended.
    pub fn note_outage(&self) {
        self.inner.outages.note();
    }

    /// Whether a container ended while the Engine was away, as far as that was noticed.
    pub fn took_down(&self, container: &Container) -> bool {
        matches!(container.state, ContainerState::Exited { .. })
            && container
                .finished_at
                .is_some_and(|at| self.inner.outages.include(at))
    }

    /// A client whose requests carry the negotiated version.
    async fn negotiated(&self) -> Result<&Docker> {
        let docker = self.client()?;
        if self.inner.api.load(Ordering::Acquire) == 0 {
            let _turn = self.inner.negotiating.lock().await;
            if self.inner.api.load(Ordering::Acquire) == 0 {
                let version = self.version().await?;
                let api = choose_api(&version)?;
                self.inner.platform.get_or_init(|| version.platform);
                self.inner.api.store(api, Ordering::Release);
            }
        }
        Ok(docker)
    }

    /// Makes one negotiated call with a deadline.
    async fn call<'a, T, F>(
        &'a self,
        doing: &'static str,
        limit: Duration,
        ask: impl FnOnce(&'a Docker) -> F,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, bollard::errors::Error>> + 'a,
    {
        let docker = self.negotiated().await?;
        self.answered(doing, limit, ask(docker)).await
    }

    async fn answered<T>(
        &self,
        doing: &'static str,
        limit: Duration,
        asked: impl Future<Output = std::result::Result<T, bollard::errors::Error>>,
    ) -> Result<T> {
        match tokio::time::timeout(limit, asked).await {
            Ok(Ok(answer)) => {
                self.inner.outages.answered(Moment::now());
                Ok(answer)
            }
            Ok(Err(source)) => Err(self.explained(doing, source)),
            Err(_) => {
                self.note_outage();
                Err(Error::NoAnswer { doing, limit })
            }
        }
    }

    /// Our error for bollard's. An Engine that was replaced by one of another version is negotiated with again.
    fn explained(&self, doing: &'static str, source: bollard::errors::Error) -> Error {
        let error = Error::of_bollard(doing, &self.inner.socket, source);
        if let Error::Refused {
            status: 400, message, ..
        } = &error
            && message.contains("client version")
        {
            self.inner.api.store(0, Ordering::Release);
        }
        if error.is_outage() {
            self.note_outage();
        } else if let Error::Refused { .. } = &error {
            self.inner.outages.answered(Moment::now());
        }
        error
    }

    fn client(&self) -> Result<&Docker> {
        if let Some(docker) = self.inner.client.get() {
            return Ok(docker);
        }
        let path = self.inner.socket.to_str().unwrap_or_default();
        let version = ClientVersion {
            major_version: 1,
            minor_version: API_NEWEST as usize,
        };
        let docker = Docker::connect_with_unix(path, HEAD_LIMIT_SECONDS, &version)
            .map_err(|source| Error::of_bollard("connect to the Engine", &self.inner.socket, source))?;
        let api = Arc::clone(&self.inner.api);
        let repaired = docker.with_request_modifier(move |mut request| {
            if let Some(uri) = versioned(&request.uri().to_string(), api.load(Ordering::Acquire))
                && let Ok(uri) = uri.parse()
            {
                *request.uri_mut() = uri;
            }
            if let Some(value) = request.headers_mut().get_mut("x-registry-auth")
                && let Some(repaired) = value.to_str().ok().map(url_safe)
                && let Ok(repaired) = repaired.parse()
            {
                *value = repaired;
            }
            request
        });
        Ok(self.inner.client.get_or_init(|| repaired))
    }
}

/// The newest API version both sides speak, as the `N` of `1.N`.
fn choose_api(version: &Version) -> Result<u32> {
    let theirs = version
        .api
        .strip_prefix("1.")
        .and_then(|minor| minor.parse::<u32>().ok());
    match theirs {
        Some(minor) if minor >= API_OLDEST => Ok(minor.min(API_NEWEST)),
        Some(_) | None => Err(Error::TooOld {
            engine: version.engine.clone(),
            api: version.api.clone(),
        }),
    }
}

/// bollard 0.21 leaves the version out of the path, so that every Engine answers by its own newest API:
/// `unix://SOCKET/info` becomes `unix://SOCKET/v1.41/info`. None while the version is not known.
fn versioned(uri: &str, api: u32) -> Option<String> {
    if api == 0 {
        return None;
    }
    let (scheme, rest) = uri.split_once("://")?;
    let (socket, path) = rest.split_once('/')?;
    Some(format!("{scheme}://{socket}/v1.{api}/{path}"))
}

/// bollard 0.21 encodes `X-Registry-Auth` with the standard alphabet, Docker decodes the URL-safe one.
fn url_safe(base64: &str) -> String {
    base64.replace('+', "-").replace('/', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_goes_in_front_of_the_path_once_it_is_known() {
        assert_eq!(versioned("unix://2f76/version", 0), None);
        assert_eq!(
            versioned("unix://2f76/containers/json?all=true", 41).as_deref(),
            Some("unix://2f76/v1.41/containers/json?all=true")
        );
    }

    #[test]
    fn the_newest_api_of_both_is_chosen_and_one_that_is_too_old_refused() {
        let of = |api: &str| Version {
            engine: "x".into(),
            api: api.into(),
            platform: Platform {
                os: "linux".into(),
                architecture: "amd64".into(),
            },
        };
        for (theirs, chosen) in [
            ("1.41", Some(41)),
            ("1.53", Some(53)),
            ("1.99", Some(53)),
            ("1.40", None),
            ("2.0", None),
            ("", None),
        ] {
            assert_eq!(choose_api(&of(theirs)).ok(), chosen, "{theirs}");
        }
    }

    #[test]
    fn an_engine_that_is_not_there_yet_is_no_error_until_it_is_asked() {
        let logins = Logins {
            config_dir: "/nonexistent".into(),
            environment: Vec::new(),
        };
        let engine = Engine::connect(Path::new("/nonexistent/docker.sock"), logins).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let error = runtime.block_on(engine.ping()).unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
}
