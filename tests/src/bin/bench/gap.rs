//! How long each service is away while all six are replaced, as its clients see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use deploy_tests::clinic::SERVICES;

use crate::Course;
use crate::load::KeptAlive;
use crate::stage::{Stage, Up, WAYS, Way};
use crate::table::{Aim, Table, median};

/// Between two questions to one service. The six of them at 1 ms would take a processor from the Engine, and the gaps
/// are hundreds of milliseconds.
const PAUSE: Duration = Duration::from_millis(4);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_millis(50);

/// Adds the gap's rows: over all services and rounds, the median and the longest.
pub(crate) fn measure(course: &Course, table: &mut Table, stage: &Stage, rounds: usize) -> Result<()> {
    let mut gaps: Vec<(Way, Vec<Duration>)> = WAYS.map(|way| (way, Vec::new())).to_vec();
    for round in 0..rounds {
        course.go_on(&format!("a service's gap, {} of {rounds}", round + 1))?;
        for (way, gaps) in &mut gaps {
            let tag = stage.new_images(&SERVICES)?;
            gaps.extend(gaps_of(stage, *way, &tag)?);
        }
    }
    let of = |wanted: Way| {
        let found = gaps.iter().find(|(way, _)| *way == wanted);
        found.map_or(&[][..], |(_, gaps)| gaps.as_slice())
    };
    let longest = |gaps: &[Duration]| gaps.iter().max().copied().unwrap_or_default();
    for (way, name) in [(Way::Together, "together"), (Way::OneByOne, "one by one")] {
        let (ssh, tuned, ours) = (of(Way::Ssh), of(Way::Tuned), of(way));
        table.race(
            &format!("a service's gap, 6 of 6, {name}"),
            median(ssh),
            Some(median(tuned)),
            median(ours),
            Aim::None,
        );
        table.race(
            &format!("the longest gap, 6 of 6, {name}"),
            longest(ssh),
            Some(longest(tuned)),
            longest(ours),
            Aim::None,
        );
    }
    Ok(())
}

fn gaps_of(stage: &Stage, way: Way, tag: &str) -> Result<Vec<Duration>> {
    let done = AtomicBool::new(false);
    let mut ports = Vec::new();
    for service in SERVICES {
        ports.push(stage.clinic(way).port(service)?);
    }
    thread::scope(|scope| {
        let done = &done;
        let asking: Vec<_> = ports
            .into_iter()
            .map(|port| scope.spawn(move || longest_silence(port, done)))
            .collect();
        // It returns when all services answer with the new version.
        let deployed = stage.deploy(way, &SERVICES, tag, Up::Started);
        done.store(true, Ordering::Relaxed);
        let mut gaps = Vec::new();
        for one in asking {
            gaps.push(one.join().map_err(|_| anyhow!("a client panicked"))?);
        }
        deployed.map(|_| gaps)
    })
}

fn longest_silence(port: u16, done: &AtomicBool) -> Duration {
    let (mut longest, mut answered) = (Duration::ZERO, Instant::now());
    let mut connection = None;
    while !done.load(Ordering::Relaxed) {
        let mut open = match connection.take() {
            Some(open) => Some(open),
            None => KeptAlive::open(port, PATIENCE).ok(),
        };
        if open.as_mut().is_some_and(|open| open.get("/").is_ok()) {
            longest = longest.max(answered.elapsed());
            answered = Instant::now();
            connection = open;
        }
        thread::sleep(PAUSE);
    }
    longest.max(answered.elapsed())
}
