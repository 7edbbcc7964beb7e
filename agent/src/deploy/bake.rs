//! Whether a release that is live and still watched is well: pure, so that every case is a row of a test.
//!
//! What ends by itself is sick at once. What only answers badly is sick when it does so on end: one slow answer must not
//! take production back. What a person stopped or replaced is not sick; it is not the release any more.

use std::collections::BTreeSet;
use std::time::Duration;

use super::verdict::{Condition, ContainerState, Health, Sample, condition, seconds};

/// How long a check must fail on end before the release is sick.
pub const GRACE: Duration = Duration::from_secs(15);
/// How long a service must be away, stopped or replaced from outside before its bake ends: longer than a restart by hand,
/// and, with the Engine away, not counted.
pub const AWAY: Duration = Duration::from_secs(10);

/// How a container's process came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The Engine told that somebody had stopped it, or it ended with the Engine.
    FromOutside,
    /// The Engine told that it ended, and nobody had stopped it.
    ByItself,
    /// The Engine was not heard when it ended, or it has not ended.
    NotHeard,
}

/// What one look saw of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its state.
    pub state: ContainerState,
    /// How often the Engine restarted it since it was made.
    pub restarts: u64,
    /// Its last exit code, where the Engine told it.
    pub last_exit: Option<i64>,
    /// How it ended, if it has.
    pub end: End,
    /// Whether the kernel ended a process in it for want of memory.
    pub out_of_memory: bool,
    /// What the Engine says of its healthcheck.
    pub health: Health,
}

/// What one look saw of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Monotonic time since the watch began.
    pub at: Duration,
    /// Its containers.
    pub containers: Vec<Seen>,
    /// The first check that failed, in words: a probe, or the healthcheck run by us. None when all passed.
    pub failing: Option<String>,
}

/// What the looks so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Well,
    /// Something is not as it should be, and has to be looked at soon; in words.
    Doubtful(String),
    /// It is sick; with the reason, in words.
    Sick(String),
    /// It is not the release any more; with what was done, in words.
    Gone(String),
}

/// Judges one service while it bakes.
#[derive(Debug, Clone)]
pub struct Judge {
    mine: BTreeSet<String>,
    has_probes: bool,
    failing_since: Option<Duration>,
    away_since: Option<Duration>,
}

impl Judge {
    /// A judge of the service that runs in these containers. One that is probed is no one-shot, which may end.
    pub fn new(mine: BTreeSet<String>, has_probes: bool) -> Self {
        Self {
            mine,
            has_probes,
            failing_since: None,
            away_since: None,
        }
    }

    /// Forgets for how long something was not as it should be: the Engine was away, and it may be its doing.
    pub fn pause(&mut self) {
        self.failing_since = None;
        self.away_since = None;
    }

    /// Why it is sick whatever its checks say, if it is: a container of the release ended by itself.
    pub fn sickness(&self, containers: &[Seen]) -> Option<String> {
        let mut mine = containers
            .iter()
            .filter(|container| self.mine.contains(&container.id));
        mine.find_map(|container| sickness(container, self.has_probes))
    }

    /// Takes one look in, and says what all of them so far amount to.
    pub fn see(&mut self, look: &Look) -> Verdict {
        if let Some(reason) = self.sickness(&look.containers) {
            return Verdict::Sick(reason);
        }
        if let Some(what) = self.away(&look.containers) {
            self.failing_since = None;
            let since = *self.away_since.get_or_insert(look.at);
            return if look.at.saturating_sub(since) >= AWAY {
                Verdict::Gone(what)
            } else {
                Verdict::Doubtful(what)
            };
        }
        self.away_since = None;
        let Some(why) = &look.failing else {
            self.failing_since = None;
            return Verdict::Well;
        };
        let since = *self.failing_since.get_or_insert(look.at);
        let long = look.at.saturating_sub(since);
        if long >= GRACE {
            Verdict::Sick(format!("{why}, on end for {}", seconds(long)))
        } else {
            Verdict::Doubtful(why.clone())
        }
    }

