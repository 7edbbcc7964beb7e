//! The watch on real containers: what is well, what is sick, and how soon that is known.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deploy_agent::config::{Probe, ProbeCheck};
use deploy_agent::host::engine::{Engine, Logins};
use deploy_agent::host::health::{Checks, Health, Terms, WatchError, WellService};
use deploy_proto::names::ServiceName;
use deploy_proto::release::ServiceHealth;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::{Fixture, SOCKET, service};

const UP: &str = "trap 'exit 0' TERM; while true; do sleep 0.1; done";
const ALWAYS: [&str; 2] = ["--restart", "always"];

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

struct Seen {
    end: Result<Vec<WellService>, (ServiceName, String)>,
    took: Duration,
    said: Vec<String>,
}

impl Seen {
    fn sick(&self) -> (&str, &str) {
        match &self.end {
            Err((service, reason)) => (service.as_str(), reason.as_str()),
            Ok(well) => panic!("well: {well:?}, said {:?}", self.said),
        }
    }

    fn well(&self) -> &str {
        match &self.end {
            Ok(well) => &well[0].in_words,
            Err((service, reason)) => panic!("{service} is sick: {reason}, said {:?}", self.said),
        }
    }
}

async fn watch_with(
    health: &Health,
    fixture: &Fixture,
    services: &[&str],
    settle: Duration,
    wait: Duration,
) -> Seen {
    let services: Vec<_> = services.iter().map(|name| service(name)).collect();
    let said = Mutex::new(Vec::new());
    let begun = Instant::now();
    let terms = Terms {
        settle,
        wait,
        since: fixture.since,
    };
    let end = health
        .watch(&fixture.project, &services, terms, |service, seen| {
            said.lock().unwrap().push(format!("{service}: {seen}"));
        })
        .await;
    Seen {
        took: begun.elapsed(),
        end: end.map_err(|error| match error {
            WatchError::Sick { service, reason } => (service, reason),
            WatchError::Engine(error) => panic!("{error:?}"),
        }),
        said: said.into_inner().unwrap(),
    }
}

