//! Drift: where a project is not as its release left it. Pure.
//!
//! Only what the release ran, and of that only what this agent may deploy, can drift: databases and whatever else is
//! not on the project's allow-list are not looked at.

use std::path::Path;

use deploy_proto::release::{Drift, DriftKind};

use super::difference::edited_files;
use super::facts::{Facts, RunningFacts, SourceFile};
use crate::config::Project;
use crate::history::{Release, ReleaseImage};
use crate::policy;

/// The files as a deployment left them, and the release that it made or went back to.
#[derive(Debug, Clone)]
pub struct Left {
    /// The release.
    pub release: deploy_proto::names::ReleaseNumber,
    /// The files.
    pub files: Vec<SourceFile>,
}

/// Everything that drifted: the services, then the files.
pub fn drift(project: &Project, release: &Release, left: Option<&Left>, facts: &Facts) -> Vec<Drift> {
    let mut found = services(project, release, facts);
    found.extend(
        left.into_iter()
            .flat_map(|left| files(project, left, &facts.files)),
    );
    found
}

/// The services that drifted, one finding each: the first of those that a restart mends together.
pub fn services(project: &Project, release: &Release, facts: &Facts) -> Vec<Drift> {
    let found = |image: &&ReleaseImage| {
        let (kind, what) = of_service(image, facts)?;
        Some(Drift {
            kind,
            service: Some(image.service.clone()),
            detail: format!("{} {what}", image.service),
        })
    };
    should_run(project, release, facts)
        .filter_map(|image| found(&image))
        .collect()
}

/// What the release ran of the services that this agent may deploy and that the files still have.
pub fn should_run<'r>(
    project: &'r Project,
    release: &'r Release,
    facts: &'r Facts,
) -> impl Iterator<Item = &'r ReleaseImage> {
    release.images.iter().filter(|image| {
        // One that ran neither then nor now belongs to a profile, or somebody had stopped it.
        let ran = image.changed || image.image_id.is_some() || image.ran.is_some();
        ran && facts.services.contains_key(&image.service)
            && policy::is_listed(project, image.image.repository())
    })
}

fn of_service(image: &ReleaseImage, facts: &Facts) -> Option<(DriftKind, String)> {
    let release = image.image.version();
    let now = facts.services.get(&image.service)?;
    let Some(running) = &now.running else {
        return Some((
            DriftKind::Missing,
            format!("has no container, the release runs {release}"),
        ));
    };
    if !is_image(image, running) {
        let what = format!("runs another image than the release's {release}");
        return Some((DriftKind::Image, what));
    }
    if !running.does_run {
        return Some((
            DriftKind::NotRunning,
            format!("does not run, the release runs {release}"),
        ));
    }
    is_other_configuration(image, running).then(|| {
        let what = "was recreated with another configuration than the release's".to_owned();
        (DriftKind::Configuration, what)
    })
}

/// Whether every container is of the release's image: by its local id where that was recorded, else by its digest. An
/// image that is known by neither is taken as the right one.
fn is_image(image: &ReleaseImage, running: &RunningFacts) -> bool {
    let recorded = image.ran.as_ref().map(|ran| &ran.image_id);
    let by_id = |id: &String| running.image_ids.iter().all(|running| running == id);
    if recorded.is_some_and(by_id) {
        return true;
    }
    match (image.image.digest(), &running.digest) {
        (Some(digest), Some(running_digest)) => digest == running_digest && running.image_ids.len() <= 1,
        (Some(_), None) | (None, _) => recorded.or(image.image_id.as_ref()).is_none_or(by_id),
    }
}

/// Whether a container was made from a configuration that the release did not have. Compose gives a container one hash
/// when it is made with what it depends on, and another when it is made alone; a release knows both.
fn is_other_configuration(image: &ReleaseImage, running: &RunningFacts) -> bool {
    let Some(ran) = &image.ran else { return false };
    !ran.config_hashes.is_empty()
        && running
            .config_hashes
            .iter()
            .any(|hash| !ran.config_hashes.contains(hash))
}

/// The files that were edited since, by line.
pub fn files(project: &Project, left: &Left, now: &[SourceFile]) -> Vec<Drift> {
    let edited = edited_files(&left.files, now);
    edited
        .into_iter()
        .map(|(path, lines)| Drift {
            kind: DriftKind::Edited,
            service: None,
            detail: format!(
                "{} edited by hand since release {}: {lines}",
                relative(project, path).display(),
                left.release
            ),
        })
        .collect()
}

