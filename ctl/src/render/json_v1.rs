//! Documents for scripts: `schema: deployctl/v1`. Fields are only ever added.

use deploy_proto::event::{Event, Outcome};
use deploy_proto::exit_code::ExitCode;
use deploy_proto::names::DeploymentId;
use deploy_proto::release::PlanView;
use serde::Serialize;

use crate::error::Error;
use crate::report::{Ended, Report};

const SCHEMA: &str = "deployctl/v1";

/// What every document begins with, and the command's own part.
#[derive(Debug, Serialize)]
pub(crate) struct Document<T> {
    schema: &'static str,
    command: &'static str,
    exit_code: u8,
    #[serde(flatten)]
    content: T,
}

impl<T> Document<T> {
    /// The document of a command.
    pub(crate) fn new(command: &'static str, exit: ExitCode, content: T) -> Self {
        Self {
            schema: SCHEMA,
            command,
            exit_code: exit.number(),
            content,
        }
    }
}

/// A part for each host.
#[derive(Debug, Serialize)]
pub(crate) struct Hosts<T> {
    /// In the order they were asked.
    pub(crate) hosts: Vec<HostPart<T>>,
}

/// What one host answered, or why not.
#[derive(Debug, Serialize)]
pub(crate) struct HostPart<T> {
    /// What a person calls it.
    pub(crate) host: String,
    /// Its agent's address.
    pub(crate) url: String,
    /// The answer.
    #[serde(flatten)]
    pub(crate) part: T,
}

/// What failed.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lines: Vec<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code(),
            message: error.to_string(),
            causes: error.causes(),
            hint: error.hint(),
            lines: error
                .problem()
                .map(|problem| problem.lines.clone())
                .unwrap_or_default(),
        }
    }
}

/// The content of a document of a command that failed as a whole.
#[derive(Debug, Serialize)]
pub(crate) struct Failed {
    /// Why.
    pub(crate) error: Failure,
}

/// The content of a document of `push`, `rollback`, `reconcile`, `watch` and `cancel`.
#[derive(Debug, Serialize)]
pub(crate) struct Deployment<'r> {
    id: &'r DeploymentId,
    project: Option<&'r str>,
    environment: Option<&'r str>,
    version: Option<&'r str>,
    elapsed_ms: u64,
    hosts: Vec<HostPart<HostDeployment<'r>>>,
}

#[derive(Debug, Serialize)]
struct HostDeployment<'r> {
    /// `live`, `unchanged`, `refused`, `rolled_back`, `stuck`; or `planned`, `accepted`, `cancelling`, `still_running`,
    /// `failed`, `interrupted`, `untouched`.
    result: &'static str,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'r PlanView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'r Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

impl<'r> From<&'r Report> for Deployment<'r> {
    fn from(report: &'r Report) -> Self {
        Self {
            id: &report.id,
            project: report.project.as_ref().map(|project| project.as_str()),
            environment: report.environment.as_deref(),
            version: report.version.as_ref().map(|version| version.as_str()),
            elapsed_ms: u64::try_from(report.took.as_millis()).unwrap_or(u64::MAX),
            hosts: report
                .hosts
                .iter()
                .map(|host| HostPart {
                    host: host.host.name.clone(),
                    url: host.host.url.to_string(),
                    part: HostDeployment {
                        result: result(&host.ended),
                        exit_code: host.exit_code().number(),
                        plan: host.plan.as_ref(),
                        outcome: host.outcome(),
                        error: match &host.ended {
                            Ended::StillRunning(error) | Ended::Failed(error) => Some(error.into()),
                            Ended::Outcome(_)
                            | Ended::Cancelled(_)
                            | Ended::Planned
                            | Ended::Accepted
                            | Ended::Cancelling
                            | Ended::Interrupted { .. }
                            | Ended::Untouched => None,
                        },
                    },
                })
                .collect(),
        }
    }
}

fn result(ended: &Ended) -> &'static str {
    use deploy_proto::event::Ending;
    match ended {
        Ended::Outcome(outcome) | Ended::Cancelled(outcome) => match outcome.result {
            Ending::Live => "live",
            Ending::Unchanged => "unchanged",
            Ending::Refused => "refused",
            Ending::RolledBack => "rolled_back",
            Ending::Stuck => "stuck",
        },
        Ended::Planned => "planned",
        Ended::Accepted => "accepted",
        Ended::Cancelling => "cancelling",
        Ended::StillRunning(_) => "still_running",
        Ended::Failed(_) => "failed",
        Ended::Interrupted { .. } => "interrupted",
        Ended::Untouched => "untouched",
    }
}

/// One line of `--jsonl`.
#[derive(Debug, Serialize)]
pub(crate) struct EventLine<'e> {
    schema: &'static str,
    host: &'e str,
    #[serde(flatten)]
    event: &'e Event,
}

impl<'e> EventLine<'e> {
    /// An event of a host.
    pub(crate) fn new(host: &'e str, event: &'e Event) -> Self {
        Self {
            schema: SCHEMA,
            host,
            event,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::human::samples::{done, rolled_back};
    use super::*;
    use crate::report::HostReport;
    use crate::target::host::Host;
    use deploy_proto::event::PhaseName;
    use serde_json::{Value, json};

    #[test]
    fn a_deployment_is_one_document_with_a_part_for_each_host() {
        let urls = ["https://web-1.a.com", "https://web-2.a.com"].map(|url| url.parse().unwrap());
        let ended = [Ended::Outcome(Box::new(rolled_back())), Ended::Untouched];
        let report = Report {
            kind: None,
            project: Some("shop".parse().unwrap()),
            id: DeploymentId::from_bits(1),
            version: None,
            place: "production".into(),
            environment: Some("production".into()),
            arguments: String::new(),
            hosts: Host::name_all(&urls)
                .into_iter()
                .zip(ended)
                .map(|(host, ended)| HostReport {
                    host,
                    plan: None,
                    ended,
                })
                .collect(),
            took: std::time::Duration::from_millis(1500),
        };
        let document = Document::new("push", report.exit_code(), Deployment::from(&report));
        let document = serde_json::to_value(document).unwrap();
        assert_eq!(document.get("schema"), Some(&json!("deployctl/v1")));
        assert_eq!(document.get("exit_code"), Some(&json!(3)));
        let host = |index: usize, field: &str| document.pointer(&format!("/hosts/{index}/{field}")).cloned();
        assert_eq!(host(0, "result"), Some(json!("rolled_back")));
        assert_eq!(host(0, "outcome/problem/code"), Some(json!("unhealthy")));
        assert_eq!(host(1, "result"), Some(json!("untouched")));
        assert_eq!(host(1, "error"), None::<Value>);
    }

    #[test]
    fn an_event_is_one_line_with_its_host() {
        let event = done(PhaseName::Pulling, "2 images", 8);
        let line = serde_json::to_string(&EventLine::new("web-1", &event)).unwrap();
        assert_eq!(
            line,
            r#"{"schema":"deployctl/v1","host":"web-1","seq":1,"at":"1970-01-01T00:00:00Z","deployment":"0000000000000abc","type":"phase_done","phase":"pulling","summary":"2 images","elapsed_ms":8}"#
        );
    }
}
