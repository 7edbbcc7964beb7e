//! The first action of a deployment, and all of a dry run: ask the host and the history, then let `plan` decide.

use std::collections::{BTreeMap, BTreeSet};

use deploy_proto::image::ImageRef;
use deploy_proto::names::{KeyName, ReleaseNumber, ServiceName};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::{Push, RollbackTarget};
use deploy_proto::release::{DeploymentKind, ReleaseState};
use jiff::Timestamp;

use super::after_stuck;
use super::choice;
use super::difference::{difference, edited_files};
use super::drift;
use super::facts::{Facts, Offered, ServiceFacts};
use super::hooks;
use super::phase::Failure;
use super::plan::{self, Due, Edits, Plan, Purpose, Wanted};
use super::platform::Platform;
use super::port::Host;
use super::ports::HostPorts;
use super::preflight::{self, Question};
use super::reconciling;
use super::sequence::{self, Runs};
use crate::config::Project;
use crate::history::{AutoRollback, Deployment, History, HistoryError, Release, ReleaseImage, Request};
use crate::policy::{self, ServiceScope};

/// A plan and the releases that are recorded with it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// The release that a push makes and, when what runs is no recorded release, the one that was found.
    pub releases: Vec<Release>,
}

/// Who asks, for what, and when.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// What for.
    pub request: &'a Request,
    /// Whose key signed it.
    pub key: &'a KeyName,
    /// The services the key may change.
    pub scope: &'a ServiceScope,
    /// The host's time.
    pub now: Timestamp,
}

/// Why there is no plan.
#[derive(Debug)]
pub enum NoPlan {
    /// The request cannot be carried out as things are.
    Refused(Failure),
    /// The history cannot be read.
    History(HistoryError),
}

impl From<Failure> for NoPlan {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

impl From<Problem> for NoPlan {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem.into())
    }
}

impl From<HistoryError> for NoPlan {
    fn from(error: HistoryError) -> Self {
        Self::History(error)
    }
}

/// A plan before it was checked.
pub(super) struct Draft {
    plan: Plan,
    /// Why it cannot be carried out, as far as that is known.
    refusals: Vec<Problem>,
    /// Services that it lacks, because their image is not to be had.
    missing: BTreeSet<ServiceName>,
    /// What the registries say the images are built for.
    offered: BTreeMap<ServiceName, Vec<Platform>>,
}

impl Draft {
    /// A plan for which no registry was asked, and why its edits cannot be made, where they cannot.
    pub(super) fn of_what_ran(plan: Plan, unwritable: Option<Problem>) -> Self {
        Self {
            plan,
            refusals: unwritable.into_iter().collect(),
            missing: BTreeSet::new(),
            offered: BTreeMap::new(),
        }
    }
}

/// What a push wants of every service, as far as the registries have it.
#[derive(Default)]
struct Resolved {
    wanted: BTreeMap<ServiceName, Wanted>,
    offered: BTreeMap<ServiceName, Vec<Platform>>,
    missing: BTreeSet<ServiceName>,
    refusals: Vec<Problem>,
}

/// Makes the plan and checks that it can be carried out. Changes nothing on the host and nothing in the history.
///
/// # Errors
/// The request names what is not there or not allowed, the Compose files were edited by hand, the history cannot be read;
/// and, all at once, whatever else is in the way: see `preflight`.
pub async fn plan<H: Host>(
    host: &H,
    history: &History,
    project: &Project,
    asked: &Asked<'_>,
) -> Result<Planned, NoPlan> {
    match asked.request {
        Request::Push(push) => plan_push(host, history, project, asked, push).await,
        Request::Rollback(rollback) => {
            let to = after_stuck::rollback_target(history, &project.name, &rollback.to).await?;
            let target = history
                .rollback_target(project.name.clone(), to)
                .await?
                .ok_or_else(|| no_target(project, &rollback.to))?;
            if !rollback.across_migration {
                let migrations = history
                    .migrations_since(project.name.clone(), target.number)
                    .await?;
                refuse_across(&target, &migrations)?;
            }
            go_back(host, history, project, asked, &target, None).await
        }
        Request::Reconcile(reconcile) => reconciling::plan(host, history, project, asked, reconcile).await,
        Request::AutoRollback(rollback) => plan_auto_rollback(host, history, project, asked, rollback).await,
    }
}

