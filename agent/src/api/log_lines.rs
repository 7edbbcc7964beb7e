//! The log lines in answers about deployments: shown to whom they belong only.

use deploy_proto::event::{Happened, Outcome};
use deploy_proto::names::{KeyName, ServiceName};
use deploy_proto::release::DeploymentView;

use crate::config::{Action, Key, Scope};
use crate::history::Deployment;

/// A deployment as this key may see it.
pub(super) fn view(reader: &Key, deployment: &Deployment) -> DeploymentView {
    let mut view = deployment.view();
    if let Some(outcome) = &mut view.outcome {
        hide_unreadable(reader, &deployment.key, outcome);
    }
    view
}

/// Leaves the sick service's last lines out, unless the deployment is the reader's own or it may read that service's
/// logs. The reader may touch the project: that was checked before.
fn hide_unreadable(reader: &Key, asked_by: &KeyName, outcome: &mut Outcome) {
    if !may_read(reader, asked_by, outcome.sick_service.as_ref()) {
        outcome.log_lines.clear();
    }
}

/// Leaves out of an event what this key may not read: the lines of containers and of hooks, which may hold secrets.
pub(super) fn hide(reader: &Key, asked_by: &KeyName, what: &mut Happened) {
    match what {
        Happened::Ended { outcome } => hide_unreadable(reader, asked_by, outcome),
        Happened::HookDone {
            service, last_lines, ..
        } if !may_read(reader, asked_by, service.as_ref()) => last_lines.clear(),
        Happened::HookDone { .. }
        | Happened::HookSaid { .. }
        | Happened::Accepted { .. }
        | Happened::Cancelling { .. }
        | Happened::Queued { .. }
        | Happened::Planned { .. }
        | Happened::Phase { .. }
        | Happened::PhaseDone { .. }
        | Happened::PhaseFailed { .. }
        | Happened::Note { .. }
        | Happened::Pulling { .. }
        | Happened::Watching { .. } => {}
    }
}

/// Whether this key sees an event at all: what a hook says is a line and nothing else.
pub(super) fn may_see(reader: &Key, asked_by: &KeyName, what: &Happened) -> bool {
    match what {
        Happened::HookSaid { service, .. } => may_read(reader, asked_by, service.as_ref()),
        Happened::HookDone { .. }
        | Happened::Ended { .. }
        | Happened::Accepted { .. }
        | Happened::Cancelling { .. }
        | Happened::Queued { .. }
        | Happened::Planned { .. }
        | Happened::Phase { .. }
        | Happened::PhaseDone { .. }
        | Happened::PhaseFailed { .. }
        | Happened::Note { .. }
        | Happened::Pulling { .. }
        | Happened::Watching { .. } => true,
    }
}

/// Whether this key reads what a service's container, or with no service a command on the host, said in a deployment.
fn may_read(reader: &Key, asked_by: &KeyName, service: Option<&ServiceName>) -> bool {
    let in_scope = match (&reader.services, service) {
        (Scope::All, _) => true,
        (Scope::Only(services), Some(service)) => services.contains(service),
        (Scope::Only(_), None) => false,
    };
    reader.name == *asked_by || (in_scope && reader.allow.contains(&Action::Logs))
}

#[cfg(test)]
mod tests {
    use deploy_proto::event::Ending;
    use deploy_proto::names::ServiceName;

    use super::*;
    use crate::config::Project;
    use crate::policy;

    const PUBLIC: &str = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";

    fn key(allow: &[Action], services: Scope<ServiceName>) -> Key {
        Key {
            name: "reader".parse().unwrap(),
            public: PUBLIC.parse().unwrap(),
            projects: Scope::All,
            services,
            allow: allow.to_vec(),
            expires: None,
        }
    }

    fn only(service: &str) -> Scope<ServiceName> {
        Scope::Only(vec![service.parse().unwrap()])
    }

    #[test]
    fn the_lines_of_an_outcome_are_for_its_caller_and_for_keys_that_may_read_that_services_logs() {
        let (status, logs) = (&[Action::Status], &[Action::Status, Action::Logs]);
        for (reader, asked_by, sick, shown) in [
            (key(status, Scope::All), "ci", Some("db"), false),
            (key(status, Scope::All), "reader", Some("db"), true),
            (key(logs, Scope::All), "ci", Some("db"), true),
            (key(logs, Scope::All), "ci", None, true),
            (key(logs, only("db")), "ci", Some("db"), true),
            (key(logs, only("web")), "ci", Some("db"), false),
            (key(logs, only("web")), "ci", None, false),
        ] {
            let mut outcome = Outcome {
                result: Ending::RolledBack,
                release: None,
                problem: None,
                trouble: None,
                sick_service: sick.map(|service| service.parse().unwrap()),
                log_lines: vec!["a line".to_owned()],
                now: Vec::new(),
                elapsed_ms: 1,
                bake_ms: None,
                undone: None,
            };
            let asked_by = asked_by.parse().unwrap();
            hide_unreadable(&reader, &asked_by, &mut outcome);
            assert_eq!(
                !outcome.log_lines.is_empty(),
                shown,
                "{asked_by} {sick:?} {reader:?}"
            );
            // The same for what hooks say.
            let service: Option<ServiceName> = sick.map(|service| service.parse().unwrap());
            let said = Happened::HookSaid {
                hook: "migrate".to_owned(),
                service: service.clone(),
                line: "a line".to_owned(),
            };
            assert_eq!(may_see(&reader, &asked_by, &said), shown);
            let mut done = Happened::HookDone {
                hook: "migrate".to_owned(),
                service,
                elapsed_ms: 1,
                last_lines: vec!["a line".to_owned()],
            };
            hide(&reader, &asked_by, &mut done);
            let Happened::HookDone { last_lines, .. } = done else {
                panic!("another event")
            };
            assert_eq!(!last_lines.is_empty(), shown);
        }
    }

    #[test]
    fn a_key_for_one_service_reads_the_logs_of_no_other() {
        let project = Project::with_defaults("shop".parse().unwrap(), "/srv/shop".into(), Vec::new());
        let key = key(&[Action::Logs], only("web"));
        let permitted = policy::permit(&key, Action::Logs, &project, ()).unwrap();
        assert_eq!(permitted.services().permits_logs(&"web".parse().unwrap()), Ok(()));
        let refused = permitted
            .services()
            .permits_logs(&"db".parse().unwrap())
            .unwrap_err();
        assert_eq!(refused.detail, "this key may not read the logs of service db");
    }
}
