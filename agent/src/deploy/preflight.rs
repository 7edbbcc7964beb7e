//! What must be right before the first container is stopped: the clock, the images, the disks, the host's ports and
//! container names. Pure: it judges what was seen, and tells everything that is wrong at once.

use std::collections::{BTreeMap, BTreeSet};

use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};
use jiff::{SignedDuration, Timestamp};

use super::facts::{Facts, FolderFacts, HostFacts, ImageFacts, Neighbour, ServiceFacts};
use super::plan::{Plan, ServicePlan};
use super::platform::Platform;
use super::ports::{HostPorts, TakenPort};
use crate::config::Project;

/// 2026-01-01T00:00:00Z. This program was built later: a clock before it was never set, and no certificate is valid then.
const BUILT_AFTER_SECONDS: i64 = 1_767_225_600;
/// How far the clock may be behind what the journal says: a correction by NTP is less.
const CLOCK_LAG_MAX: SignedDuration = SignedDuration::from_mins(5);
/// What an edit and the journal need: the files' bytes before and after, some times over, and a margin.
const FOLDER_MIN_FREE_BYTES: u64 = 8 * 1024 * 1024;
/// From here on the kernel gives ports to clients by default (`ip_local_port_range`): what has such a UDP port may be
/// gone in a moment.
const EPHEMERAL_PORTS_FROM: u16 = 32_768;

/// What is judged.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The project's configuration.
    pub project: &'a Project,
    /// What is known of the project.
    pub facts: &'a Facts,
    /// What is known of the host.
    pub host: &'a HostFacts,
    /// What is to be done.
    pub plan: &'a Plan,
    /// Services that would change too, but for an image that is not to be had.
    pub missing: &'a BTreeSet<ServiceName>,
    /// What the registries say the images are built for.
    pub offered: &'a BTreeMap<ServiceName, Vec<Platform>>,
    /// The host's time.
    pub now: Timestamp,
    /// When the journal last wrote of another deployment.
    pub last: Option<Timestamp>,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What was found to be in order, for people.
    pub checks: Vec<String>,
    /// What the caller should know, and what stops nothing.
    pub warnings: Vec<String>,
    /// Why nothing may begin.
    pub refusals: Vec<Problem>,
}

/// Judges everything.
pub fn judge(question: &Question<'_>) -> Findings {
    let mut findings = Findings::default();
    clock(question, &mut findings);
    images(question, &mut findings);
    space(question, &mut findings);
    folders(&question.host.folders, &mut findings);
    ports(question, &mut findings);
    names(question, &mut findings);
    findings
}

/// One problem that tells all of several: the first one's code, every detail and every hint. None for none.
pub fn together(problems: Vec<Problem>) -> Option<Problem> {
    let first = problems.first()?;
    if problems.len() == 1 {
        return problems.into_iter().next();
    }
    let numbered = |texts: Vec<&str>| {
        let numbered = texts.iter().enumerate();
        let numbered: Vec<String> = numbered
            .map(|(at, text)| format!("({}) {text}", at + 1))
            .collect();
        numbered.join("; ")
    };
    let details = numbered(problems.iter().map(|problem| problem.detail.as_str()).collect());
    let mut hints: Vec<&str> = Vec::new();
    for hint in problems.iter().filter_map(|problem| problem.hint.as_deref()) {
        if !hints.contains(&hint) {
            hints.push(hint);
        }
    }
    let all = Problem::new(
        first.code,
        format!("{} things are in the way: {details}", problems.len()),
    );
    Some(match hints.as_slice() {
        [] => all,
        [one] => all.hint(*one),
        [..] => all.hint(hints.join("; ")),
    })
}

impl Findings {
    fn refuse(&mut self, detail: String, hint: impl Into<String>) {
        self.refusals
            .push(Problem::new(Code::HostUnfit, detail).hint(hint));
    }
}

