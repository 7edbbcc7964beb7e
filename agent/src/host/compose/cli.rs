//! Calling `docker compose`: found once, always with the project's name, folder and files, a clean environment and a
//! deadline. Its output is never logged: `config` prints secrets in clear.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy_proto::names::{ProjectName, ServiceName};

use crate::config::Project;
use crate::host::process::{self, Output, ProcessError, Program};

use super::ComposeError;
use super::failure::Doing;
use super::model::Model;

/// The oldest Compose whose options are used here (`--progress`).
pub const VERSION_MIN: Version = Version { major: 2, minor: 20 };
/// How long `version` may take: it reads nothing; a host under load takes a second.
const VERSION_DEADLINE: Duration = Duration::from_secs(20);
/// How long `config` may take: it reads files only.
const CONFIG_DEADLINE: Duration = Duration::from_secs(30);
/// Where Docker looks for its plugins, after the configuration folder's `cli-plugins`, best first.
const PLUGIN_FOLDERS: [&str; 4] = [
    "/usr/local/lib/docker/cli-plugins",
    "/usr/local/libexec/docker/cli-plugins",
    "/usr/lib/docker/cli-plugins",
    "/usr/libexec/docker/cli-plugins",
];

/// What Compose may know of the agent's surroundings: nothing else is in its environment, least of all `COMPOSE_*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// `PATH`, for credential helpers and, without the plugin's binary, `docker`.
    pub path: OsString,
    /// `HOME`, which Compose files may use for mounts.
    pub home: PathBuf,
    /// The Engine's socket: `DOCKER_HOST`.
    pub docker_socket: PathBuf,
    /// `DOCKER_CONFIG`.
    pub docker_config_dir: PathBuf,
}

/// A version of Compose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 2 or more.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The Compose of this host.
#[derive(Debug, Clone)]
pub struct Compose {
    binary: PathBuf,
    /// `compose`, when the binary is `docker`.
    first_arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    version: Version,
}

impl Compose {
    /// Finds Compose v2: the plugin's own binary in Docker's folders (20 to 45 ms a call), or else `docker compose`
    /// (50 to 80 ms), or else a `docker-compose` that is v2; and asks for its version.
    ///
    /// # Errors
    /// There is none, only v1, or one older than [`VERSION_MIN`].
    pub async fn find(surroundings: &Surroundings) -> Result<Self, ComposeError> {
        Self::find_in(surroundings, &PLUGIN_FOLDERS).await
    }

    async fn find_in(surroundings: &Surroundings, folders: &[&str]) -> Result<Self, ComposeError> {
        let own = surroundings.docker_config_dir.join("cli-plugins");
        let plugins = std::iter::once(own.as_path())
            .chain(folders.iter().map(Path::new))
            .map(|folder| folder.join("docker-compose"))
            .filter(|path| path.is_file())
            .map(|path| (path, None));
        let by_name = [
            ("docker".into(), Some("compose")),
            ("docker-compose".into(), None),
        ];
        let mut old = None;
        for (binary, first_argument) in plugins.chain(by_name) {
            let mut compose = Self {
                binary,
                first_arguments: first_argument.into_iter().map(OsString::from).collect(),
                environment: environment(surroundings),
                version: VERSION_MIN,
            };
            match compose.ask_version().await? {
                Some(version) if version >= VERSION_MIN => {
                    compose.version = version;
                    return Ok(compose);
                }
                Some(version) => old = old.max(Some(version)),
                None => {}
            }
        }
        match old {
            None => Err(ComposeError::NotInstalled),
            Some(version) if version.major < 2 => Err(ComposeError::OnlyV1),
            Some(found) => Err(ComposeError::TooOld { found }),
        }
    }

    /// The version that was found.
    pub fn version(&self) -> Version {
        self.version
    }

    /// A handle for one project.
    pub fn project(&self, project: &Project) -> ComposeProject {
        let mut arguments = self.first_arguments.clone();
        arguments.extend(["--ansi", "never", "--progress", "plain", "-p"].map(OsString::from));
        arguments.push(project.name.as_str().into());
        arguments.push("--project-directory".into());
        arguments.push(project.dir.clone().into());
        for file in &project.files {
            arguments.push("-f".into());
            arguments.push(project.dir.join(file).into());
        }
        ComposeProject {
            name: project.name.clone(),
            program: Program {
                binary: self.binary.clone(),
                arguments,
                environment: self.environment.clone(),
                dir: project.dir.clone(),
                deadline: CONFIG_DEADLINE,
                input: Vec::new(),
            },
        }
    }

    /// Its version; nothing when it is not there or is not Compose.
    async fn ask_version(&self) -> Result<Option<Version>, ComposeError> {
        let mut arguments = self.first_arguments.clone();
        arguments.extend(["version", "--short"].map(OsString::from));
        let program = Program {
            binary: self.binary.clone(),
            arguments,
            environment: self.environment.clone(),
            dir: PathBuf::from("/"),
            deadline: VERSION_DEADLINE,
            input: Vec::new(),
        };
        match process::run(&program).await {
            Ok(output) => {
                let text = String::from_utf8_lossy(output.stdout.whole().unwrap_or_default()).into_owned();
                Ok(parse_version(&text))
            }
            Err(ProcessError::Start { .. } | ProcessError::Failed { .. }) => Ok(None),
            Err(error @ (ProcessError::Deadline { .. } | ProcessError::Follow { .. })) => Err(error.into()),
        }
    }
}

