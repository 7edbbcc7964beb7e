//! The watch on real containers: what is well, what is sick, and how soon that is known.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use deploy_agent::deploy::verdict::ContainerState;
use deploy_agent::host::engine::{Engine, Logins};
use deploy_agent::host::health::Health;
use jiff::Timestamp;

use super::support::{Fixture, SOCKET};
use super::watching::{ALWAYS, LONG, UP, ms, watch, watch_with};

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
            container.restarts == 1 && container.state == ContainerState::Running
        })
        .await;
    let seen = watch(&fixture, &["api"], Duration::ZERO, LONG).await;
    // With the exit code, when the event came before the look.
    let reason = seen.sick().1;
    assert!(reason.ends_with("was restarted by the Engine (once)"), "{reason}");
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
    let breaking = async {
        tokio::time::sleep(ms(300)).await;
        std::fs::remove_file(&socket).unwrap();
        tokio::time::sleep(ms(1200)).await;
        symlink(SOCKET, &socket).unwrap();
    };
    let (seen, ()) = tokio::join!(watch_with(&health, &fixture, &["web"], ms(2500), LONG), breaking);
    assert_eq!(seen.well(), "runs; steady for 2.5s");
    assert!(
        seen.said
            .iter()
            .any(|line| line.contains("the Docker Engine does not answer")),
        "{:?}",
        seen.said
    );
}
