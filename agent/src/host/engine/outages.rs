//! When the Engine was away: what ended meanwhile ended with it, whatever its exit code is.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

/// So many absences are remembered. A deployment waits for a few at most.
const REMEMBERED_MAX: usize = 16;
/// The Engine tells when a container ended, and we when it answered: the two are read one after the other.
const MARGIN: Duration = Duration::from_secs(1);

/// A moment by both clocks: the host's, which is the Engine's too and may be set, and the one that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) time: Timestamp,
    pub(super) instant: Instant,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self {
            time: Timestamp::now(),
            instant: Instant::now(),
        }
    }
}

/// The absences of an Engine that were noticed since the agent's start.
#[derive(Debug)]
pub(super) struct Outages(Mutex<Noticed>);

#[derive(Debug)]
struct Noticed {
    /// How often it did not answer.
    count: u64,
    answered_at: Moment,
    /// The oldest first.
    absences: VecDeque<Absence>,
}

/// From the last answer before it to the first after it.
#[derive(Debug, Clone, Copy)]
struct Absence {
    since: Moment,
    until: Option<Moment>,
}

impl Absence {
    /// Whether that was in it. A clock that was set meanwhile counts as it was before, and as it was after.
    fn includes(&self, at: Timestamp) -> bool {
        let Some(until) = self.until else { return true };
        let lasted = until.instant.saturating_duration_since(self.since.instant) + MARGIN;
        let after_since = at.duration_since(self.since.time);
        let before_until = until.time.duration_since(at);
        [after_since, before_until]
            .into_iter()
            .any(|distance| Duration::try_from(distance).is_ok_and(|distance| distance <= lasted))
    }
}

impl Outages {
    /// None yet.
    pub(super) fn none(now: Moment) -> Self {
        Self(Mutex::new(Noticed {
            count: 0,
            answered_at: now,
            absences: VecDeque::new(),
        }))
    }

    /// The Engine answered.
    pub(super) fn answered(&self, now: Moment) {
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
        self.noticed().absences.iter().any(|one| one.includes(at))
    }

    fn noticed(&self) -> MutexGuard<'_, Noticed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    /// So many seconds after the beginning, by a clock that is so far off.
    fn at(start: Instant, second: u64, off: i64) -> Moment {
        Moment {
            time: Timestamp::from_second(1_000_000 + i64::try_from(second).unwrap() + off).unwrap(),
            instant: start + Duration::from_secs(second),
        }
    }

    #[test]
    fn an_absence_lasts_from_the_last_answer_to_the_next() {
        let start = Instant::now();
        let at = |second| at(start, second, 0);
        let outages = Outages::none(at(0));
        outages.answered(at(10));
        outages.note();
        outages.note();
        // It is away still: nobody knows when it will be back.
        assert!(outages.include(at(99).time));
        outages.answered(at(15));
        outages.answered(at(20));
        outages.note();
        outages.answered(at(22));
        let seconds = [8, 10, 15, 17, 20, 22, 24];
        let are_in = seconds.map(|second| outages.include(at(second).time));
        assert_eq!(are_in, [false, true, true, false, true, true, false]);
        assert_eq!(outages.count(), 3);
    }

    #[test]
    fn a_clock_that_is_set_meanwhile_makes_it_neither_endless_nor_empty() {
        for off in [HOUR, -HOUR] {
            let start = Instant::now();
            let outages = Outages::none(at(start, 0, 0));
            outages.note();
            outages.answered(at(start, 10, off));
            let include = |second, off| outages.include(at(start, second, off).time);
            assert!(include(5, 0) && include(5, off), "{off}");
            assert!(
                !include(30, off) && !include(30, off / 2) && !include(30, 0),
                "{off}"
            );
        }
    }

    #[test]
    fn the_oldest_absences_are_forgotten() {
        let start = Instant::now();
        let outages = Outages::none(at(start, 0, 0));
        for second in 0..100 {
            outages.note();
            outages.answered(at(start, second, 0));
        }
        assert!(!outages.include(at(start, 50, 0).time));
        assert!(outages.include(at(start, 98, 0).time));
        assert_eq!(outages.count(), 100);
    }
}
