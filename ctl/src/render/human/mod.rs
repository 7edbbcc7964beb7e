//! What a person sees, on a terminal and in a CI log.

pub(crate) mod ending;
pub(crate) mod plan;
pub(crate) mod progress;
#[cfg(test)]
pub(crate) mod samples;
pub(crate) mod state;

use deploy_proto::event::RunningService;
use deploy_proto::image::ImageRef;
use deploy_proto::names::{ServiceName, Version};
use deploy_proto::release::PlanView;

use super::text::{clean, count};

/// What a person calls what is deployed: the version's label, else the tag that all images share, else their number.
pub(crate) fn called<'i>(version: Option<&Version>, images: impl Iterator<Item = &'i ImageRef>) -> String {
    if let Some(version) = version {
        return version.to_string();
    }
    let images: Vec<_> = images.collect();
    match images.split_first() {
        Some((first, rest)) if rest.iter().all(|image| image.version() == first.version()) => {
            first.version().to_owned()
        }
        Some(_) | None => count(images.len(), "image"),
    }
}

/// What a plan deploys, in a word.
pub(crate) fn plan_called(version: Option<&Version>, plan: &PlanView) -> String {
    called(version, plan.services.iter().map(|service| &service.new))
}

/// Versions of services: `v1.4.1` when they agree, else `web v1.4.1, api v1.3.0`.
pub(crate) fn versions<'s>(
    services: impl Iterator<Item = (&'s ServiceName, Option<&'s ImageRef>)>,
) -> String {
    agreed(services.map(|(service, image)| (service, image.map_or("nothing", ImageRef::version).to_owned())))
}

/// What services run: their versions, and of one that has none why.
pub(crate) fn running(services: &[RunningService]) -> String {
    agreed(services.iter().map(|running| {
        let what = match (&running.image, &running.state) {
            (Some(image), _) => image.version().to_owned(),
            (None, Some(state)) => format!("({})", clean(state)),
            (None, None) => "nothing".to_owned(),
        };
        (&running.service, what)
    }))
}

fn agreed<'s>(services: impl Iterator<Item = (&'s ServiceName, String)>) -> String {
    let services: Vec<_> = services.collect();
    match services.split_first() {
        Some(((_, first), rest)) if rest.iter().all(|(_, version)| version == first) => first.clone(),
        Some(_) | None => {
            let each: Vec<_> = services
                .iter()
                .map(|(service, version)| format!("{service} {version}"))
                .collect();
            each.join(", ")
        }
    }
}
