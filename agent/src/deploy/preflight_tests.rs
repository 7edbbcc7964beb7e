//! The judgement before a deployment, case by case.

use std::collections::{BTreeMap, BTreeSet};

use deploy_proto::names::{ReleaseNumber, ServiceName};

use super::super::facts::{FolderFacts, Held};
use super::super::fake_host::NEW_DIGEST;
use super::*;
use crate::config::{Order, Pin};

const MIB: u64 = 1024 * 1024;

/// A host on which a push of `web` is fine.
struct Case {
    project: Project,
    facts: Facts,
    host: HostFacts,
    plan: Plan,
    offered: BTreeMap<ServiceName, Vec<Platform>>,
    now: Timestamp,
    last: Option<Timestamp>,
}

fn web() -> ServiceName {
    "web".parse().unwrap()
}

fn linux(architecture: &str) -> Platform {
    Platform::new("linux", architecture)
}

impl Case {
    fn fine() -> Self {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let service = ServiceFacts {
            ports: vec![HostPorts::read("", "8080", "tcp").unwrap()],
            ..ServiceFacts::default()
        };
        let new: ImageRef = format!("acme/web:v2@{NEW_DIGEST}").parse().unwrap();
        let planned = ServicePlan {
            service: web(),
            old: None,
            old_digest: None,
            old_image_id: None,
            old_containers: None,
            written: new.clone(),
            new,
            new_image_id: None,
            old_was_well: true,
            judged_by: Vec::new(),
            platform: None,
        };
        let folder = FolderFacts {
            path: "/srv/shop".into(),
            free_bytes: 1024 * MIB,
            has_free_files: true,
            is_read_only: false,
        };
        Self {
            project: Project {
                name: "shop".parse().unwrap(),
                dir: "/srv/shop".into(),
                files: Vec::new(),
                images: vec!["acme/*".into()],
                allow_latest: false,
                pin: Pin::Digest,
                order: Order::OneByOne,
                wait: std::time::Duration::ZERO,
                settle: std::time::Duration::ZERO,
                bake: std::time::Duration::ZERO,
                keep: 10,
                remove_images: true,
                min_free_bytes: 1024 * MIB,
                probes: Vec::new(),
                hooks: Vec::new(),
            },
            facts: Facts {
                services: BTreeMap::from([(web(), service)]),
                free_bytes: 12_390 * MIB,
                ..Facts::default()
            },
            host: HostFacts {
                platform: Some(linux("amd64")),
                images: BTreeMap::from([(web(), ImageFacts::Away { old_bytes: None })]),
                listeners: Some(Vec::new()),
                folders: vec![folder],
                ..HostFacts::default()
            },
            plan: Plan {
                project: "shop".parse().unwrap(),
                made_at: now,
                from: None,
                to: ReleaseNumber(1),
                services: vec![planned],
                unchanged: Vec::new(),
                untouched: Vec::new(),
                files: Vec::new(),
                edits: Vec::new(),
                gives_bytes_back: false,
                hooks: Vec::new(),
                warnings: Vec::new(),
                checks: Vec::new(),
            },
            offered: BTreeMap::from([(web(), vec![linux("amd64")])]),
            now,
            last: None,
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut case = Self::fine();
        change(&mut case);
        case
    }

    fn judged(&self) -> Findings {
        judge(&Question {
            project: &self.project,
            facts: &self.facts,
            host: &self.host,
            plan: &self.plan,
            missing: &BTreeSet::new(),
            offered: &self.offered,
            now: self.now,
            last: self.last,
        })
    }

    /// Refused for this one reason.
    #[track_caller]
    fn refused(&self, reason: &str) {
        let refusals = self.judged().refusals;
        assert!(
            matches!(refusals.as_slice(), [one] if one.detail.contains(reason) && one.hint.is_some()),
            "{reason:?} in {refusals:?}"
        );
    }

    /// Let through with this warning, or with none.
    #[track_caller]
    fn warned(&self, warning: Option<&str>) {
        let findings = self.judged();
        assert_eq!(findings.refusals, []);
        match (warning, findings.warnings.as_slice()) {
            (None, []) => {}
            (Some(warning), [one]) if one.contains(warning) => {}
            (_, warnings) => panic!("{warning:?} in {warnings:?}"),
        }
    }
}

fn stranger(port: TakenPort) -> Neighbour {
    Neighbour {
        name: "nginx".into(),
        owner: None,
        ports: vec![port],
    }
}

#[test]
fn what_is_in_order_is_told() {
    let findings = Case::fine().judged();
    assert_eq!(
        findings.checks,
        [
            "1 image exists for linux/amd64",
            "12.0 GiB free for images, min_free 1.0 GiB",
            "nobody else has port 8080"
        ]
    );
    Case::fine().warned(None);
}

#[test]
fn a_clock_that_was_never_set_refuses_and_one_that_went_back_warns() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    Case::with(|case| case.now = at("1970-01-01T00:01:00Z")).refused("before this program was built");
    Case::with(|case| case.now = at("2025-12-31T23:59:59Z")).refused("before this program was built");
    Case::with(|case| case.now = at("2036-01-01T00:00:00Z")).warned(None);
    Case::with(|case| case.last = Some(at("2026-11-21T12:04:00Z"))).warned(None);
    Case::with(|case| case.last = Some(at("2026-11-21T12:06:00Z"))).warned(Some("not be in order"));
    Case::with(|case| case.last = Some(at("2016-11-21T12:00:00Z"))).warned(None);
}

