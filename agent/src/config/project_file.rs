//! The shape of `projects.d/NAME.toml`: one Compose project, what may be deployed in it and how it is watched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy_proto::names::{ProjectName, ServiceName};
use toml::Spanned;

use super::access;
use super::agent_file::{named, values_of};
use super::file::Document;
use super::hook_table;
use super::table::Table;
use super::values::{self, Refusal};
use super::{Order, Pin, Probe, ProbeCheck, Project};

/// How long a service may take to become healthy, by default.
pub(super) const WAIT: Duration = Duration::from_secs(60);
/// How long it must stay well, by default: longer than the first few restarts of a crash loop.
pub(super) const SETTLE: Duration = Duration::from_secs(7);
/// How many releases can be rolled back to, by default.
pub(super) const KEEP: u32 = 10;
/// The bytes that must stay free, by default: enough for the databases beside to go on writing for a while.
pub(super) const MIN_FREE_BYTES: u64 = 1 << 30;
/// How long one try of a probe may take, by default.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

const WAIT_LIMITS: Limits = Limits {
    least: Duration::from_secs(1),
    most: Duration::from_secs(3600),
    shown: "1s and 1h",
};
const SETTLE_LIMITS: Limits = Limits {
    least: Duration::ZERO,
    most: Duration::from_secs(1800),
    shown: "0s and 30m",
};
/// A release that is watched for longer than a day is monitored, not baked.
const BAKE_LIMITS: Limits = Limits {
    least: Duration::ZERO,
    most: Duration::from_hours(24),
    shown: "0s and 24h",
};
const PROBE_TIMEOUT_LIMITS: Limits = Limits {
    least: Duration::from_millis(100),
    most: Duration::from_secs(60),
    shown: "100ms and 60s",
};
/// Each kept release keeps its images on the disk.
const KEEP_MOST: u32 = 1000;
/// More than any disk has today: a mistake in the unit.
const MIN_FREE_MOST_BYTES: u64 = 1 << 50;
/// The most patterns in a project's allow-list.
const IMAGES_MOST: usize = 1000;
/// The most probes of a project: each is tried several times a second while a deployment is watched.
const PROBES_MOST: usize = 100;

pub(super) struct Limits {
    pub(super) least: Duration,
    pub(super) most: Duration,
    pub(super) shown: &'static str,
}

impl Project {
    /// A project of which only the folder and the files are known; nothing may be deployed in it.
    pub fn with_defaults(name: ProjectName, dir: PathBuf, files: Vec<PathBuf>) -> Self {
        Self {
            name,
            dir,
            files,
            images: Vec::new(),
            allow_latest: false,
            pin: Pin::Digest,
            order: Order::OneByOne,
            wait: WAIT,
            settle: SETTLE,
            bake: Duration::ZERO,
            keep: KEEP,
            remove_images: true,
            min_free_bytes: MIN_FREE_BYTES,
            probes: Vec::new(),
            hooks: Vec::new(),
        }
    }
}

