//! A limit on log lines that strangers can cause: so many a minute, and how many were left unsaid.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const MINUTE: Duration = Duration::from_mins(1);

/// Lets so many lines through in a minute.
#[derive(Debug)]
pub struct LineLimit {
    per_minute: u32,
    minute: Mutex<Minute>,
}

#[derive(Debug)]
struct Minute {
    /// When it began; none before the first line.
    began: Option<Instant>,
    said: u32,
    unsaid: u64,
}

impl LineLimit {
    /// A limit of so many lines a minute.
    pub const fn per_minute(lines: u32) -> Self {
        Self {
            per_minute: lines,
            minute: Mutex::new(Minute {
                began: None,
                said: 0,
                unsaid: 0,
            }),
        }
    }

    /// Whether the next line may be written: with how many before it were not, since the last that was.
    pub fn next(&self, now: Instant) -> Option<u64> {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = minute
            .began
            .is_none_or(|began| now.saturating_duration_since(began) >= MINUTE);
        if is_over {
            minute.began = Some(now);
            minute.said = 0;
        }
        if minute.said >= self.per_minute {
            minute.unsaid += 1;
            return None;
        }
        minute.said += 1;
        Some(std::mem::take(&mut minute.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_counted_and_the_next_minute_says_so() {
        let limit = LineLimit::per_minute(3);
        let start = Instant::now();
        let said: Vec<_> = (0..1000).map(|_| limit.next(start)).collect();
        assert_eq!(said.iter().flatten().count(), 3);
        assert_eq!(limit.next(start + MINUTE), Some(997));
        assert_eq!(limit.next(start + MINUTE), Some(0));
    }
}
