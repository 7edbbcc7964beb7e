//! From a permitted request and the host's facts to a plan, or a refusal: pure. Nothing has changed yet.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::PathBuf;

use deploy_proto::image::{Digest, ImageRef};
use deploy_proto::names::{ProjectName, ReleaseNumber, ServiceName};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::{DeploymentKind, PlanView, PlannedEdit, PlannedService};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::base64_bytes;
use super::facts::{Facts, ServiceFacts, SourceFile};
use super::hooks;
use super::phase::Course;
use super::ports::HostPorts;
use crate::config::{Probe, ProbeCheck, Project};

/// What a deployment will do. It is journaled, so that a restarted agent does the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The project.
    pub project: ProjectName,
    /// When it was made, by the host's clock.
    pub made_at: Timestamp,
    /// The release that runs now, if one is recorded.
    pub from: Option<ReleaseNumber>,
    /// The release that this makes or goes back to.
    pub to: ReleaseNumber,
    /// The services that change, in the order in which they are restarted.
    pub services: Vec<ServicePlan>,
    /// The named services that run what was asked for already.
    pub unchanged: Vec<ServicePlan>,
    /// The project's other services.
    pub untouched: Vec<ServiceName>,
    /// Every file of the project, as it was when the plan was made.
    pub files: Vec<SourceFile>,
    /// The files to change, with all their bytes before and after.
    pub edits: Vec<FileEdit>,
    /// Whether the edits give whole files their earlier bytes back, so that more than images changes by them.
    #[serde(default)]
    pub gives_bytes_back: bool,
    /// The commands that run beside it, as they were configured when the plan was made.
    #[serde(default)]
    pub hooks: Vec<PlannedHook>,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// What was checked and found to be in order, for people.
    #[serde(default)]
    pub checks: Vec<String>,
}

/// A command that runs beside a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHook {
    /// What people call it.
    pub name: String,
    /// When it runs.
    pub moment: Moment,
    /// The service in whose image it runs; none: on the host.
    pub service: Option<ServiceName>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// How long it may take, in milliseconds.
    pub deadline_ms: u64,
    /// Whether what it does cannot be undone.
    pub is_irreversible: bool,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Moment {
    /// Before anything is changed; its failure refuses the deployment.
    BeforeChange,
    /// In the new image, before the first container is replaced; its failure rolls back.
    BeforeRestart,
    /// When all services are well; its failure rolls back.
    AfterLive,
}

/// One service of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// The service.
    pub service: ServiceName,
    /// The image that the Compose file names now.
    pub old: Option<ImageRef>,
    /// The digest of the image that runs now, where the registry gave one.
    pub old_digest: Option<Digest>,
    /// The local id of the image that runs now; none when the service has no container.
    pub old_image_id: Option<String>,
    /// The new image with its digest, where the registry gave one.
    pub new: ImageRef,
    /// The new image as it will stand in the Compose file.
    pub written: ImageRef,
    /// The local id of the new image, where an earlier release recorded it.
    pub new_image_id: Option<String>,
    /// The ids of the containers that were there when the plan was made: all others are this deployment's. None in a
    /// plan of an agent that told them by their age.
    #[serde(default)]
    pub old_containers: Option<Vec<String>>,
    /// Whether it was well before: one that was not is put back as sick as it was.
    pub old_was_well: bool,
    /// How its health is judged, for people.
    pub judged_by: Vec<String>,
    /// What its image must be built for, where the Compose file says that (`platform:`).
    #[serde(default)]
    pub platform: Option<String>,
}

/// One file to change.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEdit {
    /// The file, absolute.
    pub path: PathBuf,
    /// All its bytes now.
    #[serde(with = "base64_bytes")]
    pub before: Vec<u8>,
    /// All its bytes then.
    #[serde(with = "base64_bytes")]
    pub after: Vec<u8>,
    /// The lines that differ, for people.
    pub lines: Vec<LineEdit>,
}

impl fmt::Debug for FileEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bytes around the images are the host's, and `.env` holds secrets.
        f.debug_struct("FileEdit")
            .field("path", &self.path)
            .field("lines", &self.lines)
            .finish_non_exhaustive()
    }
}

