//! `deploy-agent add DIR`: registers a Compose project. It is read with the real `docker compose config`; what callers
//! may deploy is written down for a person to review; nothing that exists is overwritten.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy_proto::names::{BadName, ProjectName};
use deploy_proto::problem::Problem;
use serde::Deserialize;

use super::ConfigFolder;
use super::add_text::{Found, Sorted, project_file, report};
use crate::config::{self, Mistakes, PROJECTS_FOLDER, Project};
use crate::host::compose::{Compose, ComposeError, Sources, Surroundings};
use crate::host::process::{self, ProcessError, Program};

/// How long Compose may take to say what it calls the project: it reads files only.
const NAME_DEADLINE: Duration = Duration::from_secs(30);
/// The folders in which the systemd unit lets the agent write (`ReadWritePaths` in deploy-agent.service).
pub(super) const WRITABLE: [&str; 2] = ["/srv", "/opt"];

/// Register the Compose project in a folder
///
/// Writes projects.d/NAME.toml with the image repositories that it finds as the list of what may be deployed, and
/// prints what to review. A file that exists is never overwritten.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The project's folder
    pub dir: PathBuf,
    /// The project's name; by default what Compose itself calls it
    #[arg(long)]
    pub name: Option<ProjectName>,
    /// A Compose file, relative to DIR; may be repeated; by default what Compose itself finds
    #[arg(long = "file", short = 'f', value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigFolder,
}

/// Why a project was not registered.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The folder is not there.
    #[error("find the folder {}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that cannot stand in a TOML file.
    #[error("register {}: its name is not UTF-8", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// Compose cannot read the project, or it fetches something from elsewhere.
    #[error("read the project in {}", dir.display())]
    Compose {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: ComposeError,
    },
    /// Compose did not say what it calls the project.
    #[error("ask Compose for the name of the project in {}", dir.display())]
    Name {
        /// The folder.
        dir: PathBuf,
        /// Why.
        source: NameError,
    },
    /// There is no image that a caller could push.
    #[error(
        "find an image in project {name} that callers may push: there are only databases and services built here"
    )]
    NothingToDeploy {
        /// The project.
        name: ProjectName,
    },
    /// It is registered already.
    #[error("register project {name}: {} exists, and is never overwritten", file.display())]
    Exists {
        /// The project.
        name: ProjectName,
        /// Its file.
        file: PathBuf,
    },
    /// What would be written is not valid.
    #[error("write a valid file for the project")]
    Invalid(#[source] Mistakes),
    /// The file cannot be written.
    #[error("write {}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The report could not be written; the project is registered.
    #[error("print the report")]
    Print(#[source] io::Error),
}

/// Why Compose's own name of a project is not known.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// Compose failed.
    #[error("failed to run `docker compose config`")]
    Process(#[from] ProcessError),
    /// It printed something else.
    #[error("failed to read what `docker compose config` printed")]
    Output,
    /// It is not a name that can be passed on.
    #[error(transparent)]
    Bad(#[from] BadName),
}

impl AddError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Compose { source, .. } => Problem::from(source).hint,
            Self::Name { .. } => {
                Some("name it yourself with --name, as `docker compose ls` shows it".to_owned())
            }
            Self::Exists { file, .. } => Some(format!("edit {}, or remove it first", file.display())),
            Self::NothingToDeploy { name } => Some(format!(
                "to deploy one of them all the same, write projects.d/{name}.toml yourself"
            )),
            Self::Folder { .. }
            | Self::NotUtf8 { .. }
            | Self::Invalid(_)
            | Self::Write { .. }
            | Self::Print(_) => None,
        }
    }
}

/// Registers a project and prints what to review and what to do next.
///
/// # Errors
/// Nothing was written, unless only printing failed.
pub async fn add(args: &Args, surroundings: &Surroundings, out: &mut dyn Write) -> Result<(), AddError> {
    let (found, own_name) = find(args, surroundings).await?;
    let sorted = Sorted::of(&found);
    if sorted.allows_nothing() {
        return Err(AddError::NothingToDeploy { name: found.name });
    }
    let folder = args.config.path.join(PROJECTS_FOLDER);
    let file = folder.join(format!("{}.toml", found.name));
    let text = project_file(&found, &sorted);
    config::read_project(&file, &text).map_err(AddError::Invalid)?;
    write_new(&folder, &file, &text).map_err(|source| {
        match source.kind() == io::ErrorKind::AlreadyExists {
            true => AddError::Exists {
                name: found.name.clone(),
                file: file.clone(),
            },
            false => AddError::Write {
                file: file.clone(),
                source,
            },
        }
    })?;
    let may_write = WRITABLE.iter().any(|writable| found.dir.starts_with(writable));
    let report = report(&found, &sorted, &file, &own_name, may_write);
    out.write_all(report.as_bytes()).map_err(AddError::Print)
}

