//! What the Engine tells of a project's containers as it happens.

use std::collections::HashMap;

use bollard::models::EventMessage;
use bollard::query_parameters::EventsOptionsBuilder;
use deploy_proto::names::{ProjectName, ServiceName};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

use super::container::{PROJECT_LABEL, SERVICE_LABEL};
use super::{Engine, Result};

/// One event of a container of the project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// The container's id.
    pub container: String,
    /// Its Compose service.
    pub service: ServiceName,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// Its process was started.
    Started,
    /// Its process ended.
    Died {
        /// The exit code, where the Engine told it.
        exit_code: Option<i64>,
    },
    /// The kernel killed a process in it for want of memory.
    OutOfMemory,
    /// Somebody had a signal sent to it.
    Signalled {
        /// The signal's number, where the Engine told it.
        signal: Option<i64>,
    },
    /// It was stopped because somebody asked for that; told after its end.
    Stopped,
    /// The verdict of its healthcheck changed.
    Health {
        /// `healthy`, `unhealthy`, `starting`.
        verdict: String,
    },
}

impl Engine {
    /// The events of a project's containers from that instant on: those that the Engine still remembers at once (its
    /// last 256 of all containers), then as they happen. Nothing between `since` and now is missed however long the
    /// subscription takes.
    ///
    /// The stream ends, with or without an error before, when the connection does; subscribing again is the caller's.
    /// It has no deadline: quiet containers are no error.
    pub async fn events(
        &self,
        project: &ProjectName,
        since: Timestamp,
    ) -> Result<BoxStream<'static, Result<ContainerEvent>>> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            ("label", vec![format!("{PROJECT_LABEL}={project}")]),
            (
                "event",
                ["start", "die", "oom", "kill", "stop", "health_status"]
                    .map(str::to_owned)
                    .into(),
            ),
        ]);
        let options = EventsOptionsBuilder::new()
            .since(&unix_time(since))
            .filters(&filters)
            .build();
        let said = self.negotiated().await?.events(Some(options));
        let engine = self.clone();
        Ok(said
            .map(move |message| {
                message.map_err(|source| engine.explained("follow the Engine's events", source))
            })
            .filter_map(|message| async move { message.map(read).transpose() })
            .boxed())
    }
}

/// Seconds and nanoseconds as the Engine reads them.
fn unix_time(at: Timestamp) -> String {
    format!("{}.{:09}", at.as_second(), at.subsec_nanosecond())
}

/// None for an event of a container without a usable service name.
fn read(message: EventMessage) -> Option<ContainerEvent> {
    let actor = message.actor?;
    let attributes = actor.attributes.unwrap_or_default();
    let action = message.action?;
    let kind = match action.split_once(':') {
        None if action == "start" => EventKind::Started,
        None if action == "oom" => EventKind::OutOfMemory,
        None if action == "stop" => EventKind::Stopped,
        None if action == "kill" => EventKind::Signalled {
            signal: attributes.get("signal").and_then(|signal| signal.parse().ok()),
        },
        None if action == "die" => EventKind::Died {
            exit_code: attributes.get("exitCode").and_then(|code| code.parse().ok()),
        },
        Some(("health_status", verdict)) => EventKind::Health {
            verdict: verdict.trim().to_owned(),
        },
        None | Some(_) => return None,
    };
    Some(ContainerEvent {
        container: actor.id?,
        service: attributes.get(SERVICE_LABEL)?.parse().ok()?,
        kind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_with_service_and_exit_code() {
        let of = |action: &str| {
            let json = format!(
                r#"{{"Type": "container", "Action": "{action}", "time": 1, "Actor": {{"ID": "8d0f",
                    "Attributes": {{"exitCode": "3", "signal": "15", "com.docker.compose.service": "api"}}}}}}"#
            );
            read(serde_json::from_str(&json).unwrap()).map(|event| event.kind)
        };
        assert_eq!(of("die"), Some(EventKind::Died { exit_code: Some(3) }));
        assert_eq!(of("oom"), Some(EventKind::OutOfMemory));
        assert_eq!(of("kill"), Some(EventKind::Signalled { signal: Some(15) }));
        assert_eq!(of("stop"), Some(EventKind::Stopped));
        assert_eq!(
            of("health_status: unhealthy"),
            Some(EventKind::Health {
                verdict: "unhealthy".into()
            })
        );
        assert_eq!(of("exec_create: sh -c x"), None);
    }

    #[test]
    fn an_instant_is_written_as_the_engine_reads_it() {
        let at = Timestamp::new(1_700_000_000, 5_000_000).unwrap();
        assert_eq!(unix_time(at), "1700000000.005000000");
    }
}
