//! Reading the configuration's folder: `agent.toml` and every `projects.d/*.toml`, once, with every mistake.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use deploy_proto::names::ProjectName;

use super::file::Document;
use super::mistake::{Mistake, MistakeKind, Mistakes};
use super::{Config, Project, Server, access, agent_file, project_file};

/// The folder of the configuration when none is named.
pub const DEFAULT_FOLDER: &str = "/etc/deploy-agent";
/// The agent's own file in it.
pub const AGENT_FILE: &str = "agent.toml";
/// The folder of the projects in it.
pub const PROJECTS_FOLDER: &str = "projects.d";

/// The largest file that is read: about twenty thousand lines.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// The most projects of a host.
const PROJECTS_MOST: usize = 1000;

/// What is needed before there is a caller: to make the certificate and to tell its pin.
#[derive(Debug, Clone)]
pub struct ServerPart {
    /// Where the signed API listens, and as whom.
    pub server: Server,
    /// The folder of the TLS key.
    pub state_dir: PathBuf,
}

/// Reads the whole configuration from its folder, or from the path of the `agent.toml` in it.
///
/// # Errors
/// Every mistake of every file.
pub fn load(path: &Path) -> Result<Config, Mistakes> {
    match load_at_start(path)? {
        (config, None) => Ok(config),
        (_, Some(absent)) => Err(absent),
    }
}

/// Reads the whole configuration as [`load`] does, and takes a project whose folder or Compose file is not there: after
/// a power cut its disk may be mounted late or not at all, and the other projects must be served. It answers for itself
/// when something is asked of it. What is not there is given beside.
///
/// # Errors
/// Every mistake of every file, if one of them is another.
pub fn load_at_start(path: &Path) -> Result<(Config, Option<Mistakes>), Mistakes> {
    let folder = Folder::of(path);
    let mut mistakes = Vec::new();
    let agent = read_file(&folder.agent_file, &mut mistakes).map(|text| {
        let document = Document::read(&folder.agent_file, &text);
        let settings = agent_file::settings(&document, &hostname());
        let keys = agent_file::keys(&document);
        mistakes.extend(document.into_mistakes());
        (settings, keys)
    });
    let projects = read_projects(&folder.projects, &mut mistakes);
    let only_absent = mistakes.iter().all(|mistake| mistake.kind == MistakeKind::Absent);
    let mistakes = Mistakes::from(mistakes);
    let absent = match mistakes {
        Some(mistakes) if !only_absent => return Err(mistakes),
        absent => absent,
    };
    let Some((settings, keys)) = agent else {
        return Err(nothing_read(&folder.agent_file));
    };
    let Some(server) = settings.server else {
        return Err(nothing_read(&folder.agent_file));
    };
    let config = Config {
        server,
        monitor: settings.monitor,
        state_dir: settings.state_dir,
        docker_socket: settings.docker_socket,
        docker_config_dir: settings.docker_config_dir,
        keys,
        projects,
    };
    Ok((config, absent))
}

/// Reads what `[server]` says, whatever the keys and projects are: the pin is asked for before the first key is there.
///
/// # Errors
/// Every mistake outside of the keys and projects.
pub fn load_server(path: &Path) -> Result<ServerPart, Mistakes> {
    let folder = Folder::of(path);
    let mut mistakes = Vec::new();
    let settings = read_file(&folder.agent_file, &mut mistakes).map(|text| {
        let document = Document::read(&folder.agent_file, &text);
        let settings = agent_file::settings(&document, &hostname());
        mistakes.extend(document.into_mistakes());
        settings
    });
    match (Mistakes::from(mistakes), settings) {
        (
            None,
            Some(agent_file::Settings {
                server: Some(server),
                state_dir,
                ..
            }),
        ) => Ok(ServerPart { server, state_dir }),
        (Some(mistakes), _) => Err(mistakes),
        (None, _) => Err(nothing_read(&folder.agent_file)),
    }
}

/// Reads the text of one project's file.
///
/// # Errors
/// Every mistake in it.
pub fn read_project(path: &Path, text: &str) -> Result<Project, Mistakes> {
    let mut mistakes = Vec::new();
    let project = project_of(path, text, &mut mistakes);
    match (Mistakes::from(mistakes), project) {
        (None, Some(project)) => Ok(project),
        (Some(mistakes), _) => Err(mistakes),
        (None, None) => Err(nothing_read(path)),
    }
}

struct Folder {
    agent_file: PathBuf,
    projects: PathBuf,
}

