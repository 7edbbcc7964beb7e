//! What is broken: a project of two services, each with its tag in a file of its own, a hook of each kind, and an agent.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deploy_proto::event::{Event, Happened, Outcome};
use deploy_proto::release::{DeploymentView, History, ProjectStatus, ReleaseState};
use deploy_proto::signing::PrivateKey;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::disk::Disk;
use crate::agent::{Agent, Settings};
use crate::command::docker;
use crate::images::{Image, Mode, Registry};
use crate::project::Project;
use crate::until::until;
use crate::wire::{Answer, Events, Message};

/// The services that are deployed. `web` has its tag in the Compose file, `api` in `.env`.
pub const SERVICES: [&str; 2] = ["web", "api"];
/// The service that no deployment may touch.
pub const DATABASE: &str = "db";

const COMPOSE: &str = "# Kept to the byte.
services:
  web:
    image: REGISTRY/acme/web:v1   # the tag is here
    restart: always
  api: {image: 'REGISTRY/acme/api:${API_TAG}', restart: always}
  db:
    image: REGISTRY/acme/db:v1
    volumes: [data:/data]
volumes: {data: {}}
";
const ENV: &str = "# the other tag\nAPI_TAG=v1\nSECRET='x$y'\n";

/// The files that a deployment changes.
pub const FILES: [&str; 2] = ["docker-compose.yml", ".env"];

/// Owner, group and mode of each, none of which a new file would have by itself.
pub const OWNED: [Owned; 2] = [
    Owned {
        owner: 0,
        group: 4321,
        mode: 0o664,
    },
    Owned {
        owner: 1234,
        group: 4321,
        mode: 0o640,
    },
];

/// A hook of each kind; the one in the new image is long enough by what Compose does for it.
const HOOKS: [&str; 3] = [
    "before = \"everything\"\nname = \"backup\"\ncommand = [\"/bin/sleep\", \"0.15\"]",
    "before = \"restart\"\nname = \"migrate\"\nservice = \"web\"\ncommand = [\"print\", \"migrated\"]",
    "after = \"live\"\nname = \"smoke\"\ncommand = [\"/bin/sleep\", \"0.15\"]",
];

/// The versions between which deployments go, and the one that never comes up.
const GOOD: [&str; 2] = ["v1", "v2"];
const BAD: &str = "bad";
/// The version that is well until it is told to die.
const MOODY: &str = "moody";

/// A deployment ends in it, with several restarts of the agent on the way.
const END_DEADLINE: Duration = Duration::from_secs(90);

/// Who may do what with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    owner: u32,
    group: u32,
    mode: u32,
}

/// The images of a run: built once, for all stages.
#[derive(Debug, Clone)]
pub struct Images {
    registry: Registry,
    /// By service and tag.
    digests: Arc<BTreeMap<(String, String), String>>,
}

impl Images {
    /// Builds and pushes them.
    pub fn push(registry: &Registry) -> Result<Self> {
        let mut digests = BTreeMap::new();
        let wanted = [
            ("web", "v1", Mode::Good),
            ("web", "v2", Mode::Good),
            ("web", BAD, Mode::Crash),
            ("web", MOODY, Mode::Moody),
            ("api", "v1", Mode::Good),
            ("api", "v2", Mode::Good),
            (DATABASE, "v1", Mode::Database),
        ];
        for (service, tag, mode) in wanted {
            let digest =
                Image::new(service, tag, mode).build_and_push(registry, &format!("acme/{service}"), tag)?;
            digests.insert((service.to_owned(), tag.to_owned()), digest);
        }
        Ok(Self {
            registry: registry.clone(),
            digests: Arc::new(digests),
        })
    }

    /// The digest of a service's image.
    pub fn digest(&self, service: &str, tag: &str) -> Result<&str> {
        let digest = self.digests.get(&(service.to_owned(), tag.to_owned()));
        digest
            .map(String::as_str)
            .with_context(|| format!("no image {service}:{tag}"))
    }
}

