//! What is wrong in the configuration, with its place, as a person reads it.
//!
//! A mistake about a value that may be a secret carries no excerpt.

use std::fmt;
use std::path::{Path, PathBuf};

/// Longer source lines are not shown, in characters: a terminal would wrap them and the caret would point nowhere.
const EXCERPT_MAX_CHARS: usize = 160;
/// What the texts of private keys contain. A line with one of these is never shown.
const SECRET_MARKS: [&str; 2] = ["PRIVATE KEY", "deployctl-key:"];

/// What kind of mistake it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MistakeKind {
    /// What stands in the file cannot be used.
    Written,
    /// A project's folder or Compose file is not there: a mistake, or a disk that is not mounted (yet).
    Absent,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file it stands in.
    pub file: PathBuf,
    /// The line, counted from 1; none when the mistake is about the whole file.
    pub line: Option<u32>,
    /// The line's text and the place in it.
    pub excerpt: Option<Excerpt>,
    /// What is wrong, in lower case, without a full stop.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What kind of mistake it is.
    pub kind: MistakeKind,
}

impl Mistake {
    /// A mistake about a whole file or folder.
    pub fn whole(file: &Path, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            excerpt: None,
            what: what.into(),
            hint: None,
            kind: MistakeKind::Written,
        }
    }

    /// The same mistake with what to do about it.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

/// A line of a file, and the part of it that a mistake is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    line: String,
    start_chars: usize,
    width_chars: usize,
}

impl Excerpt {
    /// The line around `start` in a text, marked up to `end` (both in bytes); none for a line that is too long to show
    /// or that looks like a private key.
    pub(super) fn of(text: &str, start: usize, end: usize) -> Option<Self> {
        let before = text.get(..start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text.get(line_start..)?.lines().next()?;
        let hidden = SECRET_MARKS.iter().any(|mark| line.contains(mark));
        if hidden || line.trim().is_empty() || line.chars().count() > EXCERPT_MAX_CHARS {
            return None;
        }
        let line_end = line_start + line.len();
        let marked = text.get(start..end.clamp(start, line_end.max(start)))?;
        Some(Self {
            line: line
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
            start_chars: text.get(line_start..start)?.chars().count(),
            width_chars: marked.chars().count().max(1),
        })
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "    {}", self.line)?;
        write!(
            f,
            "    {}{}",
            " ".repeat(self.start_chars),
            "^".repeat(self.width_chars)
        )
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.what)?;
        if let Some(excerpt) = &self.excerpt {
            write!(f, "\n{excerpt}")?;
        }
        if let Some(hint) = &self.hint {
            // A hint of several lines holds something to paste.
            write!(f, "\n  hint: {}", hint.replace('\n', "\n    "))?;
        }
        Ok(())
    }
}

/// Every mistake of a configuration, by file and line; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Puts mistakes in order, each once: `None` when there are none. The files stay in the order they were read in.
    pub(super) fn from(mut mistakes: Vec<Mistake>) -> Option<Self> {
        let mut files: Vec<PathBuf> = Vec::new();
        for mistake in &mistakes {
            if !files.contains(&mistake.file) {
                files.push(mistake.file.clone());
            }
        }
        mistakes.sort_by_key(|mistake| (files.iter().position(|file| *file == mistake.file), mistake.line));
        let mut once: Vec<Mistake> = Vec::new();
        for mistake in mistakes {
            if !once.contains(&mistake) {
                once.push(mistake);
            }
        }
        (!once.is_empty()).then_some(Self(once))
    }

    pub(super) fn one(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }

    /// The mistakes, by file and line.
    pub fn as_slice(&self) -> &[Mistake] {
        &self.0
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(f, "{mistake}")?;
        }
        match self.0.len() {
            1 => write!(f, "1 mistake in the configuration"),
            count => write!(f, "{count} mistakes in the configuration"),
        }
    }
}

impl std::error::Error for Mistakes {}
