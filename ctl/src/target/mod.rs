//! Which hosts, which project, whose pin: the arguments and `deploy.toml` together become a [`Target`].

pub(crate) mod file;
pub(crate) mod host;
pub(crate) mod mistake;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deploy_proto::names::{ProjectName, ServiceName};

use crate::caller::Caller;
use crate::cli::Globals;
use crate::pin::{BadPin, Pin};
use file::{DeployFile, Environment};
use host::{BadHost, Host, HostUrl};
use mistake::{Mistakes, did_you_mean};

/// The file that is searched from the current folder upward.
pub(crate) const FILE_NAME: &str = "deploy.toml";
/// The largest `deploy.toml` that is read, in bytes; a hundred environments are about 20 KiB.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// Where a command goes.
#[derive(Debug)]
pub(crate) struct Target {
    /// The Compose project; needed by all commands but `watch` and `version`.
    project: Option<ProjectName>,
    /// The environment's name, when the hosts are one's.
    pub(crate) environment: Option<String>,
    /// One or more hosts, in the order of the rollout.
    pub(crate) hosts: Vec<Host>,
    /// The keys that the agents may present; none: the system's roots decide.
    pub(crate) pins: Vec<Pin>,
    /// Whether a person must say yes before anything is deployed there.
    pub(crate) confirm: bool,
    /// `[images]` of deploy.toml: the repository of each service.
    pub(crate) images: BTreeMap<ServiceName, String>,
}

/// Why the arguments and `deploy.toml` do not name a target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("failed to read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than {FILE_MAX_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("{0}")]
    Mistakes(Mistakes),
    #[error("no environment is named {name:?}")]
    UnknownEnvironment { name: String, hint: String },
    #[error("an environment is needed")]
    WhichEnvironment { hint: String },
    #[error("there is no host to talk to")]
    NoHost,
    #[error("an environment is named, but there is no {FILE_NAME} here or in a folder above")]
    NoFile,
    #[error("--host {text} is not a host")]
    Host {
        text: String,
        #[source]
        source: BadHost,
    },
    #[error("DEPLOYCTL_PIN is not a pin")]
    Pin(#[source] BadPin),
    #[error("the project is not known")]
    NoProject,
}

impl TargetError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } | Self::TooLarge { .. } | Self::Mistakes(_) => None,
            Self::UnknownEnvironment { hint, .. } | Self::WhichEnvironment { hint } => Some(hint.clone()),
            Self::NoHost => Some(format!(
                "name an environment of {FILE_NAME} with -e, or a host with --host https://HOST:8443"
            )),
            Self::NoFile => Some("go to the repository that has it, or name it with --file".to_owned()),
            Self::Host { source, .. } => Some(source.hint()),
            Self::Pin(_) => Some("print it on the host with: deploy-agent pin".to_owned()),
            Self::NoProject => Some(format!(
                "set project = \"NAME\" in {FILE_NAME}, or give --project NAME"
            )),
        }
    }
}

impl Target {
    /// Puts arguments, environment variables and `deploy.toml` together; the more specific wins.
    pub(crate) fn resolve(globals: &Globals, caller: &Caller) -> Result<Self, TargetError> {
        let file = find_file(globals, caller)?;
        let environment = choose_environment(globals, file.as_ref())?;
        let hosts = choose_hosts(globals, environment)?;
        let (name, settings) = environment.unzip();
        let from_caller = match globals.pins.as_slice() {
            [] => Pin::parse_list(caller.pins_text.as_deref().unwrap_or("")).map_err(TargetError::Pin)?,
            given => given.to_vec(),
        };
        let pins = [
            Some(&from_caller),
            settings.map(|settings| &settings.pins),
            file.as_ref().map(|file| &file.pins),
        ];
        let pins = pins
            .into_iter()
            .flatten()
            .find(|pins| !pins.is_empty())
            .cloned()
            .unwrap_or_default();
        let projects = [
            globals.project.as_ref(),
            settings.and_then(|settings| settings.project.as_ref()),
            file.as_ref().and_then(|file| file.project.as_ref()),
        ];
        Ok(Self {
            project: projects.into_iter().flatten().next().cloned(),
            environment: name.cloned(),
            hosts,
            pins,
            confirm: settings.is_some_and(|settings| settings.confirm),
            images: file.as_ref().map(|file| file.images.clone()).unwrap_or_default(),
        })
    }

    /// The project, for the commands that need one.
    pub(crate) fn project(&self) -> Result<&ProjectName, TargetError> {
        self.project.as_ref().ok_or(TargetError::NoProject)
    }

