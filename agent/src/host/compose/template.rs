//! Compose's interpolation, keeping track of where every piece of the result is written. Pure.
//!
//! `acme/app:${TAG:-dev}` with `TAG=v1` in `.env` becomes the pieces `acme/app:` (in the Compose file) and `v1` (in
//! `.env`). Source: compose-go's `template` package as of Compose 2.26; what it takes literally is literal here.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

/// How deep defaults may stand within defaults: `${A:-${B:-c}}` is two.
const NESTING_MAX: usize = 16;

/// How long a value may become, in bytes, and of how many pieces: an image reference is under 500 bytes, and values
/// that double each other must not fill the memory. What is beyond is left out; it is no image then, and refused.
const VALUE_MAX_BYTES: usize = 16 * 1024;
const PIECES_MAX: usize = 256;

/// Bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The file.
    pub(super) file: Rc<Path>,
    /// The bytes.
    pub(super) span: Range<usize>,
    /// The scalar or the `.env` entry that they are part of.
    pub(super) within: Range<usize>,
}

/// A piece of an interpolated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The text.
    pub(super) text: String,
    /// Where exactly this text is written, byte for byte; nothing where it is written with escapes.
    pub(super) place: Option<Place>,
    /// The variable whose value it is, when it comes from one.
    pub(super) variable: Option<String>,
}

/// The variables that a text may use, with the pieces of their values.
pub(super) type Scope = BTreeMap<String, Vec<Piece>>;

/// Where a template is written, for the places of its pieces.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// The place of the whole template; nothing where it is written with escapes.
    pub(super) place: Option<Place>,
    /// The variable whose value the template is.
    pub(super) variable: Option<String>,
}

/// A text with its variables replaced.
#[derive(Debug, Clone, Default)]
pub(super) struct Evaluated {
    /// The pieces in order; none is empty.
    pub(super) pieces: Vec<Piece>,
    /// The variables that were used and are unset or empty.
    pub(super) missing: Vec<String>,
}

impl Evaluated {
    /// The text.
    pub(super) fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    fn add(&mut self, piece: Piece) {
        let bytes: usize = self.pieces.iter().map(|piece| piece.text.len()).sum();
        if self.pieces.len() < PIECES_MAX && bytes + piece.text.len() <= VALUE_MAX_BYTES {
            self.pieces.push(piece);
        }
    }
}

/// Replaces the variables of a text.
pub(super) fn evaluate(text: &str, origin: &Origin, scope: &Scope) -> Evaluated {
    let mut evaluated = Evaluated::default();
    walk(text, 0, origin, scope, NESTING_MAX, &mut evaluated);
    evaluated
}

/// A text in which `$` means nothing.
pub(super) fn literal(text: &str, origin: &Origin) -> Vec<Piece> {
    let mut evaluated = Evaluated::default();
    push(text, 0, origin, &mut evaluated);
    evaluated.pieces
}

fn walk(text: &str, offset: usize, origin: &Origin, scope: &Scope, depth: usize, into: &mut Evaluated) {
    let mut literal_start = 0;
    let mut at = 0;
    while let Some(dollar) = text
        .get(at..)
        .and_then(|rest| rest.find('$'))
        .map(|found| at + found)
    {
        let rest = text.get(dollar + 1..).unwrap_or_default();
        let Some((used, what)) = reference(rest) else {
            at = dollar + 1;
            continue;
        };
        push(
            text.get(literal_start..dollar).unwrap_or_default(),
            offset + literal_start,
            origin,
            into,
        );
        match what {
            // `$$` is one `$` made of two bytes: it has no place of its own.
            Reference::Dollar => into.add(Piece {
                text: "$".to_owned(),
                place: None,
                variable: origin.variable.clone(),
            }),
            Reference::Variable(variable) => {
                let base = offset + dollar + 1;
                substitute(&variable, base, origin, scope, depth, into);
            }
        }
        at = dollar + 1 + used;
        literal_start = at;
    }
    push(
        text.get(literal_start..).unwrap_or_default(),
        offset + literal_start,
        origin,
        into,
    );
}

enum Reference<'t> {
    Dollar,
    Variable(Variable<'t>),
}

struct Variable<'t> {
    name: &'t str,
    operator: &'t str,
    argument: &'t str,
    /// Where the argument begins, counted from behind the `$`.
    argument_at: usize,
}

