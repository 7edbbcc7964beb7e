//! The state machine of a deployment: what is done in each phase, and what follows from what was seen. Pure and total.
//!
//! ```text
//! Accepted -> Pulling -> Gating -> BackingUp -> Editing -> (BeforeHook) -> Restarting -> Watching -> (AfterHook) -> Live
//!    |___________|__________|__________|___________|           |______________|____________|____________|
//!                        Refused                     Restoring -> RestartingOld -> WatchingOld -> RolledBack
//!                   (nothing changed)                    |_____________|_______________|
//!                                                                    Stuck
//! ```
//!
//! From a migration on that cannot be undone there is no way back: what fails then ends in Stuck at once.

use deploy_proto::event::PhaseName;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};

/// Why a phase did not end well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What a person sees.
    pub problem: Problem,
    /// The service that was sick, where it was one.
    pub service: Option<ServiceName>,
    /// Its last log lines, oldest first.
    pub log_lines: Vec<String>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self {
            problem,
            service: None,
            log_lines: Vec::new(),
        }
    }
}

/// What its plan says of a deployment's way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Course {
    /// Whether commands run before the restart.
    pub has_before_hook: bool,
    /// Whether commands try the new release out.
    pub has_after_hook: bool,
    /// Whether the command before the restart cannot be undone: from it on there is no way back.
    pub is_one_way: bool,
}

/// Where a deployment stands. The journal holds it before anything is done in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Taken over; not yet planned.
    Accepted,
    /// Images are pulled.
    Pulling,
    /// Everything that can be checked before the first change is checked.
    Gating,
    /// The release and the old and new bytes of every file are recorded.
    BackingUp,
    /// The files are changed, and the change is checked.
    Editing,
    /// The commands before the restart run.
    BeforeHook,
    /// Containers are replaced.
    Restarting,
    /// The new containers are watched.
    Watching,
    /// The commands that try the new release out run.
    AfterHook,
    /// The files get their old bytes back.
    Restoring {
        /// Why we go back.
        cause: Failure,
    },
    /// The old containers are brought back.
    RestartingOld {
        /// Why we go back.
        cause: Failure,
    },
    /// The old containers are checked.
    WatchingOld {
        /// Why we go back.
        cause: Failure,
    },
    /// Ended: the new release runs.
    Live,
    /// Ended: everything asked for runs already.
    Unchanged,
    /// Ended: nothing was changed.
    Refused {
        /// Why.
        cause: Failure,
    },
    /// Ended: the previous release runs again, checked.
    RolledBack {
        /// Why.
        cause: Failure,
    },
    /// Ended: neither runs whole; a person is needed.
    Stuck {
        /// Why we went back.
        cause: Failure,
        /// Why that failed.
        trouble: Failure,
    },
}

/// What the host is asked to do in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Gather the host's facts and make the plan.
    Plan,
    /// Pull the planned images.
    Pull,
    /// Check all that can be checked before the first change.
    Gate,
    /// Record the release, the files' bytes and the running images, and run the commands that back up.
    BackUp,
    /// Change the files and check that only the named images changed; on failure undo.
    Edit,
    /// Run the commands before the restart, in the new images.
    RunBeforeHooks,
    /// Replace the containers of the named services.
    Restart,
    /// Watch them.
    Watch,
    /// Run the commands that try the new release out.
    RunAfterHooks,
    /// Give the files their old bytes.
    Restore,
    /// Bring the previous images' containers up.
    RestartOld,
    /// Watch them, and compare what runs with what ran.
    WatchOld,
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It is done.
    Done,
    /// There is nothing to do: what was asked for runs already, and is well.
    NothingToDo,
    /// It failed. For [`Action::Edit`]: the files could not be shown to be as they were.
    Failed(Failure),
    /// It failed, and what it was to do was not begun or was undone: [`Action::Edit`] when the files are as they were,
    /// [`Action::RunBeforeHooks`] when nothing began that cannot be undone. No other action answers so.
    Undone(Failure),
}