    /// What somebody did to the containers, if they are not all there and running.
    fn away(&self, containers: &[Seen]) -> Option<String> {
        let find = |id: &String| containers.iter().find(|container| container.id == *id);
        if containers
            .iter()
            .any(|container| !self.mine.contains(&container.id))
        {
            return Some("it was given another container".to_owned());
        }
        self.mine.iter().find_map(|id| match find(id) {
            None => Some("its container was removed".to_owned()),
            Some(container) => match &container.state {
                ContainerState::Missing => Some("its container was removed".to_owned()),
                ContainerState::Created => Some("its container is not started".to_owned()),
                ContainerState::Other(word) => Some(format!("its container is {word}")),
                ContainerState::Exited { .. } if was_stopped(container) => {
                    Some("its container was stopped".to_owned())
                }
                ContainerState::Exited { .. }
                | ContainerState::Running
                | ContainerState::Restarting { .. } => None,
            },
        })
    }
}

/// Why a container of the release is sick, if it is.
fn sickness(container: &Seen, has_probes: bool) -> Option<String> {
    if container.out_of_memory {
        return Some("it ran out of memory".to_owned());
    }
    if matches!(container.state, ContainerState::Exited { .. }) && was_stopped(container) {
        return None;
    }
    let sample = Sample {
        at: Duration::ZERO,
        state: container.state.clone(),
        ended_with_engine: false,
        restarts: container.restarts,
        last_exit: container.last_exit,
        health: container.health.clone(),
        probes: has_probes.then_some(Ok(())),
    };
    match condition(&sample) {
        Condition::Sick(reason) => Some(reason),
        Condition::Well | Condition::Done | Condition::NotYet(_) | Condition::Down => None,
    }
}