    /// What a person calls the place: the environment, else the host.
    pub(crate) fn place(&self) -> &str {
        match (&self.environment, self.hosts.as_slice()) {
            (Some(name), _) => name,
            (None, [host]) => &host.name,
            (None, _) => "the hosts",
        }
    }

    /// The arguments that lead here again, for the commands that are suggested: ` -e production`.
    pub(crate) fn arguments(&self) -> String {
        match &self.environment {
            Some(name) => format!(" -e {name}"),
            None => self
                .hosts
                .iter()
                .map(|host| format!(" --host {}", host.url))
                .chain(self.project.iter().map(|project| format!(" --project {project}")))
                .collect(),
        }
    }

    /// The arguments that lead to one of its hosts alone.
    pub(crate) fn arguments_of(&self, host: &Host) -> String {
        let environment = self.environment.iter().map(|name| format!(" -e {name}"));
        // An environment names its project.
        let project = match &self.environment {
            Some(_) => None,
            None => self.project.as_ref(),
        };
        environment
            .chain([format!(" --host {}", host.url)])
            .chain(project.map(|project| format!(" --project {project}")))
            .collect()
    }
}

/// The project that `deploy.toml` or the arguments name, when they do: for texts that only suggest.
pub(crate) fn likely_project(globals: &Globals, caller: &Caller) -> Option<ProjectName> {
    globals.project.clone().or_else(|| {
        find_file(globals, caller)
            .ok()
            .flatten()
            .and_then(|file| file.project)
    })
}

fn find_file(globals: &Globals, caller: &Caller) -> Result<Option<DeployFile>, TargetError> {
    let path = match &globals.file {
        Some(path) => path.clone(),
        None => {
            let above = caller.directory.ancestors().map(|dir| dir.join(FILE_NAME));
            match above.into_iter().find(|path| path.is_file()) {
                Some(path) => path,
                None => return Ok(None),
            }
        }
    };
    let text = read_file(&path)?;
    let shown = path.strip_prefix(&caller.directory).unwrap_or(&path);
    DeployFile::parse(&text)
        .map(Some)
        .map_err(|mistakes| TargetError::Mistakes(Mistakes::new(shown, mistakes)))
}

fn read_file(path: &Path) -> Result<String, TargetError> {
    let read_error = |source| TargetError::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(read_error)?.len() > FILE_MAX_BYTES {
        return Err(TargetError::TooLarge {
            path: path.to_owned(),
        });
    }
    std::fs::read_to_string(path).map_err(read_error)
}

/// The environment that is named; or the only one there is, when no host is named either.
fn choose_environment<'a>(
    globals: &Globals,
    file: Option<&'a DeployFile>,
) -> Result<Option<(&'a String, &'a Environment)>, TargetError> {
    let Some(file) = file else {
        return match globals.environment {
            Some(_) => Err(TargetError::NoFile),
            None => Ok(None),
        };
    };
    let names = || file.environments.keys().map(String::as_str);
    match &globals.environment {
        Some(name) => match file.environments.get_key_value(name) {
            Some(found) => Ok(Some(found)),
            None => Err(TargetError::UnknownEnvironment {
                name: name.clone(),
                hint: did_you_mean(name, names()).unwrap_or_else(|| one_of(names())),
            }),
        },
        None if !globals.hosts.is_empty() => Ok(None),
        None => match file.environments.len() {
            0 => Ok(None),
            1 => Ok(file.environments.iter().next()),
            _ => Err(TargetError::WhichEnvironment {
                hint: one_of(names()),
            }),
        },
    }
}

fn one_of<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.collect();
    if names.is_empty() {
        format!("{FILE_NAME} has none: add [environment.NAME] with hosts = [\"https://HOST:8443\"]")
    } else {
        format!("choose one with -e: {}", names.join(", "))
    }
}