/// What stands behind a `$`, and how many bytes of it; nothing when the `$` is literal.
fn reference(rest: &str) -> Option<(usize, Reference<'_>)> {
    if rest.starts_with('$') {
        return Some((1, Reference::Dollar));
    }
    let Some(braced) = rest.strip_prefix('{') else {
        let name = name_at(rest)?;
        let variable = Variable {
            name,
            operator: "",
            argument: "",
            argument_at: name.len(),
        };
        return Some((name.len(), Reference::Variable(variable)));
    };
    let close = closing_brace(braced)?;
    let inner = braced.get(..close)?;
    let name = name_at(inner)?;
    let behind = inner.get(name.len()..)?;
    let operator = [":-", ":?", ":+", "-", "?", "+"]
        .into_iter()
        .find(|operator| behind.starts_with(operator))
        .unwrap_or("");
    if operator.is_empty() && !behind.is_empty() {
        return None;
    }
    let variable = Variable {
        name,
        operator,
        argument: behind.get(operator.len()..)?,
        argument_at: 1 + name.len() + operator.len(),
    };
    Some((close + 2, Reference::Variable(variable)))
}

fn name_at(text: &str) -> Option<&str> {
    let word = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let end = text.find(|c| !word(c)).unwrap_or(text.len());
    let name = text.get(..end)?;
    name.starts_with(|c: char| word(c) && !c.is_ascii_digit())
        .then_some(name)
}

fn closing_brace(text: &str) -> Option<usize> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Some(at);
        }
    }
    None
}

fn substitute(
    variable: &Variable<'_>,
    base: usize,
    origin: &Origin,
    scope: &Scope,
    depth: usize,
    into: &mut Evaluated,
) {
    let value = scope.get(variable.name);
    let full = value.filter(|pieces| !pieces.is_empty());
    // Whether the argument (a default or an alternative) takes the value's place.
    let by_argument = match variable.operator {
        ":-" => full.is_none(),
        "-" => value.is_none(),
        ":+" => full.is_some(),
        "+" => value.is_some(),
        _ => false,
    };
    if by_argument && depth > 0 {
        let at = base + variable.argument_at;
        walk(variable.argument, at, origin, scope, depth - 1, into);
    } else if let (Some(pieces), false) = (full, variable.operator.ends_with('+')) {
        pieces.iter().for_each(|piece| into.add(piece.clone()));
    } else if !variable.operator.ends_with('+') {
        into.missing.push(variable.name.to_owned());
    }
}

fn push(text: &str, at: usize, origin: &Origin, into: &mut Evaluated) {
    if text.is_empty() {
        return;
    }
    let place = origin.place.as_ref().map(|whole| Place {
        file: Rc::clone(&whole.file),
        span: whole.span.start + at..whole.span.start + at + text.len(),
        within: whole.within.clone(),
    });
    into.add(Piece {
        text: text.to_owned(),
        place,
        variable: origin.variable.clone(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str, variable: Option<&str>) -> Origin {
        Origin {
            place: Some(Place {
                file: Path::new("f").into(),
                span: 0..text.len(),
                within: 0..text.len(),
            }),
            variable: variable.map(str::to_owned),
        }
    }

    fn scope() -> Scope {
        [("TAG", "v1"), ("EMPTY", ""), ("_R2", "reg:5000")]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), literal(value, &origin(value, Some(name)))))
            .collect()
    }

    #[test]
    fn variables_are_replaced_as_compose_replaces_them() {
        for (text, result) in [
            ("a:$TAG", "a:v1"),
            ("${_R2}/a:${TAG}-x", "reg:5000/a:v1-x"),
            ("a:${NONE:-dev}", "a:dev"),
            ("a:${EMPTY:-dev}", "a:dev"),
            ("a:${EMPTY-dev}", "a:"),
            ("a:${NONE-dev}", "a:dev"),
            ("a:${NONE:-x-${TAG:-y}z}", "a:x-v1z"),
            ("a:${NONE:-${EMPTY:-y}}", "a:y"),
            ("a${TAG:+:set}", "a:set"),
            ("a${EMPTY:+:set}", "a"),
            ("a${EMPTY+:set}", "a:set"),
            ("a:${TAG:?must be set}", "a:v1"),
            ("a$$b", "a$b"),
            ("a$+b", "a$+b"),
            ("a:${NONE:-v2@sha256:00}", "a:v2@sha256:00"),
            ("${TAG", "${TAG"),
        ] {
            assert_eq!(
                evaluate(text, &origin(text, None), &scope()).text(),
                result,
                "{text}"
            );
        }
    }

    #[test]
    fn every_piece_knows_its_bytes() {
        let text = "a/${NONE:-b-${TAG}}:${TAG:-c}$EMPTY";
        let evaluated = evaluate(text, &origin(text, None), &scope());
        assert_eq!(evaluated.missing, ["EMPTY"]);
        for piece in &evaluated.pieces {
            let place = piece.place.as_ref().unwrap();
            let source = if piece.variable.is_some() { "v1" } else { text };
            assert_eq!(
                source.get(place.span.clone()),
                Some(piece.text.as_str()),
                "{piece:?}"
            );
        }
    }
}
