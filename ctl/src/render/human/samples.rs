//! Fixed plans, events and outcomes for the tests of this room.

use deploy_proto::event::{Ending, Event, Happened, Outcome, PhaseName, RunningService};
use deploy_proto::names::{DeploymentId, ReleaseNumber};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::{DeploymentKind, PlanView, PlannedEdit, PlannedService};
use jiff::Timestamp;

pub(crate) const DIGEST: &str = "sha256:4b1c07aeb1a4ec1a3b3e7f0a9d1c2b3a4b1c07aeb1a4ec1a3b3e7f0a9d1c2b3a";

pub(crate) fn plan() -> PlanView {
    let service = |name: &str, now: &str, new: &str, changes, judged_by: &str| PlannedService {
        service: name.parse().unwrap(),
        now: Some(format!("acme/{name}:{now}").parse().unwrap()),
        now_digest: None,
        new: format!("acme/{name}:{new}@{DIGEST}").parse().unwrap(),
        changes,
        judged_by: vec![judged_by.to_owned()],
    };
    PlanView {
        project: "shop".parse().unwrap(),
        from: Some(ReleaseNumber(41)),
        to: Some(ReleaseNumber(42)),
        services: vec![
            service("web", "v1.4.1", "v1.4.2", true, "healthcheck"),
            service("api", "v1.4.0", "v1.4.0", false, "state and restarts only"),
        ],
        untouched: vec!["db".parse().unwrap(), "redis".parse().unwrap()],
        edits: vec![PlannedEdit {
            file: "docker-compose.yml".into(),
            line: 12,
            before: "v1.4.1".into(),
            after: "v1.4.2".into(),
        }],
        hooks: Vec::new(),
        warnings: vec!["api has no healthcheck\u{1b}[2J".into()],
        checks: vec!["1 image exists for linux/amd64".into()],
    }
}

pub(crate) fn event(what: Happened) -> Event {
    Event {
        seq: what.is_journaled().then_some(1),
        at: Timestamp::UNIX_EPOCH,
        deployment: DeploymentId::from_bits(0xabc),
        what,
    }
}

pub(crate) fn done(phase: PhaseName, summary: &str, elapsed_ms: u64) -> Event {
    event(Happened::PhaseDone {
        phase,
        summary: summary.to_owned(),
        elapsed_ms,
    })
}

pub(crate) fn begun() -> [Event; 2] {
    [
        event(Happened::Accepted {
            project: "shop".parse().unwrap(),
            kind: DeploymentKind::Push,
            key: "github-shop".parse().unwrap(),
            version: Some("v1.4.2".parse().unwrap()),
        }),
        event(Happened::Planned { plan: plan() }),
    ]
}

pub(crate) fn live() -> Outcome {
    Outcome {
        result: Ending::Live,
        release: Some(ReleaseNumber(42)),
        problem: None,
        trouble: None,
        sick_service: None,
        log_lines: vec![],
        now: vec![RunningService {
            service: "web".parse().unwrap(),
            image: Some("acme/web:v1.4.2".parse().unwrap()),
            state: None,
        }],
        elapsed_ms: 22_700,
        bake_ms: None,
        undone: None,
    }
}

pub(crate) fn sick() -> Problem {
    Problem::new(
        Code::Unhealthy,
        "web: GET http://127.0.0.1:8080/health gave 500, 12 times in 60s",
    )
}

pub(crate) fn rolled_back() -> Outcome {
    Outcome {
        result: Ending::RolledBack,
        release: Some(ReleaseNumber(41)),
        problem: Some(sick()),
        sick_service: Some("web".parse().unwrap()),
        log_lines: vec![
            "ERROR: relation \"orders_v2\" does not exist\u{1b}[0m".into(),
            "::error::forged".into(),
        ],
        now: vec![RunningService {
            service: "web".parse().unwrap(),
            image: Some("acme/web:v1.4.1".parse().unwrap()),
            state: None,
        }],
        ..live()
    }
}

pub(crate) fn refused() -> Outcome {
    Outcome {
        result: Ending::Refused,
        release: Some(ReleaseNumber(41)),
        problem: Some(
            Problem::new(Code::ImageUnavailable, "acme/web:v1.4.2 does not exist")
                .hint("push the image first"),
        ),
        ..rolled_back()
    }
}

pub(crate) fn stuck() -> Outcome {
    Outcome {
        result: Ending::Stuck,
        release: None,
        trouble: Some(Problem::new(Code::RestartFailed, "port 8080 is taken")),
        now: vec![RunningService {
            service: "web".parse().unwrap(),
            image: None,
            state: None,
        }],
        ..rolled_back()
    }
}