impl Question<'_> {
    /// Every service that is about to change, with what is known of it.
    fn changing(&self) -> Vec<(&ServiceName, &ServiceFacts)> {
        let planned = self.plan.services.iter().map(|plan| &plan.service);
        planned
            .chain(self.missing)
            .filter_map(|name| Some((name, self.facts.services.get(name)?)))
            .collect()
    }
}

fn clock(question: &Question<'_>, findings: &mut Findings) {
    let now = question.now;
    if now.as_second() < BUILT_AFTER_SECONDS {
        findings.refuse(
            format!("the host's clock says {now}, which is before this program was built"),
            "set the host's clock (timedatectl set-ntp true): with a wrong one no certificate is valid",
        );
    } else if let Some(last) = question.last
        && last.duration_since(now) > CLOCK_LAG_MAX
    {
        findings.warnings.push(format!(
            "the host's clock says {now}, and the last deployment was at {last}: the times in the history will not be in order"
        ));
    }
}

fn images(question: &Question<'_>, findings: &mut Findings) {
    let Some(host) = &question.host.platform else {
        return;
    };
    let mut fine: BTreeSet<&ImageRef> = BTreeSet::new();
    for service in &question.plan.services {
        let here = match question.host.images.get(&service.service) {
            Some(ImageFacts::Here(platform)) => Some(platform.clone()),
            Some(ImageFacts::Away { .. }) | None => None,
        };
        let offered = question.offered.get(&service.service).into_iter().flatten();
        let has: Vec<Platform> = here.into_iter().chain(offered.cloned()).collect();
        match check_platform(service, &has, host) {
            Err(problem) => findings.refusals.push(problem),
            Ok(()) => {
                fine.insert(&service.new);
            }
        }
        if !has.iter().any(Platform::is_known) && question.offered.contains_key(&service.service) {
            findings.warnings.push(format!(
                "{}: the registry does not say what {} is built for; that is checked after the pull",
                service.service, service.new
            ));
        }
        if let Some(wanted) = service.platform.as_deref().and_then(Platform::parse)
            && !host.runs(&wanted)
        {
            findings.warnings.push(format!(
                "{} asks for {wanted} (platform), and this host is {host}: it runs only where the host emulates that",
                service.service
            ));
        }
    }
    findings.checks.extend(match fine.len() {
        0 => None,
        1 => Some(format!("1 image exists for {host}")),
        n => Some(format!("{n} images exist for {host}")),
    });
}

/// Whether a service's new image, which is built for these, runs on this host; an image that a service wants for another
/// platform by its Compose file must be for that one. What says nothing known is let pass.
///
/// # Errors
/// [`Code::ImageUnavailable`], naming both.
pub fn check_platform(service: &ServicePlan, has: &[Platform], host: &Platform) -> Result<(), Problem> {
    let known: Vec<&Platform> = has.iter().filter(|platform| platform.is_known()).collect();
    let wanted = service.platform.as_deref().and_then(Platform::parse);
    let fits = |platform: &&&Platform| match &wanted {
        Some(wanted) => wanted == **platform,
        None => host.runs(platform),
    };
    if known.is_empty() || known.iter().any(|platform| fits(&platform)) {
        return Ok(());
    }
    let mut names: Vec<String> = known.iter().map(ToString::to_string).collect();
    names.dedup();
    let (image, has) = (&service.new, names.join(", "));
    Err(match wanted {
        Some(wanted) => Problem::new(
            Code::ImageUnavailable,
            format!(
                "{} asks for {wanted} (platform), and {image} is built for {has}",
                service.service
            ),
        )
        .hint(format!(
            "build the image for {wanted}, or take platform out of the Compose file"
        )),
        None => Problem::new(
            Code::ImageUnavailable,
            format!("{image} is built for {has}, and this host is {host}"),
        )
        .hint(format!(
            "build the image for {host} (docker buildx build --platform {host})"
        )),
    })
}