/// A command to run once.
#[derive(Debug, Clone, Copy)]
pub struct Once<'a> {
    /// The container's name. The Engine gives a name to one container at a time.
    pub container: &'a str,
    /// A label of the container, `NAME=VALUE`.
    pub label: &'a str,
    /// More variables for its environment.
    pub environment: &'a [(String, String)],
    /// What takes the place of the service's `command`; its entrypoint stays.
    pub command: &'a [String],
}

/// The Compose of this host, set to one project.
///
/// Two calls of one project must not run at the same time (`up` against `up` leaves half-made containers): the queue
/// holds the project.
#[derive(Debug, Clone)]
pub struct ComposeProject {
    name: ProjectName,
    program: Program,
}

impl ComposeProject {
    /// The project as Compose resolves it, services of all profiles included.
    ///
    /// Load [`super::Sources`] first: it refuses remote includes, which may write files even on `config`.
    ///
    /// # Errors
    /// Compose does not accept the files, or does not end in time.
    pub async fn config(&self) -> Result<Model, ComposeError> {
        let arguments = ["--profile", "*", "config", "--format", "json"].map(OsString::from);
        let output = self
            .run(Doing::Reading, arguments.into(), CONFIG_DEADLINE)
            .await?;
        let Some(json) = output.stdout.whole() else {
            return Err(ComposeError::ConfigTooLarge);
        };
        let stderr = String::from_utf8_lossy(output.stderr.whole().unwrap_or_default());
        Ok(Model {
            unset_variables: super::failure::unset_variables(&stderr),
            ..Model::parse(json)?
        })
    }

    /// The hash that Compose gives each service's configuration, those of all profiles: the label of a container that is
    /// made together with what it depends on. One that is made alone (`--no-deps`) has another where the service depends
    /// on something (Compose 2.26).
    ///
    /// # Errors
    /// Compose does not accept the files, or does not end in time.
    pub async fn config_hashes(&self) -> Result<BTreeMap<ServiceName, String>, ComposeError> {
        let arguments = ["--profile", "*", "config", "--hash", "*"].map(OsString::from);
        let output = self
            .run(Doing::Reading, arguments.into(), CONFIG_DEADLINE)
            .await?;
        let Some(text) = output.stdout.whole() else {
            return Err(ComposeError::ConfigTooLarge);
        };
        let text = String::from_utf8_lossy(text);
        let hash = |line: &str| {
            let (service, hash) = line.split_once(' ')?;
            Some((service.parse().ok()?, hash.trim().to_owned()))
        };
        Ok(text.lines().filter_map(hash).collect())
    }

    /// Creates and starts new containers for these services and no other, from images that are on the host already.
    /// It returns when they are started, not when they are well. `--no-build`: a `build:` beside the image never runs.
    ///
    /// # Errors
    /// What Compose or the Engine refused, as a sentence. Containers may be half made then.
    pub async fn up(&self, services: &[ServiceName], deadline: Duration) -> Result<(), ComposeError> {
        self.up_with(&[], services, deadline).await
    }

    /// The same, but every container is replaced, also one that is as it should be. One that the Engine is stopping is
    /// waited for, where [`Self::up`] would take it for a running one.
    ///
    /// # Errors
    /// As [`Self::up`].
    pub async fn up_anew(&self, services: &[ServiceName], deadline: Duration) -> Result<(), ComposeError> {
        self.up_with(&["--force-recreate"], services, deadline).await
    }

    async fn up_with(
        &self,
        more: &[&str],
        services: &[ServiceName],
        deadline: Duration,
    ) -> Result<(), ComposeError> {
        if services.is_empty() {
            // Without names it would mean all services.
            return Ok(());
        }
        // `.env` may say COMPOSE_REMOVE_ORPHANS=1, which would remove containers that were not named.
        let only_these = [
            "--no-deps",
            "--no-build",
            "--pull",
            "never",
            "--remove-orphans=false",
        ];
        let options = [&["up", "-d"], only_these.as_slice(), more].concat();
        self.act(&options, services, deadline).await
    }

    /// Stops and removes the containers of these services; their volumes stay.
    ///
    /// # Errors
    /// What Compose or the Engine refused, as a sentence.
    pub async fn remove(&self, services: &[ServiceName], deadline: Duration) -> Result<(), ComposeError> {
        if services.is_empty() {
            return Ok(());
        }
        self.act(&["rm", "--stop", "--force"], services, deadline).await
    }

