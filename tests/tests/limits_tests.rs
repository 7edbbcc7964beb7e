//! docs/limits.md says what the sources say: every constant on the page has the value that stands there, and no limit of
//! the agent or of the wire is missing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A number or a duration with one of these in its name is a limit.
const NAMES: [&str; 9] = [
    "_MAX",
    "_MOST",
    "DEADLINE",
    "LIMIT",
    "PATIENCE",
    "REQUEST_WAIT",
    "DEPLOYMENT_WAIT",
    "PER_MINUTE",
    "STALL",
];
const TYPES: [&str; 8] = ["Duration", "u16", "u32", "u64", "usize", "i32", "i64", "f64"];

/// Limits that no person meets: of parsers against hostile input, of words in messages, of what is inside of one that is
/// on the page.
const OF_NO_CONCERN: [&str; 28] = [
    "ACTIONS_MAX",
    "AUTHORITY_MAX_BYTES",
    "DEPTH_MAX",
    "EXCERPT_MAX_CHARS",
    "FINDINGS_MAX",
    "FOLLOW_MAX",
    "FOLLOW_TAIL_MAX",
    "HEAD_LIMIT_SECONDS",
    "HOLDER_MAX_BYTES",
    "IMAGES_DEADLINE",
    "KEY_MAX_BYTES",
    "KEY_TEXT_MAX_BYTES",
    "NAME_DEADLINE",
    "NAME_MAX_BYTES",
    "NESTING_MAX",
    "PIECES_MAX",
    "PING_PAUSE_MAX",
    "REPOSITORY_MAX_BYTES",
    "RUN_MAX",
    "SAID_MAX_BYTES",
    "STEPS_MAX",
    "TABLE_MAX_CELLS",
    "TAG_MAX_BYTES",
    "TAIL_LIMIT",
    "THERE_LIMIT",
    "UNSET_MAX",
    "VALUE_MAX_BYTES",
    "WORDS_MAX_CHARS",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// `const NAME: TYPE = VALUE;` of a source, less its tests: name, type and value.
fn constants(text: &str) -> Vec<(String, String, String)> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let declared = |line: &str| {
        let (_, rest) = line.split_once("const ")?;
        let (name, rest) = rest.split_once(": ")?;
        let (kind, value) = rest.split_once(" = ")?;
        Some((
            name.to_owned(),
            kind.to_owned(),
            value.strip_suffix(';')?.to_owned(),
        ))
    };
    code.lines().filter_map(declared).collect()
}

/// The page's rows: name, value and file of each constant.
fn rows(page: &str) -> Result<Vec<(String, String, String)>> {
    let mut rows = Vec::new();
    for line in page.lines().filter(|line| line.ends_with(".rs` |")) {
        let cell = line
            .trim_end_matches(" |")
            .rsplit(" | ")
            .next()
            .unwrap_or_default();
        let (constant, file) = cell
            .split_once(" in ")
            .with_context(|| format!("{line:?} has no file"))?;
        let (name, value) = constant
            .trim_matches('`')
            .split_once(" = ")
            .with_context(|| format!("{line:?} has no value"))?;
        rows.push((
            name.to_owned(),
            value.to_owned(),
            file.trim_matches('`').to_owned(),
        ));
    }
    ensure!(rows.len() > 50, "the page has {} rows", rows.len());
    Ok(rows)
}

#[test]
fn the_page_of_limits_has_the_values_of_the_sources() -> Result<()> {
    let page = fs::read_to_string(workspace().join("docs/limits.md"))?;
    for (name, value, file) in rows(&page)? {
        let text = fs::read_to_string(workspace().join(&file)).with_context(|| file.clone())?;
        let found = constants(&text).into_iter().find(|(known, _, _)| *known == name);
        let (_, _, now) = found.with_context(|| format!("{file} has no {name}"))?;
        assert_eq!(now, value, "docs/limits.md says otherwise of {name} in {file}");
    }
    Ok(())
}

#[test]
fn no_limit_is_missing_on_the_page() -> Result<()> {
    let page = rows(&fs::read_to_string(workspace().join("docs/limits.md"))?)?;
    let mut missing = Vec::new();
    let mut open = vec![workspace().join("agent/src"), workspace().join("proto/src")];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let file = path.strip_prefix(workspace())?.display().to_string();
            if !file.ends_with(".rs") || file.contains("tests") {
                continue;
            }
            for (name, kind, _) in constants(&fs::read_to_string(&path)?) {
                let is_limit = TYPES.contains(&kind.as_str()) && NAMES.iter().any(|part| name.contains(part));
                let is_told = page.iter().any(|(known, _, at)| *known == name && *at == file);
                if is_limit && !is_told && !OF_NO_CONCERN.contains(&name.as_str()) {
                    missing.push(format!("{name} of {file}"));
                }
            }
        }
    }
    assert!(
        missing.is_empty(),
        "docs/limits.md does not name {}",
        missing.join(", ")
    );
    Ok(())
}
