//! Small pieces of text that all renderings use: escaped, counted, aligned. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use owo_colors::{OwoColorize as _, Style};

/// Whether a stream shows colour, and which.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paint {
    /// Whether to colour at all.
    pub(crate) on: bool,
}

impl Paint {
    /// Good news.
    pub(crate) fn good(self, text: &str) -> String {
        self.with(text, Style::new().green())
    }

    /// Bad news.
    pub(crate) fn bad(self, text: &str) -> String {
        self.with(text, Style::new().red().bold())
    }

    /// What a person should look at.
    pub(crate) fn warn(self, text: &str) -> String {
        self.with(text, Style::new().yellow())
    }

    /// What matters less.
    pub(crate) fn dim(self, text: &str) -> String {
        self.with(text, Style::new().dimmed())
    }

    /// A heading.
    pub(crate) fn bold(self, text: &str) -> String {
        self.with(text, Style::new().bold())
    }

    fn with(self, text: &str, style: Style) -> String {
        if self.on {
            text.style(style).to_string()
        } else {
            text.to_owned()
        }
    }
}

/// Escapes what a terminal would obey: control characters but tab, and marks that turn the writing direction. Container
/// output and everything else that an agent tells goes through here.
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (c.is_control() && c != '\t') || turns || matches!(c, '\u{2028}' | '\u{2029}') {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// A time as people read it: `0.2s`, `54s`, `2m 5s`.
pub(crate) fn took(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if time.as_millis() < 100 => format!("{:.2}s", time.as_secs_f64()),
        0..10 => format!("{:.1}s", time.as_secs_f64()),
        10..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        _ => format!("{}h {}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// A size as people read it, in powers of ten as registries do: `41 MB`.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

/// How long ago: `3 hours ago`.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    let (count, unit) = match seconds {
        ..5 => return "just now".to_owned(),
        5..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// `1 host`, `2 hosts`.
pub(crate) fn count(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

/// Rows as lines with aligned columns, two spaces apart, without blanks at the end.
pub(crate) fn columns(rows: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a String cannot fail.
                write!(line, "{cell:<width$}  ").unwrap_or_default();
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(clean("a\tb é ✔"), "a\tb é ✔");
        assert_eq!(
            clean("\u{1b}[2J\r\n\u{7f}\u{9b}31m"),
            "\\u{1b}[2J\\r\\n\\u{7f}\\u{9b}31m"
        );
        assert_eq!(clean("\u{202e}exe"), "\\u{202e}exe");
    }

    #[test]
    fn times_and_sizes_are_short() {
        for (millis, text) in [
            (4, "0.00s"),
            (50, "0.05s"),
            (240, "0.2s"),
            (9_800, "9.8s"),
            (54_000, "54s"),
            (125_000, "2m 5s"),
            (3_700_000, "1h 1m"),
        ] {
            assert_eq!(took(Duration::from_millis(millis)), text);
        }
        assert_eq!(
            [size(12), size(41_900_000), size(2_340_000_000)],
            ["12 B", "41 MB", "2.3 GB"]
        );
        let now = Timestamp::from_second(1_000_000).unwrap();
        let back = |seconds: i64| ago(Timestamp::from_second(1_000_000 - seconds).unwrap(), now);
        assert_eq!(
            [back(1), back(60), back(7_300), back(90_000)],
            ["just now", "1 minute ago", "2 hours ago", "1 day ago"]
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "bb", ""], ["ccc", "d", "e"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(columns(&rows), ["a    bb", "ccc  d   e"]);
    }
}
