//! When the Engine was away: what ended meanwhile ended with it, whatever its exit code is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

/// So many absences are remembered. A deployment waits for a few at most.
const REMEMBERED_MAX: usize = 16;

/// The absences of an Engine that were noticed since the agent's start.
#[derive(Debug)]
pub(super) struct Outages(Mutex<Noticed>);

#[derive(Debug)]
struct Noticed {
    /// How often it did not answer.
    count: u64,
    answered_at: Timestamp,
    /// The oldest first.
    absences: VecDeque<Absence>,
}

/// From the last answer before it to the first after it, by the host's clock, which is the Engine's too.
#[derive(Debug, Clone, Copy)]
struct Absence {
    since: Timestamp,
    until: Option<Timestamp>,
}

impl Outages {
    /// None yet.
    pub(super) fn none(now: Timestamp) -> Self {
        Self(Mutex::new(Noticed {
            count: 0,
            answered_at: now,
            absences: VecDeque::new(),
        }))
    }

    /// The Engine answered.
    pub(super) fn answered(&self, now: Timestamp) {
        let mut noticed = self.noticed();
        noticed.answered_at = now;
        if let Some(last) = noticed.absences.back_mut() {
            last.until.get_or_insert(now);
        }
    }

    /// It did not, or a connection to it broke.
    pub(super) fn note(&self) {
        let mut noticed = self.noticed();
        noticed.count += 1;
        let is_away = noticed.absences.back().is_some_and(|last| last.until.is_none());
        if is_away {
            return;
        }
        let since = noticed.answered_at;
        noticed.absences.push_back(Absence { since, until: None });
        if noticed.absences.len() > REMEMBERED_MAX {
            noticed.absences.pop_front();
        }
    }

    /// How often [`Self::note`] was called.
    pub(super) fn count(&self) -> u64 {
        self.noticed().count
    }

    /// Whether it was away then.
    pub(super) fn include(&self, at: Timestamp) -> bool {
        self.noticed()
            .absences
            .iter()
            .any(|one| one.since <= at && one.until.is_none_or(|until| at <= until))
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn an_absence_lasts_from_the_last_answer_to_the_next() {
        let outages = Outages::none(at(0));
        outages.answered(at(10));
        outages.note();
        outages.note();
        // It is away still: nobody knows when it will be back.
        for (second, is_in) in [(9, false), (10, true), (11, true), (99, true)] {
            assert_eq!(outages.include(at(second)), is_in, "{second}");
        }
        outages.answered(at(15));
        outages.answered(at(20));
        outages.note();
        outages.answered(at(22));
        let seconds = [9, 10, 15, 16, 19, 20, 22, 23];
        let are_in = seconds.map(|second| outages.include(at(second)));
        assert_eq!(are_in, [false, true, true, false, false, true, true, false]);
        assert_eq!(outages.count(), 3);
    }

    #[test]
    fn the_oldest_absences_are_forgotten() {
        let outages = Outages::none(at(0));
        for second in 0..100 {
            outages.note();
            outages.answered(at(second));
        }
        assert!(!outages.include(at(50)));
        assert!(outages.include(at(98)));
        assert_eq!(outages.count(), 100);
    }
}
