//! From what was seen of a service to whether it is well: pure, so that every case is a row of a test.

use std::time::Duration;

/// What one look at a service's containers and checks gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Monotonic time since the watch began.
    pub at: Duration,
    /// The container's state.
    pub state: ContainerState,
    /// Whether it ended while the Engine was away: whatever its exit code is, that was not its own doing.
    pub ended_with_engine: bool,
    /// How often the Engine has restarted it since the deployment began, all its containers together.
    pub restarts: u64,
    /// The exit code of the run before the last restart, where an event of the Engine told it.
    pub last_exit: Option<i64>,
    /// What its healthcheck says: the Engine's word and our own run of the same command.
    pub health: Health,
    /// Probes: `Ok`, or the first one that failed in words (`GET http://... gave 500`). `None` when it has none.
    pub probes: Option<Result<(), String>>,
}

/// A container's state, as the Engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// There is none.
    Missing,
    /// Created and not started.
    Created,
    /// It runs.
    Running,
    /// Its process ended and the restart policy is about to start it again.
    Restarting {
        /// The exit code of the last run.
        exit_code: i64,
    },
    /// Its process ended.
    Exited {
        /// The exit code.
        exit_code: i64,
        /// Whether the restart policy leaves it so (`no`, or `on-failure` with code 0).
        stays: bool,
    },
    /// Paused, removing or dead; in the Engine's word.
    Other(String),
}

/// What is known of a container's own healthcheck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It has none.
    None,
    /// The Engine says starting, and our own run of the command failed, with its last line.
    Failing(String),
    /// The Engine says healthy, or our own run of the command passed.
    Passing,
    /// The Engine says unhealthy (its retries are used up), with the last output's first line.
    Unhealthy(String),
}

/// What a service's samples say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has been well for the whole settle time.
    Healthy,
    /// Not yet; with what is missing, in words.
    Wait(String),
    /// It is sick, and waiting longer would not help; with the reason, in words.
    Sick(String),
    /// It ended with the Engine, and nobody starts it again unless we do.
    Down,
}

/// What a service is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long it must stay well.
    pub settle: Duration,
    /// By when it must have become and stayed well.
    pub wait: Duration,
}

/// Judges one service while samples come in.
#[derive(Debug, Clone)]
pub struct Judge {
    limits: Limits,
    well_since: Option<Duration>,
    was_well: bool,
}

impl Judge {
    /// A judge that has seen nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            well_since: None,
            was_well: false,
        }
    }

    /// Whether it was well at the last look, and has to stay so.
    pub fn is_settling(&self) -> bool {
        self.well_since.is_some()
    }

    /// Nobody looked for a while: `settle` begins anew.
    pub fn lose_sight(&mut self) {
        self.well_since = None;
    }

    /// How long from then on the verdict stays the same unless something happens: until `settle` or `wait` is over.
    pub fn steady_for(&self, at: Duration) -> Duration {
        let end = match self.well_since {
            Some(since) => since.saturating_add(self.limits.settle),
            None => self.limits.wait,
        };
        end.saturating_sub(at)
    }

    /// Takes one sample in, and says what all of them so far amount to.
    ///
    /// A crash, a restart, an exit that should not be and an Engine's `unhealthy` are sick at once. A check that does
    /// not pass yet is waited for until `wait` is over; one that passed and fails again starts `settle` anew.
    pub fn see(&mut self, sample: &Sample) -> Verdict {
        match condition(sample) {
            Condition::Sick(reason) => Verdict::Sick(reason),
            Condition::Down => Verdict::Down,
            Condition::Done => Verdict::Healthy,
            Condition::Well => {
                self.was_well = true;
                let since = *self.well_since.get_or_insert(sample.at);
                let steady = sample.at.saturating_sub(since);
                if steady >= self.limits.settle {
                    Verdict::Healthy
                } else if sample.at >= self.limits.wait.saturating_add(self.limits.settle) {
                    Verdict::Sick(format!(
                        "it did not stay well for {} within {}",
                        seconds(self.limits.settle),
                        seconds(self.limits.wait)
                    ))
                } else {
                    Verdict::Wait(format!(
                        "steady for {} of {}",
                        seconds(steady),
                        seconds(self.limits.settle)
                    ))
                }
            }
            Condition::NotYet(reason) => {
                self.well_since = None;
                if sample.at < self.limits.wait {
                    return Verdict::Wait(reason);
                }
                let flapped = if self.was_well {
                    "became well and sick again"
                } else {
                    "did not become healthy"
                };
                Verdict::Sick(format!(
                    "it {flapped} within {}: {reason}",
                    seconds(self.limits.wait)
                ))
            }
        }
    }
}

