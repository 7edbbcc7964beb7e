//! Every write, flush, rename, unlink, open and truncation that the agent makes in its state and in the project's folder
//! fails once, or is where the agent is killed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use deploy_proto::event::{Ending, PhaseName};

use super::judge::{ANY, BACK, LIVE, WHOLE, judge, judge_unsure, takes_the_next};
use super::kill::{has_ended, reached};
use super::stage::{Ask, Asked, Stage};
use super::strace::{Counts, Seen, Strace, Threads, Tracing, counts_by_thread};
use super::{Came, Case, Ground, Group, Options, Tally, on_stages};
use crate::until::until;

/// Flushes.
pub const SYNC: Group = Group {
    name: "fault-sync",
    about: "EIO or ENOSPC in place of every fsync and fdatasync: the process ends, at once",
    run: |options, tally| {
        once(
            "fault-sync",
            SYNCS,
            &["error=EIO", "error=ENOSPC"],
            options,
            tally,
        )
    },
};
/// Writes.
pub const WRITE: Group = Group {
    name: "fault-write",
    about: "EIO or ENOSPC in place of every write and truncation",
    run: |options, tally| {
        once(
            "fault-write",
            WRITES,
            &["error=EIO", "error=ENOSPC"],
            options,
            tally,
        )
    },
};
/// Names: what opens, renames and removes files.
pub const NAME: Group = Group {
    name: "fault-name",
    about: "EIO or ENOSPC in place of every open, rename, unlink, mkdir, chown and chmod",
    run: |options, tally| {
        once(
            "fault-name",
            NAMES,
            &["error=EIO", "error=ENOSPC"],
            options,
            tally,
        )
    },
};
/// Death at each of them.
pub const KILL: Group = Group {
    name: "fault-kill",
    about: "kill -9 at every write, flush, rename and unlink",
    run: |options, tally| {
        let calls = [SYNCS, WRITES, NAMES].concat();
        once("fault-kill", &calls, &[KILLED], options, tally)
    },
};
/// The start that goes on with a deployment.
pub const START: Group = Group {
    name: "fault-start",
    about: "EIO, ENOSPC or kill -9 at every write, flush and open of a start that resumes a deployment",
    run: at_start,
};
/// A disk that never works again.
pub const FOR_EVER: Group = Group {
    name: "fault-for-ever",
    about: "a disk that flushes nothing any more, restart after restart",
    run: for_ever,
};

const SYNCS: &[&str] = &["fsync", "fdatasync"];
/// What strace does instead of failing a call.
const KILLED: &str = "signal=KILL";
const WRITES: &[&str] = &["write", "pwrite64", "ftruncate", "fallocate"];
const NAMES: &[&str] = &[
    "openat",
    "rename",
    "renameat",
    "renameat2",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "fchown",
    "fchmod",
];

/// Until the fault has done what it does: a deployment with it ended, or the agent did.
const DEADLINE: Duration = Duration::from_secs(60);
/// More starts than a deployment has attempts, forward and back.
const STARTS_MAX: usize = 20;
/// Several times the commits after which the log is as long as it may become.
const REQUESTS_MAX: usize = 3000;

/// A call that is broken: the Nth of its name in one of the agent's threads.
#[derive(Debug, Clone)]
struct Fault {
    call: &'static str,
    /// `error=EIO:when=3`.
    what: String,
    /// Which of the threads, in the order in which they were made.
    thread: usize,
}

