//! One TOML file, read with the place of everything in it, so that a mistake can point at it.
//!
//! It walks the document instead of deserializing it, because serde stops at the first mistake. This file knows no key
//! of ours; the shapes are in `agent_file` and `project_file`.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::DeTable;

use super::mistake::{Excerpt, Mistake, MistakeKind};
use super::table::Table;

/// A file as far as it could be read, and the mistakes found in it so far.
pub(super) struct Document<'a> {
    path: &'a Path,
    text: &'a str,
    root: Spanned<DeTable<'a>>,
    /// Lines the parser gave up on: what stands there was said once, and what is missing may stand there.
    broken_lines: Vec<u32>,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'a> Document<'a> {
    /// Reads a text; every syntax error and repeated key is already a mistake.
    pub(super) fn read(path: &'a Path, text: &'a str) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let mut document = Self {
            path,
            text,
            root,
            broken_lines: Vec::new(),
            mistakes: RefCell::default(),
        };
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            document.say(
                span.clone(),
                error.message().to_lowercase(),
                None,
                MistakeKind::Written,
            );
            let line = document.line(span.start);
            document.broken_lines.push(line);
        }
        document
    }

    /// The whole document as a table that may have these keys.
    pub(super) fn root(&self, known: &'static [&'static str]) -> Table<'_> {
        Table::new(self, self.root.get_ref(), None, String::new(), known)
    }

    pub(super) fn has_syntax_errors(&self) -> bool {
        !self.broken_lines.is_empty()
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes.into_inner()
    }

    /// A mistake about the whole file, unless what is missing may stand in a line that could not be read.
    pub(super) fn missing(&self, what: impl Into<String>, hint: impl Into<String>) {
        if !self.has_syntax_errors() {
            self.mistakes
                .borrow_mut()
                .push(Mistake::whole(self.path, what).hint(hint));
        }
    }

    /// A mistake at a place.
    pub(super) fn wrong(&self, place: Range<usize>, what: impl Into<String>, hint: Option<String>) {
        if !self.broken_lines.contains(&self.line(place.start)) {
            self.say(place, what.into(), hint, MistakeKind::Written);
        }
    }

    /// Says at a place that what it names is not there.
    pub(super) fn absent(&self, place: Range<usize>, what: String, hint: Option<String>) {
        self.say(place, what, hint, MistakeKind::Absent);
    }

    /// A mistake at a place whose text is not shown, because it may be a secret.
    pub(super) fn wrong_hidden(&self, place: Range<usize>, what: String, hint: Option<String>) {
        let line = Some(self.line(place.start));
        let mistake = Mistake {
            line,
            hint,
            ..Mistake::whole(self.path, what)
        };
        self.mistakes.borrow_mut().push(mistake);
    }

    fn say(&self, place: Range<usize>, what: String, hint: Option<String>, kind: MistakeKind) {
        let mistake = Mistake {
            line: Some(self.line(place.start)),
            excerpt: Excerpt::of(self.text, place.start, place.end),
            hint,
            kind,
            ..Mistake::whole(self.path, what)
        };
        self.mistakes.borrow_mut().push(mistake);
    }

    fn line(&self, offset: usize) -> u32 {
        let newlines = self.text.bytes().take(offset).filter(|b| *b == b'\n').count();
        u32::try_from(newlines).unwrap_or(u32::MAX - 1) + 1
    }
}
