//! What drifted from the release that should run, and the plan that brings it back.

use std::collections::{BTreeMap, BTreeSet};

use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::Reconcile;
use deploy_proto::release::{DeploymentKind, Drift};

use super::after_stuck;
use super::difference::edited_files;
use super::drift::{self, Left};
use super::facts::{Facts, SourceFile};
use super::plan::{self, Due, Edits, FileEdit, Plan, Purpose, Wanted};
use super::planning::{Asked, Draft, NoPlan, Planned, assemble, checked, refuse_across};
use super::port::Host;
use crate::config::Project;
use crate::history::{History, HistoryError, Release};

/// Plans it. Nothing that drifted makes a plan without services: there is nothing to do.
pub(super) async fn plan<H: Host>(
    host: &H,
    history: &History,
    project: &Project,
    asked: &Asked<'_>,
    reconcile: &Reconcile,
) -> Result<Planned, NoPlan> {
    let Some(live) = history.live_release(project.name.clone()).await? else {
        return Err(no_release(project).into());
    };
    refuse_across(
        &live,
        &after_stuck::migration(history, &project.name, &live).await?,
    )?;
    let left = left(history, &live).await?;
    let is_stuck = history.stuck(project.name.clone()).await?.is_some();
    let facts = host.facts(project).await?;
    let given_back = match &left {
        Some(left) if reconcile.discard_edits => given_back(project, left, &facts)?,
        Some(_) | None => Vec::new(),
    };
    // With other bytes in the files every service may have another configuration, and Compose replaces those that do.
    // After a deployment that got stuck nothing is known to be well.
    let all = is_stuck || !given_back.is_empty();
    let wanted = wanted(project, &live, &facts, all);
    for (service, _) in wanted.iter().filter(|(_, wanted)| wanted.due == Due::Now) {
        asked.scope.permits(service)?;
    }
    let purpose = Purpose {
        project,
        kind: DeploymentKind::Reconcile,
        from: Some(live.number),
        to: live.number,
        now: asked.now,
    };
    let (plan, unwritable) = if given_back.is_empty() {
        assemble(host, &purpose, &facts, &wanted).await?
    } else {
        let edits = Edits {
            files: given_back,
            ..Edits::default()
        };
        let plan = Plan {
            gives_bytes_back: true,
            ..plan::make(&purpose, &facts, &wanted, edits)?
        };
        (plan, None)
    };
    let draft = Draft::of_what_ran(plan, unwritable);
    let plan = checked(host, history, &purpose, asked, &facts, draft).await?;
    let plan = said(project, plan, left.as_ref());
    Ok(Planned {
        plan,
        releases: Vec::new(),
    })
}

/// What drifted from the release that should run, as things are. Nothing can where none is recorded.
///
/// # Errors
/// The host cannot be looked at, or the history not be read.
pub async fn look<H: Host>(host: &H, history: &History, project: &Project) -> Result<Vec<Drift>, NoPlan> {
    let Some(live) = history.live_release(project.name.clone()).await? else {
        return Ok(Vec::new());
    };
    let left = left(history, &live).await?;
    let facts = host.facts(project).await?;
    Ok(drift::drift(project, &live, left.as_ref(), &facts))
}

/// The files as the last push or rollback left them for the release that should run; for one that was only ever found,
/// as they were then. None when neither is recorded.
pub(super) async fn left(history: &History, live: &Release) -> Result<Option<Left>, HistoryError> {
    let last = history.last_live_plan(live.project.clone()).await?;
    let files = match last.filter(|plan| plan.to == live.number) {
        Some(plan) => plan.files_after(),
        None => history.files(live.project.clone(), live.number).await?,
    };
    Ok((!files.is_empty()).then_some(Left {
        release: live.number,
        files,
    }))
}

fn no_release(project: &Project) -> Problem {
    let detail = format!(
        "no release of project {} is recorded, so nothing can drift from it",
        project.name
    );
    Problem::new(Code::UnknownRelease, detail).hint("the first push records what runs")
}

/// What the release ran, and which of it is not so now.
fn wanted(project: &Project, live: &Release, facts: &Facts, all: bool) -> BTreeMap<ServiceName, Wanted> {
    let drifted: BTreeSet<ServiceName> = drift::services(project, live, facts)
        .into_iter()
        .filter_map(|drift| drift.service)
        .collect();
    let mut wanted = BTreeMap::new();
    for image in drift::should_run(project, live, facts) {
        let mut one = Wanted {
            image: image.image.clone(),
            written: image.written.clone(),
            image_id: image.ran_image_id().cloned(),
            due: Due::Not,
        };
        let is_named = facts
            .services
            .get(&image.service)
            .is_some_and(|now| now.image.as_ref() == Some(&image.written));
        if all || !is_named || drifted.contains(&image.service) {
            one.due = Due::Now;
        }
        wanted.insert(image.service.clone(), one);
    }
    wanted
}

/// The edits that give every edited file the bytes back that the release left.
fn given_back(project: &Project, left: &Left, facts: &Facts) -> Result<Vec<FileEdit>, Problem> {
    let mut edits = Vec::new();
    for (path, _) in edited_files(&left.files, &facts.files) {
        let find = |files: &[SourceFile]| {
            files
                .iter()
                .find(|file| file.path == path)
                .map(|file| file.bytes.clone())
        };
        let name = drift::relative(project, path).display();
        match (find(&facts.files), find(&left.files)) {
            (Some(before), Some(after)) => edits.push(FileEdit {
                path: path.to_owned(),
                before,
                after,
                lines: Vec::new(),
            }),
            // Whose a file is that is made anew, and whether one may go, only a person knows.
            (Some(_), None) => {
                let detail = format!("{name} came since release {}", left.release);
                return Err(
                    Problem::new(Code::Edited, detail).hint("move it away on the host, then reconcile again")
                );
            }
            (None, _) => {
                let detail = format!("{name} is gone since release {}", left.release);
                return Err(Problem::new(Code::Edited, detail).hint(
                    "make it on the host with the owner and mode it had, even empty, then reconcile again",
                ));
            }
        }
    }
    Ok(edits)
}

/// Says which hand edits are discarded, or are still there when the plan is carried out.
fn said(project: &Project, plan: Plan, left: Option<&Left>) -> Plan {
    let (files, what) = if plan.gives_bytes_back {
        (plan.files.clone(), "the edits are discarded")
    } else {
        let what = "the edits stay, only images are put back; --discard-edits gives the file back as the release left it";
        (plan.files_after(), what)
    };
    let edited = left.map(|left| drift::files(project, left, &files));
    edited
        .into_iter()
        .flatten()
        .fold(plan, |plan, edit| plan.warn(format!("{}: {what}", edit.detail)))
}