impl Phase {
    /// What is done in this phase; none when the deployment has ended.
    pub fn action(&self) -> Option<Action> {
        match self {
            Self::Accepted => Some(Action::Plan),
            Self::Pulling => Some(Action::Pull),
            Self::Gating => Some(Action::Gate),
            Self::BackingUp => Some(Action::BackUp),
            Self::Editing => Some(Action::Edit),
            Self::BeforeHook => Some(Action::RunBeforeHooks),
            Self::Restarting => Some(Action::Restart),
            Self::Watching => Some(Action::Watch),
            Self::AfterHook => Some(Action::RunAfterHooks),
            Self::Restoring { .. } => Some(Action::Restore),
            Self::RestartingOld { .. } => Some(Action::RestartOld),
            Self::WatchingOld { .. } => Some(Action::WatchOld),
            Self::Live
            | Self::Unchanged
            | Self::Refused { .. }
            | Self::RolledBack { .. }
            | Self::Stuck { .. } => None,
        }
    }

    /// What follows from what was seen.
    ///
    /// An answer that an action cannot give (an ended phase asked again, `Undone` where nobody says it) is taken in the
    /// safe direction: before Editing nothing was changed, from Editing on things are put back.
    pub fn next(self, seen: Seen, course: Course) -> Self {
        match self {
            Self::Accepted => forward_untouched(seen, Self::Pulling),
            Self::Pulling => forward_untouched(seen, Self::Gating),
            Self::Gating => forward_untouched(seen, Self::BackingUp),
            Self::BackingUp => forward_untouched(seen, Self::Editing),
            Self::Editing => match seen {
                Seen::Done | Seen::NothingToDo if course.has_before_hook => Self::BeforeHook,
                Seen::Done | Seen::NothingToDo => Self::Restarting,
                Seen::Undone(cause) => Self::Refused { cause },
                Seen::Failed(cause) => Self::Restoring { cause },
            },
            Self::BeforeHook => match seen {
                Seen::Undone(cause) => Self::Restoring { cause },
                Seen::Done | Seen::NothingToDo | Seen::Failed(_) => {
                    forward_touched(seen, Self::Restarting, course, OLD_STILL_RUN)
                }
            },
            Self::Restarting => forward_touched(seen, Self::Watching, course, NEW_WERE_BEGUN),
            Self::Watching if course.has_after_hook => {
                forward_touched(seen, Self::AfterHook, course, NEW_WERE_BEGUN)
            }
            Self::Watching | Self::AfterHook => forward_touched(seen, Self::Live, course, NEW_WERE_BEGUN),
            Self::Restoring { cause } => backward(seen, cause, |cause| Self::RestartingOld { cause }),
            Self::RestartingOld { cause } => backward(seen, cause, |cause| Self::WatchingOld { cause }),
            Self::WatchingOld { cause } => backward(seen, cause, |cause| Self::RolledBack { cause }),
            ended @ (Self::Live
            | Self::Unchanged
            | Self::Refused { .. }
            | Self::RolledBack { .. }
            | Self::Stuck { .. }) => ended,
        }
    }

    /// How a deployment ends that cannot be carried on: refused when nothing was touched yet, else stuck, for nobody can put
    /// anything back.
    pub fn given_up(self, why: Failure) -> Self {
        match self {
            Self::Accepted | Self::Pulling | Self::Gating | Self::BackingUp => Self::Refused { cause: why },
            Self::Editing | Self::BeforeHook | Self::Restarting | Self::Watching | Self::AfterHook => {
                Self::Stuck {
                    cause: why.clone(),
                    trouble: why,
                }
            }
            Self::Restoring { cause } | Self::RestartingOld { cause } | Self::WatchingOld { cause } => {
                Self::Stuck { cause, trouble: why }
            }
            ended @ (Self::Live
            | Self::Unchanged
            | Self::Refused { .. }
            | Self::RolledBack { .. }
            | Self::Stuck { .. }) => ended,
        }
    }

