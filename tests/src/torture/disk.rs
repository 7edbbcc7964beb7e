//! Disks that are really full: the agent's state or the project's folder is a small file system of its own.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use deploy_proto::event::{Ending, PhaseName};

use super::judge::{ANY, BACK, WHOLE, judge_unsure, takes_the_next};
use super::kill::{has_ended, reached};
use super::stage::{Ask, Images, Stage, project_paths};
use super::{Came, Case, Ground, Group, Options, Tally, on_stages};
use crate::command::Run;
use crate::images::temporary_dir;
use crate::project::Project;
use crate::until::until;

/// The state folder.
pub const STATE: Group = Group {
    name: "full-state",
    about: "no space left where the journal is, from a phase on",
    run: |options, tally| run("full-state", on_state, |_| false, options, tally),
};
/// The project's folder.
pub const PROJECT: Group = Group {
    name: "full-project",
    about: "no space left where the Compose file is, from a phase on",
    // The old bytes need room beside the new ones, and there is none until a person makes some.
    run: |options, tally| run("full-project", on_project, is_before_restoring, options, tally),
};

const SIZE: &str = "size=12m";
const DEADLINE: Duration = Duration::from_secs(60);

/// From when on it is full; before the push when none.
const FROM: [Option<PhaseName>; 10] = [
    None,
    Some(PhaseName::Accepted),
    Some(PhaseName::Pulling),
    Some(PhaseName::Gating),
    Some(PhaseName::BackingUp),
    Some(PhaseName::Editing),
    Some(PhaseName::BeforeHook),
    Some(PhaseName::Restarting),
    Some(PhaseName::Watching),
    Some(PhaseName::AfterHook),
];
const BACK_FROM: [Option<PhaseName>; 4] = [
    Some(PhaseName::Watching),
    Some(PhaseName::Restoring),
    Some(PhaseName::RestartingOld),
    Some(PhaseName::WatchingOld),
];

/// A small file system over a folder, with what was in it; unmounted on drop.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Puts one over a folder.
    pub fn over(path: &Path) -> Result<Self> {
        let aside = temporary_dir("agent")?;
        copy(path, aside.path())?;
        let mount = Run::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]);
        mount.args([path]).text()?;
        let disk = Self {
            path: path.to_owned(),
        };
        copy(aside.path(), path)?;
        Ok(disk)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Takes all space there is.
    pub fn fill(&self) -> Result<()> {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.filler())?;
        let block = [0_u8; 4096];
        loop {
            match filler.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives it back.
    pub fn free(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Disk {
    #[allow(
        clippy::print_stderr,
        reason = "a drop cannot fail, but what it left behind must be known"
    )]
    fn drop(&mut self) {
        // Lazily: the agent's own log may be open still.
        if let Err(error) = Run::new("umount").args(["--lazy"]).args([&self.path]).text() {
            eprintln!("failed to unmount {}: {error:#}", self.path.display());
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = from.as_os_str().to_owned();
    source.push("/.");
    Run::new("cp")
        .args(["--archive".into(), source, to.into()])
        .text()
        .map(drop)
}

fn on_project(images: &Images) -> Result<Stage> {
    Stage::start_on(images, &[], |project: &Project| {
        Ok(vec![Disk::over(project.dir())?])
    })
}

fn on_state(images: &Images) -> Result<Stage> {
    let mut stage = Stage::start(images)?;
    stage.agent.kill9()?;
    stage.disks.push(Disk::over(&stage.agent.state_dir())?);
    stage.agent.resume()?;
    Ok(stage)
}

fn run(
    name: &'static str,
    make: fn(&Images) -> Result<Stage>,
    may_be_stuck: fn(PhaseName) -> bool,
    options: &Options,
    tally: &Tally,
) -> Result<()> {
    let forward = [Ask::Good, Ask::Rollback]
        .into_iter()
        .flat_map(|ask| FROM.map(|from| (ask, from)))
        // A rollback runs no hook before the restart.
        .filter(|case| *case != (Ask::Rollback, Some(PhaseName::BeforeHook)));
    let cases = forward
        .chain(BACK_FROM.map(|from| (Ask::Bad, from)))
        .map(|(ask, from)| {
            let when = from.map_or("before it is asked for", PhaseName::as_str);
            let allowed = match ask {
                Ask::Good | Ask::Rollback | Ask::Moody | Ask::Reconcile => WHOLE,
                Ask::Bad if from.is_some_and(may_be_stuck) => ANY,
                Ask::Bad => BACK,
            };
            Case::new(format!("{ask:?}: full from {when}"), move |stage| {
                full(stage, ask, from, allowed)
            })
        });
    on_stages(options, name, Ground::new(make)?, cases.collect(), tally)
}

fn full(stage: &mut Stage, ask: Ask, from: Option<PhaseName>, allowed: &[Ending]) -> Result<Came> {
    let asked = stage.ask(ask)?;
    if from.is_none() {
        disk(stage)?.fill()?;
    }
    let answer = stage.send(&asked)?;
    let was_accepted = answer.status == 202;
    match from {
        None => {}
        Some(_) if !was_accepted => bail!("{answer:?}"),
        Some(phase) => {
            if !reached(stage, &asked.id, phase)? {
                return Ok(Came::NotReached);
            }
            disk(stage)?.fill()?;
        }
    }
    until("the deployment ends, or the agent", DEADLINE, || {
        let is_over = !was_accepted || has_ended(&stage.agent.log(), &asked.id);
        Ok((is_over || stage.agent.exited()?.is_some()).then_some(()))
    })?;
    let mut broken = Vec::new();
    // Without space for anything new, what is there must be whole already.
    for path in project_paths(stage.project.dir()) {
        if path.to_string_lossy().ends_with(".new") && path.exists() && stage.agent.exited()?.is_none() {
            broken.push(format!("{} is left beside the files", path.display()));
        }
    }
    disk(stage)?.free()?;
    stage.restart()?;
    broken.extend(judge_unsure(stage, &asked, allowed)?);
    broken.extend(takes_the_next(stage, &asked)?);
    Ok(Came::Tried(broken))
}

fn is_before_restoring(phase: PhaseName) -> bool {
    matches!(
        phase,
        PhaseName::Restarting | PhaseName::Watching | PhaseName::Restoring
    )
}

fn disk(stage: &Stage) -> Result<&Disk> {
    stage.disks.first().context("no file system of its own")
}
