//! A container of a Compose project, translated from the Engine's inspect answer. Pure.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    ContainerInspectResponse, ContainerState as EngineState, ContainerStateStatusEnum, Health, HealthConfig,
    HealthStatusEnum, PortBinding, PortMap, RestartPolicyNameEnum,
};
use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use jiff::Timestamp;

use super::error::shortened;
use super::{Error, Result};
use crate::deploy::ports::HostPorts;
use crate::deploy::verdict::ContainerState;

pub(super) const PROJECT_LABEL: &str = "com.docker.compose.project";
pub(super) const SERVICE_LABEL: &str = "com.docker.compose.service";
const CONFIG_HASH_LABEL: &str = "com.docker.compose.config-hash";
const NUMBER_LABEL: &str = "com.docker.compose.container-number";
pub(super) const ONE_OFF_LABEL: &str = "com.docker.compose.oneoff";
/// Compose sets it on a container that is to replace another, and names that one.
const REPLACE_LABEL: &str = "com.docker.compose.replace";

/// What a healthcheck without a timeout of its own gets from the Engine.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(30);

/// One container of a Compose project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id, 64 hexadecimal digits.
    pub id: String,
    /// Its name, without the slash.
    pub name: String,
    /// The Compose service.
    pub service: ServiceName,
    /// Its number within the service, from 1.
    pub number: u32,
    /// The hash of the configuration that Compose made it from.
    pub config_hash: Option<String>,
    /// Whether `docker compose run` made it, so that it is not one of the service's.
    pub one_off: bool,
    /// Whether an interrupted `docker compose up` left it: created to replace another, and never started.
    pub half_made: bool,
    /// The id of the image it runs.
    pub image_id: String,
    /// The image reference it was created with; none when that is not one (an image id).
    pub image_reference: Option<ImageRef>,
    /// Its state.
    pub state: ContainerState,
    /// Whether the kernel ended its process for want of memory.
    pub out_of_memory: bool,
    /// How often the Engine has restarted it since it was created, or last started by hand.
    pub restarts: u64,
    /// What the Engine's own schedule of its healthcheck says.
    pub health: EngineHealth,
    /// Its healthcheck, as a command to run in it.
    pub healthcheck: Option<Healthcheck>,
    /// The ports of the host that it is configured to publish, whether or not it runs.
    pub publishes: Vec<HostPorts>,
    /// Whether it shares the host's network.
    pub on_host_network: bool,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its process was last started.
    pub started_at: Option<Timestamp>,
    /// When its process last ended.
    pub finished_at: Option<Timestamp>,
}

/// What the Engine says of a container's healthcheck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineHealth {
    /// It has none.
    None,
    /// It has not passed yet.
    Starting,
    /// It passed, and did not fail since.
    Healthy,
    /// It passed before, its last run failed, and its retries are not used up.
    Wavering,
    /// Its retries are used up; with the last output.
    Unhealthy(String),
}

/// A healthcheck as a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Healthcheck {
    /// The argv to run in the container.
    pub argv: Vec<String>,
    /// How long one run may take.
    pub timeout: Duration,
}

impl Container {
    /// Reads the Engine's answer. None for a container without a usable Compose service.
    pub(super) fn read(said: ContainerInspectResponse) -> Result<Option<Self>> {
        let config = said.config.unwrap_or_default();
        let labels = config.labels.unwrap_or_default();
        let Some(service) = label(&labels, SERVICE_LABEL).and_then(|name| name.parse().ok()) else {
            return Ok(None);
        };
        let state = said.state.unwrap_or_default();
        let host = said.host_config.unwrap_or_default();
        let policy = host.restart_policy.and_then(|policy| policy.name);
        let created = state.status == Some(ContainerStateStatusEnum::CREATED);
        Ok(Some(Self {
            id: said.id.ok_or_else(|| lacking("Id"))?,
            name: said.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            service,
            number: label(&labels, NUMBER_LABEL)
                .and_then(|number| number.parse().ok())
                .unwrap_or(1),
            config_hash: label(&labels, CONFIG_HASH_LABEL).map(str::to_owned),
            one_off: label(&labels, ONE_OFF_LABEL).is_some_and(|word| word.eq_ignore_ascii_case("true")),
            half_made: created && labels.contains_key(REPLACE_LABEL),
            image_id: said.image.ok_or_else(|| lacking("Image"))?,
            image_reference: config.image.and_then(|image| image.parse().ok()),
            restarts: said
                .restart_count
                .and_then(|count| count.try_into().ok())
                .unwrap_or(0),
            out_of_memory: state.oom_killed == Some(true),
            health: health(state.health.as_ref()),
            healthcheck: healthcheck(config.healthcheck, config.shell),
            publishes: publishes(host.port_bindings.unwrap_or_default()),
            on_host_network: host.network_mode.as_deref() == Some("host"),
            created_at: said
                .created
                .as_deref()
                .and_then(instant)
                .ok_or_else(|| lacking("Created"))?,
            started_at: state.started_at.as_deref().and_then(instant),
            finished_at: state.finished_at.as_deref().and_then(instant),
            state: container_state(&state, policy),
        }))
    }
}

