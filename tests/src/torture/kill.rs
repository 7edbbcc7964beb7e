//! `kill -9` at every phase's boundary and in the middle of every action, forward and back.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use deploy_proto::event::{Ending, PhaseName};
use rustix::process::Signal;

use super::judge::{BACK, LIVE, judge, takes_the_next};
use super::stage::{Ask, Images, Stage};
use super::{Came, Case, Ground, Group, Options, Random, Tally, on_stages};
use crate::agent::{descendants, signal_process};
use crate::until::until;

/// Forward, the image being good.
pub const FORWARD: Group = Group {
    name: "kill-forward",
    about: "kill -9 in every phase of a push that goes live",
    run: |options, tally| run("kill-forward", Ask::Good, FORWARD_PHASES, LIVE, options, tally),
};
/// Back, the image crashing.
pub const WAY_BACK: Group = Group {
    name: "kill-back",
    about: "kill -9 in every phase of the way back from a crashing image",
    run: |options, tally| run("kill-back", Ask::Bad, BACK_PHASES, BACK, options, tally),
};
/// A rollback request.
pub const ROLLBACK: Group = Group {
    name: "kill-rollback",
    about: "kill -9 in every phase of a rollback request",
    run: |options, tally| {
        run(
            "kill-rollback",
            Ask::Rollback,
            ROLLBACK_PHASES,
            LIVE,
            options,
            tally,
        )
    },
};
/// One service after the other, which is the default order.
pub const ONE_BY_ONE: Group = Group {
    name: "kill-one-by-one",
    about: "kill -9 in every phase, forward and back, where one service is replaced after the other",
    run: one_by_one,
};
/// A reconciliation.
pub const RECONCILE: Group = Group {
    name: "kill-reconcile",
    about: "kill -9 in every phase of a reconciliation: one service was removed by hand",
    run: |options, tally| {
        run(
            "kill-reconcile",
            Ask::Reconcile,
            ROLLBACK_PHASES,
            LIVE,
            options,
            tally,
        )
    },
};
/// A push that is cancelled.
pub const CANCEL: Group = Group {
    name: "kill-cancel",
    about: "kill -9 once a cancellation was accepted, in every phase of a push",
    run: cancelled,
};
/// A rollback that the agent begins by itself.
pub const BAKE: Group = Group {
    name: "kill-bake",
    about: "kill -9 in every phase of the rollback of a release that falls sick while it bakes",
    run: baked,
};
/// Several deaths in one deployment.
pub const AGAIN: Group = Group {
    name: "kill-again",
    about: "kill -9 two or three times in one deployment, at random",
    run: again,
};

/// About how long each phase takes here: in the middle of it is at a random moment below.
const FORWARD_PHASES: &[(PhaseName, u16)] = &[
    (PhaseName::Accepted, 120),
    (PhaseName::Pulling, 40),
    (PhaseName::Gating, 80),
    (PhaseName::BackingUp, 200),
    (PhaseName::Editing, 120),
    (PhaseName::BeforeHook, 900),
    (PhaseName::Restarting, 900),
    (PhaseName::Watching, 300),
    (PhaseName::AfterHook, 200),
];
/// A rollback runs no hook before the restart.
const ROLLBACK_PHASES: &[(PhaseName, u16)] = &[
    (PhaseName::Accepted, 120),
    (PhaseName::Pulling, 40),
    (PhaseName::Gating, 80),
    (PhaseName::BackingUp, 200),
    (PhaseName::Editing, 120),
    (PhaseName::Restarting, 900),
    (PhaseName::Watching, 300),
    (PhaseName::AfterHook, 200),
];
const BACK_PHASES: &[(PhaseName, u16)] = &[
    (PhaseName::BeforeHook, 900),
    (PhaseName::Restarting, 900),
    (PhaseName::Watching, 400),
    (PhaseName::Restoring, 30),
    (PhaseName::RestartingOld, 900),
    (PhaseName::WatchingOld, 300),
];