fn space(question: &Question<'_>, findings: &mut Findings) {
    let (free, min_free) = (question.facts.free_bytes, question.project.min_free_bytes);
    let mut pulled: BTreeMap<&ImageRef, Option<u64>> = BTreeMap::new();
    for service in &question.plan.services {
        if let Some(ImageFacts::Away { old_bytes }) = question.host.images.get(&service.service) {
            pulled.insert(&service.new, *old_bytes);
        }
    }
    let told = format!("{} free for images, min_free {}", size(free), size(min_free));
    let goes_on = !question.missing.is_empty() || wants_room(question.plan);
    match check_space(question.project, free) {
        Err(problem) if goes_on || !pulled.is_empty() => return findings.refusals.push(problem),
        // Going back to what is here needs no room, and must not wait for somebody to tidy up.
        Err(problem) => return findings.warnings.push(problem.detail),
        Ok(()) => findings.checks.push(told),
    }
    let expected = pulled
        .values()
        .flatten()
        .fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
    let left = free.saturating_sub(expected);
    if left < min_free {
        findings.warnings.push(format!(
            "if the new images are as large as those that run now ({}), {} stay free, less than min_free ({}): \
             the pull is broken off then, before anything is stopped",
            size(expected),
            size(left),
            size(min_free)
        ));
    }
}

/// Whether a plan brings an image that no release has run here yet: only going back needs no room.
pub fn wants_room(plan: &Plan) -> bool {
    plan.services.iter().any(|service| service.new_image_id.is_none())
}

/// Refuses when less than `min_free` is free where the Engine keeps its images.
///
/// # Errors
/// [`Code::HostUnfit`], with both figures.
pub fn check_space(project: &Project, free_bytes: u64) -> Result<(), Problem> {
    if free_bytes >= project.min_free_bytes {
        return Ok(());
    }
    let detail = format!(
        "only {} are free where the Engine keeps its images, and project {} wants {} (min_free)",
        size(free_bytes),
        project.name,
        size(project.min_free_bytes)
    );
    Err(Problem::new(Code::HostUnfit, detail)
        .hint("free disk space on the host, or lower min_free in its projects.d file"))
}

fn folders(folders: &[FolderFacts], findings: &mut Findings) {
    for folder in folders {
        let path = folder.path.display();
        if folder.is_read_only {
            findings.refuse(
                format!("the agent cannot write in {path}: it is read-only for it"),
                "let the service write there with ReadWritePaths, as `deploy-agent add` says, or mount it writable",
            );
        } else if folder.free_bytes < FOLDER_MIN_FREE_BYTES {
            findings.refuse(
                format!(
                    "only {} are free in {path}, and the edit and the journal want {}",
                    size(folder.free_bytes),
                    size(FOLDER_MIN_FREE_BYTES)
                ),
                "free disk space on the host",
            );
        } else if !folder.has_free_files {
            findings.refuse(
                format!("no file can be made in {path}: its file system has no inode left"),
                "remove files there that nobody needs",
            );
        }
    }
}

fn ports(question: &Question<'_>, findings: &mut Findings) {
    let changing = question.changing();
    let mut fine: BTreeSet<String> = BTreeSet::new();
    for (at, (service, facts)) in changing.iter().enumerate() {
        for wanted in &facts.ports {
            // What a range cannot have at one port it may have at the next: the Engine looks for a free one itself.
            let Some(as_taken) = wanted.as_taken() else {
                continue;
            };
            let twin = changing.iter().skip(at + 1).find(|(_, other)| {
                other
                    .ports
                    .iter()
                    .any(|port| port.fixed().is_some() && port.collides(&as_taken))
            });
            let refusal = twin
                .map(|(twin, _)| format!("{service} and {twin} both publish {as_taken}"))
                .or_else(|| in_the_way(question, service, wanted, &as_taken));
            match refusal {
                Some(detail) => findings.refuse(
                    detail,
                    "stop what has the port, or publish another one in the Compose file",
                ),
                None => {
                    fine.insert(as_taken.port.to_string());
                }
            }
        }
    }
    let fine: Vec<String> = fine.into_iter().collect();
    let nobody = match question.host.listeners {
        Some(_) => "nobody else",
        // The Engine has a network of its own: what listens there cannot be seen from here.
        None => "no other container",
    };
    findings.checks.extend(match fine.as_slice() {
        [] => None,
        [one] => Some(format!("{nobody} has port {one}")),
        [..] => Some(format!("{nobody} has ports {}", fine.join(", "))),
    });
}

