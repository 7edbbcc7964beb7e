//! What an edit is: files with their bytes before and after. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;

/// What is to be written, and what comes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The files that change; none when everything is there already.
    pub files: Vec<FileEdit>,
    /// The images as `docker compose config` will show them, for each service that was named.
    pub images: BTreeMap<ServiceName, ImageRef>,
    /// The services whose wanted digest could not be written, because their tag stands in a variable that serves
    /// several images or is not the end of the text. They run the wanted tag; the release records the digest.
    pub unpinned: BTreeSet<ServiceName>,
}

/// One file's change.
#[derive(Clone, PartialEq, Eq)]
pub struct FileEdit {
    /// The file, absolute; it may be a symbolic link.
    pub path: PathBuf,
    /// Its bytes as they were read.
    pub before: Vec<u8>,
    /// Its bytes as they shall be.
    pub after: Vec<u8>,
    /// The changes, for people: the image or the `.env` entry only, not the rest of the line.
    pub lines: Vec<LineEdit>,
}

impl fmt::Debug for FileEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes around the images are the host's, and `.env` holds secrets.
        f.debug_struct("FileEdit")
            .field("path", &self.path)
            .field("lines", &self.lines)
            .finish_non_exhaustive()
    }
}

/// One changed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineEdit {
    /// Counted from 1.
    pub line: usize,
    /// The image or `.env` entry as it was.
    pub before: String,
    /// The same as it shall be.
    pub after: String,
}
