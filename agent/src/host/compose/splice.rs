//! Replacing bytes, and telling people which. Pure.

use std::ops::Range;

use super::image_line::Splice;
use crate::deploy::plan::LineEdit;

/// Whether two splices are about the same bytes.
pub(super) fn touches(a: &Splice, b: &Splice) -> bool {
    let (x, y) = (&a.place.span, &b.place.span);
    a.place.file == b.place.file && (x == y || (x.start < y.end && y.start < x.end))
}

/// A part of the bytes with the splices (in order) applied.
pub(super) fn spliced(bytes: &[u8], part: Range<usize>, splices: &[&Splice]) -> Vec<u8> {
    let mut result = Vec::new();
    let mut at = part.start;
    for splice in splices {
        result.extend_from_slice(bytes.get(at..splice.place.span.start).unwrap_or_default());
        result.extend_from_slice(splice.text.as_bytes());
        at = splice.place.span.end;
    }
    result.extend_from_slice(bytes.get(at..part.end).unwrap_or_default());
    result
}

/// The changes for people: one for each scalar or `.env` entry.
pub(super) fn lines(before: &[u8], splices: &[&Splice]) -> Vec<LineEdit> {
    splices
        .chunk_by(|a, b| a.place.within == b.place.within)
        .filter_map(|together| {
            let within = together.first()?.place.within.clone();
            let old = before.get(within.clone()).unwrap_or_default();
            Some(LineEdit {
                line: u32::try_from(line_at(before, within.start)).unwrap_or(u32::MAX),
                before: String::from_utf8_lossy(old).into_owned(),
                after: String::from_utf8_lossy(&spliced(before, within, together)).into_owned(),
            })
        })
        .collect()
}

/// The line of a byte, counted from 1; LF, CRLF and CR alone end lines.
pub(super) fn line_at(bytes: &[u8], at: usize) -> usize {
    let head = bytes.get(..at).unwrap_or(bytes);
    let followers = head.iter().skip(1).map(Some).chain([None]);
    let ends = head.iter().zip(followers).filter(|(byte, next)| match **byte {
        b'\n' => true,
        b'\r' => *next != Some(&b'\n'),
        _ => false,
    });
    1 + ends.count()
}
