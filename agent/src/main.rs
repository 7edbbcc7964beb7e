//! `deploy-agent`: arguments, configuration, then serve.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use deploy_agent::systemd::ServiceManager;
use deploy_agent::{config, serve};
use tracing_subscriber::EnvFilter;

/// Deploys Docker Compose projects on this host, asked by signed requests
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Arguments {
    /// The folder with agent.toml and projects.d
    #[arg(long, global = true, value_name = "DIR", default_value = "/etc/deploy-agent")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve requests until told to stop (the default)
    Serve,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        None | Some(Command::Serve) => run(&arguments.config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Nobody reads a standard error that is closed.
            drop(writeln!(io::stderr(), "deploy-agent: {why}"));
            ExitCode::FAILURE
        }
    }
}

/// Reads the configuration and serves. The error is for a person, causes and hints included.
fn run(config_dir: &Path) -> Result<(), String> {
    log_to_stderr();
    let config =
        config::load(config_dir).map_err(|mistakes| format!("the configuration has mistakes\n{mistakes}"))?;
    // An error means that a provider is set already, and ring is the only one in this build.
    drop(rustls::crypto::ring::default_provider().install_default());
    let notify_socket = std::env::var_os("NOTIFY_SOCKET");
    let watchdog = std::env::var_os("WATCHDOG_USEC");
    let manager = ServiceManager::new(notify_socket.as_deref(), watchdog.as_deref())
        .map_err(|error| format!("connect to systemd: {error}"))?;
    // One thread serves everything: the agent waits for Docker and for disks, it does not compute.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("start the runtime: {error}"))?;
    runtime
        .block_on(serve::run(config, config_dir, manager))
        .map_err(|error| serve::error_chain(&error))
}

/// Logs to standard error, which systemd keeps: there without time and colour, which it adds itself.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        logs.without_time().with_target(false).init();
    } else {
        logs.with_target(false).init();
    }
}
