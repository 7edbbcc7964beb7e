//! Where the image of every service is written: through several files, `extends`, local `include`, aliases and merge
//! keys. Pure: it works on the bytes it is given and says which file it lacks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::dotenv;
use super::layers::{Layer, Merge, lay_over};
use super::paths::local;
use super::refusal::EditRefusal;
use super::template::{Evaluated, Origin, Place, Scope, evaluate};
use super::yaml::{Document, Kind, Node, Style, parse};

/// How deep `include` and `extends` may follow each other.
const DEPTH_MAX: usize = 16;
/// How many services are looked at in all, so that files that extend each other in many ways end in time.
const STEPS_MAX: usize = 100_000;

/// The bytes of files by their paths; a file that was looked for and does not exist is `None`.
pub(super) type Bytes = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Where a project begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Start {
    /// The project's folder, which relative paths of the main files are relative to.
    pub(super) dir: PathBuf,
    /// The main Compose files, later ones overriding.
    pub(super) main: Vec<PathBuf>,
    /// The project's `.env`, whether it exists or not.
    pub(super) dotenv: PathBuf,
}

/// Why the walk ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stop {
    /// These bytes are needed and not known yet.
    Need {
        /// The file.
        file: PathBuf,
    },
    /// The files cannot be used.
    Refused(EditRefusal),
}

/// Where a service's image is written.
#[derive(Debug, Clone)]
pub(super) enum Image {
    /// Nowhere.
    Absent,
    /// Removed by `!reset`.
    Removed,
    /// There.
    At(Located),
}

/// The scalar that sets an image.
#[derive(Debug, Clone)]
pub(super) struct Located {
    /// The file.
    pub(super) file: PathBuf,
    /// Counted from 1.
    pub(super) line: usize,
    /// The text, in pieces.
    pub(super) value: Evaluated,
    /// Why it cannot be changed, if so.
    pub(super) unusual: Option<&'static str>,
}

/// The images of all services of a project by the services' names.
pub(super) fn images(start: &Start, bytes: &Bytes) -> Result<BTreeMap<String, Image>, Stop> {
    let mut walk = Walk {
        bytes,
        parsed: BTreeMap::new(),
        steps: 0,
    };
    let scope = walk.scope(
        std::slice::from_ref(&start.dotenv),
        &Scope::new(),
        &start.dir,
        true,
    )?;
    let context = Context {
        dir: &start.dir,
        scope: &scope,
        includes: true,
        depth: DEPTH_MAX,
    };
    walk.chain(&start.main, &start.dir, &context)
}

/// What the files of one chain have in common.
struct Context<'c> {
    dir: &'c Path,
    scope: &'c Scope,
    includes: bool,
    depth: usize,
}

struct Walk<'b> {
    bytes: &'b Bytes,
    parsed: BTreeMap<PathBuf, Rc<Vec<Document>>>,
    steps: usize,
}

