//! The benchmark: the agent beside what it replaces, an ssh login that runs sed, `docker compose pull` and `up`, on the
//! same six-service project, by turns, in one run. It prints one table.
//!
//! `bench [--rounds N] [ROW...]`; rows: `footprint signed nothing one six gap health`, all when none is named.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program whose output is the point"
)]

mod footprint;
mod gap;
mod load;
mod races;
mod sshd;
mod stage;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use deploy_tests::agent::release_programs;
use signal_hook::consts::{SIGINT, SIGTERM};

use stage::Stage;
use table::Table;

/// Medians of so many.
const ROUNDS: usize = 9;
/// Each takes the half minute that it is about.
const SLOW_ROUNDS: usize = 3;
/// How long the agent is left alone to see what it does meanwhile.
const IDLE: Duration = Duration::from_secs(60);
const ROWS: [&str; 7] = ["footprint", "signed", "nothing", "one", "six", "gap", "health"];

struct Arguments {
    rounds: usize,
    rows: Vec<String>,
}

impl Arguments {
    fn parse(words: impl Iterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            rounds: ROUNDS,
            rows: Vec::new(),
        };
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--rounds" => parsed.rounds = words.next().context("--rounds what?")?.parse()?,
                row if ROWS.contains(&row) => parsed.rows.push(word),
                other => bail!(
                    "{other} is not a row; usage: bench [--rounds N] [{}]...",
                    ROWS.join(" | ")
                ),
            }
        }
        if parsed.rounds == 0 {
            bail!("--rounds must be 1 or more");
        }
        Ok(parsed)
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| wanted == row)
    }
}

/// Says on standard error how far the run is, and ends it early on Ctrl-C, so that everything is cleaned up.
struct Course {
    begun: Instant,
    interrupted: Arc<AtomicBool>,
}

impl Course {
    fn begin() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
        Ok(Self {
            begun: Instant::now(),
            interrupted,
        })
    }

    fn go_on(&self, what: &str) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        eprintln!("bench {:>4} s: {what}", self.begun.elapsed().as_secs());
        Ok(())
    }
}

fn main() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(table) => {
            println!("{table}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<Table> {
    let course = Course::begin()?;
    course.go_on("building the programs as they are released")?;
    let programs = release_programs()?;
    let stage = Stage::set(&course, &programs)?;
    let mut table = Table::default();
    if arguments.wants("footprint") {
        course.go_on("the new agent's size and memory")?;
        footprint::of_a_new_agent(&mut table, &stage, &programs)?;
    }
    course.go_on("first releases, and the databases' health")?;
    stage.first_releases(&course)?;
    if arguments.wants("footprint") {
        course.go_on("72 s of nothing")?;
        footprint::at_rest(&mut table, &stage)?;
    }
    if arguments.wants("signed") {
        course.go_on("signed requests")?;
        load::signed(&mut table, &stage)?;
    }
    if arguments.wants("nothing") {
        races::nothing_changed(&course, &mut table, &stage, arguments.rounds)?;
    }
    if arguments.wants("one") {
        races::one_of_six(&course, &mut table, &stage, arguments.rounds)?;
    }
    if arguments.wants("six") {
        races::six_of_six(&course, &mut table, &stage, arguments.rounds)?;
    }
    if arguments.wants("gap") {
        gap::measure(&course, &mut table, &stage, SLOW_ROUNDS.min(arguments.rounds))?;
    }
    if arguments.wants("health") {
        races::until_healthy(&course, &mut table, &stage, SLOW_ROUNDS.min(arguments.rounds))?;
    }
    if arguments.wants("footprint") {
        footprint::at_the_end(&mut table, &stage)?;
    }
    course.go_on("cleaning up")?;
    drop(stage);
    course.go_on("done")?;
    Ok(table)
}
