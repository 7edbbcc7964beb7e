//! The difference between two states of a project's file, for people: which lines went and came, with every value hidden
//! that could be a secret. Pure.
//!
//! What is shown is decided by a list of what may be, never by one of what may not: of a Compose file the values of keys
//! that say how a service runs (`image`, `ports`, `restart`, ...), of `.env` and its like only the names. Whatever is
//! not understood (a block, a value over several lines, a comment, a quoted key) is hidden.

use std::path::Path;

use super::facts::SourceFile;

mod dotenv;
mod yaml;

/// The most lines that one difference has; the rest is counted.
pub const LINES_MAX: usize = 40;
/// The longest of these lines, in characters; the rest of a longer one is cut.
const LINE_MAX_CHARS: usize = 200;
/// The most cells of the table that finds the common lines of two files (4 bytes each). Beyond it everything between
/// the first and the last differing line counts as changed.
const TABLE_MAX_CELLS: usize = 1_000_000;

/// What stands in place of a value.
const HIDDEN: &str = "[hidden]";

/// The lines that differ between a project's files as they were left and as they are now, at most [`LINES_MAX`] and one
/// that counts the rest: `compose.yaml:14  - restart: always`. `name` is what people call a file.
pub fn difference<'f>(
    left: &'f [SourceFile],
    now: &'f [SourceFile],
    name: impl Fn(&Path) -> String,
) -> Vec<String> {
    let find = |files: &'f [SourceFile], file: &SourceFile| files.iter().find(|one| one.path == file.path);
    let mut lines = Vec::new();
    for file in left {
        match find(now, file) {
            None => lines.push(format!("{}  is gone", name(&file.path))),
            Some(found) if found.bytes != file.bytes => {
                lines.extend(of_file(&name(&file.path), &file.bytes, &found.bytes));
            }
            Some(_) => {}
        }
    }
    let new = now.iter().filter(|file| find(left, file).is_none());
    lines.extend(new.map(|file| format!("{}  is new", name(&file.path))));
    if lines.len() > LINES_MAX {
        let more = lines.len() - LINES_MAX;
        let plural = if more == 1 { "" } else { "s" };
        lines.truncate(LINES_MAX);
        lines.push(format!("... {more} more line{plural}"));
    }
    lines
}

/// The files that differ, came or went, and where.
pub fn edited_files<'a>(left: &'a [SourceFile], now: &'a [SourceFile]) -> Vec<(&'a Path, String)> {
    let find = |files: &'a [SourceFile], path: &Path| files.iter().find(|file| file.path == path);
    let mut edited = Vec::new();
    for file in left {
        match find(now, &file.path) {
            None => edited.push((file.path.as_path(), "is gone".to_owned())),
            Some(found) if found.bytes != file.bytes => {
                edited.push((file.path.as_path(), differing_lines(&file.bytes, &found.bytes)))
            }
            Some(_) => {}
        }
    }
    let new = now.iter().filter(|file| find(left, &file.path).is_none());
    edited.extend(new.map(|file| (file.path.as_path(), "is new".to_owned())));
    edited
}

/// `line 3`, or `lines 3 to 9`, of the file as it is now.
fn differing_lines(left: &[u8], now: &[u8]) -> String {
    let (left, now): (Vec<_>, Vec<_>) = (
        left.split(|b| *b == b'\n').collect(),
        now.split(|b| *b == b'\n').collect(),
    );
    let same_head = left.iter().zip(&now).take_while(|(a, b)| a == b).count();
    let rest = left.len().min(now.len()) - same_head;
    let same_tail = left
        .iter()
        .rev()
        .zip(now.iter().rev())
        .take(rest)
        .take_while(|(a, b)| a == b)
        .count();
    let (first, last) = (same_head + 1, (now.len() - same_tail).max(same_head + 1));
    if first == last {
        format!("line {first}")
    } else {
        format!("lines {first} to {last}")
    }
}

fn of_file(name: &str, left: &[u8], now: &[u8]) -> Vec<String> {
    let (old, new) = (split(left), split(now));
    let shown = |bytes: &[u8]| {
        if is_compose(name) {
            yaml::shown(bytes)
        } else {
            dotenv::shown(bytes)
        }
    };
    let (old_shown, new_shown) = (shown(left), shown(now));
    let line = |sign: char, texts: &[String], at: usize| {
        let text = texts.get(at).map_or(HIDDEN, String::as_str);
        let line = format!("{name}:{}  {sign} {text}", at + 1);
        line.chars().take(LINE_MAX_CHARS).collect::<String>()
    };
    changes(&old, &new)
        .into_iter()
        .map(|change| match change {
            Change::Went(at) => line('-', &old_shown, at),
            Change::Came(at) => line('+', &new_shown, at),
        })
        .collect()
}

/// By its name: everything else is read like `.env`, which shows less.
fn is_compose(name: &str) -> bool {
    let extension = Path::new(name).extension();
    extension.is_some_and(|word| word.eq_ignore_ascii_case("yml") || word.eq_ignore_ascii_case("yaml"))
}

fn split(bytes: &[u8]) -> Vec<&[u8]> {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    body.split(|byte| *byte == b'\n').collect()
}

/// The same lines as text, without the end of a line that Windows writes.
fn texts(bytes: &[u8]) -> Vec<String> {
    let text = |line: &[u8]| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        String::from_utf8_lossy(line).into_owned()
    };
    split(bytes).into_iter().map(text).collect()
}

