//! `make torture`: kills and breaks in every way that the harness knows, and counts the promises that broke.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a report is printed")]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use deploy_tests::agent::programs;
use deploy_tests::torture::{GROUPS, Options, Tally};

const USAGE: &str = "\
torture [--only GROUP]... [--sample N] [--seed N] [--workers N] [--verbose] [--list]
  --only GROUP  tries this group only; several times for several
  --sample N    tries so many cases of each group, drawn by the seed; without it all
  --seed N      the same seed draws the same cases and moments
  --workers N   so many projects side by side (default 2)
  --verbose     tells of each case as it ends
  --list        names the groups";

struct Wanted {
    options: Options,
    only: Vec<String>,
}

fn main() -> ExitCode {
    match torture() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Tries the groups; returns how many promises were broken.
fn torture() -> Result<usize> {
    let Some(wanted) = arguments()? else {
        return Ok(0);
    };
    let Wanted { options, only } = wanted;
    programs()?;
    let began = Instant::now();
    let (mut tried, mut violations) = (0, 0);
    println!("seed {}", options.seed);
    for group in GROUPS {
        if !only.is_empty() && !only.iter().any(|name| name == group.name) {
            continue;
        }
        let group_began = Instant::now();
        let tell: Option<fn(&str)> = if options.is_verbose {
            Some(|line| println!("  {line}"))
        } else {
            None
        };
        let tally = Tally::telling(tell);
        let done = (group.run)(&options, &tally);
        let broken = tally.violations();
        for violation in &broken {
            println!("  VIOLATION {}: {violation}", group.name);
        }
        println!(
            "{:<15} {:>5} of {:>4} cases  {:>3} violations  {:>4} not reached  {:>5} s  {}",
            group.name,
            tally.tried(),
            tally.of(),
            broken.len(),
            tally.not_reached(),
            group_began.elapsed().as_secs(),
            group.about
        );
        tried += tally.tried();
        violations += broken.len();
        done.with_context(|| format!("group {}", group.name))?;
    }
    println!(
        "{tried} cases tried, {violations} violations, {} s",
        began.elapsed().as_secs()
    );
    ensure!(tried > 0, "nothing was tried");
    Ok(violations)
}

/// Reads the command line; none when only a list or help was asked for.
fn arguments() -> Result<Option<Wanted>> {
    let mut wanted = Wanted {
        options: Options {
            seed: 1,
            sample: None,
            workers: 2,
            is_verbose: false,
        },
        only: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--only" => {
                let name = value()?;
                ensure!(
                    GROUPS.iter().any(|group| group.name == name),
                    "there is no group {name}; see --list"
                );
                wanted.only.push(name);
            }
            "--sample" => wanted.options.sample = Some(value()?.parse()?),
            "--seed" => wanted.options.seed = value()?.parse()?,
            "--workers" => wanted.options.workers = value()?.parse()?,
            "--verbose" => wanted.options.is_verbose = true,
            "--list" => {
                for group in GROUPS {
                    println!("{:<15} {}", group.name, group.about);
                }
                return Ok(None);
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => bail!("{other} is no option\n{USAGE}"),
        }
    }
    Ok(Some(wanted))
}