#[test]
fn an_image_must_be_built_for_the_host_or_for_what_its_service_asks() {
    let offers = |architectures: &[&str]| {
        let platforms = architectures.iter().map(|name| linux(name)).collect();
        BTreeMap::from([(web(), platforms)])
    };
    Case::with(|case| case.offered = offers(&["arm64", "unknown"])).refused("is built for linux/arm64");
    Case::with(|case| case.offered = offers(&["arm64", "amd64"])).warned(None);
    Case::with(|case| case.offered = offers(&[])).warned(Some("checked after the pull"));
    Case::with(|case| case.offered = offers(&["unknown"])).warned(Some("checked after the pull"));
    let here = |platform| BTreeMap::from([(web(), ImageFacts::Here(platform))]);
    Case::with(|case| {
        case.offered = BTreeMap::new();
        case.host.images = here(linux("arm64"));
    })
    .refused("is built for linux/arm64");
    let asks = |case: &mut Case, platform: &str| {
        for service in &mut case.plan.services {
            service.platform = Some(platform.to_owned());
        }
    };
    Case::with(|case| asks(case, "linux/arm64")).refused("asks for linux/arm64 (platform)");
    Case::with(|case| asks(case, "linux/amd64")).warned(None);
    Case::with(|case| {
        asks(case, "linux/arm64/v8");
        case.offered = offers(&["arm64"]);
    })
    .warned(Some("emulates"));
}

#[test]
fn room_is_wanted_for_what_is_pulled_for_the_edit_and_for_the_journal() {
    Case::with(|case| case.facts.free_bytes = 1023 * MIB).refused("only 1023 MiB are free");
    Case::with(|case| {
        case.facts.free_bytes = 1023 * MIB;
        case.host.images = BTreeMap::from([(web(), ImageFacts::Here(linux("amd64")))]);
        for service in &mut case.plan.services {
            service.new_image_id = Some("sha256:1".to_owned());
        }
    })
    .warned(Some("only 1023 MiB are free"));
    let as_large = ImageFacts::Away {
        old_bytes: Some(12_000 * MIB),
    };
    Case::with(|case| case.host.images = BTreeMap::from([(web(), as_large)]))
        .warned(Some("390 MiB stay free, less than min_free (1.0 GiB)"));
    let folder =
        |change: fn(&mut FolderFacts)| Case::with(|case| case.host.folders.iter_mut().for_each(change));
    folder(|folder| folder.free_bytes = 7 * MIB).refused("only 7 MiB are free in /srv/shop");
    folder(|folder| folder.has_free_files = false).refused("no inode left");
    folder(|folder| folder.is_read_only = true).refused("cannot write in /srv/shop");
}

#[test]
fn a_port_that_somebody_else_has_refuses_and_its_own_does_not() {
    let taken = TakenPort::read("127.0.0.1", 8080, "tcp");
    let beside = |neighbour: Neighbour| Case::with(|case| case.host.neighbours = vec![neighbour]);
    let of = |project: &str, service: &str| Neighbour {
        owner: Some((project.to_owned(), service.to_owned())),
        ..stranger(TakenPort::read("127.0.0.1", 8080, "tcp"))
    };
    beside(stranger(taken.clone())).refused("web publishes port 8080, and container nginx has it");
    beside(of("blog", "web")).refused("container nginx of project blog");
    beside(of("shop", "proxy")).refused("container nginx (service proxy)");
    beside(of("shop", "web")).warned(None);
    beside(stranger(TakenPort::read("", 8081, "tcp"))).warned(None);

    let listening = |change: fn(&mut Held)| {
        Case::with(|case| {
            case.host.listeners = Some(vec![TakenPort::read("127.0.0.1", 8080, "tcp")]);
            for service in case.facts.services.values_mut() {
                change(&mut service.holds);
            }
        })
    };
    listening(|_| {}).refused("a process of the host that is no container listens there");
    listening(|holds| holds.ports.extend(HostPorts::read("", "8080", "tcp"))).warned(None);
    listening(|holds| holds.any = true).warned(None);
    listening(|holds| holds.ports.extend(HostPorts::read("", "9090", "tcp"))).refused("listens there");
}

#[test]
fn a_name_that_somebody_else_has_refuses() {
    let called = |name: &str| {
        let name = name.to_owned();
        Case::with(|case| {
            case.host.neighbours = vec![Neighbour {
                name,
                owner: None,
                ports: Vec::new(),
            }];
        })
    };
    called("shop-web-1").refused("to be called shop-web-1");
    called("shop-web-2").warned(None);
}

#[test]
fn several_reasons_become_one_problem_with_the_first_ones_code() {
    let problem = |code, text: &str| Problem::new(code, text).hint(format!("mend {text}"));
    assert_eq!(together(Vec::new()), None);
    let one = problem(Code::ImageUnavailable, "a");
    assert_eq!(together(vec![one.clone()]), Some(one.clone()));
    let all = together(vec![one, problem(Code::HostUnfit, "b")]).unwrap();
    assert_eq!(all.code, Code::ImageUnavailable);
    assert_eq!(all.detail, "2 things are in the way: (1) a; (2) b");
    assert_eq!(all.hint.unwrap(), "mend a; mend b");
}
