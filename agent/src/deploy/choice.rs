//! Which services a push means, and what is written for them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use deploy_proto::image::{Digest, ImageRef};
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::Change;

use super::facts::{Facts, ServiceFacts};
use crate::config::Pin;
use crate::policy;

/// What a push means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The services to deploy, with their images as they were pushed.
    pub images: BTreeMap<ServiceName, ImageRef>,
    /// Services that use a pushed repository and are left alone: they belong to a profile and do not run.
    pub idle: BTreeSet<ServiceName>,
}

/// Works out which services a push names, and with which image, checking that this key may push these services.
///
/// # Errors
/// An unknown service, a repository that no service uses, one service named twice with different images, a service
/// that is out of the key's scope.
pub fn choose(changes: &[Change], facts: &Facts, scope: &policy::ServiceScope) -> Result<Chosen, Problem> {
    let mut idle = BTreeSet::new();
    let mut chosen: BTreeMap<ServiceName, ImageRef> = BTreeMap::new();
    for change in changes {
        for service in named_by(change, facts)? {
            scope.permits(&service)?;
            if change.service.is_none() && is_idle(facts, &service) {
                idle.insert(service);
                continue;
            }
            match chosen.insert(service.clone(), change.image.clone()) {
                Some(other) if other != change.image => {
                    let both = format!(
                        "service {service} is named twice, with {other} and with {}",
                        change.image
                    );
                    return Err(Problem::new(Code::BadRequest, both).hint("name each service once"));
                }
                Some(_) | None => {}
            }
        }
    }
    idle.retain(|service| !chosen.contains_key(service));
    Ok(Chosen { images: chosen, idle })
}

/// Whether it belongs to a profile and does not run: `docker compose up` would not start it either.
fn is_idle(facts: &Facts, service: &ServiceName) -> bool {
    let facts = facts.services.get(service);
    facts.is_some_and(|facts| facts.has_profile && facts.running.is_none())
}

fn named_by(change: &Change, facts: &Facts) -> Result<Vec<ServiceName>, Problem> {
    let all = || {
        facts
            .services
            .keys()
            .map(ServiceName::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(service) = &change.service {
        return if facts.services.contains_key(service) {
            Ok(vec![service.clone()])
        } else {
            let detail = format!("the project has no service {service}");
            Err(Problem::new(Code::UnknownService, detail).hint(format!("its services are {}", all())))
        };
    }
    let repository = change.image.canonical_repository();
    let uses = |facts: &ServiceFacts| {
        facts
            .image
            .as_ref()
            .is_some_and(|image| image.canonical_repository() == repository)
    };
    let services: Vec<_> = facts
        .services
        .iter()
        .filter(|(_, facts)| uses(facts))
        .map(|(name, _)| name.clone())
        .collect();
    if services.is_empty() {
        let detail = format!("no service of the project uses {}", change.image.repository());
        return Err(Problem::new(Code::UnknownService, detail)
            .hint("name the service (--set SERVICE=IMAGE), or push an image that the Compose file names"));
    }
    Ok(services)
}

/// How a pushed image is written into the file, given its digest.
pub fn written(image: &ImageRef, digest: &Digest, pin: Pin) -> ImageRef {
    // An image that was pushed by digest alone has no tag to fall back to: the digest is what was asked for.
    match (pin, image.tag()) {
        (Pin::Tag, Some(_)) if image.digest().is_none() => image.clone(),
        (Pin::Tag | Pin::Digest, _) => image.with_digest(digest.clone()),
    }
}
