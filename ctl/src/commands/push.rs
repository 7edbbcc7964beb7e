//! `push`: from arguments and `deploy.toml` to the images that are asked for.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::image::ImageRef;
use deploy_proto::names::{ReleaseNumber, Version};
use deploy_proto::push::{CHANGES_MAX, Change, Push, Sequence};
use deploy_proto::release::DeploymentKind;

use super::Session;
use super::deployment::{self, Order};
use crate::cli;
use crate::error::Error;
use crate::render::human::called;
use crate::target::Target;

pub(super) async fn run(session: &Session, arguments: &cli::Push) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    check_expected(arguments.expect_release, target.hosts.len())?;
    let images = changes(arguments, &target)?;
    let id = match &arguments.following.id {
        Some(id) => id.clone(),
        None => session.surroundings.draw_id()?,
    };
    let what = called(
        arguments.version.as_ref(),
        images.iter().map(|change| &change.image),
    );
    let order = Order {
        command: "push",
        kind: DeploymentKind::Push,
        id: id.clone(),
        version: arguments.version.as_ref(),
        path: "/deployments",
        plan_path: "/plan",
        discards: false,
        question: format!("Deploy {what} to {}?", target.place()),
        body: Push {
            id,
            images,
            version: arguments.version.clone(),
            queue: arguments.queue,
            accept_edits: arguments.accept_edits,
            sequence: sequence(arguments, session),
            allow_older: arguments.allow_older,
            expect_release: arguments.expect_release,
            source: session.caller.source.clone(),
        },
    };
    deployment::run(session, &target, &order, &arguments.following, arguments.dry_run).await
}

/// The run that was named, or that the CI system tells; both are counted in the CI system's line.
fn sequence(arguments: &cli::Push, session: &Session) -> Option<Sequence> {
    let by_ci = session.caller.sequence.clone();
    match &arguments.sequence {
        Some(named) => Some(Sequence {
            line: by_ci.and_then(|by_ci| by_ci.line),
            ..named.clone()
        }),
        None => by_ci,
    }
}

/// Releases are numbered by each host for itself: one number fits one host.
fn check_expected(expected: Option<ReleaseNumber>, hosts: usize) -> Result<(), Error> {
    match expected {
        Some(release) if hosts > 1 => Err(Error::usage(
            format!("--expect-release {release} names one host's release, and the target has {hosts} hosts"),
            "name one host with --host",
        )),
        Some(_) | None => Ok(()),
    }
}

/// The images of `--set` and `--image`; without these every image of `deploy.toml` with the version as its tag.
fn changes(arguments: &cli::Push, target: &Target) -> Result<Vec<Change>, Error> {
    let set = arguments.set.iter().map(|(service, image)| Change {
        service: Some(service.clone()),
        image: image.clone(),
    });
    let by_repository = arguments.image.iter().map(|image| Change {
        service: None,
        image: image.clone(),
    });
    let named: Vec<_> = set.chain(by_repository).collect();
    let changes = match (named.is_empty(), &arguments.version) {
        (false, _) => named,
        (true, Some(version)) => versioned(version, target)?,
        (true, None) => {
            return Err(Error::usage(
                "nothing is named to deploy",
                "give -v VERSION, --set SERVICE=IMAGE or --image IMAGE",
            ));
        }
    };
    if changes.len() > CHANGES_MAX {
        return Err(Error::usage(
            format!("one push names at most {CHANGES_MAX} images"),
            "split it into several",
        ));
    }
    if let Some(twice) = changes.iter().enumerate().find_map(|(index, change)| {
        let service = change.service.as_ref()?;
        changes
            .iter()
            .skip(index + 1)
            .any(|other| other.service.as_ref() == Some(service))
            .then_some(service)
    }) {
        return Err(Error::usage(
            format!("{twice} is set twice"),
            "name each service once",
        ));
    }
    Ok(changes)
}

fn versioned(version: &Version, target: &Target) -> Result<Vec<Change>, Error> {
    if target.images.is_empty() {
        return Err(Error::usage(
            format!("-v {version} names a tag, but there are no [images] in deploy.toml to give it to"),
            "add [images] with SERVICE = \"REPOSITORY\", or name images with --set or --image",
        ));
    }
    target
        .images
        .iter()
        .map(|(service, repository)| {
            let image: ImageRef = format!("{repository}:{version}").parse().map_err(
                |error: deploy_proto::image::BadImage| {
                    Error::usage(error.to_string(), "correct [images] in deploy.toml")
                },
            )?;
            Ok(Change {
                service: Some(service.clone()),
                image,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expected_release_is_one_hosts() {
        let refused = check_expected(Some(ReleaseNumber(7)), 2).unwrap_err();
        assert_eq!(refused.exit_code(), ExitCode::Usage);
        assert_eq!(refused.hint().unwrap(), "name one host with --host");
        assert!(check_expected(Some(ReleaseNumber(7)), 1).is_ok());
        assert!(check_expected(None, 2).is_ok());
    }
}
