//! What `add` writes and says of a project: pure, from its services and images.
//!
//! Images of one's own may be deployed by callers; databases and official images may not, until a person says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use deploy_proto::image::{ImageRef, canonical_repository};
use deploy_proto::names::{ProjectName, ServiceName};

/// The last part of a repository that holds data, whoever publishes it (`bitnami/postgresql`, `minio/minio`).
const DATA_STORES: [&str; 24] = [
    "postgres",
    "postgis",
    "pgvector",
    "timescale",
    "mysql",
    "mariadb",
    "percona",
    "mongo",
    "redis",
    "valkey",
    "memcached",
    "elasticsearch",
    "opensearch",
    "cassandra",
    "couchdb",
    "clickhouse",
    "influxdb",
    "neo4j",
    "rabbitmq",
    "kafka",
    "zookeeper",
    "minio",
    "etcd",
    "mssql",
];

/// A project as it was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: ProjectName,
    pub(super) dir: PathBuf,
    pub(super) files: Vec<PathBuf>,
    /// The services and what stands in their `image:`.
    pub(super) services: BTreeMap<ServiceName, Option<String>>,
    /// The variables that Compose took as blank.
    pub(super) unset_variables: BTreeSet<String>,
}

/// Whether callers should push a service's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An image of one's own.
    Own,
    /// From Docker's official library, such as `nginx`.
    Official,
    /// It holds data.
    DataStore,
    /// It has no `image:`, it is built on the host.
    Built,
    /// What stands there is no image reference.
    Unreadable,
}

/// The repositories of a project, sorted by what callers may do with them; each with the services that use it.
#[derive(Debug, Clone)]
pub(super) struct Sorted {
    allowed: BTreeMap<String, Vec<ServiceName>>,
    left_out: BTreeMap<String, Vec<ServiceName>>,
    kinds: BTreeMap<ServiceName, Kind>,
}

impl Sorted {
    /// Sorts the images. Official images are allowed only where there is no other: then they are what is deployed.
    pub(super) fn of(found: &Found) -> Self {
        let kinds: BTreeMap<ServiceName, Kind> = found
            .services
            .iter()
            .map(|(service, image)| (service.clone(), kind(image.as_deref())))
            .collect();
        let has_own = kinds.values().any(|kind| *kind == Kind::Own);
        let (mut allowed, mut left_out) = (
            BTreeMap::<String, Vec<_>>::new(),
            BTreeMap::<String, Vec<_>>::new(),
        );
        for (service, image) in &found.services {
            let list = match kinds.get(service) {
                Some(Kind::Own) => &mut allowed,
                Some(Kind::Official) if !has_own => &mut allowed,
                Some(Kind::Official | Kind::DataStore) => &mut left_out,
                Some(Kind::Built | Kind::Unreadable) | None => continue,
            };
            if let Some(image) = image.as_deref().and_then(|image| image.parse::<ImageRef>().ok()) {
                list.entry(image.repository().to_owned())
                    .or_default()
                    .push(service.clone());
            }
        }
        Self {
            allowed,
            left_out,
            kinds,
        }
    }

    pub(super) fn allows_nothing(&self) -> bool {
        self.allowed.is_empty()
    }

    fn verdict(&self, service: &ServiceName) -> &'static str {
        let allowed = self.allowed.values().any(|services| services.contains(service));
        match self.kinds.get(service) {
            _ if allowed => "yes",
            Some(Kind::Official | Kind::Own) => "no, an official image",
            Some(Kind::DataStore) => "no, it holds data",
            Some(Kind::Built) => "no, it is built here and has no image to pull",
            Some(Kind::Unreadable) | None => "no, this is not an image reference",
        }
    }
}

fn kind(image: Option<&str>) -> Kind {
    let Some(image) = image else { return Kind::Built };
    let Ok(image) = image.parse::<ImageRef>() else {
        return Kind::Unreadable;
    };
    let repository = canonical_repository(image.repository());
    let last = repository.rsplit('/').next().unwrap_or(&repository);
    let official = repository.starts_with("docker.io/library/");
    let data_store = DATA_STORES.iter().any(|store| last.starts_with(store));
    // `acme/redis-exporter` is one's own; `postgres`, `bitnami/postgresql` and `redis/redis-stack` are not.
    let tool = ["exporter", "admin", "commander", "ui", "backup"]
        .iter()
        .any(|word| last.ends_with(word));
    match (data_store && !tool, official) {
        (true, _) => Kind::DataStore,
        (false, true) => Kind::Official,
        (false, false) => Kind::Own,
    }
}