/// `--host` when given, as an address or as the name of one of the environment's hosts; else the environment's hosts.
fn choose_hosts(
    globals: &Globals,
    environment: Option<(&String, &Environment)>,
) -> Result<Vec<Host>, TargetError> {
    let listed = environment.map_or(Vec::new(), |(_, settings)| Host::name_all(&settings.hosts));
    if globals.hosts.is_empty() {
        return if listed.is_empty() {
            Err(TargetError::NoHost)
        } else {
            Ok(listed)
        };
    }
    let mut urls = Vec::new();
    for text in &globals.hosts {
        let url = match listed.iter().find(|host| host.name == *text) {
            Some(host) => host.url.clone(),
            None => text.parse::<HostUrl>().map_err(|source| TargetError::Host {
                text: text.clone(),
                source,
            })?,
        };
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok(Host::name_all(&urls))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    const FILE: &str = r#"
project = "shop"
pin = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
[images]
web = "ghcr.io/acme/shop-web"
[environment.staging]
hosts = ["https://stage.example.com"]
project = "shop-staging"
[environment.production]
hosts = ["https://web-1.example.com:8443", "https://web-2.example.com:8443"]
confirm = true
pin = ["sha256//BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA="]
"#;

    fn resolve(arguments: &str, file: Option<&str>, pins_text: Option<&str>) -> Result<Target, TargetError> {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        if let Some(text) = file {
            use std::io::Write as _;
            let mut out = std::fs::File::create(folder.path().join(FILE_NAME)).unwrap();
            out.write_all(text.as_bytes()).unwrap();
        }
        let caller = Caller {
            directory: below,
            pins_text: pins_text.map(str::to_owned),
            ..Caller::default()
        };
        let line = format!("deployctl status {arguments}");
        Target::resolve(
            &Cli::try_parse_from(line.split_whitespace()).unwrap().globals,
            &caller,
        )
    }

    fn names(target: &Target) -> Vec<&str> {
        target.hosts.iter().map(|host| host.name.as_str()).collect()
    }

    #[test]
    fn an_environment_of_a_file_above_names_hosts_project_and_pins() {
        let target = resolve("-e production", Some(FILE), None).unwrap();
        assert_eq!(names(&target), ["web-1", "web-2"]);
        assert_eq!(target.project().unwrap().as_str(), "shop");
        assert!(target.confirm);
        assert!(target.pins.first().unwrap().to_string().contains("BBBB"));
        assert_eq!(target.arguments(), " -e production");

        let staging = resolve("-e staging", Some(FILE), None).unwrap();
        assert_eq!(staging.project().unwrap().as_str(), "shop-staging");
        assert!(staging.pins.first().unwrap().to_string().contains("AAAA"));
    }

    #[test]
    fn arguments_win_over_variables_and_those_over_the_file() {
        let c = "sha256//CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCA=";
        let d = "sha256//DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDA=";
        let target = resolve("-e production", Some(FILE), Some(c)).unwrap();
        assert_eq!(target.pins.first().unwrap().to_string(), c);
        let target = resolve(
            &format!("-e production --pin {d} --project other"),
            Some(FILE),
            Some(c),
        )
        .unwrap();
        assert_eq!(target.pins.first().unwrap().to_string(), d);
        assert_eq!(target.project().unwrap().as_str(), "other");
    }

    #[test]
    fn a_host_is_an_address_or_a_name_in_the_environment() {
        let target = resolve("-e production --host web-2", Some(FILE), None).unwrap();
        assert_eq!(names(&target), ["web-2"]);
        assert_eq!(
            target.arguments_of(target.hosts.first().unwrap()),
            " -e production --host https://web-2.example.com:8443"
        );
        let target = resolve("--host https://127.0.0.1:9 --project x", None, None).unwrap();
        assert_eq!(names(&target), ["127.0.0.1:9"]);
        assert_eq!(target.arguments(), " --host https://127.0.0.1:9 --project x");
        let error = resolve("-e production --host web-3", Some(FILE), None).unwrap_err();
        assert!(matches!(error, TargetError::Host { .. }), "{error}");
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_type() {
        for (arguments, file, error, hint) in [
            (
                "-e prodution",
                Some(FILE),
                "no environment is named \"prodution\"",
                "did you mean \"production\"?",
            ),
            (
                "-e x",
                Some(FILE),
                "no environment is named \"x\"",
                "choose one with -e: production, staging",
            ),
            (
                "",
                Some(FILE),
                "an environment is needed",
                "choose one with -e: production, staging",
            ),
            (
                "",
                None,
                "there is no host to talk to",
                "name an environment of deploy.toml with -e, or a host with --host https://HOST:8443",
            ),
            (
                "-e x",
                None,
                "an environment is named, but there is no deploy.toml here or in a folder above",
                "go to the repository that has it, or name it with --file",
            ),
            (
                "--host http://a",
                None,
                "--host http://a is not a host",
                "agents speak TLS only: https://a",
            ),
        ] {
            let failed = resolve(arguments, file, None).unwrap_err();
            assert_eq!(
                (failed.to_string().as_str(), failed.hint().as_deref()),
                (error, Some(hint)),
                "{arguments}"
            );
        }
        let target = resolve("--host https://a", None, None).unwrap();
        assert!(matches!(target.project(), Err(TargetError::NoProject)));
        assert!(matches!(
            resolve("--host https://a", None, Some("abc")),
            Err(TargetError::Pin(_))
        ));
    }
}
