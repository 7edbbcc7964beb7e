//! Registry credentials of this host, as `docker login` left them: `config.json` and the credential helpers it names.
//! Read anew for each use, for tokens are renewed behind our back. A secret is never shown, logged or kept.
//!
//! Rules: docker/cli v20.10 to v28 `cli/config/configfile/file.go` and `cli/config/credentials`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use deploy_proto::image::registry_host;
use serde::Deserialize;
use tokio::io::AsyncReadExt;

use super::error::shortened;
use super::{Engine, Error, Result};
use crate::host::process::{self, Captured, ProcessError, Program};

/// The largest `config.json` that is read, in bytes; one with a hundred registries has 20 KiB.
const CONFIG_MAX_BYTES: u64 = 1024 * 1024;
/// How long a helper may take: those of the clouds ask a server.
const HELPER_LIMIT: Duration = Duration::from_secs(20);
/// What Docker Hub is called in `config.json`, and to helpers.
const HUB: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What a helper says when it has nothing for a registry (docker-credential-helpers `credentials/error.go`).
const NOT_FOUND: &str = "credentials not found";

/// Where this host keeps its registry logins.
#[derive(Clone)]
pub struct Logins {
    /// The folder with Docker's `config.json`.
    pub config_dir: PathBuf,
    /// The whole environment of credential helpers: `PATH`, `HOME`, and what the clouds' helpers read.
    pub environment: Vec<(OsString, OsString)>,
}

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The environment may hold secrets.
        write!(f, "Logins({})", self.config_dir.display())
    }
}

/// A login for one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    server: String,
    secret: Secret,
}

#[derive(Clone, PartialEq, Eq)]
enum Secret {
    Password { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, [hidden])", self.server)
    }
}

impl From<Credential> for DockerCredentials {
    fn from(credential: Credential) -> Self {
        let to_server = Self {
            serveraddress: Some(credential.server),
            ..Self::default()
        };
        match credential.secret {
            Secret::Password { username, password } => Self {
                username: Some(username),
                password: Some(password),
                ..to_server
            },
            Secret::IdentityToken(token) => Self {
                identitytoken: Some(token),
                ..to_server
            },
            Secret::RegistryToken(token) => Self {
                registrytoken: Some(token),
                ..to_server
            },
        }
    }
}

impl Engine {
    /// This host's login for the registry of a repository; none when it has none.
    ///
    /// # Errors
    /// When `config.json` cannot be read or understood, or its credential helper fails. That a helper has no
    /// credentials is none, as for Docker.
    pub async fn credential_for(&self, repository: &str) -> Result<Option<Credential>> {
        let logins = &self.inner.logins;
        let path = logins.config_dir.join("config.json");
        let Some(text) = read(&path).await? else {
            return Ok(None);
        };
        let unreadable = |reason: &str| Error::Credentials {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        // serde's own words would quote the file.
        let config: DockerConfig =
            serde_json::from_slice(&text).map_err(|_| unreadable("it is not the JSON that Docker writes"))?;
        let server = server_name(repository);
        match config.source(&server) {
            Source::Nothing => Ok(None),
            Source::Stored(login) => login.credential(&server).map_err(unreadable),
            Source::Helper(name) => ask_helper(name, &server, logins).await,
        }
    }
}

/// The name of a repository's registry in `config.json`.
fn server_name(repository: &str) -> String {
    match registry_host(repository) {
        "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        host => host.to_owned(),
    }
}

async fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let unreadable = |reason: String| Error::Credentials {
        path: path.to_owned(),
        reason,
    };
    let file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let mut text = Vec::new();
    file.take(CONFIG_MAX_BYTES + 1)
        .read_to_end(&mut text)
        .await
        .map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > CONFIG_MAX_BYTES {
        return Err(unreadable("it is larger than 1 MiB".to_owned()));
    }
    Ok(Some(text))
}

