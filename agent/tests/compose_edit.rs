//! Every fixture in `compose-fixtures`: the edit is what is expected, exact to the byte, and the real `docker compose
//! config` agrees. Needs Compose v2 (not the Engine) and fails without it.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a failed test panics"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use deploy_agent::config::{Order, Pin, Project};
use deploy_agent::deploy::plan::Edits;
use deploy_agent::host::compose::{
    Compose, ComposeError, ComposeProject, Model, Sources, Surroundings, beyond, edit,
};
use deploy_agent::host::files;
use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::Problem;
use serde::Deserialize;
use tokio::sync::Semaphore;

/// What a fixture's `expect.toml` says.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// The project's configured files.
    #[serde(default)]
    files: Vec<PathBuf>,
    /// The images to be written.
    want: BTreeMap<ServiceName, ImageRef>,
    /// Words of the refusal.
    refused: Option<String>,
    /// Its code.
    code: Option<String>,
    /// The services whose digest cannot be written.
    #[serde(default)]
    unpinned: BTreeSet<ServiceName>,
    /// The changes, in order of file and line.
    #[serde(default)]
    change: Vec<Change>,
}

#[derive(Deserialize, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
struct Change {
    file: PathBuf,
    line: usize,
    before: String,
    after: String,
}

fn surroundings(dir: &Path) -> Surroundings {
    Surroundings {
        path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        home: dir.to_owned(),
        docker_socket: "/var/run/docker.sock".into(),
        docker_config_dir: dir.join("no-docker-config"),
    }
}