/// A file as people call it: below the project's folder where it lies inside.
pub fn relative<'p>(project: &Project, path: &'p Path) -> &'p Path {
    path.strip_prefix(&project.dir).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use deploy_proto::push::Source;
    use deploy_proto::release::ReleaseState;

    use super::*;
    use crate::config::{Order, Pin};
    use crate::deploy::facts::{Ran, ServiceFacts};

    const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const OTHER_DIGEST: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    fn project() -> Project {
        Project {
            name: "shop".parse().unwrap(),
            dir: "/srv/shop".into(),
            files: Vec::new(),
            images: vec!["acme/*".into()],
            allow_latest: false,
            pin: Pin::Digest,
            order: Order::OneByOne,
            wait: Duration::from_secs(1),
            settle: Duration::ZERO,
            bake: Duration::ZERO,
            keep: 10,
            remove_images: true,
            min_free_bytes: 0,
            probes: Vec::new(),
            hooks: Vec::new(),
        }
    }

    fn texts(texts: &[&str]) -> BTreeSet<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn image(service: &str, repository: &str) -> ReleaseImage {
        ReleaseImage {
            service: service.parse().unwrap(),
            written: format!("{repository}:v2").parse().unwrap(),
            image: format!("{repository}:v2@{DIGEST}").parse().unwrap(),
            image_id: None,
            changed: true,
            ran: Some(Ran {
                image_id: "id".into(),
                config_hashes: texts(&["alone", "with all"]),
            }),
        }
    }

    fn as_released() -> RunningFacts {
        RunningFacts {
            image_id: "id".into(),
            image_ids: texts(&["id"]),
            digest: DIGEST.parse().ok(),
            containers: vec!["container".into()],
            config_hashes: texts(&["alone"]),
            does_run: true,
            is_well: true,
        }
    }

    fn found(image: ReleaseImage, running: Option<RunningFacts>) -> Option<DriftKind> {
        let service = image.service.clone();
        let release = Release {
            project: "shop".parse().unwrap(),
            number: deploy_proto::names::ReleaseNumber(2),
            parent: None,
            state: ReleaseState::Live,
            version: None,
            key: None,
            source: Source::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            irreversible: false,
            images: vec![image],
        };
        let now = ServiceFacts {
            running,
            ..ServiceFacts::default()
        };
        let facts = Facts {
            services: BTreeMap::from([(service, now)]),
            ..Facts::default()
        };
        let found = services(&project(), &release, &facts);
        assert!(found.len() < 2, "{found:?}");
        found.first().map(|drift| drift.kind)
    }

    #[test]
    fn what_is_as_the_release_left_it_is_no_drift() {
        let web = || image("web", "acme/web");
        let with_all = RunningFacts {
            config_hashes: texts(&["with all"]),
            is_well: false,
            ..as_released()
        };
        let without_digest = RunningFacts {
            digest: None,
            ..as_released()
        };
        let unlabelled = RunningFacts {
            config_hashes: BTreeSet::new(),
            ..as_released()
        };
        let of_an_older_agent = ReleaseImage { ran: None, ..web() };
        let recoloured = RunningFacts {
            config_hashes: texts(&["other"]),
            ..as_released()
        };
        for (what, image, running) in [
            ("as it was", web(), Some(as_released())),
            (
                "recreated by hand from the same files, and sick",
                web(),
                Some(with_all),
            ),
            ("its digest is not known any more", web(), Some(without_digest)),
            ("without a label", web(), Some(unlabelled)),
            ("a release without a record", of_an_older_agent, Some(recoloured)),
            ("a database", image("db", "postgres"), None),
        ] {
            assert_eq!(found(image, running), None, "{what}");
        }
        let never_ran = ReleaseImage {
            changed: false,
            ran: None,
            ..web()
        };
        assert_eq!(found(never_ran, None), None);
    }

    #[test]
    fn what_is_not_is_told_by_its_kind() {
        let web = || image("web", "acme/web");
        let running = |change: &dyn Fn(&mut RunningFacts)| {
            let mut running = as_released();
            change(&mut running);
            Some(running)
        };
        let other_image = running(&|running| {
            running.digest = OTHER_DIGEST.parse().ok();
            running.image_ids = texts(&["other"]);
        });
        let two_images = running(&|running| running.image_ids = texts(&["id", "other"]));
        let built_here = running(&|running| {
            running.digest = None;
            running.image_ids = texts(&["other"]);
        });
        for (what, kind, running) in [
            ("removed", DriftKind::Missing, None),
            (
                "stopped",
                DriftKind::NotRunning,
                running(&|running| running.does_run = false),
            ),
            ("another image", DriftKind::Image, other_image),
            ("one container of several", DriftKind::Image, two_images),
            ("an image that no registry gave", DriftKind::Image, built_here),
            (
                "recreated with other files",
                DriftKind::Configuration,
                running(&|running| running.config_hashes = texts(&["alone", "other"])),
            ),
        ] {
            assert_eq!(found(web(), running), Some(kind), "{what}");
        }
        let not_recorded = ReleaseImage { ran: None, ..web() };
        let other = running(&|running| running.digest = OTHER_DIGEST.parse().ok());
        assert_eq!(found(not_recorded, other), Some(DriftKind::Image));
    }
}