fn lacking(what: &'static str) -> Error {
    Error::Lacking {
        doing: "inspect a container",
        what,
    }
}

fn label<'a>(labels: &'a HashMap<String, String>, key: &str) -> Option<&'a str> {
    labels.get(key).map(String::as_str)
}

/// The bindings `80/tcp` -> address and port.
fn publishes(bindings: PortMap) -> Vec<HostPorts> {
    let mut all = Vec::new();
    for (port, bound) in bindings {
        let protocol = port.split_once('/').map_or("", |(_, protocol)| protocol);
        let read = |binding: PortBinding| {
            let (address, port) = (binding.host_ip.unwrap_or_default(), binding.host_port?);
            HostPorts::read(&address, &port, protocol)
        };
        all.extend(bound.unwrap_or_default().into_iter().filter_map(read));
    }
    all
}

fn container_state(state: &EngineState, policy: Option<RestartPolicyNameEnum>) -> ContainerState {
    use ContainerStateStatusEnum as S;
    let exit_code = state.exit_code.unwrap_or(0);
    let exited = ContainerState::Exited {
        exit_code,
        stays: stays(policy, exit_code),
    };
    match state.status {
        None | Some(S::EMPTY) => ContainerState::Other("in no known state".to_owned()),
        Some(S::CREATED) => ContainerState::Created,
        // 20.10 says "running" with this flag set while it waits to start the process again.
        Some(S::RUNNING) if state.restarting == Some(true) => ContainerState::Restarting { exit_code },
        Some(S::RUNNING) => ContainerState::Running,
        Some(S::RESTARTING) => ContainerState::Restarting { exit_code },
        Some(S::EXITED) => exited,
        Some(S::PAUSED) => ContainerState::Other("paused".to_owned()),
        Some(S::REMOVING) => ContainerState::Other("being removed".to_owned()),
        Some(S::STOPPING) => ContainerState::Other("stopping".to_owned()),
        Some(S::DEAD) => ContainerState::Other("dead".to_owned()),
    }
}

/// Whether the restart policy leaves a container that ended with this code as it is.
fn stays(policy: Option<RestartPolicyNameEnum>, exit_code: i64) -> bool {
    use RestartPolicyNameEnum as P;
    match policy {
        None | Some(P::EMPTY | P::NO) => true,
        Some(P::ON_FAILURE) => exit_code == 0,
        Some(P::ALWAYS | P::UNLESS_STOPPED) => false,
    }
}

fn health(said: Option<&Health>) -> EngineHealth {
    use HealthStatusEnum as H;
    let Some(health) = said else {
        return EngineHealth::None;
    };
    match health.status {
        None | Some(H::EMPTY | H::NONE) => EngineHealth::None,
        Some(H::STARTING) => EngineHealth::Starting,
        Some(H::HEALTHY) if health.failing_streak.unwrap_or(0) > 0 => EngineHealth::Wavering,
        Some(H::HEALTHY) => EngineHealth::Healthy,
        Some(H::UNHEALTHY) => {
            let last = health.log.as_ref().and_then(|log| log.last());
            let output = last
                .and_then(|run| run.output.as_deref())
                .unwrap_or_default()
                .trim();
            let code = last.and_then(|run| run.exit_code).unwrap_or(1);
            EngineHealth::Unhealthy(match output {
                "" => format!("exit code {code}"),
                output => shortened(output),
            })
        }
    }
}