async fn plan_push<H: Host>(
    host: &H,
    history: &History,
    project: &Project,
    asked: &Asked<'_>,
    push: &Push,
) -> Result<Planned, NoPlan> {
    // The registry and the Engine are asked side by side: together they are most of the time of a push that changes nothing.
    let images: BTreeSet<ImageRef> = push.images.iter().map(|change| change.image.clone()).collect();
    let (facts, offers) = tokio::join!(host.facts(project), host.resolve(&images));
    let facts = facts?;
    hooks::check_services(project, &facts)?;
    // What the key may not change is refused before anything is told of what a registry said.
    let chosen = choice::choose(&push.images, &facts, asked.scope)?;
    let as_left = after_stuck::files_are_as_left(history, &project.name, &facts.files).await?;
    if !push.accept_edits && !as_left {
        refuse_hand_edits(
            project,
            &facts,
            history.last_live_plan(project.name.clone()).await?,
        )?;
    }
    let stuck = history.stuck(project.name.clone()).await?;
    let resolved = wanted_by_push(project, &chosen.images, &offers, due(stuck.as_ref()));
    let wanted = resolved.wanted;
    let live = history.live_release(project.name.clone()).await?;
    let next = history.next_release(project.name.clone()).await?;
    let is_what_runs = live
        .as_ref()
        .is_some_and(|live| describes(live, project, &facts, as_left));
    let before = live.as_ref().map(|release| release.number);
    let runs = match &stuck {
        Some(stuck) => Runs::Stuck(stuck.id()),
        None if is_what_runs => Runs::Live,
        None => Runs::Found,
    };
    sequence::check_expected(&project.name, push, before, runs)?;
    // What a stuck deployment left is no release to go back to.
    let found = (runs == Runs::Found).then(|| found_release(project, &facts, asked.now, next, before));
    let to = if found.is_some() {
        ReleaseNumber(next.0 + 1)
    } else {
        next
    };
    let from = found.as_ref().map(|release| release.number).or(before);
    let purpose = Purpose {
        project,
        kind: DeploymentKind::Push,
        from,
        to,
        now: asked.now,
    };
    let (plan, unwritable) = assemble(host, &purpose, &facts, &wanted).await?;
    let draft = Draft {
        plan,
        refusals: resolved.refusals.into_iter().chain(unwritable).collect(),
        missing: resolved.missing,
        offered: resolved.offered,
    };
    let plan = checked(host, history, &purpose, asked, &facts, draft).await?;
    let plan = chosen
        .idle
        .iter()
        .fold(plan, |plan, service| plan.warn(left_alone(service)));
    let made = Release {
        project: project.name.clone(),
        number: to,
        parent: from,
        state: ReleaseState::Deploying,
        version: push.version.clone(),
        key: Some(asked.key.clone()),
        source: push.source.clone(),
        created_at: asked.now,
        irreversible: after_stuck::is_migrated(history, stuck.as_ref()).await?,
        images: release_images(&facts, &wanted, &plan),
    };
    let releases = if plan.services.is_empty() {
        Vec::new()
    } else {
        found.into_iter().chain([made]).collect()
    };
    Ok(Planned { plan, releases })
}

/// When a service is brought up. In a stuck project nothing is known to be well, and that every image is the wanted one
/// does not end it: all are brought up and watched.
fn due(stuck: Option<&Deployment>) -> Due {
    match stuck {
        Some(_) => Due::Now,
        None => Due::WhenDifferent,
    }
}

fn left_alone(service: &ServiceName) -> String {
    format!("{service} belongs to a profile and does not run: it is left alone; deploy it by name with --set")
}

/// Whether a recorded release is what the project's deployable services are now, as far as files and containers tell.
/// It is not when somebody deployed past the agent: what is found then is a release of its own, to go back to.
///
/// `files_are_ours`: that the files name other images is a stuck deployment's doing.
fn describes(release: &Release, project: &Project, facts: &Facts, files_are_ours: bool) -> bool {
    let managed = |image: &&ReleaseImage| policy::is_listed(project, image.image.repository());
    release.images.iter().filter(managed).all(|image| {
        let Some(now) = facts.services.get(&image.service) else {
            return true;
        };
        let same_text = files_are_ours || now.image.as_ref() == Some(&image.written);
        let running = now.running.as_ref().and_then(|running| running.digest.as_ref());
        let same_image = match (image.image.digest(), running) {
            (Some(recorded), Some(running)) => recorded == running,
            (None, _) | (_, None) => true,
        };
        same_text && same_image
    })
}