/// One changed line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineEdit {
    /// Counted from 1.
    pub line: u32,
    /// The bytes that go.
    pub before: String,
    /// The bytes that come.
    pub after: String,
}

/// What will be written, and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// The files that change.
    pub files: Vec<FileEdit>,
    /// Every changing service's image as Compose will read it then.
    pub images: BTreeMap<ServiceName, ImageRef>,
    /// The services whose digest cannot be written, because the tag stands in a variable that serves several images.
    pub unpinned: BTreeSet<ServiceName>,
}

/// What one service is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The image with its digest, where known.
    pub image: ImageRef,
    /// The image as it is to stand in the file.
    pub written: ImageRef,
    /// The local id, where an earlier release recorded it.
    pub image_id: Option<String>,
    /// Whether its containers are brought up.
    pub due: Due,
}

/// When a service is brought up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// When it does not run what is wanted, or is not well.
    WhenDifferent,
    /// In any case: its container is not as it should be, though its image may be.
    Now,
    /// Not: it is as it should be. That it is well is checked all the same.
    Not,
}

/// What the plan is about, beside the facts.
#[derive(Debug, Clone)]
pub struct Purpose<'a> {
    /// The project's configuration.
    pub project: &'a Project,
    /// Whether it goes to new images or back to old ones.
    pub kind: DeploymentKind,
    /// The release that runs.
    pub from: Option<ReleaseNumber>,
    /// The release that this makes or goes back to.
    pub to: ReleaseNumber,
    /// The host's time.
    pub now: Timestamp,
}

/// Splits the wanted services into those that change and those that run it already.
pub fn changing(
    wanted: &BTreeMap<ServiceName, Wanted>,
    facts: &Facts,
) -> (BTreeSet<ServiceName>, BTreeSet<ServiceName>) {
    wanted.keys().cloned().partition(|service| {
        let (Some(wanted), Some(now)) = (wanted.get(service), facts.services.get(service)) else {
            return true;
        };
        match wanted.due {
            Due::WhenDifferent => !runs_already(wanted, now),
            Due::Now => true,
            Due::Not => false,
        }
    })
}

/// Whether the file names this tag already, and well containers run this very image.
fn runs_already(wanted: &Wanted, now: &ServiceFacts) -> bool {
    has_image(wanted, now) && now.running.as_ref().is_some_and(|running| running.is_well)
}

/// Whether the file names this tag already, and the containers are of this very image, whether or not they are well.
pub fn has_image(wanted: &Wanted, now: &ServiceFacts) -> bool {
    let Some(running) = &now.running else { return false };
    let same_text = now.image.as_ref().is_some_and(|image| {
        image == &wanted.written || (image.digest().is_none() && image == &wanted.written.without_digest())
    });
    let same_image = match (wanted.image.digest(), &running.digest) {
        (Some(wanted), Some(running)) => wanted == running,
        (Some(_), None) | (None, _) => wanted.image_id.as_ref() == Some(&running.image_id),
    };
    same_text && same_image
}

/// Puts the plan together.
///
/// `edits` are the changes of the files that write the changing services' images.
///
/// # Errors
/// A file that changed while the plan was made.
pub fn make(
    purpose: &Purpose<'_>,
    facts: &Facts,
    wanted: &BTreeMap<ServiceName, Wanted>,
    edits: Edits,
) -> Result<Plan, Problem> {
    check_files_unmoved(facts, &edits.files)?;
    let (changing, unchanged) = changing(wanted, facts);
    let service_plan =
        |service: &ServiceName| service_plan(purpose.project, facts, wanted, &edits.images, service);
    let untouched = facts
        .services
        .keys()
        .filter(|service| !wanted.contains_key(*service))
        .cloned()
        .collect();
    let services: Vec<_> = restart_order(&changing, facts)
        .iter()
        .filter_map(service_plan)
        .collect();
    let mut warnings = warnings(purpose.project, facts, &services);
    warnings.extend(edits.unpinned.iter().map(|service| {
        format!("{service}: its tag stands in a variable that serves several images, so the digest is recorded, not written")
    }));
    let hooks = hooks::planned(purpose.project, purpose.kind, &services);
    Ok(Plan {
        project: purpose.project.name.clone(),
        made_at: purpose.now,
        from: purpose.from,
        to: purpose.to,
        unchanged: unchanged.iter().filter_map(service_plan).collect(),
        services,
        untouched,
        files: facts.files.clone(),
        edits: edits.files,
        gives_bytes_back: false,
        hooks,
        warnings,
        checks: Vec::new(),
    })
}