/// Whether a container that ended was stopped from outside. Where the Engine was not heard, its restart policy tells
/// (what it always starts again stays ended only when somebody stopped it), and else the exit code: those of a process
/// that SIGINT, SIGKILL or SIGTERM ended, and the Engine's word for one that it lost.
fn was_stopped(container: &Seen) -> bool {
    let ContainerState::Exited { exit_code, stays } = &container.state else {
        return false;
    };
    match container.end {
        End::FromOutside => true,
        End::ByItself => false,
        End::NotHeard if *stays => matches!(exit_code, 130 | 137 | 143 | 255),
        End::NotHeard => container.restarts == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running(id: &str) -> Seen {
        Seen {
            id: id.to_owned(),
            state: ContainerState::Running,
            restarts: 0,
            last_exit: None,
            end: End::NotHeard,
            out_of_memory: false,
            health: Health::Passing,
        }
    }

    fn exited(exit_code: i64, stays: bool, end: End) -> Seen {
        Seen {
            state: ContainerState::Exited { exit_code, stays },
            end,
            ..running("a")
        }
    }

    fn look(at_secs: u64, containers: &[Seen], failing: Option<&str>) -> Look {
        Look {
            at: Duration::from_secs(at_secs),
            containers: containers.to_vec(),
            failing: failing.map(str::to_owned),
        }
    }

    fn judge() -> Judge {
        Judge::new(["a".to_owned()].into(), false)
    }

    #[test]
    fn what_ends_by_itself_is_sick_at_once() {
        let crashed = Seen {
            restarts: 1,
            last_exit: Some(3),
            ..running("a")
        };
        let oom = Seen {
            out_of_memory: true,
            ..running("a")
        };
        let unhealthy = Seen {
            health: Health::Unhealthy("500".to_owned()),
            ..running("a")
        };
        let restarting = Seen {
            state: ContainerState::Restarting { exit_code: 3 },
            ..running("a")
        };
        for (seen, why) in [
            (
                crashed,
                "it exited with code 3 and was restarted by the Engine (once)",
            ),
            (oom, "it ran out of memory"),
            (unhealthy, "its healthcheck says unhealthy: 500"),
            (restarting, "it exited with code 3 and is being restarted"),
            (exited(3, true, End::ByItself), "it exited with code 3"),
            (exited(0, false, End::ByItself), "it exited with code 0"),
            (exited(137, true, End::ByItself), "it exited with code 137"),
            (exited(1, true, End::NotHeard), "it exited with code 1"),
        ] {
            let verdict = judge().see(&look(0, std::slice::from_ref(&seen), None));
            assert_eq!(verdict, Verdict::Sick(why.to_owned()), "{seen:?}");
        }
    }

    #[test]
    fn what_a_person_stops_or_replaces_is_gone_and_never_sick() {
        let with = |state| Seen {
            state,
            ..running("a")
        };
        for (containers, what) in [
            (vec![], "its container was removed"),
            (vec![running("b")], "it was given another container"),
            (vec![running("a"), running("b")], "it was given another container"),
            (
                vec![exited(143, false, End::FromOutside)],
                "its container was stopped",
            ),
            (
                vec![exited(1, true, End::FromOutside)],
                "its container was stopped",
            ),
            (
                vec![exited(137, true, End::NotHeard)],
                "its container was stopped",
            ),
            (vec![exited(1, false, End::NotHeard)], "its container was stopped"),
            (
                vec![with(ContainerState::Created)],
                "its container is not started",
            ),
            (
                vec![with(ContainerState::Other("paused".to_owned()))],
                "its container is paused",
            ),
        ] {
            let mut judge = judge();
            let first = judge.see(&look(5, &containers, None));
            assert_eq!(first, Verdict::Doubtful(what.to_owned()), "{containers:?}");
            let later = judge.see(&look(15, &containers, Some("GET / gave nothing")));
            assert_eq!(later, Verdict::Gone(what.to_owned()), "{containers:?}");
        }
    }

    #[test]
    fn a_restart_by_hand_is_not_the_end() {
        let mut judge = judge();
        judge.see(&look(0, &[exited(143, false, End::FromOutside)], None));
        assert_eq!(judge.see(&look(8, &[running("a")], None)), Verdict::Well);
        // Stopped again: counted from there.
        judge.see(&look(11, &[exited(143, false, End::FromOutside)], None));
        let verdict = judge.see(&look(12, &[exited(143, false, End::FromOutside)], None));
        assert!(matches!(verdict, Verdict::Doubtful(_)), "{verdict:?}");
    }

    #[test]
    fn a_check_is_believed_when_it_fails_on_end() {
        let why = "GET http://127.0.0.1:1/ gave 500";
        let mut judge = judge();
        let mut see = |at, failing| judge.see(&look(at, &[running("a")], failing));
        assert_eq!(see(0, Some(why)), Verdict::Doubtful(why.to_owned()));
        assert_eq!(see(14, Some(why)), Verdict::Doubtful(why.to_owned()));
        // One good answer, and it is counted anew.
        assert_eq!(see(15, None), Verdict::Well);
        assert_eq!(see(16, Some(why)), Verdict::Doubtful(why.to_owned()));
        assert_eq!(
            see(31, Some(why)),
            Verdict::Sick(format!("{why}, on end for 15s"))
        );
    }

    #[test]
    fn time_without_the_engine_does_not_count() {
        let mut judge = judge();
        judge.see(&look(0, &[running("a")], Some("500")));
        judge.pause();
        let verdict = judge.see(&look(60, &[running("a")], Some("500")));
        assert_eq!(verdict, Verdict::Doubtful("500".to_owned()));
    }

    #[test]
    fn a_one_shot_that_did_its_work_stays_well() {
        let done = Seen {
            health: Health::None,
            ..exited(0, true, End::ByItself)
        };
        assert_eq!(
            judge().see(&look(0, std::slice::from_ref(&done), None)),
            Verdict::Well
        );
        let mut probed = Judge::new(["a".to_owned()].into(), true);
        let verdict = probed.see(&look(0, &[done], None));
        assert_eq!(verdict, Verdict::Sick("it exited with code 0".to_owned()));
    }
}
