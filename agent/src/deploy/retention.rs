//! Which releases stay ready to be gone back to, and which images nothing needs any more: pure.
//!
//! It decides from what is recorded and what is on the host; `crate::retention` asks and acts. In doubt an image stays.

use std::collections::BTreeSet;

use deploy_proto::image::{Digest, ImageRef, canonical_repository};
use deploy_proto::names::{ProjectName, ReleaseNumber};
use deploy_proto::release::{MissingImage, MissingImages, ReleaseState};

use super::plan::{Plan, ServicePlan};
use crate::config::Project;
use crate::history::{Release, ReleaseImage};
use crate::policy;

/// What runs and what ran before it: however little `keep` says, a plain `rollback` needs no registry.
const STEPS_LEAST: usize = 2;

/// A configured project and everything that is recorded of it.
#[derive(Debug, Clone)]
pub struct Records {
    /// The project.
    pub project: Project,
    /// Its releases, newest first.
    pub releases: Vec<Release>,
}

/// An image that is on this host, with its names as the Engine writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHere {
    /// Its id.
    pub id: String,
    /// `repository:tag`.
    pub tags: Vec<String>,
    /// `repository@sha256:...`: what registries call it.
    pub digests: Vec<String>,
}

/// The images of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagesHere {
    /// All that have a name or are no other's parent.
    pub images: Vec<ImageHere>,
    /// The ids of those that a container of anybody's was made from, whether or not it runs.
    pub in_use: BTreeSet<String>,
}

/// An image to remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// Its id.
    pub image_id: String,
    /// The names to take away first, so that what is left is one tag at most, in one repository: an image with more is
    /// removed by force only.
    pub names_first: Vec<String>,
    /// What people call it.
    pub shown: String,
}

/// The releases that can be gone back to without a registry: the newest `keep` that ran, and as many as `rollback`
/// reaches step by step from the one that runs (at least the one before it).
pub fn kept(project: &Project, releases: &[Release]) -> BTreeSet<ReleaseNumber> {
    let keep = usize::try_from(project.keep).unwrap_or(usize::MAX);
    let newest = successful(releases).take(keep).map(|release| release.number);
    let live = successful(releases).find(|release| release.state == ReleaseState::Live);
    let before = |release: &&Release| {
        let parent = release.parent?;
        // A parent is older, so this ends also where the database says nonsense.
        successful(releases).find(|other| other.number == parent && parent < release.number)
    };
    let steps = std::iter::successors(live, before).take(keep.max(STEPS_LEAST));
    newest.chain(steps.map(|release| release.number)).collect()
}

/// The releases whose images and files stay: the kept ones, what is under way, and what failed since the oldest of the
/// newest `keep`, where somebody may look for the reason; of those no more than `keep`.
pub fn at_hand(project: &Project, releases: &[Release]) -> BTreeSet<ReleaseNumber> {
    let keep = usize::try_from(project.keep).unwrap_or(usize::MAX);
    let oldest = successful(releases)
        .take(keep)
        .last()
        .map(|release| release.number);
    let in_state = |state| releases.iter().filter(move |release| release.state == state);
    let failed = in_state(ReleaseState::Failed)
        .filter(|release| oldest.is_none_or(|oldest| release.number > oldest))
        .take(keep);
    let mut at_hand = kept(project, releases);
    at_hand.extend(
        failed
            .chain(in_state(ReleaseState::Deploying))
            .map(|release| release.number),
    );
    at_hand
}

/// The images that may be removed after a deployment of this project: those that a release of it had which is not at
/// hand any more, and that
///
/// * no container was made from,
/// * no release at hand of any configured project and no deployment under way needs,
/// * have no name but those that releases recorded, in repositories of this project: another name is somebody's,
/// * a registry knows by digest: anything else could not be had again.
pub fn removable(name: &ProjectName, all: &[Records], under_way: &[Plan], here: &ImagesHere) -> Vec<Removal> {
    let Some(mine) = all.iter().find(|records| &records.project.name == name) else {
        return Vec::new();
    };
    if !mine.project.remove_images {
        return Vec::new();
    }
    let needed = needed(all, under_way);
    let mut dropped = Names::default();
    let at_hand = at_hand(&mine.project, &mine.releases);
    for release in &mine.releases {
        if !at_hand.contains(&release.number) {
            let managed = |image: &&ReleaseImage| policy::is_listed(&mine.project, image.image.repository());
            release
                .images
                .iter()
                .filter(managed)
                .for_each(|image| dropped.add_release(image));
        }
    }
    let mut recorded = Names::default();
    for image in all
        .iter()
        .flat_map(|records| &records.releases)
        .flat_map(|release| &release.images)
    {
        recorded.add_tag(&image.written);
        recorded.add_tag(&image.image);
    }
    here.images
        .iter()
        .filter(|image| !here.in_use.contains(&image.id))
        .filter_map(|image| removal(image, &mine.project, &needed, &dropped, &recorded))
        .collect()
}

/// The kept releases of which images are gone from this host, newest first.
pub fn missing_of_kept(records: &Records, here: &ImagesHere) -> Vec<MissingImages> {
    let kept = kept(&records.project, &records.releases);
    let releases = records
        .releases
        .iter()
        .filter(|release| kept.contains(&release.number));
    missing(&records.project, releases, here)
}

