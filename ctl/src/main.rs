//! `deployctl`: what pipelines and people call. It asks the agents; they do the work.
//!
//! The rooms: `cli` (the words), `caller` (the environment), `target` (which hosts), `key`, `client` (signed requests
//! and events), `commands` (what each word does), `render` (pure text), `output` (prints), `error`, `report`.

mod caller;
mod cli;
mod client;
mod commands;
mod error;
mod key;
mod output;
mod pin;
mod render;
mod report;
mod target;

use std::process::ExitCode;

use clap::Parser as _;
use jiff::Timestamp;
use ring::rand::SystemRandom;

use caller::Caller;
use cli::Cli;
use client::Surroundings;
use commands::Session;
use output::Output;
use render::human::ending;
use render::json_v1::{Document, Failed};

fn main() -> ExitCode {
    let caller = Caller::from_process();
    // On wrong arguments clap prints what to type and exits with 2, which is our code for it too.
    let cli = Cli::parse();
    let output = Output::new(cli.globals.color, &caller);
    let session = Session {
        globals: cli.globals,
        caller,
        output,
        surroundings: Surroundings {
            now: Timestamp::now,
            rng: Box::new(SystemRandom::new()),
        },
    };
    let name = cli.command.name();
    let code = match run(&session, cli.command) {
        Ok(code) => code,
        Err(error) if error.is_closed_pipe() => error.exit_code(),
        Err(error) => {
            let code = error.exit_code();
            session.output.still();
            session
                .output
                .messages(&ending::error(&error, session.output.paint));
            session
                .output
                .annotate(&error.to_string(), &error.causes().join(": "));
            if session.globals.json {
                let content = Failed {
                    error: (&error).into(),
                };
                // Standard output may be what failed; the error is told on standard error already.
                session
                    .output
                    .json(&Document::new(name, code, content))
                    .unwrap_or_default();
            }
            code
        }
    };
    ExitCode::from(code.number())
}

fn run(session: &Session, command: cli::Command) -> Result<deploy_proto::exit_code::ExitCode, error::Error> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(error::Error::Runtime)?
        .block_on(Box::pin(commands::run(session, command)))
}
