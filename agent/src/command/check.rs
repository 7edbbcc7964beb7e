//! `deploy-agent check`: is the configuration good, and what does it allow?

use std::fmt::Display;
use std::io::{self, Write};

use deploy_proto::names::ProjectName;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::ConfigFolder;
use crate::config::{
    self, Action, Config, Hook, HookMoment, Key, Mistakes, Order, Pin, ProbeCheck, Project, Scope,
};
use crate::tls::{self, TlsError};

/// A key that ends sooner than this is shown among what to look at, in days: time enough to send a new one to CI.
const EXPIRES_SOON_DAYS: i64 = 14;

/// Validate the configuration and show what it allows
///
/// Every mistake is shown at once, with its file, line and a hint.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigFolder,
    /// Print nothing when all is well
    #[arg(long)]
    pub quiet: bool,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// It has mistakes.
    #[error("use the configuration")]
    Config(#[source] Mistakes),
    /// The certificate cannot be used.
    #[error("load the TLS certificate")]
    Tls(#[source] TlsError),
    /// The summary could not be written.
    #[error("print the summary")]
    Print(#[source] io::Error),
}

impl CheckError {
    /// What to do about it; mistakes have their own hints.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tls(error) => error.hint(),
            Self::Config(_) | Self::Print(_) => None,
        }
    }
}

/// Reads everything that the agent reads at its start, changes nothing, and prints what it means.
///
/// # Errors
/// What would keep the agent from starting.
pub fn check(args: &Args, now: Timestamp, out: &mut dyn Write) -> Result<(), CheckError> {
    let config = config::load(&args.config.path).map_err(CheckError::Config)?;
    let identity = tls::load_existing(&config.server, &config.state_dir).map_err(CheckError::Tls)?;
    if args.quiet {
        return Ok(());
    }
    let pin = identity.map_or_else(
        || "none yet: `deploy-agent pin` makes the certificate".to_owned(),
        |found| found.pin,
    );
    let text = summary(&config, &pin, now);
    writeln!(out, "{} is good", args.config.path.display())
        .and_then(|()| out.write_all(text.as_bytes()))
        .map_err(CheckError::Print)
}

fn summary(config: &Config, pin: &str, now: Timestamp) -> String {
    let mut lines = vec![
        format!(
            "  listens   {} as {}",
            config.server.listen,
            config.server.names.join(", ")
        ),
        format!("  pin       {pin}"),
        format!("  monitor   {} (read-only, not authenticated)", config.monitor),
        format!("  state     {}", config.state_dir.display()),
    ];
    lines.push(format!("{} in agent.toml", count(config.keys.len(), "key")));
    lines.extend(config.keys.iter().map(|key| format!("  {}", key_line(key, now))));
    lines.push(format!(
        "{} in projects.d",
        count(config.projects.len(), "project")
    ));
    for project in config.projects.values() {
        lines.extend(project_lines(project));
    }
    let remarks = remarks(config, now);
    if !remarks.is_empty() {
        lines.push("look at".to_owned());
        lines.extend(remarks.iter().map(|remark| format!("  {remark}")));
    }
    lines.join("\n") + "\n"
}

fn key_line(key: &Key, now: Timestamp) -> String {
    let actions: Vec<&str> = key.allow.iter().map(|action| action.as_str()).collect();
    let services = match &key.services {
        Scope::All => String::new(),
        Scope::Only(names) => format!(", only {}", list(names)),
    };
    let projects = match &key.projects {
        Scope::All => "every project".to_owned(),
        Scope::Only(names) => list(names),
    };
    let until = match key.expires {
        None => "never expires".to_owned(),
        Some(end) if end <= now => format!("EXPIRED on {}", day(end)),
        Some(end) => format!("until {} ({} days)", day(end), days_left(end, now)),
    };
    format!(
        "{}: {} in {projects}{services}; {until}",
        key.name,
        actions.join(", ")
    )
}