/// Plans the way back from a release that fell sick while it baked, for the services that it had changed and no other.
async fn plan_auto_rollback<H: Host>(
    host: &H,
    history: &History,
    project: &Project,
    asked: &Asked<'_>,
    rollback: &AutoRollback,
) -> Result<Planned, NoPlan> {
    let find = async |number| {
        let target = RollbackTarget::Release(number);
        let found = history
            .rollback_target(project.name.clone(), target.clone())
            .await?;
        found.ok_or_else(|| NoPlan::from(no_target(project, &target)))
    };
    let (target, sick) = (find(rollback.to).await?, find(rollback.sick).await?);
    // Other migrations in between were crossed on purpose before the sick release was made; the one that it was pushed to
    // get out of is its own.
    if sick.irreversible {
        refuse_across(&target, std::slice::from_ref(&sick))?;
    }
    let changed = sick.images.iter().filter(|image| image.changed);
    let changed: BTreeSet<ServiceName> = changed.map(|image| image.service.clone()).collect();
    go_back(host, history, project, asked, &target, Some(&changed)).await
}

/// Plans the way to an earlier release; with `only`, for these services alone.
async fn go_back<H: Host>(
    host: &H,
    history: &History,
    project: &Project,
    asked: &Asked<'_>,
    target: &Release,
    only: Option<&BTreeSet<ServiceName>>,
) -> Result<Planned, NoPlan> {
    let live = history.live_release(project.name.clone()).await?;
    let left = match &live {
        Some(live) => reconciling::left(history, live).await?,
        None => None,
    };
    let facts = host.facts(project).await?;
    let due = due(history.stuck(project.name.clone()).await?.as_ref());
    let wanted = wanted_by_rollback(project, target, &facts, asked.scope, only, due)?;
    let purpose = Purpose {
        project,
        kind: asked.request.kind(),
        from: live.map(|release| release.number),
        to: target.number,
        now: asked.now,
    };
    let (plan, unwritable) = assemble(host, &purpose, &facts, &wanted).await?;
    let draft = Draft::of_what_ran(plan, unwritable);
    let plan = checked(host, history, &purpose, asked, &facts, draft).await?;
    let edited = left.map(|left| drift::files(project, &left, &facts.files));
    let plan = edited
        .into_iter()
        .flatten()
        .fold(plan, |plan, edit| plan.warn(stays(&edit.detail)));
    Ok(Planned {
        plan,
        releases: Vec::new(),
    })
}

/// What is said of a hand edit before the way back.
fn stays(edited: &str) -> String {
    format!("{edited}: the edits stay, only the image lines go back")
}

/// Checks the host for a plan, and tells all that is in the way at once. A plan that changes nothing needs nothing.
pub(super) async fn checked<H: Host>(
    host: &H,
    history: &History,
    purpose: &Purpose<'_>,
    asked: &Asked<'_>,
    facts: &Facts,
    draft: Draft,
) -> Result<Plan, NoPlan> {
    let Draft {
        mut plan,
        mut refusals,
        missing,
        offered,
    } = draft;
    if plan.services.is_empty() && missing.is_empty() && refusals.is_empty() {
        return Ok(plan);
    }
    let changing = plan
        .services
        .iter()
        .map(|service| &service.service)
        .chain(&missing);
    let ports = changing
        .filter_map(|service| facts.services.get(service))
        .flat_map(|service| service.ports.iter().filter_map(HostPorts::fixed))
        .collect();
    let id = asked.request.id().clone();
    let (around, last) = tokio::join!(host.look_around(&plan, &ports), history.newest_time(id));
    let findings = preflight::judge(&Question {
        project: purpose.project,
        facts,
        host: &around?,
        plan: &plan,
        missing: &missing,
        offered: &offered,
        now: purpose.now,
        last: last?,
    });
    refusals.extend(findings.refusals);
    if let Some(problem) = preflight::together(refusals) {
        return Err(problem.into());
    }
    plan.warnings.extend(findings.warnings);
    plan.checks = findings.checks;
    Ok(plan)
}

