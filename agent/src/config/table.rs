//! A table of a document: its values by the type they must have, and a mistake for each that has another.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml::value::Datetime;

use super::file::Document;
use super::values::{Refusal, did_you_mean};

/// A table of a document. Every method that gives `None` has said why, or the key is not there.
pub(super) struct Table<'a> {
    document: &'a Document<'a>,
    entries: &'a DeTable<'a>,
    /// Where its header stands; none for the root.
    header: Option<Range<usize>>,
    /// ` in [server]`, empty for the root.
    location: String,
}

impl<'a> Table<'a> {
    pub(super) fn new(
        document: &'a Document<'a>,
        entries: &'a DeTable<'a>,
        header: Option<Range<usize>>,
        location: String,
        known: &'static [&'static str],
    ) -> Self {
        for key in entries
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
        {
            let hint = match did_you_mean(key.get_ref(), known.iter().copied()) {
                Some(guess) => format!("did you mean `{guess}`?"),
                None => format!("known here: {}", known.join(", ")),
            };
            document.wrong(
                key.span(),
                format!("unknown key `{}`{location}", shown(key.get_ref())),
                Some(hint),
            );
        }
        Self {
            document,
            entries,
            header,
            location,
        }
    }

    /// Says that a key is missing.
    pub(super) fn missing(&self, key: &str, hint: impl Into<String>) {
        let what = format!("`{key}` is missing{}", self.location);
        match &self.header {
            Some(header) if !self.document.has_syntax_errors() => {
                self.document.wrong(header.clone(), what, Some(hint.into()));
            }
            Some(_) => {}
            None => self.document.missing(what, hint),
        }
    }

    /// Says what is wrong with a value.
    pub(super) fn wrong<T>(&self, value: &Spanned<T>, what: impl Into<String>, hint: impl Into<String>) {
        self.document.wrong(value.span(), what, Some(hint.into()));
    }

    /// Says that what a value names is not there.
    pub(super) fn absent<T>(&self, value: &Spanned<T>, what: String, hint: impl Into<String>) {
        self.document.absent(value.span(), what, Some(hint.into()));
    }

    /// Says what is wrong with a value that must not be shown.
    pub(super) fn wrong_hidden<T>(
        &self,
        value: &Spanned<T>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.document
            .wrong_hidden(value.span(), what.into(), Some(hint.into()));
    }

    /// Says what is wrong with the table itself.
    pub(super) fn wrong_table(&self, what: impl Into<String>, hint: impl Into<String>) {
        self.document
            .wrong(self.header.clone().unwrap_or(0..0), what, Some(hint.into()));
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.get(key).is_some()
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Option<Spanned<&'a str>> {
        self.typed(key, "a text in quotes", |value| value.as_str())
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        self.typed(key, "true or false, without quotes", |value| value.as_bool())
            .map(Spanned::into_inner)
    }

    /// A whole number.
    pub(super) fn number(&self, key: &str) -> Option<Spanned<u32>> {
        let value = self.typed(key, "a whole number, without quotes", |value| value.as_integer())?;
        let span = value.span();
        match u32::from_str_radix(value.get_ref().as_str(), value.get_ref().radix()) {
            Ok(number) => Some(Spanned::new(span, number)),
            Err(_) => {
                self.wrong(
                    &value,
                    format!("`{key}` is negative or too large"),
                    "write a number of at most nine digits",
                );
                None
            }
        }
    }

    /// A date, with or without time.
    pub(super) fn date(&self, key: &str) -> Option<Spanned<&'a Datetime>> {
        self.typed(key, "a date without quotes, such as 2027-06-30", |value| {
            value.as_datetime()
        })
    }

    /// A list of texts; an element that is none is a mistake and left out.
    pub(super) fn texts(&self, key: &str) -> Option<Vec<Spanned<&'a str>>> {
        let list = self.typed(key, "a list of texts, such as [\"a\", \"b\"]", |value| {
            value.as_array()
        })?;
        let mut texts: Vec<Spanned<&str>> = Vec::new();
        for value in list.get_ref().iter() {
            match value.get_ref().as_str() {
                Some(text) if texts.iter().any(|earlier| *earlier.get_ref() == text) => {
                    self.wrong(value, format!("`{key}` says this twice"), "leave one of them out");
                }
                Some(text) => texts.push(Spanned::new(value.span(), text)),
                None => self.wrong(
                    value,
                    format!("`{key}` lists texts, not {}", kind(value.get_ref())),
                    "put it in quotes",
                ),
            }
        }
        Some(texts)
    }

    /// A program and its arguments: texts, of which one may stand there twice.
    pub(super) fn words(&self, key: &str) -> Option<Vec<Spanned<&'a str>>> {
        let list = self.typed(key, "a list of texts, such as [\"a\", \"b\"]", |value| {
            value.as_array()
        })?;
        let mut words = Vec::new();
        for value in list.get_ref().iter() {
            match value.get_ref().as_str() {
                Some(text) => words.push(Spanned::new(value.span(), text)),
                None => self.wrong(
                    value,
                    format!("`{key}` lists texts, not {}", kind(value.get_ref())),
                    "put it in quotes",
                ),
            }
        }
        Some(words)
    }

    /// A table within this one.
    pub(super) fn table(&self, key: &str, title: &str, known: &'static [&'static str]) -> Option<Self> {
        let table = self.typed(key, &format!("a table, {title}"), |value| value.as_table())?;
        let location = format!(" in {title}");
        Some(Table::new(
            self.document,
            table.get_ref(),
            Some(table.span()),
            location,
            known,
        ))
    }

    /// The tables `[[key]]`, in the order of the file.
    pub(super) fn tables(&self, key: &str, known: &'static [&'static str]) -> Vec<Self> {
        let wanted = format!("written [[{key}]], with two brackets, once for each");
        let Some(list) = self.typed(key, &wanted, |value| value.as_array()) else {
            return Vec::new();
        };
        let mut tables = Vec::new();
        for value in list.get_ref().iter() {
            match value.get_ref().as_table() {
                Some(table) => {
                    let location = format!(" in [[{key}]]");
                    tables.push(Table::new(
                        self.document,
                        table,
                        Some(value.span()),
                        location,
                        known,
                    ));
                }
                None => self.wrong(
                    value,
                    format!("`{key}` must be {wanted}"),
                    format!("write [[{key}]]"),
                ),
            }
        }
        tables
    }

    /// Says what is wrong with a key's whole value.
    pub(super) fn wrong_value(&self, key: &str, what: impl Into<String>, hint: impl Into<String>) {
        let place = self
            .entries
            .get(key)
            .map(Spanned::span)
            .or_else(|| self.header.clone());
        self.document
            .wrong(place.unwrap_or(0..0), what, Some(hint.into()));
    }

    /// A text that is read into something else. For a value of another type the hint is that for an empty text.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Option<Spanned<T>> {
        if self.entries.get(key)?.get_ref().as_str().is_none()
            && let Err(refusal) = read("")
        {
            self.wrong_value(
                key,
                format!("`{key}`{} must be a text in quotes", self.location),
                refusal.hint,
            );
            return None;
        }
        let text = self.text(key)?;
        self.read(&text, read)
    }

    /// A text that may be a secret by mistake: neither the message nor an excerpt shows any of it.
    pub(super) fn parsed_hidden<T, E: std::error::Error>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key)?;
        match read(text.get_ref()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.document.wrong_hidden(text.span(), error.to_string(), None);
                None
            }
        }
    }

    /// A list of texts that are read into something else; those that cannot be are left out.
    pub(super) fn parsed_list<T>(
        &self,
        key: &str,
        read: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Option<Vec<Spanned<T>>> {
        let texts = self.texts(key)?;
        Some(texts.iter().filter_map(|text| self.read(text, &read)).collect())
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        self.parsed(key, |text| one_of(key, text, words))
            .map(Spanned::into_inner)
    }

    fn read<T>(&self, text: &Spanned<&str>, read: impl Fn(&str) -> Result<T, Refusal>) -> Option<Spanned<T>> {
        match read(text.get_ref()) {
            Ok(value) => Some(Spanned::new(text.span(), value)),
            Err(refusal) => {
                self.wrong(text, refusal.what, refusal.hint);
                None
            }
        }
    }

    fn typed<T>(
        &self,
        key: &str,
        wanted: &str,
        take: impl Fn(&'a DeValue<'a>) -> Option<T>,
    ) -> Option<Spanned<T>> {
        let value = self.entries.get(key)?;
        match take(value.get_ref()) {
            Some(taken) => Some(Spanned::new(value.span(), taken)),
            None => {
                let what = format!(
                    "`{key}`{} must be {wanted}; this is {}",
                    self.location,
                    kind(value.get_ref())
                );
                self.document.wrong(value.span(), what, None);
                None
            }
        }
    }
}

/// Reads one of a few words.
pub(super) fn one_of<T: Copy>(key: &str, text: &str, words: &[(&str, T)]) -> Result<T, Refusal> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let hint = match did_you_mean(text, words.iter().map(|(word, _)| *word)) {
        Some(guess) => format!("did you mean {guess:?}? known: {}", all.join(", ")),
        None => format!("known: {}", all.join(", ")),
    };
    Err(Refusal {
        what: format!("`{key}` does not know this word"),
        hint,
    })
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A key as it may be shown: short, and without control characters.
fn shown(key: &str) -> String {
    key.chars().take(40).flat_map(char::escape_debug).collect()
}