/// What the services run: their tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The tag of `web`.
    pub web: &'static str,
    /// The tag of `api`.
    pub api: &'static str,
}

impl Version {
    const fn both(tag: &'static str) -> Self {
        Self { web: tag, api: tag }
    }

    /// The tag of one service.
    pub fn of(self, service: &str) -> &'static str {
        if service == "web" { self.web } else { self.api }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The other good version.
    Good,
    /// A version of which one service crashes.
    Bad,
    /// The release with the other good version, by a rollback request.
    Rollback,
    /// A version that is well, of which one service dies later.
    Moody,
    /// What drifted from the release that runs brought back: one service was removed.
    Reconcile,
}

/// A deployment that was asked for: what is to come of it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Its id.
    pub id: String,
    /// What ran before.
    pub before: Version,
    /// What was asked for.
    pub target: Version,
    /// What.
    pub ask: Ask,
    path: String,
    body: serde_json::Value,
}

/// A project that runs, an agent, and its caller. All go on drop.
#[derive(Debug)]
pub struct Stage {
    /// The agent. First, so that it ends before its project goes.
    pub agent: Agent,
    /// The project.
    pub project: Project,
    /// The images.
    pub images: Images,
    key: PrivateKey,
    /// What runs.
    pub version: Version,
    /// The container that is not to be touched.
    pub database: String,
    next: u64,
    /// File systems of its own.
    pub disks: Vec<Disk>,
}

impl Stage {
    /// Starts one.
    pub fn start(images: &Images) -> Result<Self> {
        Self::start_on(images, &[], |_| Ok(Vec::new()))
    }

    /// Starts one with more settings of its project, each as TOML, whose folder may be another file system.
    pub fn start_on(
        images: &Images,
        more: &[(&str, &str)],
        disks: fn(&Project) -> Result<Vec<Disk>>,
    ) -> Result<Self> {
        let files: Vec<(&str, &str)> = FILES.into_iter().zip([COMPOSE, ENV]).collect();
        let project = Project::write(&images.registry, &files)?;
        for (name, owned) in FILES.into_iter().zip(OWNED) {
            let path = project.dir().join(name);
            chown(&path, Some(owned.owner), Some(owned.group))?;
            fs::set_permissions(&path, Permissions::from_mode(owned.mode))?;
        }
        let disks = disks(&project)?;
        project.compose(&["up", "-d", "--quiet-pull"]).text()?;
        let database = project.container_id(DATABASE)?;
        let settings = Settings::default()
            .project("settle", "\"200ms\"")
            .project("wait", "\"6s\"")
            .project("order", "\"together\"");
        let settings = more
            .iter()
            .fold(settings, |settings, (key, value)| settings.project(key, value));
        let docker_config = images.registry.docker_config();
        let mut agent = Agent::start_on(project.dir(), project.name(), &docker_config, settings)?;
        agent.set_hooks(&HOOKS.map(str::to_owned))?;
        let key = agent.ctl()?.private_key()?;
        let mut stage = Self {
            agent,
            project,
            images: images.clone(),
            key,
            version: Version::both("v1"),
            database,
            next: 0,
            disks,
        };
        // Both versions are in the history then, so that a rollback has where to go.
        for _ in GOOD {
            let violations = stage.deploys_again()?;
            ensure!(
                violations.is_empty(),
                "before anything was broken: {violations:?}"
            );
        }
        Ok(stage)
    }

    /// A push without any trouble must go live.
    pub fn deploys_again(&mut self) -> Result<Vec<String>> {
        let asked = self.ask(Ask::Good)?;
        let answer = self.send(&asked)?;
        if answer.status != 202 {
            return Ok(vec![format!("the next push is answered {answer:?}")]);
        }
        let violations = super::judge::judge(self, &asked, super::judge::LIVE)?;
        Ok(violations
            .into_iter()
            .map(|violation| format!("the next push: {violation}"))
            .collect())
    }