    /// A command in a fresh container of a service, which goes when it ends. What the service depends on is not started,
    /// and no port is published. Compose would pull an image that is not here: see that it is.
    pub fn run_once(&self, service: &ServiceName, once: &Once<'_>) -> Program {
        let mut program = self.program.clone();
        // What it says of networks and containers would stand among the command's own words.
        let options = [
            "--progress",
            "quiet",
            "run",
            "--rm",
            "--no-deps",
            "-T",
            "--name",
            once.container,
            "--label",
            once.label,
        ];
        program.arguments.extend(options.map(OsString::from));
        for (name, value) in once.environment {
            program.arguments.push("-e".into());
            program.arguments.push(format!("{name}={value}").into());
        }
        program.arguments.push(service.as_str().into());
        program.arguments.extend(once.command.iter().map(OsString::from));
        program
    }

    async fn act(
        &self,
        options: &[&str],
        services: &[ServiceName],
        deadline: Duration,
    ) -> Result<(), ComposeError> {
        let names = services.iter().map(ServiceName::as_str);
        let arguments = options.iter().copied().chain(names).map(OsString::from).collect();
        self.run(Doing::Acting, arguments, deadline).await.map(drop)
    }

    async fn run(
        &self,
        doing: Doing,
        arguments: Vec<OsString>,
        deadline: Duration,
    ) -> Result<Output, ComposeError> {
        let mut program = self.program.clone();
        program.arguments.extend(arguments);
        program.deadline = deadline;
        process::run(&program).await.map_err(|error| match error {
            ProcessError::Failed {
                status, last_lines, ..
            } => ComposeError::Failed {
                project: self.name.clone(),
                status,
                problem: super::failure::explain(doing, &last_lines),
            },
            ProcessError::Start { .. } | ProcessError::Follow { .. } | ProcessError::Deadline { .. } => {
                error.into()
            }
        })
    }
}

fn environment(surroundings: &Surroundings) -> Vec<(OsString, OsString)> {
    let mut host = OsString::from("unix://");
    host.push(&surroundings.docker_socket);
    vec![
        ("PATH".into(), surroundings.path.clone()),
        ("HOME".into(), surroundings.home.clone().into()),
        ("DOCKER_HOST".into(), host),
        (
            "DOCKER_CONFIG".into(),
            surroundings.docker_config_dir.clone().into(),
        ),
    ]
}

/// Reads `2.26.1-4`, `v2.29.7` and their like.
fn parse_version(text: &str) -> Option<Version> {
    let mut numbers = text.trim().trim_start_matches('v').split(['.', '-', '+']);
    let mut number = || numbers.next()?.parse().ok();
    Some(Version {
        major: number()?,
        minor: number()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_compose_and_its_packagers_write_them() {
        for (text, version) in [
            ("2.26.1-4\n", Some((2, 26))),
            ("v2.29.7", Some((2, 29))),
            ("5.0.1", Some((5, 0))),
            ("2.20.0+ds1-1", Some((2, 20))),
            ("1.29.2", Some((1, 29))),
            ("docker: 'compose' is not a docker command.", None),
            ("", None),
        ] {
            let read = parse_version(text).map(|version| (version.major, version.minor));
            assert_eq!(read, version, "{text:?}");
        }
    }

    /// What is found where `PATH` has these of the fixtures' programs, by these names. (Links, because a program that
    /// was just written can be busy while another test forks.)
    async fn found(programs: &[(&str, &str)]) -> Result<(String, Version), ComposeError> {
        let folder = tempfile::tempdir().unwrap();
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose-fixtures/.programs");
        for (name, program) in programs {
            std::os::unix::fs::symlink(fixtures.join(program), folder.path().join(name)).unwrap();
        }
        let surroundings = Surroundings {
            path: folder.path().into(),
            home: folder.path().into(),
            docker_socket: "/nonexistent/docker.sock".into(),
            docker_config_dir: folder.path().join("none"),
        };
        let compose = Compose::find_in(&surroundings, &[]).await?;
        Ok((compose.binary.display().to_string(), compose.version))
    }

    #[tokio::test]
    async fn a_host_without_compose_v2_is_told_what_it_has() {
        let plugin = ("docker", "docker-with-compose");
        let none = ("docker", "docker-without-compose");
        let v1 = ("docker-compose", "compose-v1");
        let ok = found(&[plugin, v1]).await.unwrap();
        assert_eq!(ok, ("docker".to_owned(), Version { major: 2, minor: 26 }));
        let standalone = found(&[none, ("docker-compose", "compose-v2")]).await.unwrap();
        assert_eq!(standalone.0, "docker-compose");
        assert!(matches!(found(&[]).await, Err(ComposeError::NotInstalled)));
        assert!(matches!(found(&[none]).await, Err(ComposeError::NotInstalled)));
        assert!(matches!(found(&[none, v1]).await, Err(ComposeError::OnlyV1)));
        let old = found(&[("docker", "docker-with-old-compose"), v1])
            .await
            .unwrap_err();
        assert_eq!(
            old.to_string(),
            "Docker Compose 2.3 is too old; 2.20 is the oldest that works"
        );
        let problem = deploy_proto::problem::Problem::from(&old);
        assert_eq!(problem.code, deploy_proto::problem::Code::HostUnfit);
        assert!(problem.hint.is_some());
    }
}
