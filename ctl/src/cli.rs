//! The command line's shape: clap types only. What the words mean is in `commands`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use deploy_proto::image::ImageRef;
use deploy_proto::names::{DeploymentId, ProjectName, ReleaseNumber, ServiceName, Version};
use deploy_proto::push::{RollbackTarget, Sequence};

use crate::pin::Pin;

const EXIT_CODES: &str = "\
Exit codes:
  0    done, or nothing to do
  1    unexpected error
  2    usage or configuration
  3    failed and rolled back: the previous release serves
  4    refused: key, signature or policy
  5    the agent cannot be reached
  6    failed and NOT restored: a person is needed
  7    busy, superseded or stale
  8    still running or unknown (re-attach with `deployctl watch ID`)
  9    refused by a gate or a preflight: nothing changed; `health`: not healthy
  130  interrupted here; the deployment goes on there

Environment:
  DEPLOYCTL_KEY  the private key's text (`deployctl keygen --print`)
  DEPLOYCTL_PIN  the agent's pin (`deploy-agent pin`); several are separated by commas
  NO_COLOR       no colour";

/// Deploy images to Docker Compose hosts that run deploy-agent
#[derive(Debug, Parser)]
#[command(name = "deployctl", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub(crate) struct Globals {
    /// Use this environment of deploy.toml
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) environment: Option<String>,
    /// Talk to this host: https://HOST[:PORT], or with an environment the name of one of its hosts (repeatable)
    #[arg(long = "host", global = true, value_name = "URL")]
    pub(crate) hosts: Vec<String>,
    /// Trust the agent with this public key, sha256//BASE64 (repeatable; see `deploy-agent pin`)
    #[arg(long = "pin", global = true, value_name = "PIN")]
    pub(crate) pins: Vec<Pin>,
    /// Name the Compose project on the host
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) project: Option<ProjectName>,
    /// Sign with the private key in this file
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) key_file: Option<PathBuf>,
    /// Read this file instead of the nearest deploy.toml
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) file: Option<PathBuf>,
    /// Print one JSON document (schema deployctl/v1) to standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: When,
    /// Answer yes to questions
    #[arg(long, global = true)]
    pub(crate) yes: bool,
    /// Wait this long for a deployment on one host to end
    #[arg(long, global = true, value_name = "TIME", default_value = "30m", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key and print what the host needs to know of it
    Keygen(Keygen),
    /// Deploy images, watch them, and tell how it ended
    Push(Push),
    /// Follow a deployment that was started elsewhere
    Watch(Watch),
    /// Cancel a deployment: refused before anything was changed, else rolled back
    Cancel(Cancel),
    /// Show what runs
    Status,
    /// Show past deployments and releases
    History(History),
    /// Go back to an earlier release
    Rollback(Rollback),
    /// Bring what drifted from the release that runs back to it
    Reconcile(Reconcile),
    /// Print a service's log
    Logs(Logs),
    /// Run every health check now
    Health,
    /// Print the version, and with a host or an environment the agents' versions
    Version,
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Print the private key once, as a single line for a CI secret, and write no file
    #[arg(long, conflicts_with = "key_file")]
    pub(crate) print: bool,
    /// Name the key on the host
    #[arg(long, value_name = "NAME", default_value = "deployer")]
    pub(crate) name: deploy_proto::names::KeyName,
}

/// Arguments of `push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// Deploy this image to this service (repeatable)
    #[arg(long, value_name = "SERVICE=IMAGE", value_parser = assignment)]
    pub(crate) set: Vec<(ServiceName, ImageRef)>,
    /// Deploy this image to every service that uses its repository (repeatable)
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Vec<ImageRef>,
    /// Deploy this tag of every image in deploy.toml; with --set or --image only the release's label
    #[arg(short, long, value_name = "VERSION")]
    pub(crate) version: Option<Version>,
    /// Show the plan and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait for a running deployment of the project to end
    #[arg(long)]
    pub(crate) queue: bool,
    /// Take Compose files that were edited by hand as the base
    #[arg(long)]
    pub(crate) accept_edits: bool,
    /// Say which run of the pipeline this is; an older one than the newest accepted is refused (in GitHub Actions and
    /// GitLab CI it is known)
    #[arg(long, value_name = "RUN[.ATTEMPT]")]
    pub(crate) sequence: Option<Sequence>,
    /// Deploy although a newer run was accepted already
    #[arg(long)]
    pub(crate) allow_older: bool,
    /// Deploy only if this release runs
    #[arg(long, value_name = "N", value_parser = release)]
    pub(crate) expect_release: Option<ReleaseNumber>,
    #[command(flatten)]
    pub(crate) following: Following,
}

/// How a deployment is named and followed.
#[derive(Debug, Args)]
pub(crate) struct Following {
    /// Name the deployment, 16 hexadecimal digits; the same one sent twice deploys once
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<DeploymentId>,
    /// Return as soon as the agent has accepted it
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print events to standard output, one JSON document per line
    #[arg(long, conflicts_with = "json")]
    pub(crate) jsonl: bool,
}

