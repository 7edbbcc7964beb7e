//! What runs, what ran, and how it is: `status`, `health` and `history`.

use std::time::Duration;

use deploy_proto::event::Ending;
use deploy_proto::image::{Digest, ImageRef};
use deploy_proto::push::Source;
use deploy_proto::release::{
    DeploymentKind, DeploymentView, Drift, DriftKind, History, MissingImages, ProjectHealth, ProjectStatus,
    ReleaseState, ReleaseView, ServiceHealth, ServiceStatus,
};
use jiff::Timestamp;

use super::called;
use crate::render::text::{Paint, ago, clean, columns, took};

/// The lines of `status`; `arguments` lead to this host again, in what is suggested.
pub(crate) fn status(
    status: &ProjectStatus,
    host: &str,
    arguments: &str,
    now: Timestamp,
    paint: Paint,
) -> Vec<String> {
    let heading = format!("{} on {host}", status.project);
    let mut lines = vec![match &status.release {
        Some(release) => format!("{}: {}", paint.bold(&heading), release_line(release, now)),
        None => format!("{}: no release is recorded yet", paint.bold(&heading)),
    }];
    lines.extend(services(&status.services, paint));
    if let Some(running) = &status.running {
        let (id, phase) = (&running.id, running.phase.as_str());
        lines.push(format!(
            "  {} deployment {id} is under way: {phase}",
            paint.warn("…")
        ));
    }
    if let Some(baking) = &status.baking {
        lines.push(format!(
            "  {} release {} is watched for {} more, and goes back by itself if it falls sick",
            paint.dim("…"),
            baking.release,
            took(Duration::from_millis(baking.left_ms))
        ));
    }
    let last = status
        .last
        .as_ref()
        .and_then(|last| Some((last, last.outcome.as_ref()?)));
    if let Some((last, outcome)) = last
        && !matches!(outcome.result, Ending::Live | Ending::Unchanged)
    {
        let why = outcome.problem.as_ref().map(|problem| clean(&problem.detail));
        let what = format!("last deployment {} {}", last.id, ending(outcome.result));
        lines.push(format!(
            "  {} {what}: {}",
            paint.warn("!"),
            why.unwrap_or_default()
        ));
    }
    let attention = status.attention.iter();
    lines.extend(attention.map(|text| format!("  {} {}", paint.bad("!"), clean(text))));
    lines.extend(drift(&status.drift, arguments, paint));
    let missing = status.missing.iter().map(missing_line);
    lines.extend(missing.map(|text| format!("  {} {text}", paint.warn("!"))));
    lines
}

/// What drifted, and what to do about it. Edited files are among what needs attention already.
fn drift(drift: &[Drift], arguments: &str, paint: Paint) -> Vec<String> {
    let (files, services): (Vec<&Drift>, Vec<&Drift>) =
        drift.iter().partition(|one| one.kind == DriftKind::Edited);
    let line = |text: &str| format!("  {} {text}", paint.warn("!"));
    let mut lines: Vec<String> = services
        .iter()
        .map(|one| {
            line(&format!(
                "drift: {}: deployctl reconcile{arguments}",
                clean(&one.detail)
            ))
        })
        .collect();
    if !files.is_empty() {
        lines.push(line(&format!(
            "to undo the edits: deployctl reconcile{arguments} --discard-edits; to deploy on top of them: deployctl push{arguments} --accept-edits"
        )));
    }
    lines
}

/// The lines of `health`.
pub(crate) fn health(health: &ProjectHealth, host: &str, paint: Paint) -> Vec<String> {
    let release = health
        .release
        .map(|release| format!(" (release {release})"))
        .unwrap_or_default();
    let (mark, word) = if health.healthy {
        (paint.good("✔"), "healthy")
    } else {
        (paint.bad("✖"), "NOT healthy")
    };
    let mut lines = vec![format!("{mark} {} on {host} is {word}{release}", health.project)];
    lines.extend(services(&health.services, paint));
    lines
}

