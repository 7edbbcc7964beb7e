//! `.env` as Compose reads it, with the bytes of every value. Pure.
//!
//! `export K=v`, `K = v`, `K: v`, single and double quotes, ` # comment`, CRLF, a byte order mark; the last of several
//! wins; `$A` expands to what stands before it, unless in single quotes. Source: compose-go's `dotenv` package as of
//! Compose 2.26.

use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use super::template::{Origin, Place, Scope, evaluate, literal};

/// A line that Compose cannot read either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DotenvError {
    /// Counted from 1.
    pub(super) line: usize,
    /// Why; holds nothing of the line, which may be a secret.
    pub(super) reason: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
enum Quotes {
    None,
    Single,
    Double,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// The value's bytes, without the quotes.
    value: Range<usize>,
    /// From the name to the end of the value.
    within: Range<usize>,
    quotes: Quotes,
}

/// Reads the variables of an environment file. What `outer` defines wins, and may be used in values.
pub(super) fn read(file: &Path, text: &str, outer: &Scope) -> Result<Scope, DotenvError> {
    let file: Rc<Path> = file.into();
    let mut scope = outer.clone();
    for entry in entries(text)? {
        if outer.contains_key(&entry.name) {
            continue;
        }
        let raw = text.get(entry.value.clone()).unwrap_or_default();
        let exact = Origin {
            place: Some(Place {
                file: Rc::clone(&file),
                span: entry.value,
                within: entry.within,
            }),
            variable: Some(entry.name.clone()),
        };
        let inexact = Origin {
            place: None,
            ..exact.clone()
        };
        let pieces = match entry.quotes {
            Quotes::Single => literal(raw, &exact),
            Quotes::Double if raw.contains(['\\', '\r']) => evaluate(&unescape(raw), &inexact, &scope).pieces,
            Quotes::None | Quotes::Double => evaluate(raw, &exact, &scope).pieces,
        };
        scope.insert(entry.name, pieces);
    }
    Ok(scope)
}

/// The value of one variable, for `COMPOSE_FILE` and its like.
pub(super) fn text_of(scope: &Scope, name: &str) -> Option<String> {
    let pieces = scope.get(name)?;
    Some(pieces.iter().map(|piece| piece.text.as_str()).collect())
}

fn entries(text: &str) -> Result<Vec<Entry>, DotenvError> {
    let mut entries = Vec::new();
    let mut at = if text.starts_with('\u{feff}') { 3 } else { 0 };
    loop {
        at = skip(text, at, char::is_whitespace);
        match text.get(at..).and_then(|rest| rest.chars().next()) {
            None => return Ok(entries),
            Some('#') => at = line_end(text, at),
            Some(_) => at = entry(text, at, &mut entries)?,
        }
    }
}

/// Reads one entry and returns where the next may begin.
fn entry(text: &str, start: usize, entries: &mut Vec<Entry>) -> Result<usize, DotenvError> {
    let failed = |reason| DotenvError {
        line: text.get(..start).unwrap_or_default().matches('\n').count() + 1,
        reason,
    };
    let after_export = text
        .get(start..)
        .and_then(|rest| rest.strip_prefix("export"))
        .filter(|rest| rest.starts_with(char::is_whitespace))
        .map(|_| skip(text, start + "export".len(), blank));
    let name_start = after_export.unwrap_or(start);
    let rest = text.get(name_start..).unwrap_or_default();
    let Some((length, end)) = rest.char_indices().find(|(_, c)| matches!(c, '=' | ':' | '\n')) else {
        return Ok(text.len());
    };
    let name = rest.get(..length).unwrap_or_default().trim_end();
    let good = |c: char| c.is_alphanumeric() || "_.-[]".contains(c) || (blank(c) && c != ' ');
    if !name.chars().all(|c| good(c) || c == ' ') {
        return Err(failed(
            "a variable's name has a character that may not stand in it",
        ));
    }
    if name.contains(' ') {
        return Err(failed("a variable's name has a space in it"));
    }
    if end == '\n' {
        // A name alone: taken from the process environment, which the agent keeps empty.
        return Ok(name_start + length + 1);
    }
    let at = skip(text, name_start + length + 1, blank);
    let (value, within_end, next, quotes) = value(text, at).ok_or_else(|| failed("a quote is not closed"))?;
    entries.push(Entry {
        name: name.to_owned(),
        value,
        within: name_start..within_end,
        quotes,
    });
    Ok(next)
}

