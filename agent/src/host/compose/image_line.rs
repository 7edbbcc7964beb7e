//! Which bytes turn one image reference into another: those of the tag and the digest, in the one piece that holds
//! them. Pure.

use deploy_proto::image::ImageRef;

use super::template::{Piece, Place};

/// Bytes to be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Splice {
    /// Which.
    pub(super) place: Place,
    /// By what.
    pub(super) text: String,
    /// The variable whose value they are.
    pub(super) variable: Option<String>,
}

/// Whether a digest may be written into a variable's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InVariables {
    /// `TAG=v2@sha256:...`: Compose substitutes text.
    Pin,
    /// The tag only, because the variable serves several images.
    TagOnly,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    /// The splices; none when the image is there already.
    pub(super) splices: Vec<Splice>,
    /// What Compose will see afterwards: the repository as it is written, and the wanted tag and digest, the digest
    /// only if it could be written.
    pub(super) image: ImageRef,
}

/// The wanted tag or digest cannot be written by changing one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InParts {
    /// The text that cannot be written.
    pub(super) wanted: String,
}

/// Works out the splices that make the pieces, which read `old`, read `wanted`.
pub(super) fn change(
    pieces: &[Piece],
    old: &ImageRef,
    wanted: &ImageRef,
    in_variables: InVariables,
) -> Result<Change, InParts> {
    let wanted = writable(pieces, old, wanted, in_variables);
    let tag_at = old.repository().len();
    let digest_at = tag_at + old.tag().map_or(0, |tag| tag.len() + 1);
    let end = digest_at + old.digest().map_or(0, |digest| digest.as_str().len() + 1);
    let mut splices: Vec<Splice> = Vec::new();
    let parts = [
        (tag_at, digest_at, old.tag(), wanted.tag(), ':'),
        (
            digest_at,
            end,
            old.digest().map(|digest| digest.as_str()),
            wanted.digest().map(|digest| digest.as_str()),
            '@',
        ),
    ];
    for (from, to, old, new, sign) in parts {
        let splice = match (old, new) {
            (old, new) if old == new => continue,
            (Some(_), Some(new)) => replace(pieces, from + 1, to, new)?,
            (Some(_), None) => replace(pieces, from, to, "")?,
            (None, new) => replace(pieces, from, to, &format!("{sign}{}", new.unwrap_or_default()))?,
        };
        match splices.last_mut() {
            Some(last)
                if last.place.file == splice.place.file && last.place.span.end == splice.place.span.start =>
            {
                last.place.span.end = splice.place.span.end;
                last.text.push_str(&splice.text);
            }
            Some(_) | None => splices.push(splice),
        }
    }
    Ok(Change {
        splices,
        image: wanted,
    })
}

/// The wanted image with the repository as it is written, and without a digest where none can stand: behind a
/// variable's text that is not the end, as in `${VERSION}-alpine`, a digest would outlive the next change of the
/// variable by hand.
fn writable(pieces: &[Piece], old: &ImageRef, wanted: &ImageRef, in_variables: InVariables) -> ImageRef {
    let mut text = old.repository().to_owned();
    if let Some(tag) = wanted.tag() {
        text.push(':');
        text.push_str(tag);
    }
    let tagged = text.parse().unwrap_or_else(|_| wanted.without_digest());
    let Some(digest) = wanted.digest() else {
        return tagged;
    };
    let last_is_variable = pieces.last().is_some_and(|piece| piece.variable.is_some());
    let suffix_at = old.repository().len();
    let suffix_has_variable = overlapping(pieces, suffix_at, usize::MAX)
        .iter()
        .any(|(_, piece)| piece.variable.is_some());
    let can = match (in_variables, last_is_variable) {
        (InVariables::Pin, true) => true,
        (InVariables::TagOnly, true) => false,
        // A digest that stands there already has to follow the tag.
        (_, false) => !suffix_has_variable || old.digest().is_some(),
    };
    if can {
        tagged.with_digest(digest.clone())
    } else {
        tagged
    }
}

/// Replaces the text from `from` to `to` by changing one piece only; the parts of it in other pieces must stay right.
fn replace(pieces: &[Piece], from: usize, to: usize, new: &str) -> Result<Splice, InParts> {
    let in_parts = || InParts {
        wanted: new.to_owned(),
    };
    let candidates: Vec<Splice> = overlapping(pieces, from, to)
        .into_iter()
        .filter_map(|(start, piece)| {
            let end = start + piece.text.len();
            let before = text_between(pieces, from, start);
            let after = text_between(pieces, end, to);
            let middle = new.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
            let place = piece.place.as_ref()?;
            let offset = |at: usize| place.span.start + at.clamp(start, end) - start;
            Some(Splice {
                place: Place {
                    span: offset(from)..offset(to),
                    ..place.clone()
                },
                text: middle.to_owned(),
                variable: piece.variable.clone(),
            })
        })
        .collect();
    match <[Splice; 1]>::try_from(candidates) {
        Ok([splice]) => Ok(splice),
        Err(_) => Err(in_parts()),
    }
}

