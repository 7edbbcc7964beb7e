//! The documents keep their word: what they name is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The names of all functions that follow a test attribute, below a folder.
fn tests_below(folder: &Path, names: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            tests_below(&path, names)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let signature = line.strip_prefix("async ").unwrap_or(line);
                if let Some(rest) = signature.strip_prefix("fn ") {
                    if is_test {
                        names.extend(rest.split('(').next().map(str::to_owned));
                    }
                    is_test = false;
                }
            }
        }
    }
    Ok(())
}

/// The names of all functions that follow a test attribute, below these folders of the workspace.
fn tests_in(folders: &[&str]) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for folder in folders {
        tests_below(&workspace().join(folder), &mut names)?;
    }
    Ok(names)
}

#[test]
fn every_row_of_what_happens_if_names_tests_that_exist_and_says_which_are_pure() -> Result<()> {
    let real = tests_in(&["agent/tests", "tests/tests"])?;
    let pure = tests_in(&["agent/src", "ctl/src", "proto/src"])?;
    let page = fs::read_to_string(workspace().join("docs/what-happens-if.md"))?;
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| ..."));
    let mut count = 0;
    for row in rows {
        count += 1;
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_fault, _then, named] = cells.as_slice() else {
            anyhow::bail!("not three cells: {row}");
        };
        for named in named.split(", ") {
            let is_marked = named.ends_with(" (pure)");
            let name = named.trim_end_matches(" (pure)").trim_matches('`');
            let tests = if is_marked { &pure } else { &real };
            ensure!(
                tests.contains(name),
                "there is no test {name} with the mark (pure): {is_marked}: {row}"
            );
        }
    }
    ensure!(count > 20, "only {count} rows were found");
    Ok(())
}

#[test]
fn every_link_between_the_documents_leads_somewhere() -> Result<()> {
    let root = workspace();
    let mut pages = vec![
        "README.md".into(),
        "ARCHITECTURE.md".into(),
        "CHANGELOG.md".into(),
    ];
    for folder in ["docs", "docs/decisions"] {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    for page in pages {
        let page = root.join(page);
        let text = fs::read_to_string(&page)?;
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for link in links.filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let target = link.split('#').next().unwrap_or_default();
            let folder = page.parent().context("a page without a folder")?;
            ensure!(folder.join(target).exists(), "{} links to {link}", page.display());
        }
    }
    Ok(())
}