async fn find(args: &Args, surroundings: &Surroundings) -> Result<(Found, ProjectName), AddError> {
    let dir = args.dir.canonicalize().map_err(|source| AddError::Folder {
        dir: args.dir.clone(),
        source,
    })?;
    for path in args.files.iter().chain([&dir]) {
        if path.to_str().is_none() {
            return Err(AddError::NotUtf8 { path: path.clone() });
        }
    }
    let unreadable = |source| AddError::Compose {
        dir: dir.clone(),
        source,
    };
    // Before Compose is called at all: a remote include may write files even on `config`.
    let provisional = args.name.clone().map_or_else(|| name_of_folder(&dir), Ok);
    let provisional = provisional.map_err(|bad| AddError::Name {
        dir: dir.clone(),
        source: bad.into(),
    })?;
    let mut project = Project::with_defaults(provisional, dir.clone(), args.files.clone());
    Sources::load(&project).map_err(unreadable)?;
    let compose = Compose::find(surroundings).await.map_err(unreadable)?;
    let own_name = own_name(&project, surroundings)
        .await
        .map_err(|source| AddError::Name {
            dir: dir.clone(),
            source,
        });
    let (name, own_name) = match (&args.name, own_name) {
        (Some(name), own_name) => (name.clone(), own_name.unwrap_or_else(|_| name.clone())),
        (None, own_name) => own_name.map(|name| (name.clone(), name))?,
    };
    project.name = name;
    let model = compose.project(&project).config().await.map_err(unreadable)?;
    let services = model
        .services
        .into_iter()
        .map(|(name, service)| (name, service.image))
        .collect();
    Ok((
        Found {
            name: project.name,
            dir: project.dir,
            files: project.files,
            services,
            unset_variables: model.unset_variables,
        },
        own_name,
    ))
}

/// What Compose calls the project when nobody passes `-p`: from `.env`, `name:` or the folder.
async fn own_name(project: &Project, surroundings: &Surroundings) -> Result<ProjectName, NameError> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let mut arguments: Vec<OsString> = vec![
        "compose".into(),
        "--project-directory".into(),
        project.dir.clone().into(),
    ];
    for file in &project.files {
        arguments.extend(["-f".into(), project.dir.join(file).into()]);
    }
    arguments.extend(["config", "--format", "json"].map(OsString::from));
    let program = Program {
        binary: PathBuf::from("docker"),
        arguments,
        environment: vec![
            ("PATH".into(), surroundings.path.clone()),
            ("HOME".into(), surroundings.home.clone().into()),
            (
                "DOCKER_CONFIG".into(),
                surroundings.docker_config_dir.clone().into(),
            ),
        ],
        dir: project.dir.clone(),
        deadline: NAME_DEADLINE,
        input: Vec::new(),
    };
    let output = process::run(&program).await?;
    let json = output.stdout.whole().ok_or(NameError::Output)?;
    let named: Named = serde_json::from_slice(json).map_err(|_| NameError::Output)?;
    Ok(named.name.parse()?)
}

/// The name that Compose derives from a folder's.
fn name_of_folder(dir: &Path) -> Result<ProjectName, BadName> {
    let name = dir
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase();
    let name: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .collect();
    name.trim_start_matches(['-', '_']).parse()
}

/// Writes a file that does not exist yet, whole or not at all.
fn write_new(folder: &Path, file: &Path, text: &str) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(folder)?;
    let mut beside = tempfile::Builder::new()
        .prefix(".add-")
        .permissions(PermissionsExt::from_mode(0o640))
        .tempfile_in(folder)?;
    beside.write_all(text.as_bytes())?;
    beside.as_file().sync_all()?;
    beside.persist_noclobber(file).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}
