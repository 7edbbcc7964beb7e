//! What a project is, as `docker compose config` resolves it, without its secrets. Pure.
//!
//! Everything that is not needed in clear is kept as a SHA-256 per key, so that two models can be compared and the
//! difference be named, and no environment variable or password stays in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use deploy_proto::names::{BadName, ServiceName};
use ring::digest::{Context, SHA256};
use serde_json::Value;

/// What a container gets between SIGTERM and SIGKILL where its service says nothing (Compose specification,
/// `stop_grace_period`).
const STOP_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// A project as Compose sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its services, those of inactive profiles included.
    pub services: BTreeMap<ServiceName, ComposeService>,
    /// The rest (networks, volumes, configs, ...; no extension fields), a fingerprint for each key.
    pub rest: BTreeMap<String, Fingerprint>,
    /// The variables that are set nowhere and that Compose took as blank.
    pub unset_variables: BTreeSet<String>,
}

/// A service as Compose sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeService {
    /// The image with all variables replaced; nothing for a service that is only built.
    pub image: Option<String>,
    /// The services that are started before it.
    pub depends_on: BTreeMap<ServiceName, Condition>,
    /// Whether it has a `build:`.
    pub has_build: bool,
    /// The Compose file's own healthcheck; the image may bring one where this is `FromImage`.
    pub healthcheck: Healthcheck,
    /// The host's ports that are fixed, so that no second container of it can run beside the first.
    pub published: Vec<PublishedPort>,
    /// A fixed container name.
    pub container_name: Option<String>,
    /// What its image must be built for, when that is written.
    pub platform: Option<String>,
    /// The profiles it belongs to; with none it is always active.
    pub profiles: Vec<String>,
    /// `restart:`, or what it means when it is not written: `no`.
    pub restart: String,
    /// How long its process may take to end before it is killed.
    pub stop_grace_period: Duration,
    /// Every key but `image`, each with a fingerprint.
    pub keys: BTreeMap<String, Fingerprint>,
}

/// What a dependency must be before the service is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// `service_started`.
    Started,
    /// `service_healthy`.
    Healthy,
    /// `service_completed_successfully`: a one-shot service.
    Completed,
}

/// What the Compose file says about health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Healthcheck {
    /// Nothing: the image's own healthcheck counts, if it has one.
    FromImage,
    /// It has a test.
    Defined,
    /// It is switched off.
    Disabled,
}

/// A port of the host that a service is published on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedPort {
    /// The host's address; empty for all.
    pub address: String,
    /// The host's port, or a range `8000-8010`.
    pub published: String,
    /// The container's port.
    pub target: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// A SHA-256 of canonical JSON.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

/// Why the output of `docker compose config` is not a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It is not JSON.
    #[error("failed to read the JSON of `docker compose config` (line {line}, column {column})")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// It has no services.
    #[error("the Compose files define no services")]
    NoServices,
    /// A service has a name that cannot be named in a request.
    #[error("failed to read the services of `docker compose config`")]
    Name(#[source] BadName),
}

impl Model {
    /// Reads the output of `docker compose config --format json`.
    ///
    /// # Errors
    /// No error quotes the output: it holds secrets.
    pub fn parse(json: &[u8]) -> Result<Self, ModelError> {
        let parsed = serde_json::from_slice(json).map_err(|error| ModelError::Json {
            line: error.line(),
            column: error.column(),
        })?;
        let Value::Object(mut top) = parsed else {
            return Err(ModelError::NoServices);
        };
        let Some(Value::Object(services)) = top.remove("services") else {
            return Err(ModelError::NoServices);
        };
        let services = services
            .iter()
            .map(|(name, service)| Ok((name.parse().map_err(ModelError::Name)?, service_of(service)?)))
            .collect::<Result<_, ModelError>>()?;
        // Extension fields do nothing, and are where people keep anchors: an image in `x-base` is edited there.
        top.retain(|key, _| !key.starts_with("x-"));
        Ok(Self {
            services,
            rest: fingerprints(&top),
            unset_variables: BTreeSet::new(),
        })
    }

    /// The services in an order in which each comes after those it depends on, also by way of services that are not
    /// among them.
    pub fn in_start_order(&self, services: &BTreeSet<ServiceName>) -> Vec<ServiceName> {
        let mut visited = BTreeSet::new();
        let mut ordered = Vec::new();
        // (service, whether its dependencies are done): a stack of our own, for chains of any length.
        let mut open: Vec<(&ServiceName, bool)> =
            services.iter().rev().map(|service| (service, false)).collect();
        while let Some((service, done)) = open.pop() {
            if done {
                if services.contains(service) {
                    ordered.push(service.clone());
                }
            } else if visited.insert(service) {
                open.push((service, true));
                let depends_on = self.services.get(service).map(|service| &service.depends_on);
                open.extend(
                    depends_on
                        .into_iter()
                        .flat_map(BTreeMap::keys)
                        .rev()
                        .map(|on| (on, false)),
                );
            }
        }
        ordered
    }
}

