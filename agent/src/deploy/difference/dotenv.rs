//! The lines of an environment file as they may be shown: the names, never a value. Pure.

use super::{HIDDEN, texts};

/// The longest name that is taken for one.
const NAME_MAX_BYTES: usize = 64;

/// Every line of the file, with its value hidden.
pub(super) fn shown(bytes: &[u8]) -> Vec<String> {
    let mut open = None;
    texts(bytes).iter().map(|line| one(line, &mut open)).collect()
}

/// One line. `open` is the quote that a value of an earlier line began and did not end: what stands in it may look like
/// an assignment (the last line of a key in base64 does).
fn one(line: &str, open: &mut Option<char>) -> String {
    if let Some(quote) = *open {
        if closes(line, quote) {
            *open = None;
        }
        return HIDDEN.to_owned();
    }
    let text = line.trim_start_matches('\u{feff}').trim_start();
    if text.is_empty() {
        return String::new();
    }
    if text.starts_with('#') {
        return format!("# {HIDDEN}");
    }
    let (export, assignment) = match text.strip_prefix("export ") {
        Some(rest) => ("export ", rest.trim_start()),
        None => ("", text),
    };
    let Some((name, value)) = assignment.split_once(['=', ':']) else {
        return HIDDEN.to_owned();
    };
    let value = value.trim_start();
    if let Some(quote @ ('"' | '\'')) = value.chars().next()
        && !value.get(1..).is_some_and(|rest| closes(rest, quote))
    {
        *open = Some(quote);
    }
    let name = name.trim_end();
    if is_name(name) {
        format!("{export}{name}={HIDDEN}")
    } else {
        HIDDEN.to_owned()
    }
}

/// Whether a quote ends in this text: one that no backslash stands before.
fn closes(text: &str, quote: char) -> bool {
    let mut escaped = false;
    for c in text.chars() {
        if escaped {
            escaped = false;
        } else if c == '\\' && quote == '"' {
            escaped = true;
        } else if c == quote {
            return true;
        }
    }
    false
}

/// Whether this is what programs call a variable.
pub(super) fn is_name(text: &str) -> bool {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    begins && text.len() <= NAME_MAX_BYTES && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_and_values_never() {
        let file = "\u{feff}DB_PASSWORD=CANARY # CANARY\r
export TOKEN = 'CANARY'
URL: https://CANARY:CANARY@host

# OLD=CANARY
CANARY
CANARY CANARY=x
-CANARY=x
KEY=\"-----BEGIN
Q0FOQVJZ=
CANARY=CANARY
-----END\" # CANARY
LAST=1
ONE='CANARY\\'
OPEN='CANARY
CANARY=CANARY";
        assert_eq!(
            shown(file.as_bytes()),
            [
                "DB_PASSWORD=[hidden]",
                "export TOKEN=[hidden]",
                "URL=[hidden]",
                "",
                "# [hidden]",
                "[hidden]",
                "[hidden]",
                "[hidden]",
                "KEY=[hidden]",
                "[hidden]",
                "[hidden]",
                "[hidden]",
                "LAST=[hidden]",
                "ONE=[hidden]",
                "OPEN=[hidden]",
                "[hidden]",
            ]
        );
        assert_eq!(shown(b"\xff\xfe=CANARY"), ["[hidden]"]);
    }
}
