//! The rooms keep to themselves: only `host/engine` names bollard, only the API and the server around it name axum, only
//! `host/process` spawns, and what decides does nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

/// A word, where it may stand (beginnings of paths), and why.
const RULES: &[(&str, &[&str])] = &[
    ("bollard", &["agent/src/host/engine/"]),
    ("axum", &["agent/src/api/", "agent/src/serve.rs"]),
    ("Command::new", &["agent/src/host/process"]),
    ("rusqlite", &["agent/src/history/"]),
    ("granit_parser", &["agent/src/host/compose/"]),
    ("reqwest", &["agent/src/host/health/", "ctl/src/client/"]),
    (
        "clap::",
        &[
            "agent/src/main.rs",
            "agent/src/command/",
            "ctl/src/cli.rs",
            "ctl/src/main.rs",
        ],
    ),
];

/// Rooms that are pure: they decide, and neither wait nor act. The runner and what feeds it are the loop around them.
const PURE: &[&str] = &[
    "proto/src/",
    "agent/src/policy.rs",
    "agent/src/deploy/phase.rs",
    "agent/src/deploy/plan.rs",
    "agent/src/deploy/verdict.rs",
];
const IMPURE: &[&str] = &[
    "async fn",
    ".await",
    "tokio::",
    "std::fs",
    "std::process",
    "SystemTime::now",
    "Timestamp::now",
    "std::env::var",
];

#[test]
fn the_rooms_keep_to_themselves() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize()?;
    let mut broken = Vec::new();
    for path in sources(&root)? {
        let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let code = line.trim_start();
            if code.starts_with("//") {
                continue;
            }
            let mut check = |word: &str, allowed: bool| {
                if code.contains(word) && !allowed {
                    broken.push(format!("{name}:{}: {word}: {code}", number + 1));
                }
            };
            for (word, rooms) in RULES {
                check(word, rooms.iter().any(|room| name.starts_with(room)));
            }
            let is_pure = PURE.iter().any(|room| name.starts_with(room));
            for word in IMPURE {
                check(word, !is_pure);
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    Ok(())
}

/// The sources of both programs and of what they share.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = ["proto/src", "agent/src", "ctl/src"]
        .iter()
        .map(|room| root.join(room))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    Ok(found)
}