fn service_of(service: &Value) -> Result<ComposeService, ModelError> {
    let Value::Object(keys) = service else {
        return Err(ModelError::NoServices);
    };
    let text = |key: &str| keys.get(key).and_then(Value::as_str).map(str::to_owned);
    let depends_on = keys
        .get("depends_on")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, how)| Ok((name.parse().map_err(ModelError::Name)?, condition(how))))
        .collect::<Result<_, ModelError>>()?;
    let list = |key: &str| keys.get(key).and_then(Value::as_array).into_iter().flatten();
    let mut fingerprints = fingerprints(keys);
    fingerprints.remove("image");
    Ok(ComposeService {
        image: text("image"),
        depends_on,
        has_build: keys.contains_key("build"),
        healthcheck: healthcheck(keys.get("healthcheck")),
        published: list("ports").filter_map(published).collect(),
        container_name: text("container_name"),
        platform: text("platform"),
        profiles: list("profiles")
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        restart: text("restart").unwrap_or_else(|| "no".to_owned()),
        stop_grace_period: text("stop_grace_period")
            .and_then(|text| duration(&text))
            .unwrap_or(STOP_GRACE_PERIOD),
        keys: fingerprints,
    })
}

/// Reads a duration as Go prints it: `1m40s`, `1.5s`, `500ms`, `0s`.
fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, behind) = rest.split_at(number_ends);
        let unit_ends = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_ends);
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit)?;
        seconds += number.parse::<f64>().ok()? * size;
        rest = next;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

fn condition(how: &Value) -> Condition {
    match how.get("condition").and_then(Value::as_str) {
        Some("service_healthy") => Condition::Healthy,
        Some("service_completed_successfully") => Condition::Completed,
        Some(_) | None => Condition::Started,
    }
}

fn healthcheck(written: Option<&Value>) -> Healthcheck {
    let Some(Value::Object(keys)) = written else {
        return Healthcheck::FromImage;
    };
    let test = keys.get("test").and_then(Value::as_array);
    let none = test.is_some_and(|words| words.first().and_then(Value::as_str) == Some("NONE"));
    if none || keys.get("disable").and_then(Value::as_bool) == Some(true) {
        Healthcheck::Disabled
    } else if test.is_some_and(|words| !words.is_empty()) {
        Healthcheck::Defined
    } else {
        Healthcheck::FromImage
    }
}

fn published(port: &Value) -> Option<PublishedPort> {
    let text = |key: &str| {
        port.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let published = text("published");
    if published.is_empty() || published == "0" {
        return None;
    }
    Some(PublishedPort {
        address: text("host_ip"),
        published,
        target: port
            .get("target")
            .and_then(Value::as_u64)
            .and_then(|port| u16::try_from(port).ok())?,
        protocol: text("protocol"),
    })
}

fn fingerprints(keys: &serde_json::Map<String, Value>) -> BTreeMap<String, Fingerprint> {
    keys.iter()
        .map(|(key, value)| (key.clone(), fingerprint(value)))
        .collect()
}

fn fingerprint(value: &Value) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    hash(value, &mut context);
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    Fingerprint(bytes)
}

/// Hashes JSON with sorted keys; every part is preceded by its kind and length, so that no two values run together.
fn hash(value: &Value, into: &mut Context) {
    let mut part = |kind: u8, bytes: &[u8]| {
        into.update(&[kind]);
        into.update(&(bytes.len() as u64).to_be_bytes());
        into.update(bytes);
    };
    match value {
        Value::Null => part(b'0', b""),
        Value::Bool(yes) => part(b'?', &[u8::from(*yes)]),
        Value::Number(number) => part(b'#', number.to_string().as_bytes()),
        Value::String(text) => part(b'"', text.as_bytes()),
        Value::Array(items) => {
            part(b'[', &items.len().to_be_bytes());
            items.iter().for_each(|item| hash(item, into));
        }
        Value::Object(keys) => {
            part(b'{', &keys.len().to_be_bytes());
            let sorted: BTreeMap<&String, &Value> = keys.iter().collect();
            for (key, value) in sorted {
                hash(&Value::String(key.clone()), into);
                hash(value, into);
            }
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