/// A line of the old or of the new file, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Went(usize),
    Came(usize),
}

/// The changed lines in the order of the file: what went before what came in its place.
fn changes(old: &[&[u8]], new: &[&[u8]]) -> Vec<Change> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - head;
    let tail = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take(rest)
        .take_while(|(a, b)| a == b)
        .count();
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let common = common(
        old.get(head..old_end).unwrap_or_default(),
        new.get(head..new_end).unwrap_or_default(),
    );
    let mut changes = Vec::new();
    let (mut a, mut b) = (head, head);
    let pairs = common.into_iter().map(|(a, b)| (a + head, b + head));
    for (next_a, next_b) in pairs.chain([(old_end, new_end)]) {
        changes.extend((a..next_a).map(Change::Went));
        changes.extend((b..next_b).map(Change::Came));
        (a, b) = (next_a + 1, next_b + 1);
    }
    changes
}

/// The longest common subsequence, as pairs of places; none when the table for it would be too large.
fn common(old: &[&[u8]], new: &[&[u8]]) -> Vec<(usize, usize)> {
    let width = new.len() + 1;
    let Some(cells) = (old.len() + 1)
        .checked_mul(width)
        .filter(|cells| *cells <= TABLE_MAX_CELLS)
    else {
        return Vec::new();
    };
    // At (a, b): how many lines old[a..] and new[b..] have in common.
    let mut table = vec![0_u32; cells];
    let at = |table: &[u32], a: usize, b: usize| table.get(a * width + b).copied().unwrap_or(0);
    for (a, old_line) in old.iter().enumerate().rev() {
        for (b, new_line) in new.iter().enumerate().rev() {
            let best = if old_line == new_line {
                at(&table, a + 1, b + 1) + 1
            } else {
                at(&table, a + 1, b).max(at(&table, a, b + 1))
            };
            if let Some(cell) = table.get_mut(a * width + b) {
                *cell = best;
            }
        }
    }
    let (mut a, mut b, mut pairs) = (0, 0, Vec::new());
    while let (Some(old_line), Some(new_line)) = (old.get(a), new.get(b)) {
        if old_line == new_line {
            pairs.push((a, b));
            (a, b) = (a + 1, b + 1);
        } else if at(&table, a + 1, b) >= at(&table, a, b + 1) {
            a += 1;
        } else {
            b += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(file: &str, left: &str, now: &str) -> Vec<String> {
        let source = |text: &str| SourceFile {
            path: file.into(),
            bytes: text.into(),
        };
        difference(&[source(left)], &[source(now)], |path| path.display().to_string())
    }

    #[test]
    fn what_went_stands_before_what_came_with_the_lines_of_each_file() {
        let left =
            "services:\n  web:\n    image: acme/web:v1\n    restart: always\n  db:\n    image: pg:16\n";
        let now = "services:\n  web:\n    image: acme/web:v1\n    restart: unless-stopped\n    init: true\n  db:\n    image: pg:17\n";
        assert_eq!(
            lines("compose.yaml", left, now),
            [
                "compose.yaml:4  -     restart: always",
                "compose.yaml:4  +     restart: unless-stopped",
                "compose.yaml:5  +     init: true",
                "compose.yaml:6  -     image: pg:16",
                "compose.yaml:7  +     image: pg:17",
            ]
        );
        assert_eq!(lines("compose.yaml", left, left), Vec::<String>::new());
        // A newline that is missing at the end.
        assert_eq!(lines(".env", "A=1", "A=1\nB=2\n"), [".env:2  + B=[hidden]"]);
    }

    #[test]
    fn files_that_came_and_went_are_named_and_a_long_difference_is_cut() {
        let file = |path: &str, bytes: &str| SourceFile {
            path: path.into(),
            bytes: bytes.into(),
        };
        let name = |path: &Path| path.display().to_string();
        assert_eq!(
            difference(&[file(".env", "A=1\n")], &[file("new.yaml", "s3cret\n")], name),
            [".env  is gone", "new.yaml  is new"]
        );
        let many: String = (0..100).map(|n| format!("K{n}=1\n")).collect();
        let cut = lines(".env", "A=1\n", &many);
        assert_eq!(cut.len(), LINES_MAX + 1);
        assert_eq!(cut.last().unwrap(), "... 61 more lines");
    }

    #[test]
    fn common_lines_are_found_between_changes() {
        let split =
            |text: &'static str| -> Vec<&'static [u8]> { text.split(' ').map(str::as_bytes).collect() };
        for (old, new, went, came) in [
            ("a b c d", "a x c y d", vec![1], vec![1, 3]),
            ("a b", "b a", vec![0], vec![1]),
            ("a", "a a a", vec![], vec![1, 2]),
            ("a b c", "c", vec![0, 1], vec![]),
        ] {
            let found = changes(&split(old), &split(new));
            let pick = |want_old: bool| -> Vec<usize> {
                let one = |change: &Change| match (change, want_old) {
                    (Change::Went(at), true) | (Change::Came(at), false) => Some(*at),
                    (Change::Went(_) | Change::Came(_), _) => None,
                };
                found.iter().filter_map(one).collect()
            };
            assert_eq!((pick(true), pick(false)), (went, came), "{old} -> {new}");
        }
        // Too large for the table: everything in between counts.
        let long: Vec<&[u8]> = vec![b"x"; 1200];
        assert!(common(&long, &long).is_empty());
    }
}