impl Fault {
    /// Every way to break each call that was counted.
    fn all(counts: &Counts, calls: &[&'static str], whats: &[&str]) -> Vec<Self> {
        let mut all = Vec::new();
        for ((name, thread), most) in counts {
            let Some(&call) = calls.iter().find(|call| *call == name) else {
                continue;
            };
            let ways = (1..=*most).flat_map(|at| whats.iter().map(move |what| (at, what)));
            all.extend(ways.map(|(at, what)| Self {
                call,
                what: format!("{what}:when={at}"),
                thread: *thread,
            }));
        }
        all
    }

    fn is_kill(&self) -> bool {
        self.what.starts_with(KILLED)
    }

    /// Which threads make which calls is different each time. When the one did not make so many, another may have: all
    /// of them are tried where the first fault ends the process, and so is the only one.
    fn threads(&self, attempt: usize) -> Threads {
        if attempt > 0 && (self.is_kill() || SYNCS.contains(&self.call)) {
            Threads::All
        } else {
            Threads::Only(self.thread + attempt)
        }
    }

    fn tracing(&self, stage: &Stage) -> Tracing {
        Tracing {
            calls: vec![self.call],
            paths: stage.paths(),
            inject: Some((self.call, self.what.clone())),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} in thread {}", self.call, self.what, self.thread)
    }
}

/// Counts what a deployment calls, and then has each of these calls fail in a deployment of its own.
fn once(
    name: &'static str,
    calls: &[&'static str],
    faults: &[&'static str],
    options: &Options,
    tally: &Tally,
) -> Result<()> {
    let mut ground = Ground::new(Stage::start)?;
    let mut stage = ground.stage()?;
    let mut asks = vec![(Ask::Good, LIVE), (Ask::Bad, BACK), (Ask::Rollback, LIVE)];
    // One that fails leaves the drift as it was, which the judge would take for a broken promise: it is only killed.
    if faults.iter().all(|fault| fault.starts_with(KILLED)) {
        asks.push((Ask::Reconcile, LIVE));
    }
    let counted = counted(&mut stage, calls, &asks)?;
    ground.ready.push(stage);
    let mut cases = Vec::new();
    for (ask, counts) in counted {
        cases.extend(Fault::all(&counts, calls, faults).into_iter().map(|fault| {
            Case::attempted(format!("{ask:?}: {fault}"), move |stage, attempt| {
                break_once(stage, ask, &fault, attempt)
            })
        }));
    }
    on_stages(options, name, ground, cases, tally)
}

/// How often each call is made in each kind of deployment, by each thread.
fn counted(
    stage: &mut Stage,
    calls: &[&'static str],
    asks: &[(Ask, &[Ending])],
) -> Result<Vec<(Ask, Counts)>> {
    let mut counted = Vec::new();
    for &(ask, allowed) in asks {
        let tracing = Tracing {
            calls: calls.to_vec(),
            paths: stage.paths(),
            inject: None,
        };
        let asked = stage.ask(ask)?;
        stage.fresh_agent()?;
        let strace = tracing.attach(&stage.agent, Threads::All)?;
        stage.send(&asked)?;
        until("the deployment ends", DEADLINE, || {
            Ok(has_ended(&stage.agent.log(), &asked.id).then_some(()))
        })?;
        let threads = strace.threads().to_vec();
        let seen = strace.detach()?;
        let broken = judge(stage, &asked, allowed)?;
        ensure!(broken.is_empty(), "while only counting: {broken:?}");
        counted.push((ask, counts_by_thread(&seen, &threads)?));
    }
    Ok(counted)
}

fn break_once(stage: &mut Stage, ask: Ask, fault: &Fault, attempt: usize) -> Result<Came> {
    let asked = stage.ask(ask)?;
    stage.fresh_agent()?;
    let strace = fault
        .tracing(stage)
        .attach(&stage.agent, fault.threads(attempt))?;
    // The agent may be gone before it answers; what it did is asked later.
    let answer = stage.send(&asked).ok();
    let was_accepted = answer.as_ref().is_some_and(|answer| answer.status == 202);
    until("the deployment ends, or the agent", DEADLINE, || {
        let is_over = !was_accepted || has_ended(&stage.agent.log(), &asked.id);
        Ok((is_over || stage.agent.exited()?.is_some()).then_some(()))
    })?;
    let mut broken = Vec::new();
    let seen = injected(stage, strace, fault, &mut broken)?;
    stage.restart()?;
    if was_accepted && stage.knows(&asked.id)?.is_none() {
        broken.push("it was accepted, and the agent knows nothing of it".to_owned());
    }
    let allowed = allowed(ask, fault);
    broken.extend(judge_unsure(stage, &asked, allowed)?);
    if seen.is_empty() && broken.is_empty() {
        return Ok(Came::NotReached);
    }
    broken.extend(takes_the_next(stage, &asked)?);
    let lines: Vec<String> = seen.into_iter().map(|one| one.line).collect();
    Ok(Came::Tried(
        broken
            .into_iter()
            .map(|violation| format!("{violation}\n  at {}", lines.join("\n  at ")))
            .collect(),
    ))
}

/// A kill changes nothing about the end; an error may be a reason to refuse or to go back.
fn allowed(ask: Ask, fault: &Fault) -> &'static [Ending] {
    match ask {
        Ask::Good | Ask::Rollback | Ask::Moody | Ask::Reconcile if fault.is_kill() => LIVE,
        Ask::Good | Ask::Rollback | Ask::Moody | Ask::Reconcile => WHOLE,
        Ask::Bad if fault.is_kill() => BACK,
        Ask::Bad => &[Ending::RolledBack, Ending::Refused],
    }
}

/// The calls that were broken. After a flush that failed the process must have ended by itself, with nothing asked again.
fn injected(stage: &mut Stage, strace: Strace, fault: &Fault, broken: &mut Vec<String>) -> Result<Vec<Seen>> {
    // The agent's threads end one after the other; strace knows of all of them.
    let ended = stage.agent.exited()?;
    let all = strace.detach()?;
    if fault.is_kill() {
        let was_killed = ended.is_some_and(|status| status.code().is_none());
        return Ok(if was_killed {
            all.into_iter().rev().take(1).collect()
        } else {
            Vec::new()
        });
    }
    let first = all.iter().position(|one| one.is_injected);
    let seen: Vec<Seen> = all.iter().filter(|one| one.is_injected).cloned().collect();
    if let Some(first) = first
        && SYNCS.contains(&fault.call)
    {
        let ended = until("the agent ends itself", Duration::from_secs(5), || {
            stage.agent.exited()
        });
        match ended {
            Ok(status) if status.code() == Some(1) => {}
            Ok(status) => broken.push(format!("a flush failed and the agent ended with {status}")),
            Err(_) => broken.push("a flush failed and the agent goes on".to_owned()),
        }
        if !stage.agent.log().contains("the disk failed") {
            broken.push("a flush failed and the log does not say so".to_owned());
        }
        let later: Vec<&str> = all.iter().skip(first + 1).map(|one| one.line.as_str()).collect();
        if !later.is_empty() {
            broken.push(format!("a flush failed and another followed: {later:?}"));
        }
    }
    Ok(seen)
}

/// A deployment is cut off, and the start that goes on with it is broken.
fn at_start(options: &Options, tally: &Tally) -> Result<()> {
    let calls = [SYNCS, WRITES, &["openat", "unlink"]].concat();
    let mut ground = Ground::new(Stage::start)?;
    let counts = {
        let mut stage = ground.stage()?;
        let asked = cut_off(&mut stage)?;
        let tracing = Tracing {
            calls: calls.clone(),
            paths: stage.paths(),
            inject: None,
        };
        let (wrapper, log) = tracing.wrapper(stage.agent.folder());
        stage.agent.resume_under(&wrapper)?;
        until("the deployment ends", DEADLINE, || {
            Ok(has_ended(&stage.agent.log(), &asked.id).then_some(()))
        })?;
        stage.agent.kill9_all()?;
        stage.agent.resume()?;
        let broken = judge(&mut stage, &asked, LIVE)?;
        ensure!(broken.is_empty(), "while only counting: {broken:?}");
        ground.ready.push(stage);
        // All threads are looked at in a start, so it is the same fault in each of them. How the calls are spread over them
        // is another in each start, but one of them makes at least as many as the mean.
        let mut each = Counts::new();
        let seen = log.read()?;
        let threads: BTreeSet<u32> = seen.iter().map(|one| one.thread).collect();
        let threads: Vec<u32> = threads.into_iter().collect();
        for ((call, _thread), count) in counts_by_thread(&seen, &threads)? {
            *each.entry((call, 0)).or_default() += count;
        }
        for count in each.values_mut() {
            *count = count.div_ceil(threads.len().max(1));
        }
        each
    };
    let faults = ["error=EIO", "error=ENOSPC", KILLED];
    let cases = Fault::all(&counts, &calls, &faults)
        .into_iter()
        .map(|fault| Case::new(fault.to_string(), move |stage| break_start(stage, &fault)));
    let cases = cases.collect();
    on_stages(options, "fault-start", ground, cases, tally)
}

/// A push that was killed while it replaced containers.
fn cut_off(stage: &mut Stage) -> Result<Asked> {
    let asked = stage.ask(Ask::Good)?;
    let answer = stage.send(&asked)?;
    ensure!(answer.status == 202, "{answer:?}");
    ensure!(
        reached(stage, &asked.id, PhaseName::Restarting)?,
        "it ended before it restarted anything"
    );
    stage.agent.kill9_all()?;
    Ok(asked)
}

fn break_start(stage: &mut Stage, fault: &Fault) -> Result<Came> {
    let asked = cut_off(stage)?;
    let (wrapper, log) = fault.tracing(stage).wrapper(stage.agent.folder());
    let ended = stage.agent.resume_under(&wrapper)?;
    let mut was_ended = ended.is_some();
    if !was_ended {
        until("the deployment ends, or the agent", DEADLINE, || {
            was_ended = stage.agent.exited()?.is_some();
            Ok((was_ended || has_ended(&stage.agent.log(), &asked.id)).then_some(()))
        })?;
    }
    if stage.agent.exited()?.is_none() {
        stage.agent.kill9_all()?;
    }
    let is_injected = log.read()?.iter().any(|one| one.is_injected);
    stage.agent.resume()?;
    let allowed = if fault.is_kill() {
        LIVE
    } else {
        &[Ending::Live, Ending::RolledBack]
    };
    let mut broken = judge(stage, &asked, allowed)?;
    if !is_injected && !was_ended && broken.is_empty() {
        return Ok(Came::NotReached);
    }
    broken.extend(takes_the_next(stage, &asked)?);
    Ok(Came::Tried(broken))
}

/// The file beside the Compose file, or the database, is never flushed again: the attempts run out, and what the agent
/// says in the end is true.
fn for_ever(options: &Options, tally: &Tally) -> Result<()> {
    let mut cases = Vec::new();
    for ask in [Ask::Good, Ask::Bad] {
        for what in [
            ".deploy-agent-docker-compose.yml.new",
            ".deploy-agent-.env.new",
            "",
        ] {
            let name = if what.is_empty() { "the folder" } else { what };
            cases.push(Case::new(format!("{ask:?}: {name}"), move |stage| {
                never_flushed(stage, ask, what)
            }));
        }
    }
    cases.push(Case::new(
        "a checkpoint of the database".to_owned(),
        checkpoint_fails,
    ));
    on_stages(
        options,
        "fault-for-ever",
        Ground::new(Stage::start)?,
        cases,
        tally,
    )
}

fn never_flushed(stage: &mut Stage, ask: Ask, name: &str) -> Result<Came> {
    let tracing = Tracing {
        calls: vec!["fsync"],
        paths: vec![stage.project.dir().join(name)],
        inject: Some(("fsync", "error=EIO".to_owned())),
    };
    let asked = stage.ask(ask)?;
    stage.fresh_agent()?;
    let strace = tracing.attach(&stage.agent, Threads::All)?;
    let answer = stage.send(&asked)?;
    ensure!(answer.status == 202, "{answer:?}");
    let ends = |stage: &mut Stage| {
        until("the deployment ends, or the agent", DEADLINE, || {
            let is_over = has_ended(&stage.agent.log(), &asked.id);
            Ok(if is_over {
                Some(None)
            } else {
                stage.agent.exited()?.map(Some)
            })
        })
    };
    let mut ended = ends(stage)?;
    drop(strace);
    let mut broken = Vec::new();
    for _ in 0..STARTS_MAX {
        let Some(status) = ended else { break };
        if status.code() != Some(1) {
            broken.push(format!("a flush failed and the agent ended with {status}"));
        }
        let (wrapper, _log) = tracing.wrapper(stage.agent.folder());
        ended = match stage.agent.resume_under(&wrapper)? {
            Some(status) => Some(status),
            None => ends(stage)?,
        };
    }
    if ended.is_some() {
        broken.push(format!("it has not ended after {STARTS_MAX} starts"));
    } else {
        stage.agent.kill9_all()?;
    }
    stage.agent.resume()?;
    broken.extend(judge(stage, &asked, ANY)?);
    broken.extend(takes_the_next(stage, &asked)?);
    Ok(Came::Tried(broken))
}

/// The database's own file is flushed only when the log is written into it, which happens after a commit, and of which
/// SQLite itself would tell nobody. Each request is a commit: its nonce.
fn checkpoint_fails(stage: &mut Stage) -> Result<Came> {
    stage.fresh_agent()?;
    let tracing = Tracing {
        calls: SYNCS.to_vec(),
        paths: vec![stage.agent.state_dir().join("history.db")],
        inject: Some(("fsync", "error=EIO".to_owned())),
    };
    let strace = tracing.attach(&stage.agent, Threads::All)?;
    let mut asked = 0;
    while asked < REQUESTS_MAX && stage.knows("ffffffffffffffff").is_ok() {
        asked += 1;
    }
    let mut broken = Vec::new();
    match until("the agent ends itself", Duration::from_secs(5), || {
        stage.agent.exited()
    }) {
        Ok(status) if status.code() == Some(1) && stage.agent.log().contains("the disk failed") => {}
        Ok(status) => broken.push(format!("a checkpoint failed and the agent ended with {status}")),
        Err(_) => broken.push(format!(
            "a checkpoint failed and the agent goes on, {asked} requests later"
        )),
    }
    drop(strace);
    stage.restart()?;
    broken.extend(stage.deploys_again()?);
    Ok(Came::Tried(broken))
}