/// The text of `projects.d/NAME.toml`, every setting explained.
pub(super) fn project_file(found: &Found, sorted: &Sorted) -> String {
    let dir = quoted(&found.dir);
    let files = match found.files.as_slice() {
        [] => "# files = [\"compose.yaml\", \"compose.production.yaml\"]".to_owned(),
        files => format!(
            "files = [{}]",
            files
                .iter()
                .map(|file| quoted(file))
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let mut images: Vec<String> = lines_of(&sorted.allowed, "  ");
    if !sorted.left_out.is_empty() {
        images.push("  # Left out, so that nobody replaces a database by a push. Remove the # of what callers may deploy:".to_owned());
        images.extend(lines_of(&sorted.left_out, "  # "));
    }
    let images = images.join("\n");
    let probed = sorted
        .allowed
        .values()
        .flatten()
        .next()
        .map_or("web", ServiceName::as_str);
    format!(
        r#"# Compose project {name}, as `deploy-agent add` found it. The file's name is the project's name.
# After a change: `deploy-agent check`, then `systemctl reload deploy-agent`.
# A setting behind a # has the value shown by default.

# The folder of the project.
dir = {dir}

# Its Compose files, relative to dir. By default what `docker compose` itself finds there.
{files}

# The image repositories that may be deployed here, and nothing else. * stands for any characters but /.
images = [
{images}
]

# Whether `latest` and images without a tag may be deployed. They mean something else every day.
# allow_latest = false

# How a new image is written: "digest" (repo:tag@sha256:..., a later `docker compose up` by hand starts the very same
# image) or "tag" (repo:tag).
# pin = "digest"

# How several services are restarted: "one-by-one" (each is away for a moment, and the first sick one ends it) or
# "together" (sooner done, all are away at the same time).
# order = "one-by-one"

# How long a service may take to become healthy, and how long it must stay well.
# wait = "60s"
# settle = "7s"

# How long it is watched after that, "10m" for instance: if it falls sick then, the agent puts the previous release back.
# bake = "0s"

# How many releases can be rolled back to without a registry: their images stay on this host. The images of older ones are
# removed after a deployment, unless another container or project needs them; false leaves them to you.
# keep = 10
# remove_images = true

# What must stay free on Docker's disk after a pull.
# min_free = "1GiB"

# Checks from outside the containers, beside their own healthchecks. As many as you like; http or tcp.
# [[probe]]
# service = "{probed}"
# http = "http://127.0.0.1:8080/health"   # any 2xx is well; or: status = 204
# timeout = "5s"                          # for one try
"#,
        name = found.name,
    )
}

fn lines_of(repositories: &BTreeMap<String, Vec<ServiceName>>, begin: &str) -> Vec<String> {
    let width = repositories.keys().map(String::len).max().unwrap_or(0) + 3;
    repositories
        .iter()
        .map(|(repository, services)| {
            let entry = format!("\"{repository}\",");
            let services: Vec<&str> = services.iter().map(ServiceName::as_str).collect();
            format!("{begin}{entry:width$} # {}", services.join(", "))
        })
        .collect()
}

/// What a person should know and do after the file was written.
pub(super) fn report(
    found: &Found,
    sorted: &Sorted,
    file: &Path,
    own_name: &ProjectName,
    may_write: bool,
) -> String {
    let (name, dir) = (&found.name, found.dir.display());
    let mut text = format!(
        "{name}: {} services in {dir}\n\n{}\n",
        found.services.len(),
        table(found, sorted)
    );
    text += &format!("Wrote {}\n", file.display());
    if name != own_name {
        text += &format!(
            "\nCareful: Compose itself calls this project {own_name}. If its containers run under that name, {name} would\n\
             be a second copy beside them: use --name {own_name}.\n"
        );
    }
    text += "\nReview\n  images   what callers may deploy; see above\n  probe    how each service is checked from outside its container\n";
    for name in &found.unset_variables {
        text += &format!(
            "  .env     {name} is not set in it: Compose uses a blank where the file says ${{{name}}}. A shell's variables do\n\
             \u{20}          not count for the agent: put it into .env\n"
        );
    }
    text += "\nNext\n";
    if !may_write {
        text += &drop_in(found);
    }
    text += "  deploy-agent check              is the configuration good, and which key may push here?\n";
    text += "  systemctl reload deploy-agent   takes it\n";
    text +=
        "  deploy-agent pin                callers need it: pin = \"...\" in deploy.toml, or DEPLOYCTL_PIN\n";
    text
}

/// The lines that let the sandboxed service write in the project's folder.
fn drop_in(found: &Found) -> String {
    const FOLDER: &str = "/etc/systemd/system/deploy-agent.service.d";
    // A quote ends the shell's text, a percent sign begins a specifier of systemd.
    let dir = found
        .dir
        .to_string_lossy()
        .replace('\'', "'\\''")
        .replace('%', "%%");
    format!(
        "  The unit lets the agent write in /srv and /opt only. For this folder:\n    mkdir -p {FOLDER}\n    \
         printf '%s\\n' '[Service]' 'ReadWritePaths=\"-{dir}\"' > {FOLDER}/{}.conf\n    \
         systemctl daemon-reload && systemctl restart deploy-agent\n",
        found.name
    )
}

fn table(found: &Found, sorted: &Sorted) -> String {
    const BUILT: &str = "(built here)";
    let rows: Vec<(&str, String, &str)> = found
        .services
        .iter()
        .map(|(service, image)| {
            let image = image
                .as_deref()
                .unwrap_or(BUILT)
                .chars()
                .take(80)
                .flat_map(char::escape_debug)
                .collect();
            (service.as_str(), image, sorted.verdict(service))
        })
        .collect();
    let width = |of: fn(&(&str, String, &str)) -> usize, least: usize| {
        rows.iter().map(of).max().unwrap_or(0).max(least)
    };
    let (first, second) = (
        width(|row| row.0.len(), "SERVICE".len()),
        width(|row| row.1.chars().count(), "IMAGE".len()),
    );
    let line = |a: &str, b: &str, c: &str| format!("  {a:first$}  {b:second$}  {c}\n");
    let body: String = rows
        .iter()
        .map(|(service, image, verdict)| line(service, image, verdict))
        .collect();
    line("SERVICE", "IMAGE", "CALLERS MAY PUSH IT") + &body
}

fn quoted(path: &Path) -> String {
    toml::Value::String(path.to_string_lossy().into_owned()).to_string()
}