/// What matters to us of Docker's `config.json`.
#[derive(Default, Deserialize)]
struct DockerConfig {
    auths: Option<HashMap<String, Login>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<HashMap<String, String>>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

/// One entry of `auths`.
#[derive(Default, Deserialize)]
struct Login {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
}

enum Source<'a> {
    Nothing,
    Stored(&'a Login),
    Helper(&'a str),
}

impl DockerConfig {
    /// The registry's own helper, else the store for all, else what stands in the file.
    fn source(&self, server: &str) -> Source<'_> {
        let helper = self.helpers.as_ref().and_then(|helpers| lookup(helpers, server));
        let store = self.store.as_ref().filter(|name| !name.is_empty());
        if let Some(name) = helper.or(store) {
            return Source::Helper(name);
        }
        match self.auths.as_ref().and_then(|auths| lookup(auths, server)) {
            Some(login) => Source::Stored(login),
            None => Source::Nothing,
        }
    }
}

/// The entry of a server: by its exact name, or by one that differs in scheme and path only (`https://host/v1/`).
fn lookup<'a, T>(entries: &'a HashMap<String, T>, server: &str) -> Option<&'a T> {
    let host = |name: &str| -> String {
        let name = name.split_once("://").map_or(name, |(_, rest)| rest);
        let host = name.split('/').next().unwrap_or(name);
        match host {
            "docker.io" | "registry-1.docker.io" => "index.docker.io".to_owned(),
            host => host.to_owned(),
        }
    };
    entries.get(server).or_else(|| {
        let wanted = host(server);
        entries
            .iter()
            .find(|(name, _)| host(name) == wanted)
            .map(|(_, entry)| entry)
    })
}

impl Login {
    /// None for an entry without secrets, which `docker login` leaves beside a store.
    fn credential(&self, server: &str) -> std::result::Result<Option<Credential>, &'static str> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let secret = if let Some(token) = filled(&self.registry_token) {
            Secret::RegistryToken(token)
        } else if let Some(token) = filled(&self.identity_token) {
            Secret::IdentityToken(token)
        } else if let Some(auth) = filled(&self.auth) {
            password(&auth).ok_or("an auth entry is not base64 of USER:PASSWORD")?
        } else if let (Some(username), Some(password)) = (filled(&self.username), filled(&self.password)) {
            Secret::Password { username, password }
        } else {
            return Ok(None);
        };
        Ok(Some(Credential {
            server: server.to_owned(),
            secret,
        }))
    }
}

fn password(auth: &str) -> Option<Secret> {
    let decoded = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some(Secret::Password {
        username: username.to_owned(),
        // Docker fills up with zeros, and takes them off again.
        password: password.trim_matches('\0').to_owned(),
    })
}

/// What a helper prints (docker-credential-helpers `credentials/credentials.go`).
#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

async fn ask_helper(name: &str, server: &str, logins: &Logins) -> Result<Option<Credential>> {
    let program = format!("docker-credential-{name}");
    let failed = |reason: String| Error::Helper {
        program: program.clone(),
        registry: server.to_owned(),
        reason,
    };
    if name.contains('/') || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(failed("this is not the name of a helper".to_owned()));
    }
    let (said, ended_well) = run_helper(&program, server, logins).await.map_err(&failed)?;
    if !ended_well {
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        // Whatever else stands there is an error message: a helper that fails prints no secret.
        return if said.starts_with(NOT_FOUND) || said.contains("not found in native keychain") {
            Ok(None)
        } else {
            Err(failed(shortened(&said)))
        };
    }
    let answer: HelperAnswer = serde_json::from_slice(&said)
        .map_err(|_| failed("it did not print the JSON of a login".to_owned()))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let secret = if answer.username == TOKEN_USER {
        Secret::IdentityToken(answer.secret)
    } else {
        Secret::Password {
            username: answer.username,
            password: answer.secret,
        }
    };
    Ok(Some(Credential {
        server: server.to_owned(),
        secret,
    }))
}

/// Runs `PROGRAM get` with the server's name on its standard input; answers what it printed and whether it ended well.
async fn run_helper(
    program: &str,
    server: &str,
    logins: &Logins,
) -> std::result::Result<(Vec<u8>, bool), String> {
    let helper = Program {
        binary: program.into(),
        arguments: vec!["get".into()],
        environment: logins.environment.clone(),
        dir: "/".into(),
        deadline: HELPER_LIMIT,
        input: server.as_bytes().to_vec(),
    };
    let whole = |stdout: &Captured| {
        stdout
            .whole()
            .map(<[u8]>::to_vec)
            .ok_or("it prints too much".to_owned())
    };
    match process::run(&helper).await {
        Ok(output) => Ok((whole(&output.stdout)?, true)),
        Err(ProcessError::Failed {
            stdout, last_lines, ..
        }) => {
            // Helpers print their errors to either stream.
            let said = whole(&stdout)?;
            let silent = said.trim_ascii().is_empty();
            Ok((
                if silent {
                    last_lines.join(" | ").into_bytes()
                } else {
                    said
                },
                false,
            ))
        }
        Err(
            error
            @ (ProcessError::Start { .. } | ProcessError::Follow { .. } | ProcessError::Deadline { .. }),
        ) => Err(match std::error::Error::source(&error) {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        }),
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
