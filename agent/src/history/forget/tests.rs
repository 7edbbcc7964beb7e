//! The database stops growing, and what is needed stays.

use std::time::Duration;

use deploy_proto::event::{Ending, Happened, Outcome};
use deploy_proto::names::DeploymentId;
use deploy_proto::push::{Push, Sequence, Source};
use deploy_proto::release::{DeploymentKind, ReleaseState};
use jiff::Timestamp;

use super::*;
use crate::deploy::facts::SourceFile;
use crate::deploy::phase::Failure;
use crate::deploy::plan::Plan;
use crate::deploy::port::LogTail;
use crate::history::{Deployment, Ended, OnCancel, Release, Request};
use crate::policy::ServiceScope;

const FILE_BYTES: usize = 32 * 1024;
const FEW: Limits = Limits {
    deployments: 20,
    plans: 5,
    releases: 20,
    lines: 3,
};

struct Bench {
    dir: tempfile::TempDir,
    history: History,
}

fn project() -> ProjectName {
    "shop".parse().unwrap()
}

fn at(number: u32) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(u64::from(number))
}

fn outcome(result: Ending) -> Outcome {
    Outcome {
        result,
        release: None,
        problem: None,
        trouble: None,
        sick_service: None,
        log_lines: Vec::new(),
        now: Vec::new(),
        elapsed_ms: 1,
        bake_ms: None,
        undone: None,
    }
}

fn file(number: u32) -> SourceFile {
    SourceFile {
        path: "/srv/shop/compose.yaml".into(),
        bytes: vec![u8::try_from(number % 251).unwrap(); FILE_BYTES],
    }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(&dir.path().join("history.db")).unwrap();
        Self { dir, history }
    }

    /// Accepts and plans a push that makes this release.
    async fn begin(&self, number: u32) -> DeploymentId {
        let id = DeploymentId::from_bits(u64::from(number));
        let push = Push {
            id: id.clone(),
            images: Vec::new(),
            version: None,
            queue: false,
            accept_edits: true,
            sequence: Some(Sequence {
                run: u64::from(number),
                attempt: 1,
                line: Some(format!("line-{number}")),
            }),
            allow_older: false,
            expect_release: None,
            source: Source::default(),
        };
        let deployment = Deployment::accepted(
            project(),
            Request::Push(push),
            "ci".parse().unwrap(),
            ServiceScope::All,
            at(number),
        );
        self.history.accept(deployment, Vec::new()).await.unwrap();
        let plan = Plan {
            project: project(),
            made_at: at(number),
            from: None,
            to: ReleaseNumber(number),
            services: Vec::new(),
            unchanged: Vec::new(),
            untouched: Vec::new(),
            files: vec![file(number)],
            edits: Vec::new(),
            gives_bytes_back: false,
            hooks: Vec::new(),
            warnings: Vec::new(),
            checks: Vec::new(),
        };
        let release = Release {
            project: project(),
            number: ReleaseNumber(number),
            parent: None,
            state: ReleaseState::Deploying,
            version: None,
            key: None,
            source: Source::default(),
            created_at: at(number),
            irreversible: false,
            images: Vec::new(),
        };
        self.history
            .planned(id.clone(), plan, vec![release])
            .await
            .unwrap();
        let number = ReleaseNumber(number);
        self.history
            .back_up(project(), number, vec![file(number.0)])
            .await
            .unwrap();
        let tail = LogTail {
            service: "web".parse().unwrap(),
            lines: vec!["a line".into()],
        };
        self.history
            .keep_logs(project(), number, vec![tail])
            .await
            .unwrap();
        id
    }

    async fn end(&self, id: DeploymentId, number: u32, phase: Phase, result: Ending) {
        let state = if result == Ending::Live {
            ReleaseState::Live
        } else {
            ReleaseState::Failed
        };
        let before = ReleaseNumber(number - 1);
        let ended = Ended {
            project: project(),
            kind: DeploymentKind::Push,
            at: at(number),
            outcome: outcome(result),
            releases: vec![(before, ReleaseState::Replaced), (ReleaseNumber(number), state)],
            ran: None,
        };
        let told = Happened::Note {
            text: "x".repeat(500),
        };
        self.history
            .finish(id, phase, ended, vec![told], OnCancel::GoOn)
            .await
            .unwrap();
    }

    async fn deploy(&self, number: u32) {
        let id = self.begin(number).await;
        self.end(id, number, Phase::Live, Ending::Live).await;
    }

    async fn forget(&self, at_hand: impl IntoIterator<Item = u32>) {
        let at_hand: BTreeSet<_> = at_hand.into_iter().map(ReleaseNumber).collect();
        let newest = at_hand.last().copied();
        self.history
            .forget_beyond(FEW, project(), at_hand, newest)
            .await
            .unwrap();
    }

    /// The size of the file, with everything in it that is in the log.
    async fn size(&self) -> u64 {
        self.history
            .with(|connection| {
                connection
                    .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))
                    .map_err(sql("checkpoint"))
            })
            .await
            .unwrap();
        std::fs::metadata(self.dir.path().join("history.db"))
            .unwrap()
            .len()
    }

    async fn has_files(&self, number: u32) -> bool {
        let files = self
            .history
            .files(project(), ReleaseNumber(number))
            .await
            .unwrap();
        let service = "web".parse().unwrap();
        let log = self
            .history
            .kept_log(project(), ReleaseNumber(number), service)
            .await
            .unwrap();
        assert_eq!(files.is_empty(), log.is_none(), "release {number}");
        !files.is_empty()
    }

    async fn has_plan(&self, number: u32) -> bool {
        let id = DeploymentId::from_bits(u64::from(number));
        let found = self.history.deployment(id).await.unwrap();
        found.is_some_and(|deployment| deployment.plan.is_some())
    }
}

