//! The edit: which bytes of which files make the named services run the wanted images, and no other service anything
//! else. Pure.
//!
//! A rollback is the same edit with the old images, so it also works on a file that a person has edited since: what
//! else was changed stays. The result is checked by reading the edited bytes again before anything is written; the
//! caller then compares `docker compose config` before and after ([`super::difference::beyond`]).
//!
//! A tag that is the default of a variable (`${TAG:-dev}`) which `.env` does not set is changed where it stands. A
//! line added to `.env` would work too, but it would put the truth in a second place, override the file that people
//! read and commit, and reach every other service with the same variable.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;

use crate::deploy::plan::{Edits, FileEdit};

use super::image_line::{Change, InVariables, Splice, change};
use super::locate::{Image, Located, Stop};
use super::model::Model;
use super::refusal::EditRefusal;
use super::sources::Sources;
use super::splice::{line_at, lines, spliced, touches};

/// Works out the edit that makes the named services run the wanted images.
///
/// `wanted` is what shall be written: with a digest to pin it, without one otherwise, without a tag too when a
/// rollback goes back to that. The repository must be the one that is there; it is kept as it is written.
///
/// # Errors
/// See [`EditRefusal`]; nothing is written here in any case.
pub fn edit(
    sources: &Sources,
    model: &Model,
    wanted: &BTreeMap<ServiceName, ImageRef>,
) -> Result<Edits, EditRefusal> {
    let located = locate(sources)?;
    let mut found = BTreeMap::new();
    for (service, image) in wanted {
        found.insert(service, target(service, image, model, &located)?);
    }
    let mut tag_only = BTreeSet::new();
    loop {
        let attempt = Attempt {
            sources,
            located: &located,
            found: &found,
            wanted,
        };
        match attempt.run(&tag_only) {
            Ok(edit) => return Ok(edit),
            Err(refused) => {
                let (refusal, involved) = *refused;
                // A digest belongs to one image; a variable that serves several can hold the tag only.
                let more: Vec<ServiceName> = involved.difference(&tag_only).cloned().collect();
                if more.is_empty() {
                    return Err(refusal);
                }
                tag_only.extend(more);
            }
        }
    }
}

fn locate(sources: &Sources) -> Result<BTreeMap<String, Image>, EditRefusal> {
    super::locate::images(&sources.start, &sources.files).map_err(|stop| match stop {
        Stop::Refused(refusal) => refusal,
        Stop::Need { file } => EditRefusal::MissingFile {
            by: sources.start.dir.clone(),
            file,
        },
    })
}

/// Where the service's image stands, once it is sure that we and Compose mean the same.
fn target<'l>(
    service: &ServiceName,
    wanted: &ImageRef,
    model: &Model,
    located: &'l BTreeMap<String, Image>,
) -> Result<(&'l Located, ImageRef), EditRefusal> {
    let Some(in_compose) = model.services.get(service) else {
        return Err(EditRefusal::UnknownService {
            service: service.clone(),
            known: model.services.keys().cloned().collect(),
        });
    };
    let Some(Image::At(at)) = located.get(service.as_str()) else {
        return Err(EditRefusal::NoImage {
            service: service.clone(),
        });
    };
    let (service, file, line) = (service.clone(), at.file.clone(), at.line);
    if let Some(how) = at.unusual {
        return Err(EditRefusal::Unusual {
            service,
            how,
            file,
            line,
        });
    }
    let text = at.value.text();
    let compose = in_compose.image.clone().unwrap_or_default();
    if text != compose {
        let found = text;
        return Err(EditRefusal::NotUnderstood {
            service,
            found,
            compose,
            file,
            line,
        });
    }
    let image: ImageRef = match (text.parse(), at.value.missing.first()) {
        (Ok(image), _) => image,
        (Err(_), Some(variable)) => {
            let variable = variable.clone();
            return Err(EditRefusal::VariableMissing {
                service,
                variable,
                file,
                line,
            });
        }
        (Err(reason), None) => return Err(EditRefusal::BadImage { service, reason }),
    };
    if image.canonical_repository() != wanted.canonical_repository() {
        return Err(EditRefusal::OtherRepository {
            service,
            there: image.repository().to_owned(),
            asked: wanted.repository().to_owned(),
        });
    }
    Ok((at, image))
}