/// So many random moments in each phase, beside its beginning.
const MOMENTS: usize = 3;
/// A phase is reached, or the deployment ended.
const PHASE_DEADLINE: Duration = Duration::from_secs(30);
/// How many deployments die more than once.
const AGAIN_CASES: usize = 24;

/// A rollback that the agent begins by itself runs no hook at all.
const BAKE_PHASES: &[(PhaseName, u16)] = &[
    (PhaseName::Accepted, 120),
    (PhaseName::Pulling, 40),
    (PhaseName::Gating, 80),
    (PhaseName::BackingUp, 40),
    (PhaseName::Editing, 120),
    (PhaseName::Restarting, 900),
    (PhaseName::Watching, 300),
];

/// Who dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// The agent; a `docker compose` that it started goes on beside the next agent.
    Agent,
    /// The agent and all that it started, as in a power cut.
    All,
    /// What the agent started, a `docker compose` or a hook; the agent lives.
    Children,
}

#[derive(Debug, Clone, Copy)]
struct Death {
    phase: PhaseName,
    after: Duration,
    who: Who,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { phase, after, who } = self;
        write!(f, "{} +{}ms {who:?}", phase.as_str(), after.as_millis())
    }
}

fn run(
    name: &'static str,
    ask: Ask,
    phases: &[(PhaseName, u16)],
    allowed: &'static [Ending],
    options: &Options,
    tally: &Tally,
) -> Result<()> {
    let mut random = options.random(name);
    let cases = every(ask, phases, allowed, &mut random);
    on_stages(options, name, Ground::new(Stage::start)?, cases, tally)
}

fn one_by_one(options: &Options, tally: &Tally) -> Result<()> {
    let mut random = options.random("kill-one-by-one");
    let longer = |phases: &[(PhaseName, u16)]| -> Vec<(PhaseName, u16)> {
        let twice = |&(phase, lasts_ms): &(PhaseName, u16)| {
            let restarts = [PhaseName::Restarting, PhaseName::RestartingOld].contains(&phase);
            (phase, if restarts { 2 * lasts_ms } else { lasts_ms })
        };
        phases.iter().map(twice).collect()
    };
    let mut cases = every(Ask::Good, &longer(FORWARD_PHASES), LIVE, &mut random);
    cases.extend(every(Ask::Bad, &longer(BACK_PHASES), BACK, &mut random));
    let ordered =
        |images: &Images| Stage::start_on(images, &[("order", "\"one-by-one\"")], |_| Ok(Vec::new()));
    on_stages(options, "kill-one-by-one", Ground::new(ordered)?, cases, tally)
}

/// Who may die, at the beginning of each phase and at random moments in it.
fn every(
    ask: Ask,
    phases: &[(PhaseName, u16)],
    allowed: &'static [Ending],
    random: &mut Random,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for &(phase, lasts_ms) in phases {
        for who in who_may_die(ask, phase) {
            for moment in 0..=MOMENTS {
                let after = if moment == 0 {
                    Duration::ZERO
                } else {
                    within(lasts_ms, random)
                };
                let death = Death {
                    phase,
                    after,
                    who: *who,
                };
                cases.push(Case::new(format!("{ask:?}: {death}"), move |stage| {
                    die(stage, ask, &[death], allowed)
                }));
            }
        }
    }
    cases
}

/// What can be killed with the agent alone or with all that it started, at the beginning of a phase and in it.
fn deaths(phases: &[(PhaseName, u16)], random: &mut Random) -> Vec<Death> {
    let mut deaths = Vec::new();
    for &(phase, lasts_ms) in phases {
        for who in [Who::Agent, Who::All] {
            let after = [Duration::ZERO, within(lasts_ms, random)];
            deaths.extend(after.map(|after| Death { phase, after, who }));
        }
    }
    deaths
}

fn cancelled(options: &Options, tally: &Tally) -> Result<()> {
    let deaths = deaths(FORWARD_PHASES, &mut options.random("kill-cancel"));
    let cases = deaths.into_iter().map(|death| {
        Case::new(format!("cancelled: {death}"), move |stage| {
            cancel_and_die(stage, death)
        })
    });
    let cases = cases.collect();
    on_stages(options, "kill-cancel", Ground::new(Stage::start)?, cases, tally)
}