impl Folder {
    fn of(path: &Path) -> Self {
        let names_the_file = path.extension().is_some_and(|extension| extension == "toml") && !path.is_dir();
        let folder = if names_the_file {
            path.parent().unwrap_or(Path::new("."))
        } else {
            path
        };
        let agent_file = if names_the_file {
            path.to_owned()
        } else {
            folder.join(AGENT_FILE)
        };
        Self {
            agent_file,
            projects: folder.join(PROJECTS_FOLDER),
        }
    }
}

fn read_projects(folder: &Path, mistakes: &mut Vec<Mistake>) -> BTreeMap<ProjectName, Project> {
    let mut projects: BTreeMap<ProjectName, Project> = BTreeMap::new();
    for path in project_files(folder, mistakes) {
        let Some(text) = read_file(&path, mistakes) else {
            continue;
        };
        let Some(project) = project_of(&path, &text, mistakes) else {
            continue;
        };
        let same = projects
            .values()
            .find(|other| other.dir == project.dir && other.files == project.files);
        if let Some(same) = same {
            let what = format!("project {} is the same folder with the same files", same.name);
            mistakes.push(
                Mistake::whole(&path, what).hint("two names would start two copies of it: remove one file"),
            );
        }
        projects.insert(project.name.clone(), project);
    }
    projects
}

/// The files of the projects by name. Hidden files and those with another ending are none (an editor's copies).
fn project_files(folder: &Path, mistakes: &mut Vec<Mistake>) -> Vec<PathBuf> {
    let metadata = match std::fs::metadata(folder) {
        Ok(metadata) => metadata,
        // A host without projects has no folder of projects yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            mistakes.push(Mistake::whole(folder, access::cause(&error)));
            return Vec::new();
        }
    };
    trusted(folder, &metadata, mistakes);
    let entries = match std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(error) => {
            mistakes.push(Mistake::whole(folder, access::cause(&error)));
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .iter()
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(std::fs::DirEntry::path)
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    paths.sort();
    if paths.len() > PROJECTS_MOST {
        mistakes.push(Mistake::whole(
            folder,
            format!("more than {PROJECTS_MOST} projects"),
        ));
        paths.truncate(PROJECTS_MOST);
    }
    paths
}

fn project_of(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Option<Project> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: ProjectName = match stem.parse() {
        Ok(name) => name,
        Err(error) => {
            let hint = "the file is named after the Compose project: NAME.toml";
            mistakes
                .push(Mistake::whole(path, format!("the file's name is no project's: {error}")).hint(hint));
            return None;
        }
    };
    let document = Document::read(path, text);
    let project = project_file::project(&document, name);
    mistakes.extend(document.into_mistakes());
    project
}

fn read_file(path: &Path, mistakes: &mut Vec<Mistake>) -> Option<String> {
    let result = std::fs::File::open(path).and_then(|file| {
        let metadata = file.metadata()?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        Ok((metadata, bytes))
    });
    let (metadata, bytes) = match result {
        Ok(read) => read,
        Err(error) => {
            mistakes.push(Mistake::whole(
                path,
                format!("the file cannot be read: {}", access::cause(&error)),
            ));
            return None;
        }
    };
    if let Some(folder) = path
        .parent()
        .and_then(|folder| folder.metadata().ok().map(|metadata| (folder, metadata)))
    {
        trusted(folder.0, &folder.1, mistakes);
    }
    trusted(path, &metadata, mistakes);
    if bytes.len() as u64 > FILE_MAX_BYTES {
        mistakes.push(Mistake::whole(path, "the file is larger than 1 MiB"));
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let good = error.utf8_error().valid_up_to();
            let line = error
                .as_bytes()
                .iter()
                .take(good)
                .filter(|b| **b == b'\n')
                .count()
                + 1;
            let mistake = Mistake::whole(path, "the file is not UTF-8").hint("save it as UTF-8");
            mistakes.push(Mistake {
                line: u32::try_from(line).ok(),
                ..mistake
            });
            None
        }
    }
}

fn trusted(path: &Path, metadata: &std::fs::Metadata, mistakes: &mut Vec<Mistake>) {
    if let Err(refusal) = access::authority(path, metadata) {
        mistakes.push(Mistake::whole(path, refusal.what).hint(refusal.hint));
    }
}

/// This machine's own name, for hints.
fn hostname() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
        Ok(_) | Err(_) => "web-1.example.com".to_owned(),
    }
}

/// A configuration that could not be read is not one without mistakes, whatever the reason.
fn nothing_read(path: &Path) -> Mistakes {
    Mistakes::one(Mistake::whole(path, "the file could not be understood"))
}