/// Reads a project; `None` when it has a mistake that leaves nothing to work with. The document has every mistake.
pub(super) fn project(document: &Document<'_>, name: ProjectName) -> Option<Project> {
    let table = document.root(&[
        "dir",
        "files",
        "images",
        "allow_latest",
        "pin",
        "order",
        "wait",
        "settle",
        "bake",
        "keep",
        "remove_images",
        "min_free",
        "probe",
        "hook",
    ]);
    for (key, hint) in [
        (
            "dir",
            "name the folder of the Compose project: dir = \"/srv/shop\"",
        ),
        (
            "images",
            "list what may be deployed here: images = [\"ghcr.io/acme/shop-*\"]; `deploy-agent add` writes it for you",
        ),
    ] {
        if !table.has(key) {
            table.missing(key, hint);
        }
    }
    let dir = dir(&table);
    let images = images(&table);
    let files = files(&table, dir.as_deref().filter(|dir| dir.is_dir()));
    let probes = probes(&table);
    let mut project = Project::with_defaults(name, dir.clone().unwrap_or_default(), files);
    project.probes = probes;
    project.hooks = hook_table::hooks(&table);
    project.pin = table
        .word("pin", &[("digest", Pin::Digest), ("tag", Pin::Tag)])
        .unwrap_or(project.pin);
    let orders = [("together", Order::Together), ("one-by-one", Order::OneByOne)];
    project.order = table.word("order", &orders).unwrap_or(project.order);
    project.allow_latest = table.boolean("allow_latest").unwrap_or(project.allow_latest);
    project.wait = duration(&table, "wait", &WAIT_LIMITS).unwrap_or(project.wait);
    project.settle = duration(&table, "settle", &SETTLE_LIMITS).unwrap_or(project.settle);
    project.bake = duration(&table, "bake", &BAKE_LIMITS).unwrap_or(project.bake);
    project.keep = keep(&table).unwrap_or(project.keep);
    project.remove_images = table.boolean("remove_images").unwrap_or(project.remove_images);
    project.min_free_bytes = min_free(&table).unwrap_or(project.min_free_bytes);
    (project.images, project.dir) = (images?, dir?);
    Some(project)
}

/// The folder, with every symbolic link resolved: Compose names a project that is reached through a link after the
/// link, and would start a second copy of it. A folder that is not there is given as it is written.
fn dir(table: &Table<'_>) -> Option<PathBuf> {
    let text = table.text("dir")?;
    let path = Path::new(text.get_ref());
    if !path.is_absolute() {
        table.wrong(&text, "`dir` must be an absolute path", "begin it with /");
        return None;
    }
    match path.canonicalize() {
        Ok(resolved) if resolved.is_dir() => Some(resolved),
        Ok(_) => {
            table.wrong(
                &text,
                "`dir` is not a folder",
                "name the folder, and the Compose file in `files`",
            );
            None
        }
        Err(error) => {
            let what = format!("`dir` cannot be used: {}", access::cause(&error));
            table.absent(&text, what, "if the project is gone, remove this file");
            Some(path.to_owned())
        }
    }
}

fn files(table: &Table<'_>, dir: Option<&Path>) -> Vec<PathBuf> {
    let Some(texts) = table.texts("files") else {
        return Vec::new();
    };
    if texts.is_empty() {
        table.wrong_value(
            "files",
            "`files` is empty",
            "leave it out to take what Compose itself finds",
        );
    }
    for text in &texts {
        let Some(path) = dir.map(|dir| dir.join(text.get_ref())) else {
            continue;
        };
        match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => table.wrong(text, "this is not a file", "name the Compose files"),
            Err(error) => {
                let what = format!("the Compose file cannot be used: {}", access::cause(&error));
                table.absent(text, what, "names are relative to `dir`");
            }
        }
    }
    texts.iter().map(|text| PathBuf::from(text.get_ref())).collect()
}

fn images(table: &Table<'_>) -> Option<Vec<String>> {
    let listed = table.texts("images")?.len();
    if listed == 0 || listed > IMAGES_MOST {
        let hint = "list what may be deployed here, or remove this file if nothing may";
        table.wrong_value(
            "images",
            format!("`images` must list between 1 and {IMAGES_MOST} repositories"),
            hint,
        );
    }
    table
        .parsed_list("images", |text| {
            values::image_pattern(text).map(|()| text.to_owned())
        })
        .map(values_of)
}

pub(super) fn duration(table: &Table<'_>, key: &str, limits: &Limits) -> Option<Duration> {
    let read = table.parsed(key, |text| {
        let duration = values::duration(text)?;
        if duration < limits.least || duration > limits.most {
            let what = format!("`{key}` must be between {}", limits.shown);
            return Err(Refusal {
                what,
                hint: "the unit may be another than you meant: ms, s, m, h".to_owned(),
            });
        }
        Ok(duration)
    })?;
    Some(read.into_inner())
}