/// The pieces that hold some of the text from `from` to `to`, or the one that ends at `from` when that is empty.
fn overlapping(pieces: &[Piece], from: usize, to: usize) -> Vec<(usize, &Piece)> {
    let mut start = 0;
    let mut found = Vec::new();
    for piece in pieces {
        let end = start + piece.text.len();
        let overlaps = if from == to {
            start < from && from <= end
        } else {
            start < to && from < end
        };
        if overlaps {
            found.push((start, piece));
        }
        start = end;
    }
    found
}

fn text_between(pieces: &[Piece], from: usize, to: usize) -> String {
    let whole: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    whole.get(from..to.max(from)).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const OLD: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "sha256:2222222222222222222222222222222222222222222222222222222222222222";

    /// Pieces from `literal|$value|literal`: those with a `$` are values of variables, each in a file of its own.
    fn pieces(text: &str) -> Vec<Piece> {
        let mut at = 0;
        text.split('|')
            .enumerate()
            .map(|(number, part)| {
                let value = part.strip_prefix('$');
                let text = value.unwrap_or(part).to_owned();
                let start = if value.is_some() { 0 } else { at };
                at += text.len();
                let file = value.map_or("yaml".to_owned(), |_| number.to_string());
                Piece {
                    place: Some(Place {
                        file: Path::new(&file).into(),
                        span: start..start + text.len(),
                        within: start..start + text.len(),
                    }),
                    text,
                    variable: value.map(|_| format!("V{number}")),
                }
            })
            .collect()
    }

    fn check(parts: &str, wanted: &str, in_variables: InVariables) -> String {
        let parts = parts.replace("OLD", OLD);
        let wanted: ImageRef = wanted.replace("NEW", NEW).replace("OLD", OLD).parse().unwrap();
        let pieces = pieces(&parts);
        let old: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        match change(&pieces, &old.parse().unwrap(), &wanted, in_variables) {
            Err(error) => format!("no {}", error.wanted),
            Ok(change) => {
                let shown: Vec<String> = change
                    .splices
                    .iter()
                    .map(|splice| {
                        let span = &splice.place.span;
                        let file = splice.place.file.display();
                        format!("{file}[{}..{}]={}", span.start, span.end, splice.text)
                    })
                    .collect();
                format!("{} -> {}", shown.join(" "), change.image)
                    .replace(NEW, "NEW")
                    .replace(OLD, "OLD")
            }
        }
    }

    #[test]
    fn only_the_bytes_of_tag_and_digest_are_replaced() {
        for (parts, wanted, result) in [
            ("a/b:v1", "a/b:v2", "yaml[4..6]=v2 -> a/b:v2"),
            ("a/b:v1", "a/b:v1", " -> a/b:v1"),
            ("a/b:v1", "a/b:v2@NEW", "yaml[4..6]=v2@NEW -> a/b:v2@NEW"),
            (
                "a/b:v1@OLD",
                "a/b:v2@NEW",
                "yaml[4..6]=v2 yaml[7..78]=NEW -> a/b:v2@NEW",
            ),
            ("a/b:v1@OLD", "a/b:v2", "yaml[4..78]=v2 -> a/b:v2"),
            ("a/b:v1@OLD", "a/b", "yaml[3..78]= -> a/b"),
            ("a/b", "a/b:v2@NEW", "yaml[3..3]=:v2@NEW -> a/b:v2@NEW"),
            ("a/b@OLD", "a/b:v2@OLD", "yaml[3..3]=:v2 -> a/b:v2@OLD"),
            ("r:5000/b", "r:5000/b:v2", "yaml[8..8]=:v2 -> r:5000/b:v2"),
            ("a/b:|$v1", "a/b:v2@NEW", "1[0..2]=v2@NEW -> a/b:v2@NEW"),
            ("a/b:|$v1@OLD", "a/b:v2", "1[0..74]=v2 -> a/b:v2"),
            ("$a/b:v1", "a/b:v2", "0[4..6]=v2 -> a/b:v2"),
            ("$a|/b", "a/b:v2", "yaml[3..3]=:v2 -> a/b:v2"),
            (
                "a/b:|$v1|-alpine",
                "a/b:v2-alpine@NEW",
                "1[0..2]=v2 -> a/b:v2-alpine",
            ),
            ("a/b:|$v1|-alpine", "a/b:v2", "no v2"),
            ("a/b:|$1|.|$5", "a/b:1.6", "3[0..1]=6 -> a/b:1.6"),
            ("a/b:|$1|.|$5", "a/b:2.7", "no 2.7"),
            (
                "a/b:|$v1|@OLD",
                "a/b:v2@NEW",
                "1[0..2]=v2 yaml[7..78]=NEW -> a/b:v2@NEW",
            ),
        ] {
            assert_eq!(
                check(parts, wanted, InVariables::Pin),
                result,
                "{parts} to {wanted}"
            );
        }
        assert_eq!(
            check("a/b:|$v1", "a/b:v2@NEW", InVariables::TagOnly),
            "1[0..2]=v2 -> a/b:v2"
        );
    }
}
