//! Which hooks run in a deployment, and what they are told. Pure.

use std::collections::BTreeSet;

use deploy_proto::image::ImageRef;
use deploy_proto::names::{DeploymentId, KeyName, ServiceName, Version};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::{DeploymentKind, HookMoment as ShownMoment, HookView};

use super::facts::Facts;
use super::plan::{Moment, Plan, PlannedHook, ServicePlan};
use crate::config::{Hook, HookMoment, Project};

/// The hooks that run when these services change, in the order of the file.
///
/// One with a service runs when that service changes, one without when anything does. What comes before the restart is
/// for new releases: a rollback brings older code, and its migrations ran long ago.
pub(super) fn planned(project: &Project, kind: DeploymentKind, services: &[ServicePlan]) -> Vec<PlannedHook> {
    let runs = |hook: &&Hook| {
        let concerned = match &hook.service {
            Some(service) => services.iter().any(|plan| &plan.service == service),
            None => !services.is_empty(),
        };
        concerned && is_for(kind, hook.moment)
    };
    project.hooks.iter().filter(runs).map(planned_hook).collect()
}

fn is_for(kind: DeploymentKind, moment: HookMoment) -> bool {
    match (kind, moment) {
        // The way back that nobody asked for runs no command.
        (DeploymentKind::AutoRollback, _) => false,
        (_, HookMoment::BeforeEverything | HookMoment::AfterLive)
        | (DeploymentKind::Push, HookMoment::BeforeRestart { .. }) => true,
        (DeploymentKind::Rollback | DeploymentKind::Reconcile, HookMoment::BeforeRestart { .. }) => false,
    }
}

fn planned_hook(hook: &Hook) -> PlannedHook {
    let (moment, is_irreversible) = match hook.moment {
        HookMoment::BeforeEverything => (Moment::BeforeChange, false),
        HookMoment::BeforeRestart { is_irreversible } => (Moment::BeforeRestart, is_irreversible),
        HookMoment::AfterLive => (Moment::AfterLive, false),
    };
    PlannedHook {
        name: hook.name.clone(),
        moment,
        service: hook.service.clone(),
        command: hook.command.clone(),
        deadline_ms: u64::try_from(hook.deadline.as_millis()).unwrap_or(u64::MAX),
        is_irreversible,
    }
}

/// Refuses a push when a hook names a service that the project does not have: a migration would silently not run.
pub(super) fn check_services(project: &Project, facts: &Facts) -> Result<(), Problem> {
    let named = project.hooks.iter().filter_map(|hook| hook.service.as_ref());
    let unknown: BTreeSet<&ServiceName> = named
        .filter(|service| !facts.services.contains_key(*service))
        .collect();
    let Some(service) = unknown.first() else {
        return Ok(());
    };
    let detail = format!(
        "a hook of project {} is for service {service}, which its Compose files do not have",
        project.name
    );
    Err(Problem::new(Code::HostUnfit, detail)
        .hint("correct `service` of the [[hook]] in the project's projects.d file, then reload the agent"))
}

/// The hook as callers see it.
pub(super) fn view(hook: &PlannedHook) -> HookView {
    HookView {
        name: hook.name.clone(),
        moment: match hook.moment {
            Moment::BeforeChange => ShownMoment::BeforeEverything,
            Moment::BeforeRestart => ShownMoment::BeforeRestart,
            Moment::AfterLive => ShownMoment::AfterLive,
        },
        service: hook.service.clone(),
        irreversible: hook.is_irreversible,
    }
}

/// What a hook is told of its deployment, beside the plan.
#[derive(Debug, Clone)]
pub(super) struct About<'a> {
    /// The deployment.
    pub(super) id: &'a DeploymentId,
    /// Push or rollback.
    pub(super) kind: DeploymentKind,
    /// Whose key signed it.
    pub(super) key: &'a KeyName,
    /// The caller's label.
    pub(super) version: Option<&'a Version>,
}

