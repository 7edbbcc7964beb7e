//! The same deployment in each way, by turns.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use deploy_proto::event::PhaseName;
use deploy_tests::clinic::SERVICES;

use crate::Course;
use crate::stage::{Deployed, Stage, Up, WAYS, Way};
use crate::table::{Aim, Table, median};

/// Nothing depends on it.
const LEAF: [&str; 1] = ["frontend_web"];
/// The others depend on it, some by way of others; it has a healthcheck.
const ROOT: [&str; 1] = ["auth_service"];

/// What a race is about.
struct Race<'a> {
    name: &'a str,
    services: &'a [&'static str],
    ways: &'a [Way],
    up: Up,
    fresh_images: bool,
    rounds: usize,
}

/// A push of what runs already.
pub(crate) fn nothing_changed(
    course: &Course,
    table: &mut Table,
    stage: &Stage,
    rounds: usize,
) -> Result<()> {
    let race = Race {
        name: "nothing changed",
        services: &SERVICES,
        ways: &[Way::Ssh, Way::Tuned, Way::OneByOne],
        up: Up::Started,
        fresh_images: false,
        rounds,
    };
    let times = race.run(course, stage)?;
    times.row(table, "nothing changed, 6 named", Way::OneByOne, Aim::Ratio(0.05));
    Ok(())
}

/// One new image of six: of a service that no other depends on, and of one that all others do.
pub(crate) fn one_of_six(course: &Course, table: &mut Table, stage: &Stage, rounds: usize) -> Result<()> {
    for (services, row, aim) in [
        (&LEAF, "1 of 6 changed, nothing depends on it", Aim::Ratio(0.60)),
        (&ROOT, "1 of 6 changed, all others depend on it", Aim::None),
    ] {
        let race = Race {
            name: row,
            services,
            ways: &[Way::Ssh, Way::Tuned, Way::OneByOne],
            up: Up::Started,
            fresh_images: true,
            rounds,
        };
        race.run(course, stage)?.row(table, row, Way::OneByOne, aim);
    }
    Ok(())
}

/// Six new images of six, in both orders.
pub(crate) fn six_of_six(course: &Course, table: &mut Table, stage: &Stage, rounds: usize) -> Result<()> {
    let race = Race {
        name: "6 of 6",
        services: &SERVICES,
        ways: &WAYS,
        up: Up::Started,
        fresh_images: true,
        rounds,
    };
    let times = race.run(course, stage)?;
    times.row(table, "6 of 6 changed, together", Way::Together, Aim::Ratio(0.90));
    times.row(table, "6 of 6 changed, one by one", Way::OneByOne, Aim::None);
    Ok(())
}

/// One new image of six, until it is known to be healthy; its healthcheck runs every 30 s.
pub(crate) fn until_healthy(course: &Course, table: &mut Table, stage: &Stage, rounds: usize) -> Result<()> {
    let race = Race {
        name: "1 of 6, known to be healthy",
        services: &ROOT,
        ways: &[Way::Ssh, Way::Tuned, Way::OneByOne],
        up: Up::Healthy,
        fresh_images: true,
        rounds,
    };
    let times = race.run(course, stage)?;
    let row = "1 of 6, healthcheck every 30 s, `up --wait`";
    times.row(table, row, Way::OneByOne, Aim::Ratio(0.10));
    Ok(())
}

impl Race<'_> {
    fn run(&self, course: &Course, stage: &Stage) -> Result<Times> {
        let mut times = Times::default();
        let mut runs_now = BTreeMap::new();
        for way in self.ways {
            runs_now.insert(way.name(), stage.clinic(*way).service_version("auth_service")?);
        }
        for round in 0..self.rounds {
            course.go_on(&format!("{}, {} of {}", self.name, round + 1, self.rounds))?;
            for turn in 0..self.ways.len() {
                // Another way begins each round.
                let Some(way) = self.ways.get((round + turn) % self.ways.len()) else {
                    continue;
                };
                let tag = if self.fresh_images {
                    stage.new_images(self.services)?
                } else {
                    runs_now.get(way.name()).cloned().unwrap_or_default()
                };
                times.add(*way, stage.deploy(*way, self.services, &tag, self.up)?);
            }
        }
        Ok(times)
    }
}

/// What the rounds took.
#[derive(Default)]
struct Times {
    took: BTreeMap<&'static str, Vec<Duration>>,
    phases: BTreeMap<&'static str, Vec<(PhaseName, Vec<Duration>)>>,
}

impl Times {
    fn add(&mut self, way: Way, deployed: Deployed) {
        self.took.entry(way.name()).or_default().push(deployed.took);
        let phases = self.phases.entry(way.name()).or_default();
        for (phase, took) in deployed.phases {
            match phases.iter_mut().find(|(known, _)| *known == phase) {
                Some((_, all)) => all.push(took),
                None => phases.push((phase, vec![took])),
            }
        }
    }

    fn row(&self, table: &mut Table, name: &str, way: Way, aim: Aim) {
        let of = |way: Way| median(self.took.get(way.name()).map_or(&[], Vec::as_slice));
        table.race(name, of(Way::Ssh), Some(of(Way::Tuned)), of(way), aim);
        let phases = self.phases.get(way.name()).map_or(&[][..], Vec::as_slice);
        let parts: Vec<String> = phases
            .iter()
            .map(|(phase, all)| format!("{} {}", phase.as_str(), median(all).as_millis()))
            .collect();
        table.note(&format!("{name}: {} ms", parts.join(", ")));
    }
}