fn project(dir: &Path, files: &[PathBuf]) -> Project {
    Project {
        name: "shop".parse().unwrap(),
        dir: dir.to_owned(),
        files: files.to_vec(),
        images: Vec::new(),
        allow_latest: false,
        pin: Pin::Digest,
        order: Order::Together,
        wait: Duration::from_secs(60),
        settle: Duration::from_secs(5),
        bake: Duration::ZERO,
        keep: 10,
        remove_images: true,
        min_free_bytes: 0,
        probes: Vec::new(),
        hooks: Vec::new(),
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&entry.path(), &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path()).unwrap(), target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The whole way of an edit: load, config, edit, write, config again, compare.
struct Bench {
    project: Project,
    compose: ComposeProject,
}

impl Bench {
    async fn edit(&self, want: &BTreeMap<ServiceName, ImageRef>) -> Result<(Edits, Model), Problem> {
        let fail = |error: ComposeError| Problem::from(&error);
        let sources = Sources::load(&self.project).map_err(fail)?;
        let model = self.compose.config().await.map_err(fail)?;
        let edit = edit(&sources, &model, want).map_err(|refusal| Problem::from(&refusal))?;
        Ok((edit, model))
    }

    async fn apply(&self, edit: &Edits, before: &Model) -> Result<(), Problem> {
        for file in &edit.files {
            files::replace(&file.path, &file.after, &file.before).unwrap();
        }
        let after = self
            .compose
            .config()
            .await
            .map_err(|error| Problem::from(&error))?;
        let beyond = beyond(before, &after, &edit.images);
        if beyond.is_empty() {
            return Ok(());
        }
        for file in &edit.files {
            files::replace(&file.path, &file.before, &file.after).unwrap();
        }
        let words: Vec<String> = beyond.iter().map(ToString::to_string).collect();
        let code = deploy_proto::problem::Code::OtherServices;
        Err(Problem::new(
            code,
            format!("differs beyond: {}", words.join(", ")),
        ))
    }
}

/// Outside of the reported texts every byte is the same: putting them into the old bytes gives the new ones.
fn assert_exact(edit: &Edits) {
    for file in &edit.files {
        let mut rebuilt = Vec::new();
        let mut done = 0;
        for change in &file.lines {
            let old = change.before.as_bytes();
            // Several texts on the line may be equal; the one that was meant continues the new bytes.
            let (at, tried) = (line_start(&file.before, usize::try_from(change.line).unwrap()).max(done)
                ..file.before.len())
                .filter(|at| file.before[*at..].starts_with(old))
                .map(|at| {
                    (
                        at,
                        [&rebuilt[..], &file.before[done..at], change.after.as_bytes()].concat(),
                    )
                })
                .find(|(_, tried)| file.after.starts_with(tried))
                .unwrap_or_else(|| panic!("{change:?} is not in {}", file.path.display()));
            let skipped =
                &file.before[line_start(&file.before, usize::try_from(change.line).unwrap()).max(done)..at];
            assert!(!skipped.contains(&b'\n'), "{change:?} is on another line");
            rebuilt = tried;
            done = at + old.len();
        }
        rebuilt.extend_from_slice(&file.before[done..]);
        assert_eq!(
            String::from_utf8_lossy(&rebuilt),
            String::from_utf8_lossy(&file.after),
            "{}",
            file.path.display()
        );
    }
}

fn line_start(bytes: &[u8], line: usize) -> usize {
    let mut starts = vec![0];
    for (at, byte) in bytes.iter().enumerate() {
        let lone_cr = *byte == b'\r' && bytes.get(at + 1) != Some(&b'\n');
        if *byte == b'\n' || lone_cr {
            starts.push(at + 1);
        }
    }
    starts[line - 1]
}

async fn check(name: &str, compose: &Compose, expect: &Expect, dir: &Path) {
    let project = project(dir, &expect.files);
    let bench = Bench {
        compose: compose.project(&project),
        project,
    };
    let outcome = match bench.edit(&expect.want).await {
        Ok((edit, before)) => {
            assert_exact(&edit);
            bench.apply(&edit, &before).await.map(|()| (edit, before))
        }
        Err(problem) => Err(problem),
    };
    let (edit, before) = match (outcome, &expect.refused) {
        (Ok(done), None) => done,
        (Ok((edit, _)), Some(refused)) => panic!("{name}: expected {refused:?}, got {edit:?}"),
        (Err(problem), None) => panic!("{name}: {problem:?}"),
        (Err(problem), Some(refused)) => {
            assert!(problem.detail.contains(refused.as_str()), "{name}: {problem:?}");
            assert_eq!(Some(problem.code.as_str()), expect.code.as_deref(), "{name}");
            assert!(!format!("{problem:?}").contains("canary"), "{name}: {problem:?}");
            assert_untouched(name, dir);
            return;
        }
    };
    assert_changes(name, dir, expect, &edit);
    assert_again_and_back(name, &bench, &edit, &before).await;
    assert_untouched(name, dir);
}

fn assert_changes(name: &str, dir: &Path, expect: &Expect, edit: &Edits) {
    let changes: Vec<Change> = edit
        .files
        .iter()
        .flat_map(|file| file.lines.iter().map(move |line| (file, line)))
        .map(|(file, line)| Change {
            file: file.path.strip_prefix(dir).unwrap().to_owned(),
            line: usize::try_from(line.line).unwrap(),
            before: line.before.clone(),
            after: line.after.clone(),
        })
        .collect();
    assert_eq!(changes, expect.change, "{name}");
    assert_eq!(edit.unpinned, expect.unpinned, "{name}");
    for (service, image) in &edit.images {
        let wanted = &expect.want[service];
        let wanted = if edit.unpinned.contains(service) {
            wanted.without_digest()
        } else {
            wanted.clone()
        };
        assert_eq!(
            (image.tag(), image.digest()),
            (wanted.tag(), wanted.digest()),
            "{name}"
        );
    }
    assert!(!format!("{changes:?}").contains("canary"), "{name}");
}

/// The same edit again changes nothing; the edit back to the old images restores the same bytes.
async fn assert_again_and_back(name: &str, bench: &Bench, edit: &Edits, before: &Model) {
    let (again, after) = bench.edit(&edit.images).await.unwrap();
    assert_eq!(again.files, [], "{name}: again");
    let old: BTreeMap<ServiceName, ImageRef> = edit
        .images
        .keys()
        .map(|service| {
            (
                service.clone(),
                before.services[service].image.clone().unwrap().parse().unwrap(),
            )
        })
        .collect();
    let (back, _) = bench
        .edit(&old)
        .await
        .unwrap_or_else(|problem| panic!("{name}: back: {problem:?}"));
    assert_exact(&back);
    bench
        .apply(&back, &after)
        .await
        .unwrap_or_else(|problem| panic!("{name}: back: {problem:?}"));
}

fn assert_untouched(name: &str, dir: &Path) {
    let original = fixtures().join(name);
    let mut folders = vec![original.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let copy = dir.join(path.strip_prefix(&original).unwrap());
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let link = |path: &Path| fs::symlink_metadata(path).unwrap().is_symlink();
            assert_eq!(link(&path), link(&copy), "{name}: {}", path.display());
            assert_eq!(
                String::from_utf8_lossy(&fs::read(&path).unwrap()),
                String::from_utf8_lossy(&fs::read(&copy).unwrap()),
                "{name}: {}",
                path.display()
            );
        }
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compose-fixtures")
}

#[tokio::test]
async fn every_fixture_is_edited_exactly_and_compose_agrees() {
    let home = tempfile::tempdir().unwrap();
    let compose = Compose::find(&surroundings(home.path()))
        .await
        .expect("Compose v2 is needed: run tests/setup.sh");
    let mut names: Vec<String> = fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    assert!(names.len() >= 40, "{} fixtures", names.len());
    // A few at a time, so that no call of Compose comes near its deadline on a small machine.
    let slots = Arc::new(Semaphore::new(4));
    let checks = names.into_iter().map(|name| {
        let compose = compose.clone();
        let slots = Arc::clone(&slots);
        tokio::spawn(async move {
            let slot = slots.acquire().await.unwrap();
            let text = fs::read_to_string(fixtures().join(&name).join("expect.toml")).unwrap();
            let expect: Expect = toml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let dir = tempfile::tempdir().unwrap();
            let dir = fs::canonicalize(dir.path()).map(|path| (path, dir)).unwrap();
            copy(&fixtures().join(&name), &dir.0);
            check(&name, &compose, &expect, &dir.0).await;
            drop(slot);
        })
    });
    // Each panic is printed where it happens; the rest is tried all the same.
    let mut wrong = 0;
    for check in checks.collect::<Vec<_>>() {
        wrong += usize::from(check.await.is_err());
    }
    assert_eq!(wrong, 0, "fixtures failed, see above");
}