    /// Whether a cancelled deployment stops here. While the files are being written it does not: it stops after that.
    pub fn heeds_cancel(&self, course: Course) -> bool {
        !matches!(self, Self::Editing) && self.past_cancelling(course).is_none()
    }

    /// Why a deployment cannot be cancelled any more, if it cannot: it has ended, or goes back already, or a migration
    /// began that cannot be undone.
    pub fn past_cancelling(&self, course: Course) -> Option<&'static str> {
        match self {
            Self::Accepted | Self::Pulling | Self::Gating | Self::BackingUp | Self::Editing => None,
            Self::BeforeHook | Self::Restarting | Self::Watching | Self::AfterHook => course
                .is_one_way
                .then_some("its migration, which cannot be undone, may have begun"),
            Self::Restoring { .. } | Self::RestartingOld { .. } | Self::WatchingOld { .. } => {
                Some("it goes back already")
            }
            Self::Live
            | Self::Unchanged
            | Self::Refused { .. }
            | Self::RolledBack { .. }
            | Self::Stuck { .. } => Some("it has ended"),
        }
    }

    /// Whether the deployment has ended.
    pub fn is_ended(&self) -> bool {
        self.action().is_none()
    }

    /// The phase as the wire and people know it.
    pub fn name(&self) -> PhaseName {
        match self {
            Self::Accepted => PhaseName::Accepted,
            Self::Pulling => PhaseName::Pulling,
            Self::Gating => PhaseName::Gating,
            Self::BackingUp => PhaseName::BackingUp,
            Self::Editing => PhaseName::Editing,
            Self::BeforeHook => PhaseName::BeforeHook,
            Self::Restarting => PhaseName::Restarting,
            Self::Watching => PhaseName::Watching,
            Self::AfterHook => PhaseName::AfterHook,
            Self::Restoring { .. } => PhaseName::Restoring,
            Self::RestartingOld { .. } => PhaseName::RestartingOld,
            Self::WatchingOld { .. } => PhaseName::WatchingOld,
            Self::Live | Self::Unchanged => PhaseName::Live,
            Self::Refused { .. } => PhaseName::Refused,
            Self::RolledBack { .. } => PhaseName::RolledBack,
            Self::Stuck { .. } => PhaseName::Stuck,
        }
    }
}

fn forward_untouched(seen: Seen, next: Phase) -> Phase {
    match seen {
        Seen::Done => next,
        Seen::NothingToDo => Phase::Unchanged,
        Seen::Failed(cause) | Seen::Undone(cause) => Phase::Refused { cause },
    }
}

/// How the host stands when a migration that cannot be undone fails.
const OLD_STILL_RUN: &str =
    "the previous containers were not touched and still run, and the files name the new images";
/// How it stands when something fails after such a migration.
const NEW_WERE_BEGUN: &str = "the files name the new images, and what was started of them was left running";

fn forward_touched(seen: Seen, next: Phase, course: Course, stands: &str) -> Phase {
    match seen {
        Seen::Done | Seen::NothingToDo => next,
        Seen::Failed(cause) | Seen::Undone(cause) if course.is_one_way => Phase::Stuck {
            cause,
            trouble: no_way_back(stands).into(),
        },
        Seen::Failed(cause) | Seen::Undone(cause) => Phase::Restoring { cause },
    }
}

/// Why a deployment with a migration that cannot be undone is not rolled back.
fn no_way_back(stands: &str) -> Problem {
    let detail = format!(
        "its migration cannot be undone (irreversible = true), so it is not rolled back by itself: {stands}"
    );
    Problem::new(Code::Irreversible, detail)
    .hint("push a version that works with the migrated data, or go back all the same: deployctl rollback --across-migration")
}