fn check_files_unmoved(facts: &Facts, edits: &[FileEdit]) -> Result<(), Problem> {
    for edit in edits {
        if !facts
            .files
            .iter()
            .any(|file| file.path == edit.path && file.bytes == edit.before)
        {
            let detail = format!(
                "{} changed while the deployment was being planned",
                edit.path.display()
            );
            return Err(Problem::new(Code::Edited, detail).hint("push again when nobody edits the file"));
        }
    }
    Ok(())
}

fn service_plan(
    project: &Project,
    facts: &Facts,
    wanted: &BTreeMap<ServiceName, Wanted>,
    images: &BTreeMap<ServiceName, ImageRef>,
    service: &ServiceName,
) -> Option<ServicePlan> {
    let wanted = wanted.get(service)?;
    let now = facts.services.get(service)?;
    let running = now.running.as_ref();
    Some(ServicePlan {
        service: service.clone(),
        old: now.image.clone(),
        old_digest: running.and_then(|running| running.digest.clone()),
        old_image_id: running.map(|running| running.image_id.clone()),
        new: wanted.image.clone(),
        written: images.get(service).unwrap_or(&wanted.written).clone(),
        new_image_id: wanted.image_id.clone(),
        old_containers: Some(running.map_or_else(Vec::new, |running| running.containers.clone())),
        old_was_well: running.is_none_or(|running| running.is_well),
        judged_by: judged_by(project, now, service),
        platform: now.platform.clone(),
    })
}

fn judged_by(project: &Project, facts: &ServiceFacts, service: &ServiceName) -> Vec<String> {
    let probe = |probe: &Probe| match &probe.check {
        ProbeCheck::Http { url, .. } => format!("GET {url}"),
        ProbeCheck::Tcp { address } => format!("connection to {address}"),
    };
    let healthcheck = facts.has_healthcheck.then(|| "healthcheck".to_owned());
    let probes = project
        .probes
        .iter()
        .filter(|probe| &probe.service == service)
        .map(probe);
    let checks: Vec<_> = healthcheck.into_iter().chain(probes).collect();
    if checks.is_empty() {
        vec!["state and restarts only".to_owned()]
    } else {
        checks
    }
}

fn warnings(project: &Project, facts: &Facts, services: &[ServicePlan]) -> Vec<String> {
    let unset = facts.unset_variables.iter().map(|name| {
        format!("{name} is not set in .env: Compose uses a blank where the file says ${{{name}}}; put it into .env")
    });
    let mut warnings: Vec<String> = unset.collect();
    for plan in services {
        let service = &plan.service;
        let Some(now) = facts.services.get(service) else {
            continue;
        };
        let probed = project.probes.iter().any(|probe| &probe.service == service);
        if !now.has_healthcheck && !probed {
            warnings.push(format!(
                "{service} has no healthcheck and no probe: only its state and restarts are judged"
            ));
        }
        if matches!(plan.new.tag(), Some("latest")) {
            warnings.push(format!(
                "{service}: latest says nothing about what is deployed; the digest is recorded"
            ));
        }
        let ports: Vec<_> = now.ports.iter().filter_map(HostPorts::fixed).collect();
        if !ports.is_empty() {
            let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
            warnings.push(format!(
                "{service} publishes port {}: it is away while it is replaced",
                ports.join(", ")
            ));
        }
        if plan.old_image_id.is_none() {
            warnings.push(format!(
                "{service} does not run now: a rollback would stop it again"
            ));
        }
    }
    warnings
}

/// The services, each after those of them that it depends on (by name where nothing else decides).
fn restart_order(services: &BTreeSet<ServiceName>, facts: &Facts) -> Vec<ServiceName> {
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    for service in services {
        place(service, services, facts, &mut seen, &mut order);
    }
    order
}