    /// Puts a request together.
    pub fn ask(&mut self, ask: Ask) -> Result<Asked> {
        self.next += 1;
        let id = format!("{:016x}", self.next);
        let project = self.project.name();
        let other = Version::both(if self.version.api == "v1" { "v2" } else { "v1" });
        let target = match ask {
            Ask::Good | Ask::Rollback => other,
            Ask::Bad => Version { web: BAD, ..other },
            Ask::Moody => Version { web: MOODY, ..other },
            Ask::Reconcile => self.version,
        };
        let (what, body) = match ask {
            Ask::Rollback => (
                "rollbacks",
                json!({ "id": id, "to": { "release": self.release_with(other)? } }),
            ),
            Ask::Reconcile => {
                docker(["rm", "--force", &self.project.container_id("web")?]).text()?;
                ("reconciliations", json!({ "id": id }))
            }
            Ask::Good | Ask::Bad | Ask::Moody => {
                let image = |service: &str| self.project.image(service, target.of(service));
                let images = SERVICES.map(|service| json!({ "service": service, "image": image(service) }));
                ("deployments", json!({ "id": id, "images": images }))
            }
        };
        let path = format!("/v1/projects/{project}/{what}");
        Ok(Asked {
            id,
            before: self.version,
            target,
            ask,
            path,
            body,
        })
    }

    fn release_with(&self, version: Version) -> Result<u32> {
        let history: History = self.get(&format!("/v1/projects/{}/history", self.project.name()))?;
        let is_it = |service: &str, image: &str| {
            !SERVICES.contains(&service)
                || image.contains(&format!("/acme/{service}:{}", version.of(service)))
        };
        let found = history.releases.iter().find(|release| {
            release.state == ReleaseState::Replaced
                && release
                    .services
                    .iter()
                    .all(|one| is_it(one.service.as_str(), &one.image.to_string()))
        });
        Ok(found
            .with_context(|| format!("no release runs {version:?}: {history:?}"))?
            .number
            .0)
    }

    /// Sends a request, and reads the answer.
    pub fn send(&self, asked: &Asked) -> Result<Answer> {
        self.message(asked).send(&self.agent)
    }

    /// The request, signed now.
    pub fn message(&self, asked: &Asked) -> Message {
        Message::post(&self.agent, &asked.path, &asked.body).signed(&self.key)
    }

    /// Asks for a deployment to be cancelled.
    pub fn cancel(&self, asked: &Asked) -> Result<Answer> {
        let path = format!("/v1/deployments/{}/cancel", asked.id);
        Message::post(&self.agent, &path, &json!({}))
            .signed(&self.key)
            .send(&self.agent)
    }

    /// Has `web` die, which runs [`Ask::Moody`]'s version.
    pub fn web_dies(&self) -> Result<()> {
        let web = self.project.container_id("web")?;
        let dead = "http://127.0.0.1:8080/become/dead";
        // It gives no answer: it dies.
        drop(docker(["exec", &web, "/service", "healthcheck", dead]).output()?);
        Ok(())
    }

