//! The state machine of a deployment: what is done in each phase, and what follows from what was seen. Pure and total.
//!
//! ```text
//! Accepted -> Pulling -> Gating -> BackingUp -> Editing -> Restarting -> Watching -> Live
//!    |___________|__________|__________|____________|          |____________|
//!                        Refused                     Restoring -> RestartingOld -> WatchingOld -> RolledBack
//!                   (nothing changed)                    |_____________|_______________|
//!                                                                    Stuck
//! ```

use deploy_proto::event::PhaseName;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::Problem;
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
    /// Containers are replaced.
    Restarting,
    /// The new containers are watched.
    Watching,
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
    /// Record the release, the files' bytes and the running images.
    BackUp,
    /// Change the files and check that only the named images changed; on failure undo.
    Edit,
    /// Replace the containers of the named services.
    Restart,
    /// Watch them.
    Watch,
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
    /// It failed, and the host was shown to be as it was before the action. Only [`Action::Edit`] answers so.
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
            Self::Restarting => Some(Action::Restart),
            Self::Watching => Some(Action::Watch),
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
    /// An answer that an action cannot give (an ended phase asked again, `Undone` outside Editing) is taken in the
    /// safe direction: before Editing nothing was changed, from Editing on things are put back.
    pub fn next(self, seen: Seen) -> Self {
        match self {
            Self::Accepted => forward_untouched(seen, Self::Pulling),
            Self::Pulling => forward_untouched(seen, Self::Gating),
            Self::Gating => forward_untouched(seen, Self::BackingUp),
            Self::BackingUp => forward_untouched(seen, Self::Editing),
            Self::Editing => match seen {
                Seen::Done | Seen::NothingToDo => Self::Restarting,
                Seen::Undone(cause) => Self::Refused { cause },
                Seen::Failed(cause) => Self::Restoring { cause },
            },
            Self::Restarting => forward_touched(seen, Self::Watching),
            Self::Watching => forward_touched(seen, Self::Live),
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
            Self::Restarting => PhaseName::Restarting,
            Self::Watching => PhaseName::Watching,
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

fn forward_touched(seen: Seen, next: Phase) -> Phase {
    match seen {
        Seen::Done | Seen::NothingToDo => next,
        Seen::Failed(cause) | Seen::Undone(cause) => Phase::Restoring { cause },
    }
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
    use deploy_proto::problem::Code;
    use proptest::prelude::*;

    fn failure() -> Failure {
        Problem::new(Code::Unhealthy, "sick").into()
    }

    fn any_seen() -> impl Strategy<Value = Seen> {
        prop_oneof![
            4 => Just(Seen::Done),
            1 => Just(Seen::NothingToDo),
            1 => Just(Seen::Failed(failure())),
            1 => Just(Seen::Undone(failure())),
        ]
    }

    /// The longest way through: seven phases forward, the last failing, and three back.
    const ACTIONS_MAX: usize = 10;

    proptest! {
        #[test]
        fn every_deployment_ends_and_keeps_the_promises(answers in proptest::collection::vec(any_seen(), ACTIONS_MAX)) {
            let mut phase = Phase::Accepted;
            let mut actions = Vec::new();
            for seen in answers {
                let Some(action) = phase.action() else { break };
                actions.push(action);
                phase = phase.next(seen);
            }
            prop_assert!(phase.is_ended(), "{phase:?} after {actions:?}");

            let did = |action| actions.contains(&action);
            let touched = did(Action::Restart);
            match phase {
                Phase::Live => prop_assert!(did(Action::Watch) && !did(Action::Restore)),
                Phase::Unchanged => prop_assert!(!did(Action::Edit)),
                Phase::Refused { .. } => prop_assert!(!touched && !did(Action::Restore)),
                Phase::RolledBack { .. } => prop_assert!(did(Action::Restore) && did(Action::RestartOld) && did(Action::WatchOld)),
                Phase::Stuck { .. } => prop_assert!(did(Action::Edit) && did(Action::Restore)),
                Phase::Accepted
                | Phase::Pulling
                | Phase::Gating
                | Phase::BackingUp
                | Phase::Editing
                | Phase::Restarting
                | Phase::Watching
                | Phase::Restoring { .. }
                | Phase::RestartingOld { .. }
                | Phase::WatchingOld { .. } => prop_assert!(false, "not an ending"),
            }
        }
    }

    #[test]
    fn the_way_forward_and_the_way_back_are_the_ones_drawn() {
        let mut phase = Phase::Accepted;
        let mut names = vec![phase.name()];
        while !phase.is_ended() {
            phase = phase.next(Seen::Done);
            names.push(phase.name());
        }
        use PhaseName as P;
        assert_eq!(
            names,
            [
                P::Accepted,
                P::Pulling,
                P::Gating,
                P::BackingUp,
                P::Editing,
                P::Restarting,
                P::Watching,
                P::Live
            ]
        );

        let mut phase = Phase::Watching.next(Seen::Failed(failure()));
        let mut names = vec![phase.name()];
        while !phase.is_ended() {
            phase = phase.next(Seen::Done);
            names.push(phase.name());
        }
        assert_eq!(
            names,
            [P::Restoring, P::RestartingOld, P::WatchingOld, P::RolledBack]
        );
    }

    #[test]
    fn an_ended_phase_stays_what_it_is() {
        for phase in [Phase::Live, Phase::Unchanged, Phase::Refused { cause: failure() }] {
            assert_eq!(phase.clone().next(Seen::Failed(failure())), phase);
        }
    }
}
