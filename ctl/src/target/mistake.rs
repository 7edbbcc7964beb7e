//! Mistakes in `deploy.toml`: all of them at once, each with its line and what to write instead.

use std::fmt;
use std::path::{Path, PathBuf};

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistake {
    /// The line, counted from 1.
    pub(crate) line: usize,
    /// What is wrong, with the names.
    pub(crate) what: String,
    /// What to write instead.
    pub(crate) hint: Option<String>,
}

/// All mistakes of one file, in the order of their lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mistakes {
    file: PathBuf,
    mistakes: Vec<Mistake>,
}

impl Mistakes {
    /// Sorts the mistakes of a file.
    pub(crate) fn new(file: &Path, mut mistakes: Vec<Mistake>) -> Self {
        mistakes.sort_by_key(|mistake| mistake.line);
        Self {
            file: file.to_owned(),
            mistakes,
        }
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.mistakes.len() {
            1 => write!(f, "{file} has a mistake")?,
            count => write!(f, "{file} has {count} mistakes")?,
        }
        for mistake in &self.mistakes {
            write!(f, "\n  {file}:{}: {}", mistake.line, mistake.what)?;
            if let Some(hint) = &mistake.hint {
                write!(f, "\n      {hint}")?;
            }
        }
        Ok(())
    }
}

/// The known name that is meant by an unknown one, as a question; none when nothing is near.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    const NEAR: f64 = 0.8;
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| format!("did you mean {candidate:?}?"))
}