    /// Asks the agent something.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = Message::get(&self.agent, path)
            .signed(&self.key)
            .send(&self.agent)?;
        ensure!(answer.status == 200, "GET {path}: {answer:?}");
        Ok(serde_json::from_value(answer.json()?)?)
    }

    /// What the agent says of the project.
    pub fn status(&self) -> Result<ProjectStatus> {
        self.get(&format!("/v1/projects/{}/status", self.project.name()))
    }

    /// Follows a deployment.
    pub fn follow(&self, id: &str) -> Result<Events> {
        Events::follow(&self.agent, &self.key, id, None)
    }

    /// The deployment, if the agent has it.
    pub fn knows(&self, id: &str) -> Result<Option<DeploymentView>> {
        let path = format!("/v1/deployments/{id}");
        let answer = Message::get(&self.agent, &path)
            .signed(&self.key)
            .send(&self.agent)?;
        match answer.status {
            200 => Ok(Some(serde_json::from_value(answer.json()?)?)),
            404 => Ok(None),
            _ => Err(anyhow::anyhow!("GET {path}: {answer:?}")),
        }
    }

    /// Waits for the deployment's end; returns its whole journal.
    pub fn end(&self, id: &str) -> Result<(Vec<Event>, Outcome)> {
        until(&format!("{id} ends"), END_DEADLINE, || {
            let events = self.follow(id)?.all()?;
            let outcome = events.iter().find_map(|event| {
                if let Happened::Ended { outcome } = &event.what {
                    return Some(outcome.clone());
                }
                None
            });
            Ok(outcome.map(|outcome| (events, outcome)))
        })
    }

    /// The files as the agent leaves them when a version runs: each tag with its digest.
    pub fn files_of(&self, version: Version) -> Result<[String; 2]> {
        let compose = COMPOSE.replace("REGISTRY", &self.images.registry.host());
        let pinned = |service| -> Result<String> {
            let tag = version.of(service);
            Ok(format!("{tag}@{}", self.images.digest(service, tag)?))
        };
        Ok([
            compose.replace("/acme/web:v1 ", &format!("/acme/web:{} ", pinned("web")?)),
            ENV.replace("API_TAG=v1", &format!("API_TAG={}", pinned("api")?)),
        ])
    }

    /// The files as they are.
    pub fn files(&self) -> Result<[String; 2]> {
        let [compose, env] = FILES;
        Ok([self.project.file(compose)?, self.project.file(env)?])
    }

    /// Whose the files are, and their modes.
    pub fn owned(&self) -> Result<Vec<Owned>> {
        FILES
            .into_iter()
            .map(|name| {
                let file = fs::metadata(self.project.dir().join(name))?;
                Ok(Owned {
                    owner: file.uid(),
                    group: file.gid(),
                    mode: file.mode() & 0o7777,
                })
            })
            .collect()
    }

    /// Every name in the project's folder.
    pub fn names(&self) -> Result<Vec<String>> {
        let entries = fs::read_dir(self.project.dir())?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// All paths that the agent writes: its state's and its project's.
    pub fn paths(&self) -> Vec<PathBuf> {
        let state = self.agent.state_dir();
        let history = [
            "history.db",
            "history.db-wal",
            "history.db-shm",
            "history.db-journal",
        ];
        let mut paths: Vec<PathBuf> = history.iter().map(|name| state.join(name)).collect();
        paths.push(state);
        paths.extend(project_paths(self.project.dir()));
        paths
    }

    /// The last lines that the agent logged in its last starts.
    pub fn last_log(&self) -> String {
        let logs = self.agent.logs();
        let lines: Vec<&str> = logs.lines().collect();
        let skipped = lines.len().saturating_sub(40);
        lines.into_iter().skip(skipped).collect::<Vec<_>>().join("\n")
    }

    /// Starts the agent anew, with all threads that it needs for waiting for disks: no other is begun later.
    pub fn fresh_agent(&mut self) -> Result<()> {
        self.restart()?;
        self.status().map(drop)
    }

    /// Kills the agent if it lives, and starts it anew, with nothing broken.
    pub fn restart(&mut self) -> Result<()> {
        if self.agent.exited()?.is_none() {
            self.agent.kill9()?;
        }
        self.agent.resume()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A folder that is a file system of its own cannot be removed with the agent's: that goes first, and the agent that
        // has files open in it before. It may have ended by itself.
        drop(self.agent.kill9_all());
        self.disks.clear();
    }
}

/// The project's files, what stands beside them while they are replaced, and their folder.
pub fn project_paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths = vec![dir.to_owned()];
    for name in FILES {
        paths.push(dir.join(name));
        paths.push(dir.join(format!(".deploy-agent-{name}.new")));
    }
    paths
}