fn project_lines(project: &Project) -> Vec<String> {
    let files = match project.files.as_slice() {
        [] => "what Compose finds".to_owned(),
        files => files
            .iter()
            .map(|file| file.display().to_string())
            .collect::<Vec<_>>()
            .join(", "),
    };
    let order = match project.order {
        Order::Together => "all services together",
        Order::OneByOne => "one service after the other",
    };
    let pin = match project.pin {
        Pin::Digest => "tag and digest",
        Pin::Tag => "the tag only",
    };
    let latest = if project.allow_latest { ", latest too" } else { "" };
    let mut lines = vec![
        format!("  {}: {} ({files})", project.name, project.dir.display()),
        format!("    images    {}{latest}", project.images.join(", ")),
        format!("    restarts  {order}, writes {pin}"),
        format!(
            "    watches   up to {:?}, well for {:?}; leaves {} free",
            project.wait,
            project.settle,
            bytes(project.min_free_bytes)
        ),
    ];
    lines.extend(project.probes.iter().map(|probe| {
        let asked = match &probe.check {
            ProbeCheck::Http { url, status: None } => format!("GET {url}"),
            ProbeCheck::Http {
                url,
                status: Some(status),
            } => format!("GET {url} gives {status}"),
            ProbeCheck::Tcp { address } => format!("connects to {address}"),
        };
        format!("    probes    {}: {asked}", probe.service)
    }));
    lines.extend(project.hooks.iter().map(hook_line));
    lines
}

/// `hook migrate: before = "restart", irreversible, in api: npm run migrate, up to 300s`.
fn hook_line(hook: &Hook) -> String {
    let for_good = match hook.moment {
        HookMoment::BeforeRestart {
            is_irreversible: true,
        } => ", irreversible",
        HookMoment::BeforeRestart {
            is_irreversible: false,
        }
        | HookMoment::BeforeEverything
        | HookMoment::AfterLive => "",
    };
    let place = hook
        .service
        .as_ref()
        .map_or_else(|| "on the host".to_owned(), |service| format!("in {service}"));
    format!(
        "    hook      {}: {}{for_good}, {place}: {:?}, up to {:?}",
        hook.name,
        hook.moment.as_written(),
        hook.command,
        hook.deadline
    )
}

/// What is valid and probably not meant.
fn remarks(config: &Config, now: Timestamp) -> Vec<String> {
    let mut remarks = Vec::new();
    for key in &config.keys {
        if let Some(end) = key.expires.filter(|end| days_left(*end, now) < EXPIRES_SOON_DAYS) {
            let what = if end <= now {
                "has expired: remove it"
            } else {
                "expires soon: make its successor"
            };
            remarks.push(format!("key {} {what} (`deployctl keygen`)", key.name));
        }
        let Scope::Only(names) = &key.projects else {
            continue;
        };
        for name in names.iter().filter(|name| !config.projects.contains_key(*name)) {
            remarks.push(format!(
                "key {} names project {name}, which this host does not have",
                key.name
            ));
        }
    }
    for project in config
        .projects
        .values()
        .filter(|project| !is_deployable(config, &project.name, now))
    {
        remarks.push(format!("no key may push to project {}", project.name));
    }
    if config.projects.is_empty() {
        remarks.push("there is no project yet: `deploy-agent add DIR`".to_owned());
    }
    remarks
}

fn is_deployable(config: &Config, project: &ProjectName, now: Timestamp) -> bool {
    config.keys.iter().any(|key| {
        key.projects.contains(project)
            && key.allow.contains(&Action::Push)
            && key.expires.is_none_or(|end| end > now)
    })
}

/// The last day on which a key is taken, in UTC.
fn day(end: Timestamp) -> impl Display {
    let last = Timestamp::from_nanosecond(end.as_nanosecond() - 1).unwrap_or(end);
    last.to_zoned(TimeZone::UTC).date()
}

fn days_left(end: Timestamp, now: Timestamp) -> i64 {
    (end.as_second() - now.as_second()).div_euclid(24 * 3600)
}

fn list(names: &[impl Display]) -> String {
    names
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

fn bytes(bytes: u64) -> String {
    for (unit, name) in [
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1_000_000, "MB"),
        (1 << 10, "KiB"),
    ] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}
