//! What the agent costs the host: its size, its memory, and what it does when there is nothing to do.

use std::fs;
use std::thread;

use anyhow::{Context, Result};
use deploy_tests::agent::Programs;

use crate::IDLE;
use crate::load;
use crate::stage::Stage;
use crate::table::{Aim, Table};

const BINARY_AIM_BYTES: u64 = 8_000_000;
const PSS_AIM_KIB: u64 = 8 * 1024;
/// What a clock tick of `/proc/PID/stat` is on Linux.
const TICK_MILLIS: u64 = 10;

/// The agent as it was when it had just started.
pub(crate) struct AtStart {
    pid: u32,
    pss: Pss,
}

impl AtStart {
    /// Looks at a process that has just started.
    pub(crate) fn look(pid: u32) -> Result<Self> {
        Ok(Self {
            pid,
            pss: Pss::of(pid)?,
        })
    }
}

/// Adds the rows of size, memory, idleness and polls, in this order.
pub(crate) fn measure(table: &mut Table, stage: &Stage, programs: &Programs, start: &AtStart) -> Result<()> {
    let size = fs::metadata(&programs.agent)?.len();
    table.figure(
        "agent, release binary",
        &format!("{:.2} MB", megabytes(size)),
        Aim::met(size <= BINARY_AIM_BYTES, "8 MB"),
    );
    let ctl = fs::metadata(&programs.ctl)?.len();
    table.figure(
        "deployctl, release binary",
        &format!("{:.2} MB", megabytes(ctl)),
        Aim::None,
    );
    start.pss.row(
        table,
        "PSS, just started",
        Aim::met(start.pss.all <= PSS_AIM_KIB, "8 MiB"),
    );
    Pss::of(start.pid)?.row(table, "PSS, after three deployments", Aim::None);
    rest(table, start.pid)?;
    load::healthz(table, stage)?;
    let polled = Pss::of(start.pid)?;
    polled.row(table, "PSS, after 10,000 polls", Aim::None);
    Ok(())
}

fn rest(table: &mut Table, pid: u32) -> Result<()> {
    let before = Work::of(pid)?;
    thread::sleep(IDLE);
    let after = Work::of(pid)?;
    let (cpu, wakes) = (
        after.cpu_millis - before.cpu_millis,
        after.wakes.saturating_sub(before.wakes),
    );
    table.figure(
        "CPU in 60 s idle",
        &format!("{cpu} ms, {wakes} wakeups"),
        Aim::met(cpu == 0, "0 ms"),
    );
    Ok(())
}

/// Adds what is left after everything.
pub(crate) fn at_the_end(table: &mut Table, stage: &Stage) -> Result<()> {
    Pss::of(stage.agent_pid()?)?.row(table, "PSS, after all deployments of this run", Aim::None);
    table.note(&format!(
        "every time of a whole process contains {:.1} ms for starting one",
        load::process_start()?.as_secs_f64() * 1000.0
    ));
    Ok(())
}

/// Proportional set size, in KiB.
struct Pss {
    all: u64,
    anonymous: u64,
}

impl Pss {
    fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("no {name} in {text}"))
        };
        Ok(Self {
            all: field("Pss:")?,
            anonymous: field("Pss_Anon:")?,
        })
    }

    fn row(&self, table: &mut Table, name: &str, aim: Aim) {
        let mib = |kib: u64| megabytes(kib * 1_000_000 / 1024);
        let words = format!(
            "{:.1} MiB ({:.1} of it its own)",
            mib(self.all),
            mib(self.anonymous)
        );
        table.figure(name, &words, aim);
    }
}

/// What a process did so far.
struct Work {
    cpu_millis: u64,
    /// How often its threads went to sleep, which is how often they were woken.
    wakes: u64,
}

impl Work {
    fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // After the command in parentheses: state, and the 12th and 13th are utime and stime.
        let rest = stat.rsplit_once(") ").context("a stat without a command")?.1;
        let ticks: u64 = rest
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let mut wakes = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may have ended meanwhile.
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            wakes += line
                .and_then(|count| count.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
        Ok(Self {
            cpu_millis: ticks * TICK_MILLIS,
            wakes,
        })
    }
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_000_000.0
}
