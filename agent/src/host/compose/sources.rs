//! The bytes of all files that make a project: its Compose files, those that they include or extend, and `.env`.
//!
//! Reads only. What Compose would fetch from elsewhere is refused here, before Compose is ever called.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::config::Project;
use crate::host::files::{self, FilesError};

use super::ComposeError;
use super::dotenv;
use super::locate::{Bytes, Start, Stop, images};
use super::paths::{clean, local};
use super::refusal::EditRefusal;
use super::template::Scope;

/// How many files a project may have; the largest public ones have about thirty.
pub const FILES_MAX: usize = 128;
/// How large they may be together; each is bounded by [`files::FILE_MAX_BYTES`] as well.
pub const FILES_MAX_BYTES: usize = 8 * 1024 * 1024;

/// What Compose looks for when no file is given, best first.
const DEFAULT_NAMES: [&str; 4] = [
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
    "docker-compose.yaml",
];
/// And what it adds.
const OVERRIDE_NAMES: [&str; 4] = [
    "compose.override.yml",
    "compose.override.yaml",
    "docker-compose.override.yml",
    "docker-compose.override.yaml",
];

/// A project's files as they were at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Sources {
    pub(super) start: Start,
    pub(super) files: Bytes,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `.env` holds secrets.
        let files: Vec<&Path> = self.files().map(|(path, _)| path).collect();
        f.debug_struct("Sources")
            .field("files", &files)
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// Reads them all. It blocks: async callers use a blocking thread.
    ///
    /// # Errors
    /// A file is missing, unreadable, too large or not what Compose accepts, or refers to something that is not a
    /// local file.
    pub fn load(project: &Project) -> Result<Self, ComposeError> {
        let mut files = Bytes::new();
        let start = start(project, &mut files)?;
        loop {
            match images(&start, &files) {
                Ok(_) => return Ok(Self { start, files }),
                Err(Stop::Refused(refusal)) => return Err(refusal.into()),
                Err(Stop::Need { file }) => add(&mut files, &file)?,
            }
        }
    }

    /// The files that exist, with their bytes: what a release keeps and a backup holds.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files
            .iter()
            .filter_map(|(path, bytes)| Some((path.as_path(), bytes.as_deref()?)))
    }

    /// The main Compose files, in the order in which they override each other: what `-f` is given.
    pub fn main(&self) -> &[PathBuf] {
        &self.start.main
    }
}

fn start(project: &Project, files: &mut Bytes) -> Result<Start, ComposeError> {
    let dotenv = project.dir.join(".env");
    add(files, &dotenv)?;
    let main = if project.files.is_empty() {
        found(project, &dotenv, files)?
    } else {
        project
            .files
            .iter()
            .map(|file| clean(&project.dir.join(file)))
            .collect()
    };
    for file in &main {
        add(files, file)?;
        if files.get(file).is_none_or(Option::is_none) {
            return Err(FilesError::Missing { path: file.clone() }.into());
        }
    }
    Ok(Start {
        dir: project.dir.clone(),
        main,
        dotenv,
    })
}

/// The files that Compose itself would take: `COMPOSE_FILE` of `.env`, or else the first default name that exists and
/// the first override beside it. Compose goes on in the parent folders; the agent does not, a project is one folder.
fn found(project: &Project, dotenv: &Path, files: &Bytes) -> Result<Vec<PathBuf>, ComposeError> {
    if let Some(Some(bytes)) = files.get(dotenv) {
        let text = std::str::from_utf8(bytes).map_err(|error| EditRefusal::NotUtf8 {
            file: dotenv.to_owned(),
            byte: error.valid_up_to(),
        })?;
        let scope = dotenv::read(dotenv, text, &Scope::new()).map_err(|error| EditRefusal::Dotenv {
            file: dotenv.to_owned(),
            line: error.line,
            reason: error.reason,
        })?;
        let named = dotenv::text_of(&scope, "COMPOSE_FILE").filter(|named| !named.is_empty());
        if let Some(named) = named {
            let separator = dotenv::text_of(&scope, "COMPOSE_PATH_SEPARATOR").filter(|text| !text.is_empty());
            let separator = separator.as_deref().unwrap_or(":");
            return named
                .split(separator)
                .map(|path| Ok(local(path, dotenv, &project.dir)?))
                .collect();
        }
    }
    let first = |names: [&str; 4]| {
        names
            .into_iter()
            .map(|name| project.dir.join(name))
            .find(|path| path.is_file())
    };
    match (first(DEFAULT_NAMES), first(OVERRIDE_NAMES)) {
        (Some(main), Some(over)) => Ok(vec![main, over]),
        (Some(main), None) => Ok(vec![main]),
        (None, _) => Err(ComposeError::NoComposeFile {
            dir: project.dir.clone(),
        }),
    }
}

fn add(files: &mut Bytes, path: &Path) -> Result<(), ComposeError> {
    let bytes = match files::read(path) {
        Ok(bytes) => Some(bytes),
        Err(FilesError::Missing { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    files.insert(path.to_owned(), bytes);
    let total: usize = files.values().flatten().map(Vec::len).sum();
    let limit = if files.len() > FILES_MAX {
        "128 files"
    } else if total > FILES_MAX_BYTES {
        "8 MiB in all"
    } else {
        return Ok(());
    };
    Err(EditRefusal::TooMuch { limit }.into())
}
