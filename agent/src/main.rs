//! `deploy-agent`: arguments, configuration, then serve.

use std::error::Error;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use deploy_agent::command::{ConfigFolder, add, backup, check, pin, restore};
use deploy_agent::config;
use deploy_agent::host::Environment;
use deploy_agent::host::compose::Surroundings;
use deploy_agent::serve;
use deploy_agent::systemd::ServiceManager;
use jiff::Timestamp;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Deploys Docker Compose projects on this host, asked by signed requests
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigFolder,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests until told to stop (the default)
    Serve(ConfigFolder),
    Add(add::Args),
    Check(check::Args),
    Pin(pin::Args),
    Backup(backup::Args),
    Restore(restore::Args),
}

/// Why a command failed, in words for a person: the causes, and what to do.
struct Failed {
    causes: String,
    hint: Option<String>,
    exit_code: u8,
}

/// Something went wrong that may go right the next time.
const UNEXPECTED: u8 = 1;
/// A person has to change the configuration first: systemd does not start the agent again for it.
const CONFIGURATION: u8 = 2;

impl Failed {
    fn new(error: &dyn Error, hint: Option<String>) -> Self {
        Self {
            causes: serve::error_chain(error),
            hint,
            exit_code: UNEXPECTED,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let out = &mut io::stdout();
    let done = match arguments.command {
        None => run(&arguments.config),
        Some(Command::Serve(config)) => run(&config),
        Some(Command::Add(args)) => register(&args),
        Some(Command::Check(args)) => check::check(&args, Timestamp::now(), out).map_err(|error| Failed {
            exit_code: CONFIGURATION,
            ..Failed::new(&error, error.hint())
        }),
        Some(Command::Pin(args)) => {
            pin::pin(&args, Timestamp::now(), out).map_err(|error| Failed::new(&error, error.hint()))
        }
        Some(Command::Backup(args)) => {
            backup::backup(&args, out).map_err(|error| Failed::new(&error, error.hint()))
        }
        Some(Command::Restore(args)) => put_back(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            let hint = failed
                .hint
                .map(|hint| format!("\nhint: {hint}"))
                .unwrap_or_default();
            // Nobody reads a standard error that is closed.
            drop(writeln!(
                io::stderr(),
                "deploy-agent: failed to {}{hint}",
                failed.causes
            ));
            ExitCode::from(failed.exit_code)
        }
    }
}

/// Reads the configuration and serves.
fn run(folder: &ConfigFolder) -> Result<(), Failed> {
    log_to_stderr();
    let (config, absent) = config::load_at_start(&folder.path).map_err(|mistakes| Failed {
        causes: format!("use the configuration in {}\n{mistakes}", folder.path.display()),
        hint: None,
        exit_code: CONFIGURATION,
    })?;
    for mistake in absent.iter().flat_map(|absent| absent.as_slice()) {
        tracing::warn!(
            file = %mistake.file.display(),
            what = mistake.what,
            "a project is not all there: it is refused until it is, and the others are served"
        );
    }
    // An error means that a provider is set already, and ring is the only one in this build.
    drop(rustls::crypto::ring::default_provider().install_default());
    let notify_socket = std::env::var_os("NOTIFY_SOCKET");
    let watchdog = std::env::var_os("WATCHDOG_USEC");
    let manager = ServiceManager::new(notify_socket.as_deref(), watchdog.as_deref());
    let manager = manager.map_err(|error| Failed {
        causes: format!("connect to systemd: {error}"),
        hint: None,
        exit_code: CONFIGURATION,
    })?;
    let served = runtime()?.block_on(serve::run(config, &folder.path, environment(), manager));
    served.map_err(|error| Failed::new(&error, error.hint()))
}

/// Registers a project. The host's configuration may not be there yet, so Docker is looked for where it always is.
fn register(args: &add::Args) -> Result<(), Failed> {
    let Environment { path, home } = environment();
    let surroundings = Surroundings {
        docker_config_dir: home.join(".docker"),
        path,
        home,
        docker_socket: PathBuf::from(config::DEFAULT_DOCKER_SOCKET),
    };
    let added = runtime()?.block_on(add::add(args, &surroundings, &mut io::stdout()));
    added.map_err(|error| Failed::new(&error, error.hint()))
}

/// Restores a backup.
fn put_back(args: &restore::Args) -> Result<(), Failed> {
    let restored = runtime()?.block_on(restore::restore(args, Timestamp::now(), &mut io::stdout()));
    restored.map_err(|error| Failed::new(&error, error.hint()))
}

fn environment() -> Environment {
    let standard = || "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into();
    Environment {
        path: std::env::var_os("PATH").unwrap_or_else(standard),
        home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from),
    }
}

/// One thread serves everything: the agent waits for Docker and for disks, it does not compute.
fn runtime() -> Result<tokio::runtime::Runtime, Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failed::new(&error, None))
}

/// Logs to standard error, which systemd keeps: there without time and colour, which it adds itself. `RUST_LOG` is
/// a level, or `TARGET=LEVEL` with commas between; what cannot be read is `info`.
fn log_to_stderr() {
    let asked = std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty());
    let filter = asked
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let logs = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry.with(logs.without_time()).init()
    } else {
        registry.with(logs).init()
    }
}