async fn watch(fixture: &Fixture, services: &[&str], settle: Duration, wait: Duration) -> Seen {
    watch_with(
        &Health::new(fixture.engine.clone()),
        fixture,
        services,
        settle,
        wait,
    )
    .await
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_is_well_at_the_first_look_is_known_at_once() {
    let fixture = Fixture::new();
    fixture.start("web", &ALWAYS, UP);
    fixture.start("api", &ALWAYS, UP);
    fixture.engine.version().await.unwrap();
    let seen = watch(&fixture, &["web", "api"], Duration::ZERO, LONG).await;
    eprintln!("watch, first look of two services: {:?}", seen.took);
    assert_eq!(seen.well(), "runs");
    assert!(seen.took < ms(500), "{:?}", seen.took);
    let settled = watch(&fixture, &["web"], ms(700), LONG).await;
    assert_eq!(settled.well(), "runs; steady for 0.7s");
    assert!(
        settled.took >= ms(700) && settled.took < ms(1500),
        "{:?}",
        settled.took
    );
}

#[tokio::test]
async fn a_crash_is_noticed_at_once_and_not_at_the_end_of_wait() {
    let fixture = Fixture::new();
    fixture.start("web", &ALWAYS, UP);
    let id = fixture.start("api", &ALWAYS, "sleep 1; exit 3");
    let seen = watch(&fixture, &["web", "api"], Duration::from_secs(7), LONG).await;
    let noticed = Timestamp::now();
    let container = fixture.container(&id).await;
    assert_eq!(seen.sick().0, "api");
    assert!(seen.sick().1.contains("code 3"), "{}", seen.sick().1);
    let after = noticed.duration_since(container.finished_at.unwrap());
    eprintln!("crash noticed after: {after:?}");
    assert!(after.as_millis() < 1000, "{after:?}");
}

#[tokio::test]
async fn a_crash_before_the_first_look_is_not_missed() {
    let fixture = Fixture::new();
    let once = "test -f /crashed && exec sleep 1000; : > /crashed; exit 5";
    let id = fixture.start("api", &ALWAYS, once);
    fixture
        .until(&id, "restarted", |container| {
            container.restarts == 1
                && container.state == deploy_agent::deploy::verdict::ContainerState::Running
        })
        .await;
    let seen = watch(&fixture, &["api"], Duration::ZERO, LONG).await;
    assert_eq!(seen.sick().1, "it crashed and was restarted by the Engine (once)");
    // Seen by a later deployment that leaves it as it is, the old crash does not count.
    let later = Fixture {
        since: Timestamp::now(),
        engine: fixture.engine.clone(),
        project: fixture.project.clone(),
        image: fixture.image.clone(),
    };
    assert_eq!(watch(&later, &["api"], Duration::ZERO, LONG).await.well(), "runs");
}

#[tokio::test]
async fn a_healthcheck_of_thirty_seconds_is_known_in_less_than_two() {
    let fixture = Fixture::new();
    let check = ["--health-cmd", "test -f /ready", "--health-interval", "30s"];
    let script = "sleep 0.5; : > /ready; sleep 1000";
    fixture.start("web", &check, script);
    let seen = watch(&fixture, &["web"], Duration::ZERO, LONG).await;
    eprintln!("healthcheck of 30 s interval known after: {:?}", seen.took);
    assert_eq!(seen.well(), "healthcheck passes");
    assert!(seen.took < ms(2000), "{:?}", seen.took);
    assert!(
        seen.said[0].contains("healthcheck does not pass: exit code 1"),
        "{:?}",
        seen.said
    );
}

#[tokio::test]
async fn the_engines_own_unhealthy_is_sick_before_wait_is_over() {
    let fixture = Fixture::new();
    let check = [
        "--health-cmd",
        "echo no database; exit 1",
        "--health-interval",
        "100ms",
        "--health-retries",
        "2",
    ];
    fixture.start("web", &check, UP);
    let seen = watch(&fixture, &["web"], Duration::ZERO, LONG).await;
    assert_eq!(seen.sick().1, "its healthcheck says unhealthy: no database");
    assert!(seen.took < ms(5000), "{:?}", seen.took);
}

#[tokio::test]
async fn a_healthcheck_that_never_ends_is_bounded_and_does_not_hide_a_crash() {
    let fixture = Fixture::new();
    let check = |timeout| {
        [
            "--health-cmd",
            "sleep 1000",
            "--health-interval",
            "30s",
            "--health-timeout",
            timeout,
        ]
    };
    fixture.start("web", &check("1s"), UP);
    let seen = watch(&fixture, &["web"], Duration::ZERO, ms(2500)).await;
    assert!(seen.said[0].contains("did not end within 1s"), "{:?}", seen.said);
    assert!(
        seen.sick().1.starts_with("it did not become healthy within 2.5s"),
        "{}",
        seen.sick().1
    );
    assert!(seen.took < ms(5000), "{:?}", seen.took);

    let id = fixture.start("api", &check("30s"), "sleep 1; exit 4");
    let seen = watch(&fixture, &["api"], Duration::ZERO, LONG).await;
    let noticed = Timestamp::now();
    assert_eq!(seen.sick().1, "it exited with code 4");
    let died = fixture.container(&id).await.finished_at.unwrap();
    assert!(noticed.duration_since(died).as_millis() < 1000);
}

#[tokio::test]
async fn a_one_shot_that_exits_0_is_well_and_one_that_fails_is_sick() {
    let fixture = Fixture::new();
    fixture.start("job", &[], "sleep 0.3; exit 0");
    let seen = watch(&fixture, &["job"], Duration::from_secs(5), LONG).await;
    assert_eq!(seen.well(), "did its work and exited with code 0");
    assert!(seen.took < ms(3000), "{:?}", seen.took);
    fixture.start("bad", &[], "sleep 0.3; exit 9");
    let seen = watch(&fixture, &["bad"], Duration::from_secs(5), LONG).await;
    assert_eq!(seen.sick().1, "it exited with code 9");
}

#[tokio::test]
async fn every_container_of_a_service_must_be_well() {
    let fixture = Fixture::new();
    fixture.start("web", &ALWAYS, UP);
    fixture.start(
        "web",
        &["--label", "com.docker.compose.container-number=2"],
        "sleep 0.5; exit 2",
    );
    let seen = watch(&fixture, &["web"], Duration::from_secs(5), LONG).await;
    assert_eq!(seen.sick(), ("web", "it exited with code 2"));
}

#[tokio::test]
async fn a_service_that_was_well_and_dies_while_another_is_waited_for_is_sick() {
    let fixture = Fixture::new();
    fixture.start("web", &[], "sleep 1.5; exit 6");
    fixture.start("slow", &["--health-cmd", "exit 1"], UP);
    let seen = watch(&fixture, &["web", "slow"], Duration::ZERO, LONG).await;
    assert_eq!(seen.sick(), ("web", "it exited with code 6"));
    assert!(seen.took < ms(4000), "{:?}", seen.took);
}

#[tokio::test]
async fn a_service_without_a_container_is_sick_when_wait_is_over() {
    let fixture = Fixture::new();
    let seen = watch(&fixture, &["web"], Duration::ZERO, ms(600)).await;
    assert_eq!(
        seen.sick().1,
        "it did not become healthy within 0.6s: it has no container"
    );
    assert!(seen.took < ms(2000), "{:?}", seen.took);
}

/// A server on this host that answers by the time since it began.
async fn server(status_at: impl Fn(Duration) -> u16 + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/health", listener.local_addr().unwrap());
    let begun = Instant::now();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            let answer = format!(
                "HTTP/1.1 {} x\r\nContent-Length: 0\r\n\r\n",
                status_at(begun.elapsed())
            );
            if stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }
    });
    url
}

fn with_probe(fixture: &mut Fixture, check: ProbeCheck) {
    fixture.project.probes.push(Probe {
        service: service("web"),
        check,
        timeout: ms(1000),
    });
}