/// The command of a healthcheck by the rules of the Engine (`daemon/health.go`): none for an empty one or `NONE`,
/// through the image's shell for `CMD-SHELL`.
fn healthcheck(config: Option<HealthConfig>, shell: Option<Vec<String>>) -> Option<Healthcheck> {
    let config = config?;
    let test = config.test?;
    let (kind, words) = test.split_first()?;
    let argv = match kind.as_str() {
        "NONE" => return None,
        "CMD-SHELL" => {
            let shell = shell.filter(|shell| !shell.is_empty());
            let mut argv = shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()]);
            argv.push(words.join(" "));
            argv
        }
        "CMD" => words.to_vec(),
        _ => test.clone(),
    };
    let timeout = config
        .timeout
        .and_then(|nanos| u64::try_from(nanos).ok())
        .filter(|nanos| *nanos > 0)
        .map_or(HEALTHCHECK_TIMEOUT, Duration::from_nanos);
    (!argv.is_empty()).then_some(Healthcheck { argv, timeout })
}

/// The Engine's time; its zero time (year 1) is none.
fn instant(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>()
        .ok()
        .filter(|at| *at > Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspected(json: &str) -> Container {
        let said = serde_json::from_str(json).unwrap();
        Container::read(said).unwrap().unwrap()
    }

    const CRASHING: &str = r#"{
        "Id": "8d0f", "Name": "/shop-api-1", "Image": "sha256:11", "RestartCount": 2,
        "Created": "2026-11-21T04:00:00.123456789Z",
        "State": {"Status": "restarting", "Running": true, "Restarting": true, "ExitCode": 3,
                  "StartedAt": "2026-11-21T04:00:01Z", "FinishedAt": "2026-11-21T04:00:02Z"},
        "HostConfig": {"RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}},
        "Config": {"Image": "registry.example/api:v2", "Healthcheck": {"Test": ["CMD-SHELL", "curl -f localhost"]},
                   "Labels": {"com.docker.compose.project": "shop", "com.docker.compose.service": "api",
                              "com.docker.compose.container-number": "1", "com.docker.compose.oneoff": "False"}}}"#;

    #[test]
    fn an_inspect_answer_becomes_a_container() {
        let container = inspected(CRASHING);
        assert_eq!(container.name, "shop-api-1");
        assert_eq!(container.state, ContainerState::Restarting { exit_code: 3 });
        assert_eq!(
            (container.restarts, container.number, container.one_off),
            (2, 1, false)
        );
        assert_eq!(container.image_reference.unwrap().tag(), Some("v2"));
        assert_eq!(
            container.healthcheck.unwrap().argv,
            ["/bin/sh", "-c", "curl -f localhost"]
        );
        assert!(!container.half_made);
    }

    #[test]
    fn a_half_made_container_was_created_to_replace_another_and_never_started() {
        let half = CRASHING.replace(r#""restarting""#, r#""created""#).replace(
            r#""Labels": {"#,
            r#""Labels": {"com.docker.compose.replace": "shop-api-1","#,
        );
        assert!(inspected(&half).half_made);
        // The label stays on for good; what is running is not half-made.
        let started = half.replace(r#""created""#, r#""running""#);
        assert!(!inspected(&started).half_made);
    }

    #[test]
    fn healthchecks_resolve_as_the_engine_resolves_them() {
        let of = |test: &[&str], shell: Option<&[&str]>| {
            let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let config = HealthConfig {
                test: Some(words(test)),
                ..HealthConfig::default()
            };
            healthcheck(Some(config), shell.map(words)).map(|check| check.argv)
        };
        assert_eq!(of(&[], None), None);
        assert_eq!(of(&["NONE"], None), None);
        assert_eq!(of(&["CMD"], None), None);
        assert_eq!(of(&["CMD", "a", "b c"], None).unwrap(), ["a", "b c"]);
        assert_eq!(
            of(&["CMD-SHELL", "a | b"], None).unwrap(),
            ["/bin/sh", "-c", "a | b"]
        );
        assert_eq!(
            of(&["CMD-SHELL", "a"], Some(&["/bin/bash", "-ec"])).unwrap(),
            ["/bin/bash", "-ec", "a"]
        );
    }

    #[test]
    fn only_some_policies_leave_an_exited_container_as_it_is() {
        use RestartPolicyNameEnum as P;
        for (policy, code, left) in [
            (None, 1, true),
            (Some(P::NO), 0, true),
            (Some(P::ON_FAILURE), 0, true),
            (Some(P::ON_FAILURE), 1, false),
            (Some(P::ALWAYS), 0, false),
            (Some(P::UNLESS_STOPPED), 0, false),
        ] {
            assert_eq!(stays(policy, code), left, "{policy:?} {code}");
        }
    }
}