/// The lines of `history`.
pub(crate) fn history(history: &History, host: &str, now: Timestamp, paint: Paint) -> Vec<String> {
    let mut lines = vec![paint.bold(&format!("{} on {host}", history.project))];
    if history.deployments.is_empty() && history.releases.is_empty() {
        lines.push("  nothing was deployed yet".to_owned());
        return lines;
    }
    let header = ["RELEASE", "VERSION", "STATE", "RECORDED", "BY", "COMMIT"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(history.releases.iter().map(|release| {
        let is_missing = history
            .missing
            .iter()
            .any(|missing| missing.release == release.number);
        release_row(release, is_missing, now)
    }));
    lines.extend(table(&rows, paint));
    if !history.missing.is_empty() {
        let note = "  (away): not all its images are on the host; a rollback to it pulls them by digest";
        lines.push(paint.dim(note));
    }
    let header = ["DEPLOYMENT", "WHAT", "ENDED", "ACCEPTED", "TOOK", "BY", "WHY"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(
        history
            .deployments
            .iter()
            .map(|deployment| deployment_row(deployment, now)),
    );
    if !history.deployments.is_empty() {
        lines.push(String::new());
        lines.extend(table(&rows, paint));
    }
    lines
}

fn release_line(release: &ReleaseView, now: Timestamp) -> String {
    let version = release_called(release);
    let by = release
        .key
        .as_ref()
        .map_or_else(|| "found on the host".to_owned(), |key| format!("by {key}"));
    let from = match source(&release.source) {
        text if text.is_empty() => text,
        text => format!(" from {text}"),
    };
    format!(
        "release {} ({version}), {}, {by}{from}",
        release.number,
        ago(release.created_at, now)
    )
}

/// What it means that images of a kept release are gone.
fn missing_line(missing: &MissingImages) -> String {
    let called = missing
        .version
        .as_ref()
        .map(|version| format!(" ({version})"))
        .unwrap_or_default();
    let release = format!("release {}{called}", missing.release);
    let names: Vec<&str> = missing
        .images
        .iter()
        .map(|image| image.service.as_str())
        .collect();
    let (what, are, pulls) = match names.as_slice() {
        [one] => (format!("the image of {one}"), "is", "pulls it"),
        [first @ .., last] => (
            format!("the images of {} and {last}", first.join(", ")),
            "are",
            "pulls them",
        ),
        [] => ("no image".to_owned(), "is", "pulls it"),
    };
    let lost = missing.images.iter().any(|image| image.image.digest().is_none());
    let then = if lost {
        "and no registry ever had it: it cannot be rolled back to".to_owned()
    } else {
        format!("so a rollback to it {pulls} by digest")
    };
    format!("{release}: {what} {are} not on this host any more, {then}")
}

fn release_called(release: &ReleaseView) -> String {
    if release.key.is_none() {
        // Found, not deployed: nobody gave it a name.
        return "as found".to_owned();
    }
    let changed = release.services.iter().filter(|service| service.changed);
    called(release.version.as_ref(), changed.map(|service| &service.image))
}

fn release_row(release: &ReleaseView, is_missing: bool, now: Timestamp) -> Vec<String> {
    let state = match release.state {
        ReleaseState::Deploying => "deploying",
        ReleaseState::Live => "live",
        ReleaseState::Replaced => "replaced",
        ReleaseState::Failed => "failed",
    };
    let key = release.key.as_ref();
    vec![
        release.number.to_string(),
        release_called(release),
        if is_missing {
            format!("{state} (away)")
        } else {
            state.to_owned()
        },
        ago(release.created_at, now),
        key.map_or_else(|| "-".to_owned(), ToString::to_string),
        commit(&release.source).unwrap_or_default(),
    ]
}

fn deployment_row(deployment: &DeploymentView, now: Timestamp) -> Vec<String> {
    let arrow = |number: Option<_>| {
        number.map_or_else(
            || "?".to_owned(),
            |number: deploy_proto::names::ReleaseNumber| number.to_string(),
        )
    };
    let kind = match deployment.kind {
        DeploymentKind::Push => "push",
        DeploymentKind::Rollback => "rollback",
        DeploymentKind::Reconcile => "reconcile",
        DeploymentKind::AutoRollback => "automatic rollback",
    };
    let outcome = deployment.outcome.as_ref();
    vec![
        deployment.id.to_string(),
        format!("{kind} {} -> {}", arrow(deployment.from), arrow(deployment.to)),
        outcome
            .map_or(deployment.phase.as_str(), |outcome| ending(outcome.result))
            .to_owned(),
        ago(deployment.accepted_at, now),
        outcome
            .map(|outcome| took(Duration::from_millis(outcome.elapsed_ms)))
            .unwrap_or_default(),
        deployment.key.to_string(),
        why(deployment),
    ]
}

/// Why it ended as it did, and what became of it since.
fn why(deployment: &DeploymentView) -> String {
    let outcome = deployment.outcome.as_ref();
    let problem = outcome.and_then(|outcome| outcome.problem.as_ref());
    let parts = [
        problem.map(|problem| clean(&problem.detail)),
        deployment.undoes.as_ref().map(|id| format!("undoes {id}")),
        deployment
            .undone_by
            .as_ref()
            .map(|id| format!("undone later by {id}")),
        deployment
            .cancelled_by
            .as_ref()
            .map(|key| format!("cancelled by {key}")),
        deployment
            .sequence
            .as_ref()
            .map(|sequence| format!("run {sequence}")),
        deployment.allow_older.then(|| "with --allow-older".to_owned()),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    parts.join("; ")
}

fn ending(ending: Ending) -> &'static str {
    match ending {
        Ending::Live => "live",
        Ending::Unchanged => "unchanged",
        Ending::Refused => "refused",
        Ending::RolledBack => "rolled back",
        Ending::Stuck => "STUCK",
    }
}

fn services(services: &[ServiceStatus], paint: Paint) -> Vec<String> {
    let header = ["SERVICE", "IMAGE", "DIGEST", "HEALTH"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(services.iter().map(service_row));
    let mut lines = table(&rows, paint);
    for (line, service) in lines.iter_mut().skip(1).zip(services) {
        *line = match service.health {
            ServiceHealth::Healthy => std::mem::take(line),
            ServiceHealth::Starting => paint.warn(line),
            ServiceHealth::Unhealthy | ServiceHealth::Missing => paint.bad(line),
        };
    }
    lines
}

fn service_row(service: &ServiceStatus) -> Vec<String> {
    let health = match service.health {
        ServiceHealth::Healthy => "healthy",
        ServiceHealth::Starting => "starting",
        ServiceHealth::Unhealthy => "UNHEALTHY",
        ServiceHealth::Missing => "MISSING",
    };
    let detail = clean(&service.detail);
    let health = match detail.strip_prefix(health) {
        Some(_) => detail,
        None if detail.is_empty() => health.to_owned(),
        None => format!("{health}: {detail}"),
    };
    let image = service.image.as_ref().map(ImageRef::without_digest);
    let mut row = vec![
        service.service.to_string(),
        image.map_or_else(|| "-".to_owned(), |image| image.to_string()),
        service
            .digest
            .as_ref()
            .map(Digest::short)
            .unwrap_or("-")
            .to_owned(),
        health,
    ];
    if !service.managed
        && let Some(health) = row.last_mut()
    {
        health.push_str("  (not deployed from here)");
    }
    row
}

/// The commit's first seven digits and the actor.
fn source(source: &Source) -> String {
    let parts = [commit(source), source.actor.as_deref().map(clean)];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    parts.join(" by ")
}

fn commit(source: &Source) -> Option<String> {
    const SHOWN: usize = 7;
    let commit = source.commit.as_ref()?;
    Some(clean(&commit.chars().take(SHOWN).collect::<String>()))
}

fn table(rows: &[Vec<String>], paint: Paint) -> Vec<String> {
    let mut lines: Vec<_> = columns(rows).iter().map(|line| format!("  {line}")).collect();
    if let Some(header) = lines.first_mut() {
        *header = paint.dim(header);
    }
    lines
}

#[cfg(test)]
mod tests {
    use deploy_proto::event::PhaseName;
    use deploy_proto::names::{DeploymentId, ReleaseNumber};
    use deploy_proto::release::{Baking, MissingImage, ReleasedService};

    use super::super::samples::{DIGEST, live, rolled_back};
    use super::*;

    const PLAIN: Paint = Paint { on: false };

    fn now() -> Timestamp {
        Timestamp::from_second(100_000).unwrap()
    }

    fn release() -> ReleaseView {
        ReleaseView {
            number: ReleaseNumber(41),
            state: ReleaseState::Live,
            version: None,
            created_at: Timestamp::from_second(90_000).unwrap(),
            key: Some("github-shop".parse().unwrap()),
            source: Source {
                commit: Some("3f9c1ab4d2".into()),
                run_url: None,
                actor: Some("kim".into()),
            },
            irreversible: false,
            services: vec![ReleasedService {
                service: "web".parse().unwrap(),
                image: "acme/web:v1.4.1".parse().unwrap(),
                changed: true,
            }],
        }
    }

    fn failed() -> DeploymentView {
        DeploymentView {
            id: DeploymentId::from_bits(0xabc),
            project: "shop".parse().unwrap(),
            kind: DeploymentKind::Push,
            undoes: None,
            undone_by: None,
            key: "github-shop".parse().unwrap(),
            source: Source::default(),
            from: Some(ReleaseNumber(41)),
            to: Some(ReleaseNumber(42)),
            version: None,
            sequence: None,
            allow_older: false,
            cancelled_by: None,
            accepted_at: Timestamp::from_second(99_900).unwrap(),
            phase: PhaseName::RolledBack,
            ended_at: Some(now()),
            outcome: Some(rolled_back()),
        }
    }

    fn service(name: &str, health: ServiceHealth, detail: &str, managed: bool) -> ServiceStatus {
        ServiceStatus {
            service: name.parse().unwrap(),
            image: Some(format!("acme/{name}:v1@{DIGEST}").parse().unwrap()),
            digest: Some(DIGEST.parse().unwrap()),
            health,
            detail: detail.to_owned(),
            managed,
        }
    }

    #[test]
    fn status_shows_release_services_and_what_needs_attention() {
        let shown = status(
            &ProjectStatus {
                project: "shop".parse().unwrap(),
                release: Some(release()),
                services: vec![
                    service("web", ServiceHealth::Healthy, "healthy for 3 days", true),
                    service("db", ServiceHealth::Unhealthy, "exited (3)", false),
                ],
                running: None,
                last: Some(failed()),
                baking: Some(Baking {
                    release: ReleaseNumber(41),
                    deployment: DeploymentId::from_bits(0xabb),
                    left_ms: 480_000,
                }),
                attention: vec!["docker-compose.yml was edited by hand".into()],
                missing: vec![missing(&["web", "api"], &format!("@{DIGEST}"))],
                drift: vec![
                    Drift {
                        kind: DriftKind::Missing,
                        service: Some("web".parse().unwrap()),
                        detail: "web has no container, the release runs v1.4.1".into(),
                    },
                    Drift {
                        kind: DriftKind::Edited,
                        service: None,
                        detail: "docker-compose.yml edited by hand".into(),
                    },
                ],
            },
            "web-1",
            " -e production",
            now(),
            PLAIN,
        );
        assert_eq!(
            shown.join("\n"),
            "shop on web-1: release 41 (v1.4.1), 2 hours ago, by github-shop from 3f9c1ab by kim
  SERVICE  IMAGE        DIGEST        HEALTH
  web      acme/web:v1  4b1c07aeb1a4  healthy for 3 days
  db       acme/db:v1   4b1c07aeb1a4  UNHEALTHY: exited (3)  (not deployed from here)
  … release 41 is watched for 8m 0s more, and goes back by itself if it falls sick
  ! last deployment 0000000000000abc rolled back: web: GET http://127.0.0.1:8080/health gave 500, 12 times in 60s
  ! docker-compose.yml was edited by hand
  ! drift: web has no container, the release runs v1.4.1: deployctl reconcile -e production
  ! to undo the edits: deployctl reconcile -e production --discard-edits; to deploy on top of them: deployctl push -e production --accept-edits
  ! release 40 (v1.4.0): the images of web and api are not on this host any more, so a rollback to it pulls them by digest"
        );
    }

    #[test]
    fn history_shows_releases_and_deployments_newest_first() {
        let shown = history(
            &History {
                project: "shop".parse().unwrap(),
                deployments: vec![failed()],
                releases: vec![release()],
                missing: vec![],
            },
            "web-1",
            now(),
            PLAIN,
        );
        assert_eq!(
            shown.join("\n"),
            "shop on web-1
  RELEASE  VERSION  STATE  RECORDED     BY           COMMIT
  41       v1.4.1   live   2 hours ago  github-shop  3f9c1ab

  DEPLOYMENT        WHAT           ENDED        ACCEPTED      TOOK  BY           WHY
  0000000000000abc  push 41 -> 42  rolled back  1 minute ago  22s   github-shop  web: GET http://127.0.0.1:8080/health gave 500, 12 times in 60s"
        );
    }

    fn missing(services: &[&str], digest: &str) -> MissingImages {
        let image = |name: &&str| MissingImage {
            service: name.parse().unwrap(),
            image: format!("acme/{name}:v1.4.0{digest}").parse().unwrap(),
        };
        MissingImages {
            release: ReleaseNumber(40),
            version: "v1.4.0".parse().ok(),
            images: services.iter().map(image).collect(),
        }
    }

    #[test]
    fn a_release_that_lost_images_is_marked_and_one_that_cannot_be_had_again_is_told_so() {
        let shown = history(
            &History {
                project: "shop".parse().unwrap(),
                deployments: vec![],
                releases: vec![ReleaseView {
                    number: ReleaseNumber(40),
                    state: ReleaseState::Replaced,
                    ..release()
                }],
                missing: vec![missing(&["web"], &format!("@{DIGEST}"))],
            },
            "web-1",
            now(),
            PLAIN,
        );
        assert_eq!(
            shown.join("\n"),
            "shop on web-1
  RELEASE  VERSION  STATE            RECORDED     BY           COMMIT
  40       v1.4.1   replaced (away)  2 hours ago  github-shop  3f9c1ab
  (away): not all its images are on the host; a rollback to it pulls them by digest"
        );
        assert_eq!(
            missing_line(&missing(&["web"], "")),
            "release 40 (v1.4.0): the image of web is not on this host any more, and no registry ever had it: it cannot be rolled back to"
        );
    }

    #[test]
    fn history_tells_of_a_push_that_was_taken_back_and_of_what_took_it() {
        let push = DeploymentView {
            undone_by: Some(DeploymentId::from_bits(0xabd)),
            outcome: Some(live()),
            ..failed()
        };
        let back = DeploymentView {
            id: DeploymentId::from_bits(0xabd),
            kind: DeploymentKind::AutoRollback,
            undoes: Some(push.id.clone()),
            from: push.to,
            to: push.from,
            ..failed()
        };
        let history_view = History {
            project: "shop".parse().unwrap(),
            deployments: vec![back, push],
            releases: vec![],
            missing: vec![],
        };
        let shown = history(&history_view, "web-1", now(), PLAIN).join("\n");
        assert!(
            shown.contains("automatic rollback 42 -> 41  rolled back"),
            "{shown}"
        );
        assert!(
            shown.contains("12 times in 60s; undoes 0000000000000abc"),
            "{shown}"
        );
        assert!(shown.contains("undone later by 0000000000000abd"), "{shown}");
    }

    #[test]
    fn history_tells_which_run_a_push_was_and_who_cancelled_it() {
        let pushed = DeploymentView {
            sequence: "4711.2".parse().ok(),
            allow_older: true,
            cancelled_by: "kim".parse().ok(),
            ..failed()
        };
        assert!(
            why(&pushed).ends_with("; cancelled by kim; run 4711.2; with --allow-older"),
            "{}",
            why(&pushed)
        );
        assert!(!why(&failed()).contains("run 4711"), "{}", why(&failed()));
    }

    #[test]
    fn health_says_it_in_the_first_line() {
        let first_line = |healthy| {
            let view = ProjectHealth {
                project: "shop".parse().unwrap(),
                healthy,
                release: Some(ReleaseNumber(41)),
                services: vec![],
            };
            health(&view, "web-1", PLAIN).first().unwrap().clone()
        };
        assert_eq!(first_line(true), "✔ shop on web-1 is healthy (release 41)");
        assert_eq!(first_line(false), "✖ shop on web-1 is NOT healthy (release 41)");
    }
}