/// The plan, and why its edits cannot be made, where they cannot.
pub(super) async fn assemble<H: Host>(
    host: &H,
    purpose: &Purpose<'_>,
    facts: &Facts,
    wanted: &BTreeMap<ServiceName, Wanted>,
) -> Result<(Plan, Option<Problem>), Failure> {
    let (changing, _unchanged) = plan::changing(wanted, facts);
    // Of a service that is brought up for another reason than its image, the line is not touched.
    let is_written = |service: &ServiceName, wanted: &Wanted| {
        let now = facts.services.get(service).and_then(|now| now.image.as_ref());
        wanted.due == Due::Now && now == Some(&wanted.written)
    };
    let written: BTreeMap<ServiceName, ImageRef> = wanted
        .iter()
        .filter(|(service, wanted)| changing.contains(*service) && !is_written(service, wanted))
        .map(|(service, wanted)| (service.clone(), wanted.written.clone()))
        .collect();
    let (edits, unwritable) = if written.is_empty() {
        (Edits::default(), None)
    } else {
        match host.edits(purpose.project, &written).await {
            Ok(edits) => (edits, None),
            Err(failure) => (Edits::default(), Some(failure.problem)),
        }
    };
    Ok((plan::make(purpose, facts, wanted, edits)?, unwritable))
}

/// Sorts what was asked for into what the registries have and what they do not. An image that several services want is
/// told once.
fn wanted_by_push(
    project: &Project,
    chosen: &BTreeMap<ServiceName, ImageRef>,
    offers: &BTreeMap<ImageRef, Result<Offered, Problem>>,
    due: Due,
) -> Resolved {
    let mut resolved = Resolved::default();
    for (service, image) in chosen {
        match offers.get(image) {
            Some(Ok(offered)) => {
                let wanted = Wanted {
                    image: image.with_digest(offered.digest.clone()),
                    written: choice::written(image, &offered.digest, project.pin),
                    image_id: None,
                    due,
                };
                resolved.wanted.insert(service.clone(), wanted);
                resolved
                    .offered
                    .insert(service.clone(), offered.platforms.clone());
            }
            Some(Err(problem)) => {
                resolved.missing.insert(service.clone());
                if !resolved.refusals.contains(problem) {
                    resolved.refusals.push(problem.clone());
                }
            }
            None => {
                let detail = format!("the registry gave no digest for {image}");
                resolved.missing.insert(service.clone());
                resolved
                    .refusals
                    .push(Problem::new(Code::ImageUnavailable, detail));
            }
        }
    }
    resolved
}

/// The services of the target release that run something else now, and in a stuck project all of them. One that ran
/// neither then nor now stays away: it belongs to a profile, or somebody stopped it. Databases and whatever else is not on
/// the project's allow-list were never this agent's to change, forward or back.
fn wanted_by_rollback(
    project: &Project,
    target: &Release,
    facts: &Facts,
    scope: &ServiceScope,
    only: Option<&BTreeSet<ServiceName>>,
    due: Due,
) -> Result<BTreeMap<ServiceName, Wanted>, Problem> {
    let of = |image: &ReleaseImage| {
        let wanted = Wanted {
            image: image.image.clone(),
            written: image.written.clone(),
            image_id: image.ran_image_id().cloned(),
            due,
        };
        (image.service.clone(), wanted)
    };
    let managed = |image: &&ReleaseImage| policy::is_listed(project, image.image.repository());
    let runs = |image: &&ReleaseImage| {
        let ran_then = image.changed || image.image_id.is_some();
        let facts = facts.services.get(&image.service);
        facts.is_some_and(|facts| ran_then || facts.running.is_some())
    };
    let all: BTreeMap<_, _> = target
        .images
        .iter()
        .filter(managed)
        .filter(runs)
        .filter(|image| only.is_none_or(|only| only.contains(&image.service)))
        .map(of)
        .collect();
    // By image alone: a service that runs the same in both releases is none of a rollback's business, however it is.
    let differs = |(service, wanted): &(ServiceName, Wanted)| {
        let now = facts.services.get(service);
        due == Due::Now || now.is_none_or(|now| !plan::has_image(wanted, now))
    };
    let different: BTreeMap<_, _> = all.into_iter().filter(differs).collect();
    for service in different.keys() {
        scope.permits(service)?;
    }
    Ok(different)
}