/// Places what `service` depends on, then `service`. Compose refuses cycles; `seen` ends them here all the same.
fn place(
    service: &ServiceName,
    named: &BTreeSet<ServiceName>,
    facts: &Facts,
    seen: &mut BTreeSet<ServiceName>,
    order: &mut Vec<ServiceName>,
) {
    if !seen.insert(service.clone()) {
        return;
    }
    for needed in facts
        .services
        .get(service)
        .into_iter()
        .flat_map(|facts| &facts.depends_on)
    {
        place(needed, named, facts, seen, order);
    }
    if named.contains(service) {
        order.push(service.clone());
    }
}

impl Plan {
    /// What it says of the deployment's way.
    pub fn course(&self) -> Course {
        Course {
            has_before_hook: self.hooks_at(Moment::BeforeRestart).next().is_some(),
            has_after_hook: self.hooks_at(Moment::AfterLive).next().is_some(),
            is_one_way: self
                .hooks_at(Moment::BeforeRestart)
                .any(|hook| hook.is_irreversible),
        }
    }

    /// The commands of a moment, in the order in which they run.
    pub fn hooks_at(&self, moment: Moment) -> impl Iterator<Item = &PlannedHook> {
        self.hooks.iter().filter(move |hook| hook.moment == moment)
    }

    /// The services that change, by name.
    pub fn service_names(&self) -> Vec<ServiceName> {
        self.services.iter().map(|plan| plan.service.clone()).collect()
    }

    /// The ids of the containers of its named services that were there when it was made; none when it does not say.
    pub fn containers_before(&self) -> Option<HashSet<String>> {
        let mut ids = HashSet::new();
        for service in self.services.iter().chain(&self.unchanged) {
            ids.extend(service.old_containers.as_ref()?.iter().cloned());
        }
        Some(ids)
    }

    /// Every file of the project, as it is when the plan has been carried out.
    pub fn files_after(&self) -> Vec<SourceFile> {
        let after = |file: &SourceFile| {
            let edit = self.edits.iter().find(|edit| edit.path == file.path);
            SourceFile {
                path: file.path.clone(),
                bytes: edit.map_or(&file.bytes, |edit| &edit.after).clone(),
            }
        };
        self.files.iter().map(after).collect()
    }

    /// The same plan with one more thing that the caller should know.
    #[must_use]
    pub fn warn(mut self, warning: String) -> Self {
        self.warnings.push(warning);
        self
    }

    /// The plan as callers see it. `takes_number` is false in a dry run of a push.
    pub fn view(&self, dir: &std::path::Path, takes_number: bool) -> PlanView {
        let services = self.services.iter().map(|plan| (plan, true));
        let unchanged = self.unchanged.iter().map(|plan| (plan, false));
        PlanView {
            project: self.project.clone(),
            from: self.from,
            to: takes_number.then_some(self.to),
            services: services
                .chain(unchanged)
                .map(|(plan, changes)| planned_service(plan, changes))
                .collect(),
            untouched: self.untouched.clone(),
            edits: self
                .edits
                .iter()
                .flat_map(|edit| planned_edits(edit, dir))
                .collect(),
            hooks: self.hooks.iter().map(hooks::view).collect(),
            warnings: self.warnings.clone(),
            checks: self.checks.clone(),
        }
    }
}

fn planned_service(plan: &ServicePlan, changes: bool) -> PlannedService {
    PlannedService {
        service: plan.service.clone(),
        now: plan.old.clone(),
        now_digest: plan.old_digest.clone(),
        new: plan.new.clone(),
        changes,
        judged_by: plan.judged_by.clone(),
    }
}

fn planned_edits(edit: &FileEdit, dir: &std::path::Path) -> Vec<PlannedEdit> {
    let file = edit
        .path
        .strip_prefix(dir)
        .unwrap_or(&edit.path)
        .display()
        .to_string();
    let planned = |line: &LineEdit| PlannedEdit {
        file: file.clone(),
        line: line.line,
        before: line.before.clone(),
        after: line.after.clone(),
    };
    edit.lines.iter().map(planned).collect()
}