/// Arguments of `watch`.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// The deployment
    pub(crate) id: DeploymentId,
    /// Print events to standard output, one JSON document per line
    #[arg(long, conflicts_with = "json")]
    pub(crate) jsonl: bool,
}

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The deployment
    pub(crate) id: DeploymentId,
    /// Return as soon as the agent knows, and do not watch it go back
    #[arg(long)]
    pub(crate) detach: bool,
    /// Print events to standard output, one JSON document per line
    #[arg(long, conflicts_with = "json")]
    pub(crate) jsonl: bool,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub(crate) struct History {
    /// Show at most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) limit: u32,
}

/// Arguments of `rollback`.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Go back so many successful releases
    #[arg(short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) releases: u32,
    /// Go back also across a migration that cannot be undone
    #[arg(long)]
    pub(crate) across_migration: bool,
    /// Go to this release (a number), or to the newest one of this version
    #[arg(long, value_name = "RELEASE|VERSION", conflicts_with = "releases", value_parser = release_or_version)]
    pub(crate) to: Option<RollbackTarget>,
    /// Show the plan and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait for a running deployment of the project to end
    #[arg(long)]
    pub(crate) queue: bool,
    #[command(flatten)]
    pub(crate) following: Following,
}

/// Arguments of `reconcile`.
#[derive(Debug, Args)]
pub(crate) struct Reconcile {
    /// Show the plan and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Undo hand edits of the Compose files and .env too, not only of their image lines
    #[arg(long)]
    pub(crate) discard_edits: bool,
    /// Wait for a running deployment of the project to end
    #[arg(long)]
    pub(crate) queue: bool,
    #[command(flatten)]
    pub(crate) following: Following,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The service
    pub(crate) service: ServiceName,
    /// Go on as new lines come
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Show the last lines that this release's container wrote
    #[arg(long, value_name = "N", conflicts_with = "follow", value_parser = release)]
    pub(crate) release: Option<ReleaseNumber>,
    /// Begin so many lines before the end
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) tail: u32,
}

fn assignment(text: &str) -> Result<(ServiceName, ImageRef), String> {
    let (service, image) = text
        .split_once('=')
        .ok_or("it must be SERVICE=IMAGE, for instance web=ghcr.io/acme/web:v1")?;
    Ok((
        service
            .parse::<ServiceName>()
            .map_err(|error| error.to_string())?,
        image.parse::<ImageRef>().map_err(|error| error.to_string())?,
    ))
}

fn release(text: &str) -> Result<ReleaseNumber, String> {
    text.parse()
        .map(ReleaseNumber)
        .map_err(|_| "a release is a number, see `deployctl history`".to_owned())
}

/// Digits alone are a release's number; anything else is a version.
fn release_or_version(text: &str) -> Result<RollbackTarget, String> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        release(text).map(RollbackTarget::Release)
    } else {
        text.parse()
            .map(RollbackTarget::Version)
            .map_err(|error: deploy_proto::names::BadName| error.to_string())
    }
}

/// Reads a time with its unit: `90s`, `15m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str = "it must be a number with a unit: 90s, 15m or 1h";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| WRONG)?;
    let unit_seconds = match text.strip_prefix(digits) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 3600,
        Some(_) | None => return Err(WRONG.to_owned()),
    };
    match number.checked_mul(unit_seconds) {
        Some(seconds @ 1..=604_800) => Ok(Duration::from_secs(seconds)),
        Some(_) | None => Err("it must be between 1s and 7 days".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_words_that_pipelines_use_are_understood() {
        for line in [
            "deployctl push -e production -v v1.0.0",
            "deployctl -e production push --version v1.0.0",
            "deployctl rollback -e production",
            "deployctl rollback -e production -r 2",
            "deployctl rollback --to 41",
            "deployctl rollback --to v1.4.1",
            "deployctl health -e staging",
            "deployctl reconcile -e staging --dry-run",
            "deployctl reconcile --discard-edits --queue --detach",
            "deployctl push --set web=acme/web:v1 --set api=localhost:5000/api:v1",
            "deployctl push --image acme/web:v1 --json",
            "deployctl logs web --follow --host https://web-1:8443",
            "deployctl watch 0000000000000abc --jsonl",
            "deployctl cancel 0000000000000abc",
            "deployctl push -v v1 --sequence 4711.2 --allow-older --expect-release 41",
            "deployctl history --limit 5 --timeout 90s",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for line in [
            "deployctl push --set web",
            "deployctl push --set web=BAD:v1",
            "deployctl push --set -rf=acme/web:v1",
            "deployctl push --json --jsonl",
            "deployctl push -v v1 --sequence x",
            "deployctl cancel",
            "deployctl rollback -r 0",
            "deployctl rollback -r 2 --to 41",
            "deployctl watch xyz",
            "deployctl status --timeout 5",
            "deployctl status --timeout 0s",
            "deployctl status --pin abc",
            "deployctl history --limit 0",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn digits_are_a_release_and_the_rest_is_a_version() {
        assert_eq!(
            release_or_version("41"),
            Ok(RollbackTarget::Release(ReleaseNumber(41)))
        );
        assert!(matches!(release_or_version("v1"), Ok(RollbackTarget::Version(_))));
        assert!(release_or_version("a b").is_err());
    }
}