/// Refuses to go back before a migration that cannot be undone.
pub(super) fn refuse_across(target: &Release, migrations: &[Release]) -> Result<(), Problem> {
    let Some(first) = migrations.first() else {
        return Ok(());
    };
    let detail = format!(
        "release {} ran a migration that cannot be undone, and release {} is from before it",
        first.number, target.number
    );
    Err(Problem::new(Code::Irreversible, detail).hint(
        "go back across it with --across-migration when the older version works with the migrated data",
    ))
}

fn no_target(project: &Project, target: &RollbackTarget) -> Problem {
    let what = match target {
        RollbackTarget::Back(steps) => {
            format!("project {} has no successful release {steps} back", project.name)
        }
        RollbackTarget::Release(number) => format!(
            "release {number} of project {} never went live, or does not exist",
            project.name
        ),
        RollbackTarget::Version(version) => format!(
            "no successful release of project {} has version {version}",
            project.name
        ),
    };
    Problem::new(Code::UnknownRelease, what)
        .hint("deployctl history shows the releases that can be rolled back to")
}

/// What a project runs as it was found: before the agent's first deployment, or deployed past the agent since the last.
fn found_release(
    project: &Project,
    facts: &Facts,
    now: Timestamp,
    number: ReleaseNumber,
    parent: Option<ReleaseNumber>,
) -> Release {
    Release {
        project: project.name.clone(),
        number,
        parent,
        state: ReleaseState::Live,
        version: None,
        key: None,
        source: deploy_proto::push::Source::default(),
        created_at: now,
        irreversible: false,
        images: found_images(facts),
    }
}

/// What every service runs once the plan is carried out.
fn release_images(facts: &Facts, wanted: &BTreeMap<ServiceName, Wanted>, plan: &Plan) -> Vec<ReleaseImage> {
    let planned = |service: &ServiceName| plan.services.iter().find(|plan| &plan.service == service);
    let changed = |image: ReleaseImage| match (planned(&image.service), wanted.get(&image.service)) {
        (Some(plan), _) => ReleaseImage {
            service: image.service,
            written: plan.written.clone(),
            image: plan.new.clone(),
            image_id: None,
            changed: true,
            ran: None,
        },
        (None, Some(wanted)) => ReleaseImage {
            image: wanted.image.clone(),
            ..image
        },
        (None, None) => image,
    };
    found_images(facts).into_iter().map(changed).collect()
}

/// What every service runs now.
fn found_images(facts: &Facts) -> Vec<ReleaseImage> {
    let image = |(service, now): (&ServiceName, &ServiceFacts)| {
        let written = now.image.clone()?;
        let digest = now.running.as_ref().and_then(|running| running.digest.clone());
        let image = digest.map_or_else(|| written.clone(), |digest| written.with_digest(digest));
        let image_id = now.running.as_ref().map(|running| running.image_id.clone());
        Some(ReleaseImage {
            service: service.clone(),
            written,
            image,
            image_id,
            changed: false,
            ran: None,
        })
    };
    facts.services.iter().filter_map(image).collect()
}

/// Refuses a push onto files that a person edited since the last release went live. Says where, and what as far as it
/// holds no secret.
fn refuse_hand_edits(project: &Project, facts: &Facts, last: Option<Plan>) -> Result<(), Problem> {
    let Some(last) = last else { return Ok(()) };
    let left = last.files_after();
    let name = |path: &std::path::Path| drift::relative(project, path).display().to_string();
    let edited: Vec<String> = edited_files(&left, &facts.files)
        .into_iter()
        .map(|(path, lines)| format!("{} {lines}", name(path)))
        .collect();
    if edited.is_empty() {
        return Ok(());
    }
    let detail = format!("edited by hand since release {}: {}", last.to, edited.join("; "));
    Err(Problem::new(Code::Edited, detail)
        .hint("push with --accept-edits to deploy on top of the edits, or undo them on the host: deployctl reconcile --discard-edits")
        .lines(difference(&left, &facts.files, name)))
}
