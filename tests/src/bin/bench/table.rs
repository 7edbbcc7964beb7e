//! The one table that is printed, in Markdown.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Aim {
    /// At most this part of what the pipeline's line takes, in both its forms.
    Ratio(f64),
    /// Compared by whoever measured it.
    Other {
        /// The aim.
        words: &'static str,
        /// Whether it is met.
        met: bool,
    },
    /// None is set.
    None,
}

impl Aim {
    /// An aim that is no ratio.
    pub(crate) fn met(met: bool, words: &'static str) -> Self {
        Self::Other { words, met }
    }
}

/// Rows, and what is to be said below them.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<[String; 8]>,
    notes: Vec<String>,
}

impl Table {
    /// Adds a comparison.
    pub(crate) fn race(
        &mut self,
        name: &str,
        ssh: Duration,
        tuned: Option<Duration>,
        ours: Duration,
        aim: Aim,
    ) {
        let of = |other: Duration| ours.as_secs_f64() / other.as_secs_f64().max(f64::MIN_POSITIVE);
        let (aim, met) = match aim {
            Aim::Ratio(most) => {
                let met = |other: Duration| yes_or_no(of(other) <= most);
                let tuned = tuned.map(|tuned| format!("; tuned: {}", met(tuned)));
                (
                    format!("<= {most:.2}"),
                    format!("{}{}", met(ssh), tuned.unwrap_or_default()),
                )
            }
            Aim::Other { words, met } => (words.to_owned(), yes_or_no(met)),
            Aim::None => (String::new(), String::new()),
        };
        let ratio = |other: Duration| format!("{:.2}", of(other));
        self.rows.push([
            name.to_owned(),
            seconds(ssh),
            tuned.map(seconds).unwrap_or_default(),
            seconds(ours),
            ratio(ssh),
            tuned.map(ratio).unwrap_or_default(),
            aim,
            met,
        ]);
    }

    /// Adds a figure of the agent alone.
    pub(crate) fn figure(&mut self, name: &str, ours: &str, aim: Aim) {
        let (aim, met) = match aim {
            Aim::Other { words, met } => (format!("<= {words}"), yes_or_no(met)),
            Aim::Ratio(_) | Aim::None => (String::new(), String::new()),
        };
        let none = String::new;
        self.rows.push([
            name.to_owned(),
            none(),
            none(),
            ours.to_owned(),
            none(),
            none(),
            aim,
            met,
        ]);
    }

    /// Adds a line below the table.
    pub(crate) fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let head = [
            "",
            "ssh",
            "ssh, tuned",
            "agent",
            "of ssh",
            "of tuned",
            "aim",
            "met",
        ]
        .map(str::to_owned);
        let width = |column: usize| {
            let cells = self.rows.iter().chain([&head]);
            cells
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let line = |f: &mut Formatter<'_>, row: &[String]| {
            for (column, cell) in row.iter().enumerate() {
                write!(f, "| {cell:<width$} ", width = width(column))?;
            }
            writeln!(f, "|")
        };
        line(f, &head)?;
        let rule: Vec<String> = (0..head.len()).map(|column| "-".repeat(width(column))).collect();
        line(f, &rule)?;
        for row in &self.rows {
            line(f, row)?;
        }
        for note in &self.notes {
            write!(f, "\n{note}")?;
        }
        Ok(())
    }
}

/// The middle one; of an even number the upper.
pub(crate) fn median(times: &[Duration]) -> Duration {
    percentile(times, 50)
}

/// The smallest time that is not less than so many per cent of all.
pub(crate) fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

fn yes_or_no(met: bool) -> String {
    if met { "yes" } else { "NO" }.to_owned()
}
