//! The log lines in answers about deployments: shown to whom they belong only.

use deploy_proto::event::Outcome;
use deploy_proto::names::KeyName;
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
pub(super) fn hide_unreadable(reader: &Key, asked_by: &KeyName, outcome: &mut Outcome) {
    let in_scope = match (&reader.services, &outcome.sick_service) {
        (Scope::All, _) => true,
        (Scope::Only(services), Some(sick)) => services.contains(sick),
        (Scope::Only(_), None) => false,
    };
    let may_read = in_scope && reader.allow.contains(&Action::Logs);
    if !may_read && reader.name != *asked_by {
        outcome.log_lines.clear();
    }
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
            };
            hide_unreadable(&reader, &asked_by.parse().unwrap(), &mut outcome);
            assert_eq!(
                !outcome.log_lines.is_empty(),
                shown,
                "{asked_by} {sick:?} {reader:?}"
            );
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