#[tokio::test]
async fn the_database_stops_growing() {
    let bench = Bench::new();
    let mut sizes = Vec::new();
    for number in 1..=90 {
        bench.deploy(number).await;
        bench.forget(number.saturating_sub(4).max(1)..=number).await;
        if number % 30 == 0 {
            sizes.push(bench.size().await);
        }
    }
    let [first, second, third] = sizes.as_slice() else {
        panic!("{sizes:?}")
    };
    // A page or two of an index may be split otherwise.
    let grown = third.saturating_sub(*second);
    assert!(grown <= 16 * 1024, "{sizes:?}");
    // Without forgetting it would hold thirty plans more, and thirty files.
    assert!(
        *second < first + 10 * u64::try_from(FILE_BYTES).unwrap(),
        "{sizes:?}"
    );
}

#[tokio::test]
async fn what_is_needed_is_not_forgotten() {
    let bench = Bench::new();
    for number in 1..=40 {
        bench.deploy(number).await;
    }
    bench.forget([3, 38, 39, 40]).await;

    // Plans of the newest few, deployments of some more.
    for (number, plan, deployment) in [
        (40, true, true),
        (36, true, true),
        (35, false, true),
        (20, false, false),
    ] {
        let id = DeploymentId::from_bits(number);
        let found = bench.history.deployment(id.clone()).await.unwrap();
        assert_eq!(found.is_some(), deployment, "{number}");
        assert_eq!(
            bench.has_plan(u32::try_from(number).unwrap()).await,
            plan,
            "{number}"
        );
        let events = bench.history.events(id, 0).await.unwrap();
        assert_eq!(!events.is_empty(), deployment, "{number}");
    }
    // The files and logs of those at hand, also of an old one.
    for (number, has) in [(40, true), (38, true), (37, false), (3, true), (2, false)] {
        assert_eq!(bench.has_files(number).await, has, "{number}");
    }
    // The releases from the oldest at hand on, which is older than the newest twenty.
    let releases = bench.history.releases(project(), u32::MAX).await.unwrap();
    assert_eq!(
        releases
            .iter()
            .rev()
            .map(|release| release.number.0)
            .collect::<Vec<_>>(),
        (3..=40).collect::<Vec<_>>()
    );
    bench.forget([38, 39, 40]).await;
    let releases = bench.history.releases(project(), u32::MAX).await.unwrap();
    assert_eq!(releases.last().unwrap().number.0, 20);
    // The newest few lines of runs.
    let older = |line: u32| {
        let sequence = Sequence {
            run: 0,
            attempt: 1,
            line: Some(format!("line-{line}")),
        };
        bench.history.newer_run(project(), sequence)
    };
    assert!(older(38).await.unwrap().is_some());
    assert!(older(37).await.unwrap().is_none());
}

#[tokio::test]
async fn however_much_is_refused_since_what_went_live_last_is_known_and_so_is_what_is_stuck_or_under_way() {
    let bench = Bench::new();
    let failure = Failure::from(deploy_proto::problem::Problem::new(
        deploy_proto::problem::Code::Unhealthy,
        "sick",
    ));
    bench.deploy(1).await;
    let id = bench.begin(2).await;
    let stuck = Phase::Stuck {
        cause: failure.clone(),
        trouble: failure.clone(),
    };
    bench.end(id, 2, stuck, Ending::Stuck).await;
    bench.begin(3).await;
    for number in 4..60 {
        let id = bench.begin(number).await;
        let refused = Phase::Refused {
            cause: failure.clone(),
        };
        bench.end(id, number, refused, Ending::Refused).await;
    }
    bench.forget([1, 59]).await;

    let last = bench.history.last_live_plan(project()).await.unwrap().unwrap();
    assert_eq!(last.files, [file(1)]);
    assert!(bench.history.stuck(project()).await.unwrap().is_some());
    let under_way = bench.history.unfinished().await.unwrap();
    let [under_way] = under_way.as_slice() else {
        panic!("{under_way:?}")
    };
    assert!(under_way.plan.is_some());
    assert!(!bench.has_plan(30).await);
}

#[tokio::test]
async fn what_was_made_since_it_was_decided_what_is_at_hand_keeps_its_files() {
    let bench = Bench::new();
    for number in 1..=5 {
        bench.deploy(number).await;
    }
    let at_hand = BTreeSet::from([ReleaseNumber(3)]);
    bench
        .history
        .forget_beyond(FEW, project(), at_hand, Some(ReleaseNumber(3)))
        .await
        .unwrap();
    assert!(!bench.has_files(2).await);
    for number in 3..=5 {
        assert!(bench.has_files(number).await, "{number}");
    }
    // Nothing of another project.
    bench
        .history
        .forget_beyond(FEW, "blog".parse().unwrap(), BTreeSet::new(), None)
        .await
        .unwrap();
    assert!(bench.has_files(5).await);
}
