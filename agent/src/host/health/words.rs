//! Times as people say them. Pure.

use jiff::Timestamp;

/// How long ago that was, in one unit: `2 seconds`, `3 days`. The future, which a clock that was set makes, is now.
pub(super) fn age(then: Timestamp, now: Timestamp) -> String {
    const UNITS: [(i64, &str); 4] = [(86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = now.duration_since(then).as_secs().max(0);
    let (count, unit) = UNITS
        .iter()
        .find(|(size, _)| seconds >= *size)
        .map_or((0, "second"), |(size, unit)| (seconds / size, *unit));
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_one_unit() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, words) in [
            (-5, "0 seconds"),
            (0, "0 seconds"),
            (1, "1 second"),
            (59, "59 seconds"),
            (119, "1 minute"),
            (7_200, "2 hours"),
            (3 * 86_400 + 5, "3 days"),
        ] {
            let then = Timestamp::from_second(1_000_000 - seconds).unwrap();
            assert_eq!(age(then, now), words);
        }
    }
}
