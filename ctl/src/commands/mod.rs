//! What each word of the command line does.

mod cancel;
mod deployment;
mod interrupt;
mod keygen;
mod logs;
mod push;
mod questions;
mod reconcile;
mod rollback;
mod view;
mod watch;

use deploy_proto::exit_code::ExitCode;

use crate::caller::Caller;
use crate::cli::{Command, Globals};
use crate::client::Surroundings;
use crate::error::Error;
use crate::output::Output;

/// What a command has at hand.
pub(crate) struct Session {
    /// The arguments that all commands share.
    pub(crate) globals: Globals,
    /// The process's environment.
    pub(crate) caller: Caller,
    /// Both streams.
    pub(crate) output: Output,
    /// Clock and randomness.
    pub(crate) surroundings: Surroundings,
}

impl Command {
    /// The word on the command line.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Keygen(_) => "keygen",
            Self::Push(_) => "push",
            Self::Watch(_) => "watch",
            Self::Cancel(_) => "cancel",
            Self::Status => "status",
            Self::History(_) => "history",
            Self::Rollback(_) => "rollback",
            Self::Reconcile(_) => "reconcile",
            Self::Logs(_) => "logs",
            Self::Health => "health",
            Self::Version => "version",
        }
    }
}

/// Runs a command and gives its exit code.
pub(crate) async fn run(session: &Session, command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Keygen(arguments) => keygen::run(session, &arguments),
        Command::Push(arguments) => push::run(session, &arguments).await,
        Command::Watch(arguments) => watch::run(session, &arguments).await,
        Command::Cancel(arguments) => cancel::run(session, &arguments).await,
        Command::Status => questions::status(session).await,
        Command::History(arguments) => questions::history(session, &arguments).await,
        Command::Rollback(arguments) => rollback::run(session, &arguments).await,
        Command::Reconcile(arguments) => reconcile::run(session, &arguments).await,
        Command::Logs(arguments) => logs::run(session, &arguments).await,
        Command::Health => questions::health(session).await,
        Command::Version => questions::version(session).await,
    }
}