/// Those of these releases that ran and of which images are gone from this host. Only images that a rollback would bring
/// back count.
pub fn missing<'r>(
    project: &Project,
    releases: impl IntoIterator<Item = &'r Release>,
    here: &ImagesHere,
) -> Vec<MissingImages> {
    let ids: BTreeSet<&str> = here.images.iter().map(|image| image.id.as_str()).collect();
    let digests: BTreeSet<(String, Digest)> = here
        .images
        .iter()
        .flat_map(|image| &image.digests)
        .filter_map(|known| known.parse::<ImageRef>().ok())
        .filter_map(|known| Some((known.canonical_repository(), known.digest()?.clone())))
        .collect();
    let is_gone = |image: &&ReleaseImage| {
        let by_id = image.image_id.as_deref();
        let by_digest = image.image.digest();
        let is_here = by_id.is_some_and(|id| ids.contains(id))
            || by_digest.is_some_and(|digest| {
                digests.contains(&(image.image.canonical_repository(), digest.clone()))
            });
        (by_id.is_some() || by_digest.is_some())
            && !is_here
            && (image.changed || image.image_id.is_some())
            && policy::is_listed(project, image.image.repository())
    };
    let of = |release: &Release| MissingImages {
        release: release.number,
        version: release.version.clone(),
        images: release
            .images
            .iter()
            .filter(is_gone)
            .map(|image| MissingImage {
                service: image.service.clone(),
                image: image.image.clone(),
            })
            .collect(),
    };
    releases
        .into_iter()
        .filter(|release| ran(release))
        .map(of)
        .filter(|missing| !missing.images.is_empty())
        .collect()
}

fn successful(releases: &[Release]) -> impl Iterator<Item = &Release> {
    releases.iter().filter(|release| ran(release))
}

fn ran(release: &Release) -> bool {
    match release.state {
        ReleaseState::Live | ReleaseState::Replaced => true,
        ReleaseState::Deploying | ReleaseState::Failed => false,
    }
}

/// Everything that must stay, whosesoever it is.
fn needed(all: &[Records], under_way: &[Plan]) -> Names {
    let mut needed = Names::default();
    for records in all {
        let at_hand = at_hand(&records.project, &records.releases);
        for release in &records.releases {
            if !records.project.remove_images || at_hand.contains(&release.number) {
                for image in &release.images {
                    needed.add_release(image);
                    if image.image_id.is_none() && image.image.digest().is_none() {
                        // All that is known of it.
                        needed.add_tag(&image.image);
                    }
                }
            }
        }
    }
    for service in under_way
        .iter()
        .flat_map(|plan| plan.services.iter().chain(&plan.unchanged))
    {
        needed.add_plan(service);
    }
    needed
}

fn removal(
    image: &ImageHere,
    project: &Project,
    needed: &Names,
    dropped: &Names,
    recorded: &Names,
) -> Option<Removal> {
    // A name that cannot be read is nobody's that we know.
    let read = |names: &[String]| {
        names
            .iter()
            .map(|name| name.parse().ok())
            .collect::<Option<Vec<ImageRef>>>()
    };
    let (tags, digests) = (read(&image.tags)?, read(&image.digests)?);
    let is_mine = |name: &ImageRef| policy::is_listed(project, name.repository());
    let all_mine = tags.iter().chain(&digests).all(is_mine);
    let all_recorded = tags.iter().all(|tag| recorded.has_tag(tag));
    let first = digests.first()?;
    let (id, names) = (&image.id, || tags.iter().chain(&digests));
    if !all_mine || !all_recorded || !dropped.has(id, names()) || needed.has(id, names()) {
        return None;
    }
    let stays = tags.first().unwrap_or(first).canonical_repository();
    let other_tags = image.tags.iter().skip(1);
    let other_digests = image
        .digests
        .iter()
        .zip(&digests)
        .filter(|(_, digest)| digest.canonical_repository() != stays)
        .map(|(name, _)| name);
    Some(Removal {
        image_id: image.id.clone(),
        names_first: other_tags.chain(other_digests).cloned().collect(),
        shown: tags.first().unwrap_or(first).to_string(),
    })
}

/// Images by everything that they are known by.
#[derive(Debug, Default)]
struct Names {
    ids: BTreeSet<String>,
    /// Whatever the repository: the same digest is the same image.
    digests: BTreeSet<Digest>,
    /// Repository and tag.
    tags: BTreeSet<(String, String)>,
}

impl Names {
    fn add_release(&mut self, image: &ReleaseImage) {
        self.ids.extend(image.image_id.clone());
        self.digests.extend(image.image.digest().cloned());
        self.digests.extend(image.written.digest().cloned());
    }

    fn add_plan(&mut self, service: &ServicePlan) {
        self.ids
            .extend(service.old_image_id.iter().chain(&service.new_image_id).cloned());
        self.digests.extend(service.old_digest.clone());
        for name in service.old.iter().chain([&service.new, &service.written]) {
            self.digests.extend(name.digest().cloned());
            self.add_tag(name);
        }
    }

    fn add_tag(&mut self, name: &ImageRef) {
        self.tags.extend(tag(name));
    }

    fn has_tag(&self, name: &ImageRef) -> bool {
        tag(name).is_some_and(|tag| self.tags.contains(&tag))
    }

    fn has<'n>(&self, id: &str, mut names: impl Iterator<Item = &'n ImageRef>) -> bool {
        self.ids.contains(id)
            || names.any(|name| {
                name.digest().is_some_and(|digest| self.digests.contains(digest)) || self.has_tag(name)
            })
    }
}

/// What Docker takes the reference for where it has no digest: without a tag, `latest`.
fn tag(name: &ImageRef) -> Option<(String, String)> {
    let tag = name.tag().or(name.digest().is_none().then_some("latest"))?;
    Some((canonical_repository(name.repository()), tag.to_owned()))
}

#[cfg(test)]
mod tests;