/// What one sample says, by itself.
pub(super) enum Condition {
    /// It is well.
    Well,
    /// A one-shot that did its work: nothing more can change.
    Done,
    /// A check does not pass, or it does not run yet; in words.
    NotYet(String),
    /// It is sick; in words.
    Sick(String),
    /// It ended with the Engine, and its restart policy does not start it again.
    Down,
}

/// What one sample says, whatever came before.
pub(super) fn condition(sample: &Sample) -> Condition {
    match &sample.state {
        ContainerState::Missing => Condition::NotYet("it has no container".to_owned()),
        ContainerState::Created => Condition::NotYet("its container is not started".to_owned()),
        ContainerState::Other(word) => Condition::NotYet(format!("its container is {word}")),
        ContainerState::Restarting { exit_code } => {
            Condition::Sick(format!("it exited with code {exit_code} and is being restarted"))
        }
        ContainerState::Exited { stays: true, .. } if sample.ended_with_engine => Condition::Down,
        ContainerState::Exited { stays: false, .. } if sample.ended_with_engine => {
            Condition::NotYet("it ended with the Docker Engine and is not started again yet".to_owned())
        }
        ContainerState::Exited {
            exit_code: 0,
            stays: true,
        } if sample.health == Health::None && sample.probes.is_none() => Condition::Done,
        ContainerState::Exited { exit_code, .. } => {
            Condition::Sick(format!("it exited with code {exit_code}"))
        }
        ContainerState::Running if sample.restarts > 0 => {
            let ended = match sample.last_exit {
                Some(code) => format!("exited with code {code}"),
                None => "crashed".to_owned(),
            };
            let times = times(sample.restarts);
            Condition::Sick(format!("it {ended} and was restarted by the Engine ({times})"))
        }
        ContainerState::Running => running(sample),
    }
}

fn running(sample: &Sample) -> Condition {
    match (&sample.health, &sample.probes) {
        (Health::Unhealthy(why), _) => Condition::Sick(format!("its healthcheck says unhealthy: {why}")),
        (Health::Failing(why), _) => Condition::NotYet(format!("its healthcheck does not pass: {why}")),
        (Health::None | Health::Passing, Some(Err(why))) => Condition::NotYet(why.clone()),
        (Health::None | Health::Passing, Some(Ok(())) | None) => Condition::Well,
    }
}

fn times(count: u64) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