#[tokio::test]
async fn a_probe_is_asked_from_the_first_moment_and_flapping_never_settles() {
    let mut fixture = Fixture::new();
    fixture.start("web", &ALWAYS, UP);
    let slow = server(|age| if age < ms(600) { 503 } else { 200 }).await;
    with_probe(
        &mut fixture,
        ProbeCheck::Http {
            url: slow.clone(),
            status: None,
        },
    );
    let seen = watch(&fixture, &["web"], Duration::ZERO, LONG).await;
    assert!(
        seen.well().starts_with(&format!("GET {slow} gave 200 in ")),
        "{}",
        seen.well()
    );
    assert_eq!(seen.said, [format!("web: GET {slow} gave 503")]);
    assert!(seen.took < ms(2000), "{:?}", seen.took);

    fixture.project.probes.clear();
    let flapping = server(|age| if age.as_millis() / 400 % 2 == 0 { 200 } else { 500 }).await;
    with_probe(
        &mut fixture,
        ProbeCheck::Http {
            url: flapping.clone(),
            status: None,
        },
    );
    let seen = watch(&fixture, &["web"], ms(2500), ms(4000)).await;
    let reason = seen.sick().1;
    assert!(
        reason.starts_with("it became well and sick again within 4s"),
        "{reason}"
    );
    assert!(reason.ends_with(&format!("GET {flapping} gave 500")), "{reason}");
}

#[tokio::test]
async fn a_published_port_that_nobody_listens_behind_is_not_well() {
    let mut fixture = Fixture::new();
    let id = fixture.start("web", &["-p", "127.0.0.1::80"], UP);
    let address = super::support::docker(&["port", &id, "80/tcp"]);
    with_probe(
        &mut fixture,
        ProbeCheck::Tcp {
            address: address.clone(),
        },
    );
    let seen = watch(&fixture, &["web"], Duration::ZERO, ms(500)).await;
    assert!(
        seen.sick()
            .1
            .ends_with(&format!("TCP {address} was accepted and closed at once")),
        "{}",
        seen.sick().1
    );
}

#[tokio::test]
async fn an_engine_that_is_away_for_a_moment_is_waited_for() {
    let fixture = Fixture::new();
    fixture.start("web", &ALWAYS, UP);
    let dir = tempfile::tempdir().unwrap();
    let socket: PathBuf = dir.path().join("docker.sock");
    symlink(SOCKET, &socket).unwrap();
    let logins = Logins {
        config_dir: "/nonexistent".into(),
        environment: Vec::new(),
    };
    let health = Health::new(Engine::connect(&socket, logins).unwrap());
    let away = AtomicBool::new(false);
    let breaking = async {
        tokio::time::sleep(ms(300)).await;
        std::fs::remove_file(&socket).unwrap();
        tokio::time::sleep(ms(1200)).await;
        away.store(true, Ordering::Relaxed);
        symlink(SOCKET, &socket).unwrap();
    };
    let (seen, ()) = tokio::join!(watch_with(&health, &fixture, &["web"], ms(2500), LONG), breaking);
    assert_eq!(seen.well(), "runs; steady for 2.5s");
    assert!(away.load(Ordering::Relaxed));
    assert!(
        seen.said
            .iter()
            .any(|line| line.contains("the Docker Engine does not answer")),
        "{:?}",
        seen.said
    );
}

#[tokio::test]
async fn a_snapshot_says_how_services_are() {
    let mut fixture = Fixture::new();
    fixture.start("web", &["--health-cmd", "true"], UP);
    fixture.start("plain", &[], UP);
    let crashed = fixture.start("bad", &[], "exit 3");
    fixture
        .until(&crashed, "exited", |container| container.finished_at.is_some())
        .await;
    let health = Health::new(fixture.engine.clone());
    let services = ["web", "plain", "bad", "none"].map(service);
    let snapshot = async |fixture: &Fixture, checks| {
        let now = Timestamp::now();
        health
            .snapshot(&fixture.project, &services, checks, now)
            .await
            .unwrap()
    };
    let begun = Instant::now();
    let all = snapshot(&fixture, Checks::Engine).await;
    eprintln!("snapshot of four services: {:?}", begun.elapsed());
    let words: Vec<_> = all.iter().map(|one| (one.health, one.detail.as_str())).collect();
    assert_eq!(words[0].0, ServiceHealth::Starting);
    assert_eq!(words[1].0, ServiceHealth::Healthy);
    assert!(words[1].1.starts_with("running for "), "{words:?}");
    assert_eq!(words[2].0, ServiceHealth::Unhealthy);
    assert!(
        words[2].1.starts_with("exited (3) ") && words[2].1.ends_with(" ago"),
        "{words:?}"
    );
    assert_eq!(words[3], (ServiceHealth::Missing, "no container"));

    let now = snapshot(&fixture, Checks::Now).await;
    assert_eq!(now[0].health, ServiceHealth::Healthy, "{}", now[0].detail);
    let refused = "127.0.0.1:1".to_owned();
    with_probe(&mut fixture, ProbeCheck::Tcp { address: refused });
    let now = snapshot(&fixture, Checks::Now).await;
    assert_eq!(now[0].health, ServiceHealth::Unhealthy);
    assert!(
        now[0].detail.starts_with("TCP 127.0.0.1:1: connection refused"),
        "{}",
        now[0].detail
    );
}
