//! Every write, flush, rename, unlink, open and truncation that the agent makes in its state and in the project's folder
//! fails once, or is where the agent is killed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use deploy_proto::event::{Ending, PhaseName};

use super::judge::{ANY, BACK, LIVE, WHOLE, judge, judge_unsure, takes_the_next};
use super::kill::{has_ended, reached};
use super::stage::{Ask, Asked, Stage};
use super::strace::{Seen, Strace, Tracing, most_by_thread};
use super::{Came, Case, Ground, Group, Options, Tally, on_stages};
use crate::until::until;

/// Flushes.
pub const SYNC: Group = Group {
    name: "fault-sync",
    about: "EIO and ENOSPC in place of every fsync and fdatasync: the process ends, at once",
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
    about: "EIO and ENOSPC in place of every write and truncation",
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
    about: "EIO and ENOSPC in place of every open, rename, unlink, mkdir, chown and chmod",
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
        once("fault-kill", &calls, &["signal=KILL"], options, tally)
    },
};
/// The start that goes on with a deployment.
pub const START: Group = Group {
    name: "fault-start",
    about: "EIO, ENOSPC and kill -9 at every write, flush and open of a start that resumes a deployment",
    run: at_start,
};
/// A disk that never works again.
pub const FOR_EVER: Group = Group {
    name: "fault-for-ever",
    about: "a disk that flushes nothing any more, restart after restart",
    run: for_ever,
};

const SYNCS: &[&str] = &["fsync", "fdatasync"];
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
    let counted = counted(&mut stage, calls)?;
    ground.ready.push(stage);
    let mut cases = Vec::new();
    for (ask, counts) in counted {
        for (call, most) in counts {
            let Some(&call) = calls.iter().find(|known| **known == call) else {
                continue;
            };
            for fault in faults {
                for at in 1..=most {
                    let inject = (call, format!("{fault}:when={at}"));
                    cases.push(Case::new(
                        format!("{ask:?}: {call} #{at} {fault}"),
                        move |stage| break_once(stage, ask, &inject),
                    ));
                }
            }
        }
    }
    on_stages(options, name, ground, cases, tally)
}

/// How often each call is made in each kind of deployment, at most, by one thread.
fn counted(stage: &mut Stage, calls: &[&'static str]) -> Result<Vec<(Ask, BTreeMap<String, usize>)>> {
    let mut counted = Vec::new();
    for (ask, allowed) in [(Ask::Good, LIVE), (Ask::Bad, BACK), (Ask::Rollback, LIVE)] {
        let tracing = Tracing {
            calls: calls.to_vec(),
            paths: stage.paths(),
            inject: None,
        };
        let asked = stage.ask(ask)?;
        stage.fresh_agent()?;
        let strace = tracing.attach(&stage.agent)?;
        stage.send(&asked)?;
        until("the deployment ends", DEADLINE, || {
            Ok(has_ended(&stage.agent.log(), &asked.id).then_some(()))
        })?;
        let seen = strace.detach()?;
        let broken = judge(stage, &asked, allowed)?;
        ensure!(broken.is_empty(), "while only counting: {broken:?}");
        counted.push((ask, most_by_thread(&seen)));
    }
    Ok(counted)
}

fn break_once(stage: &mut Stage, ask: Ask, inject: &(&'static str, String)) -> Result<Came> {
    let asked = stage.ask(ask)?;
    let tracing = Tracing {
        calls: vec![inject.0],
        paths: stage.paths(),
        inject: Some(inject.clone()),
    };
    stage.fresh_agent()?;
    let strace = tracing.attach(&stage.agent)?;
    // The agent may be gone before it answers; what it did is asked later.
    let answer = stage.send(&asked).ok();
    let was_accepted = answer.as_ref().is_some_and(|answer| answer.status == 202);
    until("the deployment ends, or the agent", DEADLINE, || {
        let is_over = !was_accepted || has_ended(&stage.agent.log(), &asked.id);
        Ok((is_over || stage.agent.exited()?.is_some()).then_some(()))
    })?;
    let mut broken = Vec::new();
    let seen = injected(stage, strace, inject, &mut broken)?;
    stage.restart()?;
    if was_accepted && stage.knows(&asked.id)?.is_none() {
        broken.push("it was accepted, and the agent knows nothing of it".to_owned());
    }
    let allowed = allowed(ask, inject);
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
fn allowed(ask: Ask, inject: &(&'static str, String)) -> &'static [Ending] {
    match ask {
        Ask::Good | Ask::Rollback if inject.1.starts_with("signal") => LIVE,
        Ask::Good | Ask::Rollback => WHOLE,
        Ask::Bad if inject.1.starts_with("signal") => BACK,
        Ask::Bad => &[Ending::RolledBack, Ending::Refused],
    }
}

/// The calls that were broken. After a flush that failed the process must have ended by itself, with nothing asked again.
fn injected(
    stage: &mut Stage,
    strace: Strace,
    inject: &(&'static str, String),
    broken: &mut Vec<String>,
) -> Result<Vec<Seen>> {
    // The agent's threads end one after the other; strace knows of all of them.
    let ended = stage.agent.exited()?;
    let all = strace.detach()?;
    if inject.1.starts_with("signal") {
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
        && SYNCS.contains(&inject.0)
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
        let (wrapper, log) = tracing(&stage, &calls, None).wrapper(stage.agent.folder());
        stage.agent.resume_under(&wrapper)?;
        until("the deployment ends", DEADLINE, || {
            Ok(has_ended(&stage.agent.log(), &asked.id).then_some(()))
        })?;
        stage.agent.kill9_all()?;
        stage.agent.resume()?;
        let broken = judge(&mut stage, &asked, LIVE)?;
        ensure!(broken.is_empty(), "while only counting: {broken:?}");
        ground.ready.push(stage);
        most_by_thread(&log.read()?)
    };
    let mut cases = Vec::new();
    for (call, most) in counts {
        let Some(&call) = calls.iter().find(|known| **known == call) else {
            continue;
        };
        for fault in ["error=EIO", "error=ENOSPC", "signal=KILL"] {
            for at in 1..=most {
                let inject = (call, format!("{fault}:when={at}"));
                cases.push(Case::new(format!("{call} #{at} {fault}"), move |stage| {
                    break_start(stage, &inject)
                }));
            }
        }
    }
    on_stages(options, "fault-start", ground, cases, tally)
}

fn tracing(stage: &Stage, calls: &[&'static str], inject: Option<(&'static str, String)>) -> Tracing {
    Tracing {
        calls: calls.to_vec(),
        paths: stage.paths(),
        inject,
    }
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

fn break_start(stage: &mut Stage, inject: &(&'static str, String)) -> Result<Came> {
    let asked = cut_off(stage)?;
    let (wrapper, log) = tracing(stage, &[inject.0], Some(inject.clone())).wrapper(stage.agent.folder());
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
    let allowed = if inject.1.starts_with("signal") {
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
    let strace = tracing.attach(&stage.agent)?;
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