impl Walk<'_> {
    /// The services of several files and documents, later ones overriding.
    fn chain(
        &mut self,
        files: &[PathBuf],
        by: &Path,
        at: &Context<'_>,
    ) -> Result<BTreeMap<String, Image>, Stop> {
        if at.depth == 0 {
            return Err(too_deep());
        }
        let mut all = Layer::new();
        for file in files {
            let documents = self.documents(file, by)?;
            for document in documents.iter() {
                let own = self.document(file, document, at)?;
                lay_over(&mut all, own);
            }
        }
        Ok(all.into_iter().map(|(name, (image, _))| (name, image)).collect())
    }

    fn document(&mut self, file: &Path, document: &Document, at: &Context<'_>) -> Result<Layer, Stop> {
        let mut own = Layer::new();
        if let Some(services) = document.top("services") {
            for (name, node) in document.entries(services) {
                let image = self.service(file, document, node, at)?;
                own.insert(name.to_owned(), (image, Merge::of(node)));
            }
        }
        if let Some(include) = document
            .top("include")
            .filter(|node| at.includes && !node.is_null())
        {
            for entry in document.items(include) {
                for (name, image) in self.include(file, document, entry, at)? {
                    own.entry(name).or_insert((image, Merge::Over));
                }
            }
        }
        Ok(own)
    }

    /// The service's own image, or that of the service it extends. What it extends is read in any case: the files
    /// belong to the project, and must be local.
    fn service(
        &mut self,
        file: &Path,
        document: &Document,
        node: &Node,
        at: &Context<'_>,
    ) -> Result<Image, Stop> {
        self.steps += 1;
        if self.steps > STEPS_MAX {
            return Err(Stop::Refused(EditRefusal::TooMuch {
                limit: "100000 services, counting each time that one is included or extended",
            }));
        }
        let extended = match document.value(node, "extends").filter(|node| !node.is_null()) {
            Some(extends) => self.extended(file, document, extends, at)?,
            None => Image::Absent,
        };
        match document.value(node, "image") {
            Some(image) if image.tagged("reset") => Ok(Image::Removed),
            Some(image) if !image.is_null() => self.located(file, image, at).map(Image::At),
            Some(_) | None => Ok(extended),
        }
    }

    fn extended(
        &mut self,
        file: &Path,
        document: &Document,
        extends: &Node,
        at: &Context<'_>,
    ) -> Result<Image, Stop> {
        let (name, other) = match &extends.kind {
            Kind::Scalar(name, ..) => (Some(evaluated(name, at)), None),
            Kind::Map(_) | Kind::Seq(_) | Kind::Alias(_) => (
                text(document.value(extends, "service"), at),
                text(document.value(extends, "file"), at),
            ),
        };
        let name = name.unwrap_or_default();
        let deeper = Context {
            depth: at.depth.saturating_sub(1),
            includes: false,
            ..*at
        };
        if let Some(other) = other {
            let path = local(&other, file, at.dir).map_err(Stop::Refused)?;
            let dir = path.parent().unwrap_or(at.dir).to_owned();
            let found = self.chain(&[path], file, &Context { dir: &dir, ..deeper })?;
            return Ok(found.get(&name).cloned().unwrap_or(Image::Absent));
        }
        let services = document.top("services");
        match services.and_then(|services| document.value(services, &name)) {
            Some(_) if deeper.depth == 0 => Err(too_deep()),
            Some(base) => self.service(file, document, base, &deeper),
            None => Ok(Image::Absent),
        }
    }

    fn include(
        &mut self,
        file: &Path,
        document: &Document,
        entry: &Node,
        at: &Context<'_>,
    ) -> Result<BTreeMap<String, Image>, Stop> {
        let texts = |node: &Node| -> Vec<String> {
            let items = document.items(node);
            items
                .into_iter()
                .filter_map(|item| text(Some(item), at))
                .collect()
        };
        let of = |key| document.value(entry, key).filter(|node| !node.is_null());
        let paths = match &entry.kind {
            Kind::Map(_) => of("path").map(texts).unwrap_or_default(),
            Kind::Scalar(..) | Kind::Seq(_) | Kind::Alias(_) => texts(entry),
        };
        let paths = paths
            .iter()
            .map(|path| local(path, file, at.dir))
            .collect::<Result<Vec<PathBuf>, EditRefusal>>()
            .map_err(Stop::Refused)?;
        let beside = paths.first().and_then(|path| path.parent()).unwrap_or(at.dir);
        let dir = match text(of("project_directory"), at) {
            Some(dir) => local(&dir, file, at.dir).map_err(Stop::Refused)?,
            None => beside.to_owned(),
        };
        let scope = match of("env_file").map(texts) {
            Some(files) => {
                let files = files
                    .iter()
                    .filter(|path| *path != "/dev/null")
                    .map(|path| local(path, file, at.dir))
                    .collect::<Result<Vec<PathBuf>, EditRefusal>>()
                    .map_err(Stop::Refused)?;
                self.scope(&files, at.scope, file, false)?
            }
            None => self.scope(&[dir.join(".env")], at.scope, file, true)?,
        };
        let context = Context {
            dir: &dir,
            scope: &scope,
            includes: true,
            depth: at.depth.saturating_sub(1),
        };
        self.chain(&paths, file, &context)
    }

    fn located(&self, file: &Path, node: &Node, at: &Context<'_>) -> Result<Located, Stop> {
        let Kind::Scalar(value, bytes, style) = &node.kind else {
            return Ok(Located {
                file: file.to_owned(),
                line: node.line,
                value: Evaluated::default(),
                unusual: Some("as a list or a mapping"),
            });
        };
        let source = self
            .bytes
            .get(file)
            .and_then(Option::as_deref)
            .unwrap_or_default();
        let exact = source.get(bytes.clone()) == Some(value.as_bytes());
        let unusual = match style {
            Style::Block => Some("as a block (| or >)"),
            Style::Plain | Style::Quoted if !exact => Some("with escapes or over several lines"),
            Style::Plain | Style::Quoted => None,
        };
        let origin = Origin {
            place: exact.then(|| Place {
                file: file.into(),
                span: bytes.clone(),
                within: bytes.clone(),
            }),
            variable: None,
        };
        Ok(Located {
            file: file.to_owned(),
            line: node.line,
            value: evaluate(value, &origin, at.scope),
            unusual,
        })
    }

    fn scope(&self, files: &[PathBuf], outer: &Scope, by: &Path, optional: bool) -> Result<Scope, Stop> {
        let mut scope = outer.clone();
        for file in files {
            let Some(text) = self.text(file)? else {
                if optional {
                    continue;
                }
                return Err(missing(file, by));
            };
            let read = dotenv::read(file, text, outer).map_err(|error| {
                Stop::Refused(EditRefusal::Dotenv {
                    file: file.clone(),
                    line: error.line,
                    reason: error.reason,
                })
            })?;
            scope.extend(read);
        }
        Ok(scope)
    }

    fn documents(&mut self, file: &Path, by: &Path) -> Result<Rc<Vec<Document>>, Stop> {
        if let Some(documents) = self.parsed.get(file) {
            return Ok(Rc::clone(documents));
        }
        let text = self.text(file)?.ok_or_else(|| missing(file, by))?;
        let documents = parse(text).map_err(|error| {
            Stop::Refused(EditRefusal::Yaml {
                file: file.to_owned(),
                line: error.line,
                column: error.column,
                reason: error.reason,
            })
        })?;
        let documents = Rc::new(documents);
        self.parsed.insert(file.to_owned(), Rc::clone(&documents));
        Ok(documents)
    }

    fn text(&self, file: &Path) -> Result<Option<&str>, Stop> {
        match self.bytes.get(file) {
            None => Err(Stop::Need {
                file: file.to_owned(),
            }),
            Some(None) => Ok(None),
            Some(Some(bytes)) => std::str::from_utf8(bytes).map(Some).map_err(|error| {
                Stop::Refused(EditRefusal::NotUtf8 {
                    file: file.to_owned(),
                    byte: error.valid_up_to(),
                })
            }),
        }
    }
}

fn evaluated(text: &str, at: &Context<'_>) -> String {
    let nowhere = Origin {
        place: None,
        variable: None,
    };
    evaluate(text, &nowhere, at.scope).text()
}

fn text(node: Option<&Node>, at: &Context<'_>) -> Option<String> {
    match &node?.kind {
        Kind::Scalar(text, ..) => Some(evaluated(text, at)),
        Kind::Map(_) | Kind::Seq(_) | Kind::Alias(_) => None,
    }
}

fn too_deep() -> Stop {
    Stop::Refused(EditRefusal::TooMuch {
        limit: "`include` and `extends` may be nested 16 deep",
    })
}

fn missing(file: &Path, by: &Path) -> Stop {
    Stop::Refused(EditRefusal::MissingFile {
        file: file.to_owned(),
        by: by.to_owned(),
    })
}