fn keep(table: &Table<'_>) -> Option<u32> {
    let keep = table.number("keep")?;
    if !(1..=KEEP_MOST).contains(keep.get_ref()) {
        let what = format!("`keep` must be between 1 and {KEEP_MOST}");
        table.wrong(
            &keep,
            what,
            "without a kept release there is nothing to roll back to",
        );
    }
    Some(keep.into_inner())
}

fn min_free(table: &Table<'_>) -> Option<u64> {
    let bytes = table.parsed("min_free", |text| {
        let bytes = values::size(text)?;
        if bytes > MIN_FREE_MOST_BYTES {
            let what = "`min_free` must be at most 1024TiB".to_owned();
            return Err(Refusal {
                what,
                hint: "the unit may be another than you meant: MB, GiB".to_owned(),
            });
        }
        Ok(bytes)
    })?;
    Some(bytes.into_inner())
}

fn probes(table: &Table<'_>) -> Vec<Probe> {
    let tables = table.tables("probe", &["service", "http", "tcp", "status", "timeout"]);
    if let Some(table) = tables.get(PROBES_MOST) {
        table.wrong_table(
            format!("more than {PROBES_MOST} probes"),
            "a few probes for each service are enough",
        );
    }
    tables.iter().filter_map(probe).collect()
}

fn probe(table: &Table<'_>) -> Option<Probe> {
    if !table.has("service") {
        table.missing("service", "name the service that the probe tells about");
    }
    let service = table
        .parsed(
            "service",
            named::<ServiceName>("write the service as the Compose file calls it"),
        )
        .map(Spanned::into_inner);
    let timeout = duration(table, "timeout", &PROBE_TIMEOUT_LIMITS).unwrap_or(PROBE_TIMEOUT);
    let check = probe_check(table);
    Some(Probe {
        service: service?,
        check: check?,
        timeout,
    })
}

fn probe_check(table: &Table<'_>) -> Option<ProbeCheck> {
    let status = status(table);
    match (table.has("http"), table.has("tcp")) {
        (true, false) => {
            // A URL with a password in it is refused, and must not be shown.
            let text = table.text("http")?;
            let shows_no_password = !text.get_ref().contains('@');
            let url = match values::probe_url(text.get_ref()) {
                Ok(()) => (*text.get_ref()).to_owned(),
                Err(refusal) if shows_no_password => {
                    table.wrong(&text, refusal.what, refusal.hint);
                    return None;
                }
                Err(refusal) => {
                    table.wrong_hidden(&text, refusal.what, refusal.hint);
                    return None;
                }
            };
            Some(ProbeCheck::Http { url, status })
        }
        (false, true) => {
            if table.has("status") {
                table.wrong_value(
                    "status",
                    "`status` belongs to an http probe",
                    "remove it, or probe a URL with http = ...",
                );
            }
            let address = table.parsed("tcp", |text| {
                values::probe_address(text).map(|()| text.to_owned())
            })?;
            Some(ProbeCheck::Tcp {
                address: address.into_inner(),
            })
        }
        (true, true) => {
            table.wrong_table(
                "a probe has either `http` or `tcp`, this one has both",
                "write two [[probe]]",
            );
            None
        }
        (false, false) => {
            table.missing(
                "http",
                "write http = \"http://127.0.0.1:8080/health\" or tcp = \"127.0.0.1:5432\"",
            );
            None
        }
    }
}

fn status(table: &Table<'_>) -> Option<u16> {
    let status = table.number("status")?;
    match u16::try_from(*status.get_ref()) {
        Ok(code) if (200..600).contains(&code) => Some(code),
        Ok(_) | Err(_) => {
            table.wrong(
                &status,
                "`status` must be an HTTP status between 200 and 599",
                "leave it out for any 2xx",
            );
            None
        }
    }
}