/// Once the agent has said that it is cancelled, it does not go live, whenever it dies.
fn cancel_and_die(stage: &mut Stage, death: Death) -> Result<Came> {
    let asked = stage.ask(Ask::Good)?;
    let answer = stage.send(&asked)?;
    ensure!(answer.status == 202, "{answer:?}");
    ensure!(reached(stage, &asked.id, death.phase)?, "it ended before {death}");
    thread::sleep(death.after);
    let answer = stage.cancel(&asked)?;
    match death.who {
        Who::Agent => stage.agent.kill9()?,
        Who::All | Who::Children => stage.agent.kill9_all()?,
    }
    stage.agent.resume()?;
    let allowed = match answer.status {
        202 => &[Ending::Refused, Ending::RolledBack][..],
        // It was live already.
        409 => LIVE,
        _ => bail!("the cancellation was answered {answer:?}"),
    };
    let mut broken = judge(stage, &asked, allowed)?;
    broken.extend(takes_the_next(stage, &asked)?);
    Ok(Came::Tried(broken))
}

fn baked(options: &Options, tally: &Tally) -> Result<()> {
    let deaths = deaths(BAKE_PHASES, &mut options.random("kill-bake"));
    let cases = deaths.into_iter().map(|death| {
        Case::new(format!("while it bakes: {death}"), move |stage| {
            sick_and_die(stage, death)
        })
    });
    let cases = cases.collect();
    let bakes = |images: &Images| Stage::start_on(images, &[("bake", "\"1m\"")], |_| Ok(Vec::new()));
    on_stages(options, "kill-bake", Ground::new(bakes)?, cases, tally)
}

fn sick_and_die(stage: &mut Stage, death: Death) -> Result<Came> {
    let asked = stage.ask(Ask::Moody)?;
    let answer = stage.send(&asked)?;
    ensure!(answer.status == 202, "{answer:?}");
    let mut broken = judge(stage, &asked, LIVE)?;
    let log = stage.agent.log();
    stage.web_dies()?;
    let id = until("the agent takes it back", PHASE_DEADLINE, || {
        let log = stage.agent.log().split_off(log.len());
        let named = log.lines().find_map(|line| line.split_once("deployment=\""));
        let id = named.and_then(|(_, rest)| rest.split_once('"'));
        Ok(id.map(|(id, _)| id.to_owned()))
    })?;
    // What it goes back to is what ran before the push.
    let mut back = asked;
    back.id = id;
    if !reached(stage, &back.id, death.phase)? {
        return Ok(Came::NotReached);
    }
    thread::sleep(death.after);
    match death.who {
        Who::Agent => stage.agent.kill9()?,
        Who::All | Who::Children => stage.agent.kill9_all()?,
    }
    stage.agent.resume()?;
    broken.extend(judge(stage, &back, BACK)?);
    broken.extend(takes_the_next(stage, &back)?);
    Ok(Came::Tried(broken))
}

fn again(options: &Options, tally: &Tally) -> Result<()> {
    let mut random = options.random("kill-again");
    let mut cases = Vec::new();
    for number in 0..AGAIN_CASES {
        let (ask, phases, allowed) = match number % 3 {
            0 => (Ask::Good, FORWARD_PHASES, LIVE),
            1 => (Ask::Bad, BACK_PHASES, BACK),
            _ => (Ask::Rollback, ROLLBACK_PHASES, LIVE),
        };
        let mut deaths: Vec<(usize, Death)> = (0..2 + random.below(2))
            .filter_map(|_| {
                let at = random.below(phases.len());
                let &(phase, lasts_ms) = phases.get(at)?;
                let who = if random.below(2) == 0 {
                    Who::Agent
                } else {
                    Who::All
                };
                let after = within(lasts_ms, &mut random);
                Some((at, Death { phase, after, who }))
            })
            .collect();
        deaths.sort_by_key(|(at, _)| *at);
        let deaths: Vec<Death> = deaths.into_iter().map(|(_, death)| death).collect();
        let names: Vec<String> = deaths.iter().map(ToString::to_string).collect();
        cases.push(Case::new(
            format!("{number} {ask:?}: {}", names.join(", ")),
            move |stage| die(stage, ask, &deaths, allowed),
        ));
    }
    on_stages(options, "kill-again", Ground::new(Stage::start)?, cases, tally)
}