/// A duration as people write it: `7s`, `0.3s`.
pub fn seconds(duration: Duration) -> String {
    let tenths = (duration.as_millis() + 50) / 100;
    if tenths.is_multiple_of(10) {
        format!("{}s", tenths / 10)
    } else {
        format!("{}.{}s", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        settle: Duration::from_secs(2),
        wait: Duration::from_secs(10),
    };

    fn sample(at_ms: u64, state: ContainerState, health: Health) -> Sample {
        Sample {
            at: Duration::from_millis(at_ms),
            state,
            ended_with_engine: false,
            restarts: 0,
            last_exit: None,
            health,
            probes: None,
        }
    }

    fn verdicts(samples: &[Sample]) -> Vec<Verdict> {
        let mut judge = Judge::new(LIMITS);
        samples.iter().map(|sample| judge.see(sample)).collect()
    }

    fn last(samples: &[Sample]) -> Verdict {
        verdicts(samples).pop().unwrap()
    }

    #[test]
    fn a_service_is_healthy_after_it_was_well_for_settle() {
        let run = |at| sample(at, ContainerState::Running, Health::Passing);
        assert!(matches!(last(&[run(0), run(1900)]), Verdict::Wait(_)));
        assert_eq!(last(&[run(0), run(2000)]), Verdict::Healthy);
    }

    #[test]
    fn settle_begins_anew_when_nobody_could_look() {
        let mut judge = Judge::new(LIMITS);
        let run = |at| sample(at, ContainerState::Running, Health::Passing);
        judge.see(&run(0));
        judge.lose_sight();
        assert!(matches!(judge.see(&run(5000)), Verdict::Wait(_)));
        assert_eq!(judge.see(&run(7000)), Verdict::Healthy);
    }

    #[test]
    fn a_crash_is_sick_at_once_however_it_shows() {
        let mut again = sample(500, ContainerState::Running, Health::None);
        again.restarts = 1;
        for bad in [
            again,
            sample(500, ContainerState::Restarting { exit_code: 1 }, Health::None),
            sample(
                500,
                ContainerState::Exited {
                    exit_code: 3,
                    stays: true,
                },
                Health::None,
            ),
            sample(
                500,
                ContainerState::Exited {
                    exit_code: 0,
                    stays: false,
                },
                Health::None,
            ),
            sample(
                500,
                ContainerState::Exited {
                    exit_code: 0,
                    stays: true,
                },
                Health::Passing,
            ),
            sample(500, ContainerState::Running, Health::Unhealthy("500".into())),
        ] {
            let first = sample(0, ContainerState::Running, Health::None);
            assert!(matches!(last(&[first, bad.clone()]), Verdict::Sick(_)), "{bad:?}");
        }
    }

    #[test]
    fn a_crash_before_the_first_look_counts() {
        let mut first = sample(0, ContainerState::Running, Health::None);
        first.restarts = 1;
        assert_eq!(
            last(&[first.clone()]),
            Verdict::Sick("it crashed and was restarted by the Engine (once)".to_owned())
        );
        first.last_exit = Some(3);
        assert_eq!(
            last(&[first]),
            Verdict::Sick("it exited with code 3 and was restarted by the Engine (once)".to_owned())
        );
    }

    #[test]
    fn the_verdict_holds_until_settle_or_wait_is_over() {
        let mut judge = Judge::new(LIMITS);
        let ms = Duration::from_millis;
        judge.see(&sample(
            100,
            ContainerState::Running,
            Health::Failing("no".into()),
        ));
        assert_eq!(judge.steady_for(ms(100)), ms(9_900));
        assert!(!judge.is_settling());
        judge.see(&sample(300, ContainerState::Running, Health::Passing));
        assert_eq!(judge.steady_for(ms(800)), ms(1_500));
        assert!(judge.is_settling());
        assert_eq!(judge.steady_for(ms(60_000)), Duration::ZERO);
    }

    #[test]
    fn a_one_shot_that_exits_0_is_well() {
        assert_eq!(
            last(&[sample(
                10,
                ContainerState::Exited {
                    exit_code: 0,
                    stays: true
                },
                Health::None
            )]),
            Verdict::Healthy
        );
    }

    #[test]
    fn what_ended_with_the_engine_is_neither_a_one_shot_nor_sick() {
        for (exit_code, stays) in [(0, true), (137, true), (0, false), (137, false)] {
            let state = ContainerState::Exited { exit_code, stays };
            let ended = Sample {
                ended_with_engine: true,
                ..sample(10, state, Health::None)
            };
            let verdict = last(&[ended]);
            if stays {
                assert_eq!(verdict, Verdict::Down, "{exit_code}");
            } else {
                assert!(matches!(verdict, Verdict::Wait(_)), "{exit_code}: {verdict:?}");
            }
        }
    }

    #[test]
    fn a_check_that_does_not_pass_is_waited_for_until_the_deadline() {
        let failing = |at| sample(at, ContainerState::Running, Health::Failing("exit 1".into()));
        assert!(matches!(last(&[failing(0), failing(9_999)]), Verdict::Wait(_)));
        let Verdict::Sick(why) = last(&[failing(0), failing(10_000)]) else {
            panic!("not sick")
        };
        assert_eq!(
            why,
            "it did not become healthy within 10s: its healthcheck does not pass: exit 1"
        );
    }

    #[test]
    fn flapping_never_settles_and_ends_sick() {
        let samples: Vec<_> = (0..14)
            .map(|second| {
                let health = if second % 2 == 0 {
                    Health::Passing
                } else {
                    Health::Failing("503".into())
                };
                sample(second * 1000, ContainerState::Running, health)
            })
            .collect();
        let all = verdicts(&samples);
        assert!(!all.contains(&Verdict::Healthy), "{all:?}");
        assert!(matches!(all.get(11), Some(Verdict::Sick(_))), "{all:?}");
    }

    #[test]
    fn a_probe_counts_like_a_healthcheck() {
        let mut bad = sample(0, ContainerState::Running, Health::None);
        bad.probes = Some(Err("GET http://127.0.0.1:1/ gave 500".into()));
        assert!(matches!(last(&[bad.clone()]), Verdict::Wait(_)));
        bad.at = LIMITS.wait;
        assert!(matches!(last(&[bad]), Verdict::Sick(_)));
    }

    #[test]
    fn seconds_read_as_people_write_them() {
        for (ms, text) in [(0, "0s"), (7000, "7s"), (340, "0.3s"), (12_960, "13s")] {
            assert_eq!(seconds(Duration::from_millis(ms)), text);
        }
    }
}