/// The variables that a hook finds in its environment.
pub(super) fn environment(plan: &Plan, hook: &PlannedHook, about: &About<'_>) -> Vec<(String, String)> {
    let services: Vec<&str> = plan.services.iter().map(|plan| plan.service.as_str()).collect();
    let from = plan.from.map(|from| from.to_string()).unwrap_or_default();
    let version = about.version.map(ToString::to_string).unwrap_or_default();
    let mut variables: Vec<(String, String)> = [
        ("DEPLOY_PROJECT", plan.project.to_string()),
        ("DEPLOY_ID", about.id.to_string()),
        ("DEPLOY_KIND", about.kind.as_str().to_owned()),
        ("DEPLOY_HOOK", hook.name.clone()),
        ("DEPLOY_KEY", about.key.to_string()),
        ("DEPLOY_VERSION", version),
        ("DEPLOY_RELEASE", plan.to.to_string()),
        ("DEPLOY_PREVIOUS_RELEASE", from),
        ("DEPLOY_SERVICES", services.join(" ")),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    for service in &plan.services {
        let name = variable_part(&service.service);
        let old = service.old.as_ref().map(ImageRef::to_string).unwrap_or_default();
        variables.push((format!("DEPLOY_OLD_IMAGE_{name}"), old));
        variables.push((format!("DEPLOY_NEW_IMAGE_{name}"), service.new.to_string()));
    }
    variables
}

/// A service's name as part of a variable's: `AUTH_SERVICE`.
fn variable_part(service: &ServiceName) -> String {
    let letter = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    service.as_str().chars().map(letter).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn service(name: &str) -> ServicePlan {
        ServicePlan {
            service: name.parse().unwrap(),
            old: Some(format!("acme/{name}:v1").parse().unwrap()),
            old_digest: None,
            old_image_id: None,
            old_containers: None,
            new: format!("acme/{name}:v2").parse().unwrap(),
            written: format!("acme/{name}:v2").parse().unwrap(),
            new_image_id: None,
            old_was_well: true,
            judged_by: Vec::new(),
            platform: None,
        }
    }

    fn hook(name: &str, moment: HookMoment, service: Option<&str>) -> Hook {
        Hook {
            name: name.to_owned(),
            moment,
            service: service.map(|name| name.parse().unwrap()),
            command: vec!["true".to_owned()],
            deadline: Duration::from_secs(5),
        }
    }

    fn project() -> Project {
        let migration = HookMoment::BeforeRestart {
            is_irreversible: true,
        };
        Project {
            hooks: vec![
                hook("smoke", HookMoment::AfterLive, None),
                hook("migrate-api", migration, Some("api")),
                hook("backup", HookMoment::BeforeEverything, None),
                hook("migrate-web", migration, Some("web")),
                hook("announce", migration, None),
            ],
            ..Project::with_defaults("shop".parse().unwrap(), "/srv/shop".into(), Vec::new())
        }
    }

    #[test]
    fn a_hook_runs_when_its_service_changes_and_migrations_only_forward() {
        let names = |kind, services: &[ServicePlan]| {
            let hooks = planned(&project(), kind, services);
            hooks.into_iter().map(|hook| hook.name).collect::<Vec<_>>()
        };
        let (push, rollback) = (DeploymentKind::Push, DeploymentKind::Rollback);
        assert_eq!(
            names(push, &[service("api")]),
            ["smoke", "migrate-api", "backup", "announce"]
        );
        assert_eq!(names(rollback, &[service("api")]), ["smoke", "backup"]);
        assert_eq!(names(push, &[service("db")]), ["smoke", "backup", "announce"]);
        assert_eq!(names(push, &[]), Vec::<String>::new());
    }

    #[test]
    fn a_hook_for_a_service_that_is_not_there_is_refused() {
        let refused = check_services(&project(), &Facts::default()).unwrap_err();
        assert_eq!(refused.code, Code::HostUnfit);
        assert!(
            refused.detail.contains("is for service api"),
            "{}",
            refused.detail
        );
    }

    #[test]
    fn a_service_s_name_becomes_part_of_a_variable() {
        for (name, part) in [
            ("api", "API"),
            ("auth-service", "AUTH_SERVICE"),
            ("a.b_2", "A_B_2"),
        ] {
            assert_eq!(variable_part(&name.parse().unwrap()), part);
        }
    }
}