/// One try, with a digest for every service that is not in `tag_only`.
struct Attempt<'a> {
    sources: &'a Sources,
    located: &'a BTreeMap<String, Image>,
    found: &'a BTreeMap<&'a ServiceName, (&'a Located, ImageRef)>,
    wanted: &'a BTreeMap<ServiceName, ImageRef>,
}

/// A refusal, and the services that might do without their digests.
type Refused = Box<(EditRefusal, BTreeSet<ServiceName>)>;

impl Attempt<'_> {
    fn run(&self, tag_only: &BTreeSet<ServiceName>) -> Result<Edits, Refused> {
        let changes = self
            .changes(tag_only)
            .map_err(|refusal| Box::new((refusal, BTreeSet::new())))?;
        let splices = self.merged(&changes)?;
        let (files, after) = self.applied(&splices);
        let relocated = locate(&after).map_err(|refusal| Box::new((refusal, BTreeSet::new())))?;
        self.check_named(&changes, &relocated)?;
        self.check_others(&changes, &splices, &relocated)?;
        let unpinned = changes
            .iter()
            .filter(|(service, change)| {
                change.image.digest() != self.wanted.get(**service).and_then(ImageRef::digest)
            })
            .map(|(service, _)| (*service).clone())
            .collect();
        let images = changes
            .into_iter()
            .map(|(service, change)| (service.clone(), change.image))
            .collect();
        Ok(Edits {
            files,
            images,
            unpinned,
        })
    }

    fn changes(
        &self,
        tag_only: &BTreeSet<ServiceName>,
    ) -> Result<BTreeMap<&ServiceName, Change>, EditRefusal> {
        let mut changes = BTreeMap::new();
        for (service, wanted) in self.wanted {
            let Some((at, old)) = self.found.get(service) else {
                continue;
            };
            let in_variables = if tag_only.contains(service) {
                InVariables::TagOnly
            } else {
                InVariables::Pin
            };
            let change = change(&at.value.pieces, old, wanted, in_variables).map_err(|error| {
                EditRefusal::InParts {
                    service: service.clone(),
                    parts: self.parts(at),
                    wanted: error.wanted,
                }
            })?;
            changes.insert(service, change);
        }
        Ok(changes)
    }

    /// The splices of all services, each place once.
    fn merged(&self, changes: &BTreeMap<&ServiceName, Change>) -> Result<Vec<Splice>, Refused> {
        let mut merged: Vec<(&ServiceName, &Splice)> = Vec::new();
        for (service, change) in changes {
            for splice in &change.splices {
                let clash = merged.iter().find(|(_, other)| touches(splice, other));
                match clash {
                    None => merged.push((service, splice)),
                    Some((_, other)) if *other == splice => {}
                    Some((first, _)) => {
                        let services: BTreeSet<ServiceName> =
                            [(*first).clone(), (*service).clone()].into_iter().collect();
                        let (file, line) = self.line_of(splice);
                        let refusal = EditRefusal::Contradiction {
                            services: services.iter().cloned().collect(),
                            file,
                            line,
                        };
                        return Err(Box::new((refusal, self.pinned_by_variable(changes, &services))));
                    }
                }
            }
        }
        Ok(merged.into_iter().map(|(_, splice)| splice.clone()).collect())
    }

    fn applied(&self, splices: &[Splice]) -> (Vec<FileEdit>, Sources) {
        let mut after = self.sources.clone();
        let mut files = Vec::new();
        let mut by_file: BTreeMap<&Path, Vec<&Splice>> = BTreeMap::new();
        for splice in splices {
            by_file.entry(&splice.place.file).or_default().push(splice);
        }
        for (path, mut splices) in by_file {
            let Some(Some(before)) = self.sources.files.get(path) else {
                continue;
            };
            splices.sort_by_key(|splice| splice.place.span.start);
            let bytes = spliced(before, 0..before.len(), &splices);
            after.files.insert(path.to_owned(), Some(bytes.clone()));
            files.push(FileEdit {
                path: path.to_owned(),
                before: before.clone(),
                after: bytes,
                lines: lines(before, &splices),
            });
        }
        (files, after)
    }

    fn check_named(
        &self,
        changes: &BTreeMap<&ServiceName, Change>,
        relocated: &BTreeMap<String, Image>,
    ) -> Result<(), Refused> {
        for (service, change) in changes {
            let found = text_of(relocated.get(service.as_str())).unwrap_or_default();
            if found == change.image.to_string() {
                continue;
            }
            let refusal = EditRefusal::NotAsAsked {
                service: (*service).clone(),
                found,
                wanted: change.image.clone(),
            };
            let all = changes.keys().map(|service| (*service).clone()).collect();
            return Err(Box::new((refusal, self.pinned_by_variable(changes, &all))));
        }
        Ok(())
    }

    fn check_others(
        &self,
        changes: &BTreeMap<&ServiceName, Change>,
        splices: &[Splice],
        relocated: &BTreeMap<String, Image>,
    ) -> Result<(), Refused> {
        let others: Vec<ServiceName> = self
            .located
            .iter()
            .filter(|(name, image)| text_of(Some(image)) != text_of(relocated.get(*name)))
            .filter_map(|(name, _)| name.parse().ok())
            .filter(|service| !changes.contains_key(service))
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        let uses = |splice: &&Splice| {
            others.iter().any(|other| match self.located.get(other.as_str()) {
                Some(Image::At(at)) => at.value.pieces.iter().any(|piece| {
                    piece.place.as_ref().is_some_and(|place| {
                        place.file == splice.place.file && place.within == splice.place.within
                    })
                }),
                Some(Image::Absent | Image::Removed) | None => false,
            })
        };
        let splice = splices.iter().find(uses).or(splices.first());
        let (file, line) = splice.map_or((PathBuf::new(), 0), |splice| self.line_of(splice));
        let refusal = match splice.and_then(|splice| splice.variable.clone()) {
            Some(variable) => EditRefusal::SharedVariable {
                variable,
                file,
                line,
                others,
            },
            None => EditRefusal::SharedLine { file, line, others },
        };
        let all = changes.keys().map(|service| (*service).clone()).collect();
        Err(Box::new((refusal, self.pinned_by_variable(changes, &all))))
    }

    /// Those of the services whose digests went into a variable.
    fn pinned_by_variable(
        &self,
        changes: &BTreeMap<&ServiceName, Change>,
        among: &BTreeSet<ServiceName>,
    ) -> BTreeSet<ServiceName> {
        changes
            .iter()
            .filter(|(service, change)| {
                let ends_in_variable = self
                    .found
                    .get(**service)
                    .and_then(|(at, _)| at.value.pieces.last())
                    .is_some_and(|piece| piece.variable.is_some());
                among.contains(**service) && change.image.digest().is_some() && ends_in_variable
            })
            .map(|(service, _)| (*service).clone())
            .collect()
    }

    fn line_of(&self, splice: &Splice) -> (PathBuf, usize) {
        let bytes = self
            .sources
            .files
            .get(&*splice.place.file)
            .and_then(Option::as_deref);
        let line = line_at(bytes.unwrap_or_default(), splice.place.span.start);
        (splice.place.file.to_path_buf(), line)
    }

    fn parts(&self, at: &Located) -> String {
        let parts: Vec<String> = at
            .value
            .pieces
            .iter()
            .map(|piece| match &piece.variable {
                Some(variable) => format!("{:?} from {variable}", piece.text),
                None => format!("{:?}", piece.text),
            })
            .collect();
        parts.join(", ")
    }
}

fn text_of(image: Option<&Image>) -> Option<String> {
    match image {
        Some(Image::At(at)) => Some(at.value.text()),
        Some(Image::Absent | Image::Removed) | None => None,
    }
}
