//! In what two models differ, in words that name services and keys but no values. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;

use super::model::Model;

/// One difference between two models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// A service has another image.
    Image {
        /// The service.
        service: ServiceName,
        /// Before; nothing when it had none.
        before: Option<String>,
        /// After.
        after: Option<String>,
    },
    /// Another key of a service differs; its values may be secrets and are not kept.
    Key {
        /// The service.
        service: ServiceName,
        /// The key, such as `environment`.
        key: String,
    },
    /// A service came.
    Added(ServiceName),
    /// A service went.
    Removed(ServiceName),
    /// Something outside the services differs, such as `networks`.
    Project(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image {
                service,
                before,
                after,
            } => {
                let show = |image: &Option<String>| image.clone().unwrap_or_else(|| "none".to_owned());
                write!(
                    f,
                    "the image of {service} from {} to {}",
                    show(before),
                    show(after)
                )
            }
            Self::Key { service, key } => write!(f, "`{key}` of {service}"),
            Self::Added(service) => write!(f, "service {service}, which was not there"),
            Self::Removed(service) => write!(f, "service {service}, which is gone"),
            Self::Project(key) => write!(f, "`{key}` of the project"),
        }
    }
}

/// Everything in which two models differ.
pub fn differences(before: &Model, after: &Model) -> Vec<Difference> {
    let mut found = Vec::new();
    for service in union(&before.services, &after.services) {
        match (before.services.get(service), after.services.get(service)) {
            (Some(old), Some(new)) => {
                if old.image != new.image {
                    found.push(Difference::Image {
                        service: service.clone(),
                        before: old.image.clone(),
                        after: new.image.clone(),
                    });
                }
                let keys = union(&old.keys, &new.keys).into_iter();
                found.extend(
                    keys.filter(|key| old.keys.get(*key) != new.keys.get(*key))
                        .map(|key| Difference::Key {
                            service: service.clone(),
                            key: key.clone(),
                        }),
                );
            }
            (None, _) => found.push(Difference::Added(service.clone())),
            (_, None) => found.push(Difference::Removed(service.clone())),
        }
    }
    let rest = union(&before.rest, &after.rest).into_iter();
    found.extend(
        rest.filter(|key| before.rest.get(*key) != after.rest.get(*key))
            .map(|key| Difference::Project(key.clone())),
    );
    found
}

/// What an edit changed beyond the images it was to write, or failed to change; empty when it did just what it should.
pub fn beyond(before: &Model, after: &Model, images: &BTreeMap<ServiceName, ImageRef>) -> Vec<Difference> {
    let wanted = |service: &ServiceName| images.get(service).map(ImageRef::to_string);
    let mut found: Vec<Difference> = differences(before, after)
        .into_iter()
        .filter(|difference| match difference {
            Difference::Image { service, after, .. } => {
                wanted(service).is_none() || wanted(service) != *after
            }
            Difference::Key { .. }
            | Difference::Added(_)
            | Difference::Removed(_)
            | Difference::Project(_) => true,
        })
        .collect();
    for service in images.keys() {
        let (old, new) = (before.services.get(service), after.services.get(service));
        let image = new.and_then(|service| service.image.clone());
        let unchanged = old.and_then(|service| service.image.clone()) == image;
        if unchanged && image != wanted(service) {
            found.push(Difference::Image {
                service: service.clone(),
                before: image.clone(),
                after: image,
            });
        }
    }
    found
}

fn union<'m, K: Ord, V>(a: &'m BTreeMap<K, V>, b: &'m BTreeMap<K, V>) -> BTreeSet<&'m K> {
    a.keys().chain(b.keys()).collect()
}