/// Who has a port that a service wants: a container that stays, or a process of the host.
fn in_the_way(
    question: &Question<'_>,
    service: &ServiceName,
    wanted: &HostPorts,
    named: &TakenPort,
) -> Option<String> {
    let changing = question.changing();
    let stays = |neighbour: &&Neighbour| !changing.iter().any(|(name, _)| is_of(neighbour, question, name));
    let takes = |neighbour: &&Neighbour| neighbour.ports.iter().any(|port| wanted.collides(port));
    if let Some(neighbour) = question.host.neighbours.iter().filter(stays).find(takes) {
        return Some(format!(
            "{service} publishes {named}, and {} has it",
            called(neighbour, question)
        ));
    }
    // What the replaced containers hold is theirs to give back, also while they are between two starts.
    let is_given_back = |listener: &&TakenPort| {
        changing
            .iter()
            .any(|(_, facts)| facts.holds.any || facts.holds.ports.iter().any(|held| held.collides(listener)))
    };
    let is_passing =
        |listener: &&TakenPort| listener.protocol == "udp" && listener.port >= EPHEMERAL_PORTS_FROM;
    let mut listeners = question.host.listeners.iter().flatten();
    let listener = listeners
        .find(|listener| wanted.collides(listener) && !is_given_back(listener) && !is_passing(listener));
    listener.map(|_| {
        format!("{service} publishes {named}, and a process of the host that is no container listens there")
    })
}

fn names(question: &Question<'_>, findings: &mut Findings) {
    for (service, facts) in question.changing() {
        let default = format!("{}-{service}-1", question.project.name);
        let wanted = facts.container_name.as_ref().unwrap_or(&default);
        let other = question
            .host
            .neighbours
            .iter()
            .find(|neighbour| &neighbour.name == wanted && !is_of(neighbour, question, service));
        match (other, &facts.container_name) {
            (Some(other), _) => findings.refuse(
                format!(
                    "the container of {service} is to be called {wanted}, and {} is",
                    called(other, question)
                ),
                "remove or rename that container, or change container_name in the Compose file",
            ),
            (None, Some(name)) => findings.checks.push(format!("nobody else is called {name}")),
            (None, None) => {}
        }
    }
}

/// Whether it is a container of this service of the project.
fn is_of(neighbour: &Neighbour, question: &Question<'_>, service: &ServiceName) -> bool {
    neighbour.owner.as_ref().is_some_and(|(project, owner)| {
        project == question.project.name.as_str() && owner == service.as_str()
    })
}

fn called(neighbour: &Neighbour, question: &Question<'_>) -> String {
    let name = &neighbour.name;
    match &neighbour.owner {
        Some((project, service)) if project == question.project.name.as_str() => {
            format!("container {name} (service {service})")
        }
        Some((project, _)) => format!("container {name} of project {project}"),
        None => format!("container {name}"),
    }
}

/// `12.1 GiB`, `512 MiB`.
pub fn size(bytes: u64) -> String {
    const MEBI: u64 = 1024 * 1024;
    const GIBI: u64 = 1024 * MEBI;
    if bytes >= GIBI {
        format!("{}.{} GiB", bytes / GIBI, bytes % GIBI * 10 / GIBI)
    } else {
        format!("{} MiB", bytes / MEBI)
    }
}

#[cfg(test)]
#[path = "preflight_tests.rs"]
mod tests;
