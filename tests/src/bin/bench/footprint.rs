//! What the agent costs the host: its size, its memory, and what it does when there is nothing to do.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use deploy_tests::agent::Programs;
use deploy_tests::process::Pss;

use crate::IDLE;
use crate::load;
use crate::stage::Stage;
use crate::table::{Aim, Table};

const BINARY_AIM_BYTES: u64 = 8_000_000;
const PSS_AIM_KIB: u64 = 8 * 1024;
/// The runtime's threads for disk work end when they had nothing to do for 10 s: that belongs to the work before.
const QUIET: Duration = Duration::from_secs(12);

/// Adds the rows of an agent that has just started and did nothing yet but answer monitoring.
pub(crate) fn of_a_new_agent(table: &mut Table, stage: &Stage, programs: &Programs) -> Result<()> {
    let pid = stage.agent.pid()?;
    let size = fs::metadata(&programs.agent)?.len();
    let words = format!("{:.2} MB", megabytes(size));
    let aim = Aim::met(size <= BINARY_AIM_BYTES, "8 MB");
    table.figure("agent, release binary", &words, aim);
    let words = format!("{:.2} MB", megabytes(fs::metadata(&programs.ctl)?.len()));
    table.figure("deployctl, release binary", &words, Aim::None);
    row(table, "PSS, just started", Pss::of(pid)?, true);
    load::healthz(table, stage)?;
    row(table, "PSS, after 10,000 polls", Pss::of(pid)?, true);
    Ok(())
}

/// Adds the row of an agent that has deployed and now has nothing to do.
pub(crate) fn at_rest(table: &mut Table, stage: &Stage) -> Result<()> {
    rest(table, stage.agent.pid()?)
}

fn rest(table: &mut Table, pid: u32) -> Result<()> {
    thread::sleep(QUIET);
    let before = Work::of(pid)?;
    thread::sleep(IDLE);
    let after = Work::of(pid)?;
    let cpu_micros = after.cpu_nanos.saturating_sub(before.cpu_nanos) / 1000;
    let wakes = after.wakes.saturating_sub(before.wakes);
    // Below a clock tick, which is what everybody else sees, it is nothing.
    let aim = Aim::met(cpu_micros < 10_000, "0 ms");
    let words = format!(
        "{}.{:03} ms, {wakes} wakeups",
        cpu_micros / 1000,
        cpu_micros % 1000
    );
    table.figure("CPU in 60 s idle", &words, aim);
    Ok(())
}

/// Adds what is left after everything.
pub(crate) fn at_the_end(table: &mut Table, stage: &Stage) -> Result<()> {
    row(
        table,
        "PSS, after all deployments of this run",
        Pss::of(stage.agent.pid()?)?,
        false,
    );
    table.note(&format!(
        "every time of a whole process contains {:.1} ms for starting one",
        load::process_start()?.as_secs_f64() * 1000.0
    ));
    Ok(())
}

fn row(table: &mut Table, name: &str, pss: Pss, has_aim: bool) {
    let mib = |kib: u64| megabytes(kib * 1_000_000 / 1024);
    let words = format!(
        "{:.1} MiB ({:.1} of it its own)",
        mib(pss.all_kib),
        mib(pss.anonymous_kib)
    );
    let aim = if has_aim {
        Aim::met(pss.all_kib <= PSS_AIM_KIB, "8 MiB")
    } else {
        Aim::None
    };
    table.figure(name, &words, aim);
}

/// What the threads of a process did so far.
struct Work {
    cpu_nanos: u64,
    /// How often they went to sleep, which is how often they were woken.
    wakes: u64,
}

impl Work {
    fn of(pid: u32) -> Result<Self> {
        let (mut cpu_nanos, mut wakes) = (0, 0);
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            // A thread may have ended meanwhile. The first number of schedstat is the time on a processor: utime and
            // stime of `stat`, but not in ticks of 10 ms.
            let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            let status = fs::read_to_string(task.join("status")).unwrap_or_default();
            let switches = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            cpu_nanos += number(schedstat.split(' ').next());
            wakes += number(switches);
        }
        Ok(Self { cpu_nanos, wakes })
    }
}

fn number(text: Option<&str>) -> u64 {
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1_000_000.0
}
