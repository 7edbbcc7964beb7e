//! What GitHub Actions reads between the lines: groups, annotations, and fences around output that is not ours. Pure.
//!
//! Source: "Workflow commands for GitHub Actions"; the runner's `ActionCommand.cs` (v2 `::name::` at the start of a
//! line, after blanks; v1 `##[name]` anywhere in a line).

/// Begins a group that folds.
pub(crate) fn group(title: &str) -> String {
    format!("::group::{}", escape(title))
}

/// Ends the group.
pub(crate) fn end_group() -> String {
    "::endgroup::".to_owned()
}

/// Shows an error on the run's page.
pub(crate) fn error(title: &str, text: &str) -> String {
    let title = escape(title).replace(':', "%3A").replace(',', "%2C");
    format!("::error title={title}::{}", escape(text))
}

/// Makes the runner blind for commands until `token` comes, so that an application cannot give any. The token is
/// random, or the application could end the fence.
pub(crate) fn fence(token: &str) -> [String; 2] {
    [format!("::stop-commands::{token}"), format!("::{token}::")]
}

/// Makes a line harmless that may hold an agent's words, outside of a fence.
pub(crate) fn defuse(line: &str) -> String {
    let line = line.replace("##[", "# #[");
    if line.trim_start().starts_with("::") {
        format!("| {line}")
    } else {
        line
    }
}

/// The same for a line of JSON, which stays the same document.
pub(crate) fn defuse_json(document: &str) -> String {
    document.replace("##[", "#\\u0023[")
}

fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_out_of_a_command() {
        assert_eq!(
            error("a: b, c", "100%\n::set-output"),
            "::error title=a%3A b%2C c::100%25%0A::set-output"
        );
        assert_eq!(group("web-1\n::x"), "::group::web-1%0A::x");
    }

    #[test]
    fn an_agents_words_are_no_commands() {
        assert_eq!(defuse("  ::error::x"), "|   ::error::x");
        assert_eq!(defuse("a ##[add-path]b"), "a # #[add-path]b");
        assert_eq!(defuse("  ✔ pull"), "  ✔ pull");
        let document = serde_json::json!({"line": "##[error]x"}).to_string();
        let defused = defuse_json(&document);
        assert!(!defused.contains("##["));
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&defused).unwrap(),
            serde_json::json!({"line": "##[error]x"})
        );
    }
}
