//! May this key do this here, now? Pure: a verified request goes in, a permitted one or a refusal comes out.

use deploy_proto::image::{ImageRef, canonical_repository};
use deploy_proto::names::{KeyName, ProjectName, ServiceName};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::{CHANGES_MAX, Push};
use deploy_proto::release::DeploymentKind;
use serde::{Deserialize, Serialize};

use crate::config::{Action, Key, Project, Scope};
use crate::history::Deployment;

/// A request that this key may make of this project. Made only here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permitted<T> {
    request: T,
    key: KeyName,
    services: ServiceScope,
}

impl<T> Permitted<T> {
    /// The request.
    pub fn request(&self) -> &T {
        &self.request
    }

    /// Whose it is.
    pub fn key(&self) -> &KeyName {
        &self.key
    }

    /// The services it may change or read the logs of.
    pub fn services(&self) -> &ServiceScope {
        &self.services
    }
}

/// The services that a key may change or read the logs of, journaled with the deployment: an accepted deployment goes on under the rights
/// it was accepted with, also when the key is taken away meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceScope {
    /// All of the project.
    All,
    /// These only.
    Only(Vec<ServiceName>),
}

impl ServiceScope {
    /// Refuses to change a service that is out of the scope.
    ///
    /// # Errors
    /// `not_allowed`, naming the service.
    pub fn permits(&self, service: &ServiceName) -> Result<(), Problem> {
        self.permits_to("change", service)
    }

    /// Refuses to read the logs of a service that is out of the scope.
    ///
    /// # Errors
    /// `not_allowed`, naming the service.
    pub fn permits_logs(&self, service: &ServiceName) -> Result<(), Problem> {
        self.permits_to("read the logs of", service)
    }

    fn permits_to(&self, what: &str, service: &ServiceName) -> Result<(), Problem> {
        match self {
            Self::All => Ok(()),
            Self::Only(services) if services.contains(service) => Ok(()),
            Self::Only(_) => Err(Problem::new(
                Code::NotAllowed,
                format!("this key may not {what} service {service}"),
            )
            .hint("the host's agent.toml lists the services of each key")),
        }
    }
}

/// Permits a push, or says why not: action, project, image repositories and tags. The services that `--image` means are
/// known only once the Compose file is read; the plan asks [`ServiceScope::permits`] for them.
///
/// # Errors
/// `not_allowed`, `image_not_allowed`, `tag_not_allowed`, `bad_request`.
pub fn permit_push(key: &Key, project: &Project, push: Push) -> Result<Permitted<Push>, Problem> {
    may(key, Action::Push, &project.name)?;
    if push.images.is_empty() || push.images.len() > CHANGES_MAX {
        let detail = format!(
            "a push names between 1 and {CHANGES_MAX} images, this one {}",
            push.images.len()
        );
        return Err(Problem::new(Code::BadRequest, detail));
    }
    if !push.source.is_well_formed() {
        return Err(Problem::new(
            Code::BadRequest,
            "the push's source has an over-long text or a control character",
        ));
    }
    if push
        .sequence
        .as_ref()
        .is_some_and(|sequence| !sequence.is_well_formed())
    {
        return Err(Problem::new(
            Code::BadRequest,
            "the push's sequence has a run beyond its limit, or a line that is empty, over-long or has a control character",
        ));
    }
    let services = service_scope(key);
    for change in &push.images {
        if let Some(service) = &change.service {
            services.permits(service)?;
        }
        permit_image(project, &change.image)?;
    }
    Ok(Permitted {
        request: push,
        key: key.name.clone(),
        services,
    })
}

/// Permits a rollback, or any other request that names no image.
///
/// # Errors
/// `not_allowed`.
pub fn permit<T>(key: &Key, action: Action, project: &Project, request: T) -> Result<Permitted<T>, Problem> {
    may(key, action, &project.name)?;
    Ok(Permitted {
        request,
        key: key.name.clone(),
        services: service_scope(key),
    })
}

/// Permits cancelling a deployment to whoever could have asked for it: the right to push (or roll back) in its project,
/// and, unless it is the key's own, to change all its services.
///
/// # Errors
/// `not_allowed`.
pub fn permit_cancel(key: &Key, deployment: &Deployment) -> Result<(), Problem> {
    let action = match deployment.request.kind() {
        DeploymentKind::Push => Action::Push,
        DeploymentKind::Rollback | DeploymentKind::Reconcile | DeploymentKind::AutoRollback => {
            Action::Rollback
        }
    };
    may(key, action, &deployment.project)?;
    if deployment.key == key.name {
        return Ok(());
    }
    let scope = service_scope(key);
    match (&scope, &deployment.plan) {
        (ServiceScope::All, _) => Ok(()),
        (ServiceScope::Only(_), Some(plan)) => plan
            .services
            .iter()
            .try_for_each(|service| scope.permits(&service.service)),
        (ServiceScope::Only(_), None) => Err(Problem::new(
            Code::NotAllowed,
            "which services it changes is not known yet, and this key may not change all",
        )
        .hint("try again in a moment")),
    }
}

fn service_scope(key: &Key) -> ServiceScope {
    match &key.services {
        Scope::All => ServiceScope::All,
        Scope::Only(services) => ServiceScope::Only(services.clone()),
    }
}

fn may(key: &Key, action: Action, project: &ProjectName) -> Result<(), Problem> {
    if !key.projects.contains(project) {
        return Err(Problem::new(
            Code::NotAllowed,
            format!("key {} may not touch project {project}", key.name),
        )
        .hint("the host's agent.toml lists the projects of each key"));
    }
    if !key.allow.contains(&action) {
        let detail = format!("key {} may not {} project {project}", key.name, action.as_str());
        return Err(Problem::new(Code::NotAllowed, detail)
            .hint("the host's agent.toml lists what each key may do (allow)"));
    }
    Ok(())
}

/// Whether this image may be deployed in this project.
///
/// # Errors
/// `image_not_allowed`, `tag_not_allowed`.
pub fn permit_image(project: &Project, image: &ImageRef) -> Result<(), Problem> {
    if !is_listed(project, image.repository()) {
        let detail = format!(
            "{} may not be deployed in project {}",
            image.repository(),
            project.name
        );
        let hint = format!(
            "the host allows {}; see images in its projects.d/{}.toml",
            project.images.join(", "),
            project.name
        );
        return Err(Problem::new(Code::ImageNotAllowed, detail).hint(hint));
    }
    match image.tag() {
        _ if project.allow_latest => Ok(()),
        None if image.digest().is_none() => Err(tag_refusal(image, "has no tag, which means latest")),
        Some("latest") => Err(tag_refusal(
            image,
            "says latest, which means something else every day",
        )),
        Some(_) | None => Ok(()),
    }
}

fn tag_refusal(image: &ImageRef, why: &str) -> Problem {
    Problem::new(Code::TagNotAllowed, format!("{image} {why}"))
        .hint("push a tag that names one build, or set allow_latest = true in the host's projects.d file")
}

/// Whether a repository is on the project's allow-list. Both sides are compared with Docker's defaults added, so
/// `acme/api` on the list does not allow `evil.example/acme/api`.
pub fn is_listed(project: &Project, repository: &str) -> bool {
    let repository = canonical_repository(repository);
    project
        .images
        .iter()
        .any(|pattern| matches(&canonical_repository(pattern), &repository))
}

/// `*` stands for any run of characters but `/`.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(tail) = text.strip_prefix(head) else {
        return false;
    };
    let ends = tail.find('/').unwrap_or(tail.len());
    (0..=ends)
        .filter_map(|skip| tail.get(skip..))
        .any(|tail| matches(rest, tail))
}
