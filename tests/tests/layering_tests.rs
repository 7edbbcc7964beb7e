//! The rooms keep to themselves: who may name what, held by reading the sources.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// A word, and the folders or files below `agent/src` that may use it.
const RULES: &[(&str, &[&str])] = &[
    ("bollard", &["host/engine"]),
    ("axum", &["api", "serve.rs"]),
    ("rusqlite", &["history"]),
    ("granit_parser", &["host/compose"]),
    ("tokio::process", &["host/process.rs"]),
    ("std::process::Command", &[]),
    ("reqwest", &["host/health"]),
    ("rcgen", &["tls.rs"]),
];

/// What the shared crate must not know.
const NOT_IN_PROTO: [&str; 5] = ["tokio", "axum", "reqwest", "bollard", "clap"];

/// What decides and does not act: no file, no clock, no waiting.
const PURE: &[&str] = &[
    "deploy/phase.rs",
    "deploy/choice.rs",
    "deploy/plan.rs",
    "deploy/platform.rs",
    "deploy/ports.rs",
    "deploy/preflight.rs",
    "deploy/verdict.rs",
    "deploy/bake.rs",
    "deploy/deadlines.rs",
    "deploy/difference.rs",
    "deploy/difference/dotenv.rs",
    "deploy/difference/yaml.rs",
    "deploy/drift.rs",
    "deploy/hooks.rs",
    "deploy/ending.rs",
    "deploy/retention.rs",
    "policy.rs",
    "host/compose/image_line.rs",
    "host/compose/edit.rs",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// Every Rust source below a folder that is not a test, with its path relative to it and its code without comments.
fn sources(root: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.strip_prefix(root)?.display().to_string();
            if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.contains("tests/") {
                let text = fs::read_to_string(&path)?;
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                let code = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                found.push((name, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    assert!(found.len() > 5, "{} has no sources", root.display());
    Ok(found)
}

#[test]
fn only_its_own_room_names_a_library_and_only_process_spawns() -> Result<()> {
    let sources = sources(&workspace().join("agent/src"))?;
    let mut broken = Vec::new();
    for (word, rooms) in RULES {
        let uses = |code: &str| {
            [format!("{word}::"), format!("use {word}")]
                .iter()
                .any(|form| code.contains(form))
        };
        let users = sources.iter().filter(|(_, code)| uses(code));
        let strangers = users.filter(|(name, _)| !rooms.iter().any(|room| name.starts_with(room)));
        broken.extend(strangers.map(|(name, _)| format!("{name} names {word}, which belongs to {rooms:?}")));
        let nobody = !rooms.is_empty() && !sources.iter().any(|(_, code)| uses(code));
        assert!(!nobody, "nobody names {word}: is the rule still about something?");
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}

#[test]
fn no_test_file_is_left_out_of_the_program_and_no_module_twice() -> Result<()> {
    let folder = workspace().join("tests/tests");
    let main = fs::read_to_string(folder.join("main.rs"))?;
    let listed: Vec<_> = main
        .lines()
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned))
        .collect();
    let mut there = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .map(|stem| stem.to_string_lossy().into_owned())
            .unwrap_or_default();
        if stem != "main" {
            there.push(stem);
        }
    }
    there.sort();
    assert_eq!(listed, there, "main.rs lists every file of tests/tests, sorted");
    Ok(())
}

#[test]
fn the_shared_crate_knows_no_runtime_and_no_transport() -> Result<()> {
    for (name, code) in sources(&workspace().join("proto/src"))? {
        for word in NOT_IN_PROTO {
            assert!(
                !code.contains(&format!("{word}::")),
                "proto/src/{name} names {word}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_decides_does_not_act_or_wait() -> Result<()> {
    let sources = sources(&workspace().join("agent/src"))?;
    for pure in PURE {
        let code = sources
            .iter()
            .find(|(name, _)| name == *pure)
            .map(|(_, code)| code);
        let code = code.unwrap_or_else(|| panic!("{pure} is gone: does the rule have a new name for it?"));
        for word in [
            "async ",
            "std::fs",
            "tokio::",
            "Instant::now",
            "Timestamp::now",
            "SystemTime",
        ] {
            assert!(!code.contains(word), "{pure} has {word:?}");
        }
    }
    Ok(())
}