fn who_may_die(ask: Ask, phase: PhaseName) -> &'static [Who] {
    // A reconciliation that fails leaves the drift as it was, which the judge would take for a broken promise.
    let has_children = ask != Ask::Reconcile
        && matches!(
            phase,
            PhaseName::BackingUp
                | PhaseName::BeforeHook
                | PhaseName::Restarting
                | PhaseName::AfterHook
                | PhaseName::RestartingOld
        );
    if has_children {
        &[Who::Agent, Who::All, Who::Children]
    } else {
        &[Who::Agent, Who::All]
    }
}

fn within(lasts_ms: u16, random: &mut Random) -> Duration {
    let ms = random.below(usize::from(lasts_ms));
    Duration::from_millis(u64::try_from(ms).unwrap_or_default())
}

fn die(stage: &mut Stage, ask: Ask, deaths: &[Death], allowed: &[Ending]) -> Result<Came> {
    let asked = stage.ask(ask)?;
    let answer = stage.send(&asked)?;
    ensure!(answer.status == 202, "{answer:?}");
    let mut died = 0;
    let mut children_died = false;
    for death in deaths {
        if !reached(stage, &asked.id, death.phase)? {
            break;
        }
        // Not to wait for anything: the moment is what is tried.
        thread::sleep(death.after);
        match death.who {
            Who::Agent => stage.agent.kill9()?,
            Who::All => stage.agent.kill9_all()?,
            Who::Children => {
                let children = children(stage, &asked.id)?;
                if children.is_empty() {
                    continue;
                }
                for child in children {
                    // It may have ended meanwhile.
                    drop(signal_process(child, Signal::KILL));
                }
                children_died = true;
                died += 1;
                continue;
            }
        }
        died += 1;
        stage.agent.resume()?;
    }
    // The agent sees that Compose or a hook failed, and takes that for what it is: a reason to go back.
    let allowed = if children_died {
        super::judge::WHOLE
    } else {
        allowed
    };
    let mut broken = judge(stage, &asked, allowed)?;
    if died == 0 {
        return Ok(if broken.is_empty() {
            Came::NotReached
        } else {
            Came::Tried(broken)
        });
    }
    broken.extend(takes_the_next(stage, &asked)?);
    Ok(Came::Tried(broken))
}

/// Waits until something that the agent started runs; none when the deployment ended before.
fn children(stage: &Stage, id: &str) -> Result<Vec<u32>> {
    let pid = stage.agent.pid()?;
    until("a child of the agent runs", PHASE_DEADLINE, || {
        let children = descendants(pid)?;
        Ok((!children.is_empty() || has_ended(&stage.agent.log(), id)).then_some(children))
    })
}

/// Waits until the agent's log says that the phase began; false when the deployment ended before. The log, because a
/// question by the API would be a write to the journal.
pub(super) fn reached(stage: &mut Stage, id: &str, phase: PhaseName) -> Result<bool> {
    let said = format!("phase=\"{}\"", phase.as_str());
    until(&format!("{id} is {}", phase.as_str()), PHASE_DEADLINE, || {
        let log = stage.agent.log();
        let mine = || log.lines().filter(|line| line.contains(id));
        if phase == PhaseName::Accepted && mine().next().is_some() || mine().any(|line| line.contains(&said))
        {
            return Ok(Some(true));
        }
        let is_over = has_ended(&log, id) || stage.agent.exited()?.is_some();
        Ok(is_over.then_some(false))
    })
}

/// Whether the log says that the deployment ended.
pub(super) fn has_ended(log: &str, id: &str) -> bool {
    log.lines().any(|line| {
        line.contains(id) && (line.contains("deployment ended") || line.contains("deployment is stuck"))
    })
}
