//! Files that override each other, service by service. Pure.

use std::collections::BTreeMap;

use super::locate::Image;
use super::yaml::Node;

/// The services of a file or document, and how each is laid over the ones before.
pub(super) type Layer = BTreeMap<String, (Image, Merge)>;

/// How a service of a later file meets the same service of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Merge {
    /// Key by key.
    Over,
    /// `!override`: the earlier one is forgotten.
    Instead,
    /// `!reset`: there is no such service any more.
    Remove,
}

impl Merge {
    /// By the tag of the service's mapping.
    pub(super) fn of(service: &Node) -> Self {
        if service.tagged("reset") {
            Self::Remove
        } else if service.tagged("override") {
            Self::Instead
        } else {
            Self::Over
        }
    }
}

/// Lays the services of a later file or document over those of earlier ones.
pub(super) fn lay_over(all: &mut Layer, own: Layer) {
    for (name, (image, how)) in own {
        match (how, &image) {
            (Merge::Remove, _) => {
                all.remove(&name);
            }
            (Merge::Over, Image::Absent) => {
                all.entry(name).or_insert((image, how));
            }
            (Merge::Over, Image::Removed | Image::At(_)) | (Merge::Instead, _) => {
                all.insert(name, (image, how));
            }
        }
    }
}