fn backward(seen: Seen, cause: Failure, next: impl FnOnce(Failure) -> Phase) -> Phase {
    match seen {
        Seen::Done | Seen::NothingToDo => next(cause),
        Seen::Failed(trouble) | Seen::Undone(trouble) => Phase::Stuck { cause, trouble },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn failure() -> Failure {
        Problem::new(Code::Unhealthy, "sick").into()
    }

    const ALL_HOOKS: Course = Course {
        has_before_hook: true,
        has_after_hook: true,
        is_one_way: false,
    };

    /// Only a command before the restart can be a migration.
    fn any_course() -> impl Strategy<Value = Course> {
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(before, after, one_way)| Course {
            has_before_hook: before,
            has_after_hook: after,
            is_one_way: before && one_way,
        })
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        prop_oneof![
            6 => Just(Seen::Done),
            1 => Just(Seen::NothingToDo),
            1 => Just(Seen::Failed(failure())),
            1 => Just(Seen::Undone(failure())),
        ]
    }

    /// The longest way through: nine actions forward, the last failing, and three back.
    const ACTIONS_MAX: usize = 12;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn every_deployment_ends_and_keeps_the_promises(
            course in any_course(),
            answers in proptest::collection::vec(any_seen(), ACTIONS_MAX),
        ) {
            let mut phase = Phase::Accepted;
            let mut actions = Vec::new();
            let mut migrated = false;
            for seen in answers {
                let Some(action) = phase.action() else { break };
                actions.push(action);
                // A hook before the migration failed: the migration itself was not begun.
                migrated |= action == Action::RunBeforeHooks && !matches!(seen, Seen::Undone(_));
                phase = phase.next(seen, course);
            }
            prop_assert!(phase.is_ended(), "{phase:?} after {actions:?}");

            let did = |action| actions.contains(&action);
            let touched = did(Action::Restart) || did(Action::RunBeforeHooks);
            let migrated_for_good = course.is_one_way && migrated;
            let edited = actions.iter().skip_while(|action| **action != Action::Edit).count() > 1;
            match &phase {
                Phase::Live => {
                    prop_assert!(did(Action::Watch) && !did(Action::Restore));
                    prop_assert_eq!(course.has_before_hook, did(Action::RunBeforeHooks));
                    prop_assert_eq!(course.has_after_hook, did(Action::RunAfterHooks));
                }
                Phase::Unchanged => prop_assert!(!did(Action::Edit)),
                Phase::Refused { .. } => prop_assert!(!touched && !did(Action::Restore)),
                Phase::RolledBack { .. } => {
                    prop_assert!(did(Action::Restore) && did(Action::RestartOld) && did(Action::WatchOld));
                    prop_assert!(!migrated_for_good);
                }
                Phase::Stuck { .. } => {
                    prop_assert!(did(Action::Edit));
                    prop_assert!(did(Action::Restore) || migrated_for_good);
                }
                Phase::Accepted
                | Phase::Pulling
                | Phase::Gating
                | Phase::BackingUp
                | Phase::Editing
                | Phase::BeforeHook
                | Phase::Restarting
                | Phase::Watching
                | Phase::AfterHook
                | Phase::Restoring { .. }
                | Phase::RestartingOld { .. }
                | Phase::WatchingOld { .. } => prop_assert!(false, "not an ending"),
            }
            // Edited and not live: the old bytes were given back, or there is no way back and a person is told.
            if edited && phase != Phase::Live {
                prop_assert!(did(Action::Restore) || migrated_for_good, "{phase:?} after {actions:?}");
            }
        }

        #[test]
        fn a_cancelled_deployment_stops_where_it_heeds_and_never_goes_live_there(
            course in any_course(),
            steps in 0..ACTIONS_MAX,
        ) {
            let mut phase = Phase::Accepted;
            for _ in 0..steps {
                phase = phase.next(Seen::Done, course);
            }
            if !phase.heeds_cancel(course) {
                return Ok(());
            }
            let untouched = matches!(phase, Phase::Accepted | Phase::Pulling | Phase::Gating | Phase::BackingUp);
            let next = phase.next(Seen::Failed(failure()), course);
            prop_assert_eq!(untouched, matches!(next, Phase::Refused { .. }));
            prop_assert_eq!(!untouched, matches!(next, Phase::Restoring { .. }));
        }
    }

    #[test]
    fn what_is_given_up_is_refused_or_stuck_and_keeps_the_first_reason() {
        let why: Failure = Problem::new(Code::UnknownProject, "gone").into();
        let mut phase = Phase::Accepted;
        while !phase.is_ended() {
            let untouched = matches!(
                phase,
                Phase::Accepted | Phase::Pulling | Phase::Gating | Phase::BackingUp
            );
            let given_up = phase.clone().given_up(why.clone());
            assert_eq!(untouched, matches!(given_up, Phase::Refused { .. }), "{phase:?}");
            assert_eq!(!untouched, matches!(given_up, Phase::Stuck { .. }), "{phase:?}");
            phase = phase.next(Seen::Done, ALL_HOOKS);
        }
        assert_eq!(phase.clone().given_up(why.clone()), phase);
        let back = Phase::WatchingOld { cause: failure() }.given_up(why.clone());
        assert_eq!(
            back,
            Phase::Stuck {
                cause: failure(),
                trouble: why
            }
        );
    }

    fn way(mut phase: Phase, course: Course) -> Vec<PhaseName> {
        let mut names = vec![phase.name()];
        while !phase.is_ended() {
            phase = phase.next(Seen::Done, course);
            names.push(phase.name());
        }
        names
    }

    #[test]
    fn the_way_forward_and_the_way_back_are_the_ones_drawn() {
        use PhaseName as P;
        let forward = [
            P::Accepted,
            P::Pulling,
            P::Gating,
            P::BackingUp,
            P::Editing,
            P::BeforeHook,
            P::Restarting,
            P::Watching,
            P::AfterHook,
            P::Live,
        ];
        assert_eq!(way(Phase::Accepted, ALL_HOOKS), forward);
        let without_hooks: Vec<_> = forward
            .into_iter()
            .filter(|name| !matches!(name, P::BeforeHook | P::AfterHook))
            .collect();
        assert_eq!(way(Phase::Accepted, Course::default()), without_hooks);
        for sick in [
            Phase::BeforeHook,
            Phase::Restarting,
            Phase::Watching,
            Phase::AfterHook,
        ] {
            let back = sick.next(Seen::Failed(failure()), ALL_HOOKS);
            assert_eq!(
                way(back, ALL_HOOKS),
                [P::Restoring, P::RestartingOld, P::WatchingOld, P::RolledBack]
            );
        }
    }

    #[test]
    fn from_a_migration_that_cannot_be_undone_on_there_is_no_way_back() {
        let one_way = Course {
            is_one_way: true,
            ..ALL_HOOKS
        };
        for phase in [
            Phase::BeforeHook,
            Phase::Restarting,
            Phase::Watching,
            Phase::AfterHook,
        ] {
            assert!(!phase.heeds_cancel(one_way), "{phase:?}");
            let Phase::Stuck { trouble, .. } = phase.next(Seen::Failed(failure()), one_way) else {
                panic!("not stuck")
            };
            assert_eq!(trouble.problem.code, Code::Irreversible);
        }
        let before = Phase::Editing.next(Seen::Failed(failure()), one_way);
        assert_eq!(before, Phase::Restoring { cause: failure() });
        let not_begun = Phase::BeforeHook.next(Seen::Undone(failure()), one_way);
        assert_eq!(not_begun, Phase::Restoring { cause: failure() });
    }

    #[test]
    fn an_ended_phase_stays_what_it_is() {
        for phase in [Phase::Live, Phase::Unchanged, Phase::Refused { cause: failure() }] {
            assert_eq!(phase.clone().next(Seen::Failed(failure()), ALL_HOOKS), phase);
        }
    }
}