/// The value's bytes, the end of the entry, and where the next entry may begin.
fn value(text: &str, at: usize) -> Option<(Range<usize>, usize, usize, Quotes)> {
    let rest = text.get(at..)?;
    let (quote, quotes) = match rest.chars().next() {
        Some('"') => ('"', Quotes::Double),
        Some('\'') => ('\'', Quotes::Single),
        Some(_) | None => {
            let end = line_end(text, at);
            let line = text.get(at..end)?;
            let value = line.split(" #").next().unwrap_or_default().trim_end();
            return Some((at..at + value.len(), at + value.len(), end, Quotes::None));
        }
    };
    let mut escaped = false;
    for (offset, c) in rest.char_indices().skip(1) {
        if c == quote && !escaped {
            let close = at + offset;
            return Some((at + 1..close, close + 1, close + 1, quotes));
        }
        escaped = c == '\\' && !escaped;
    }
    None
}

fn line_end(text: &str, at: usize) -> usize {
    text.get(at..)
        .and_then(|rest| rest.find('\n'))
        .map_or(text.len(), |found| at + found)
}

fn skip(text: &str, at: usize, what: impl Fn(char) -> bool) -> usize {
    text.get(at..)
        .and_then(|rest| rest.find(|c| !what(c)))
        .map_or(text.len(), |found| at + found)
}

/// White space that does not end a line.
fn blank(c: char) -> bool {
    c != '\n' && c.is_whitespace()
}

fn unescape(raw: &str) -> String {
    let mut text = String::new();
    let mut chars = raw.chars().filter(|c| *c != '\r');
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => text.push('\n'),
            Some('t') => text.push('\t'),
            Some('r') => text.push('\r'),
            Some('$') => text.push_str("$$"),
            Some(c @ ('"' | '\\')) => text.push(c),
            Some(other) => text.extend(['\\', other]),
            None => text.push('\\'),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(text: &str, name: &str) -> Option<String> {
        text_of(&read(Path::new(".env"), text, &Scope::new()).unwrap(), name)
    }

    #[test]
    fn the_grammar_is_that_of_compose() {
        for (text, value) in [
            ("TAG=v1", Some("v1")),
            ("TAG=v1\r\nX=2", Some("v1")),
            ("\u{feff}TAG=v1\n", Some("v1")),
            ("export TAG=v1", Some("v1")),
            ("export   TAG = v1  # c", Some("v1")),
            ("TAG: v1", Some("v1")),
            ("TAG='v1' # c", Some("v1")),
            ("TAG=\"v1\"\n", Some("v1")),
            ("TAG=v1#c", Some("v1#c")),
            ("TAG=v1 #c", Some("v1")),
            ("TAG=v1\nTAG=v2\n", Some("v2")),
            ("B=v1\nTAG=$B-x", Some("v1-x")),
            ("B=v1\nTAG='$B-x'", Some("$B-x")),
            ("B=v1\nTAG=\"${B:-q}\\n\"", Some("v1\n")),
            ("TAG=${B:-q}\nB=1", Some("q")),
            ("# TAG=v0\n\n  TAG=v1", Some("v1")),
            ("TAG=\nB=1", Some("")),
            ("TAG\nB=1", None),
            ("TAG=\"a\nb\"\nC=1", Some("a\nb")),
        ] {
            assert_eq!(value_of(text, "TAG").as_deref(), value, "{text:?}");
        }
    }

    #[test]
    fn values_that_double_each_other_stay_small() {
        let mut text = String::from("V0=x\n");
        for number in 1..200 {
            let before = number - 1;
            text.push_str(&format!("V{number}=$V{before}$V{before}\n"));
        }
        assert_eq!(value_of(&text, "V199").map(|value| value.len()), Some(256));
    }

    #[test]
    fn a_bad_line_is_named_and_its_content_is_not() {
        for (text, line) in [("A=1\nse cret=1\n", 2), ("A=1\n\np@ss=1", 3), ("A=\"1\n", 1)] {
            let error = read(Path::new(".env"), text, &Scope::new()).unwrap_err();
            assert_eq!(error.line, line, "{text:?}");
            assert!(!error.reason.contains("se") || !error.reason.contains("cret"));
        }
    }
}
