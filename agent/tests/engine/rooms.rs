//! The Engine's smaller rooms: versions, containers, logs, events, commands, the host.

use std::time::{Duration, Instant};

use deploy_agent::deploy::verdict::ContainerState;
use deploy_agent::host::engine::{ContainerEvent, Engine, EventKind, Logins, Ran};
use deploy_agent::host::health::{Checks, Health, Older, Terms};
use futures_util::StreamExt;

use super::support::{Fixture, docker, engine, eventually, service};

#[tokio::test]
async fn the_engine_says_what_it_is_and_has() {
    let engine = engine();
    engine.ping().await.unwrap();
    let version = engine.version().await.unwrap();
    assert_eq!(version.platform, engine.host_platform().await.unwrap());
    assert!(version.api.starts_with("1."), "{version:?}");
    let disk = engine.disk_free().await.unwrap();
    assert!(
        disk.free_bytes > 0 && disk.free_bytes < disk.total_bytes,
        "{disk:?}"
    );
}

#[test]
fn long_calls_can_run_in_tasks_of_their_own() {
    fn sendable(_: &impl Send) {}
    let fixture = Fixture::new();
    let image = "registry.example/x:v1".parse().unwrap();
    let health = Health::new(fixture.engine.clone());
    let services = [service("web")];
    let terms = Terms {
        settle: Duration::ZERO,
        wait: Duration::ZERO,
        since: fixture.since,
        older: Older::CreatedBefore(fixture.since),
    };
    sendable(&fixture.engine.pull(&image, None, |_, _| {}));
    sendable(&fixture.engine.remote_image(&image));
    sendable(&health.watch(&fixture.project, &services, terms, |_, _| {}));
    sendable(&health.snapshot(&fixture.project, &services, Checks::Now, fixture.since));
}

#[tokio::test]
async fn an_engine_that_appears_later_is_used_and_one_that_is_gone_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let logins = Logins {
        config_dir: "/nonexistent".into(),
        environment: Vec::new(),
    };
    let engine = Engine::connect(&socket, logins).unwrap();
    assert!(engine.ping().await.unwrap_err().is_outage());
    std::os::unix::fs::symlink(super::support::SOCKET, &socket).unwrap();
    engine.ping().await.unwrap();
    std::fs::remove_file(&socket).unwrap();
    assert!(engine.ping().await.unwrap_err().is_outage());
}

#[tokio::test]
async fn a_projects_containers_are_told_with_state_and_restarts() {
    let fixture = Fixture::new();
    let up = fixture.start(
        "web",
        &["--restart", "always", "-p", "127.0.0.1::80"],
        "sleep 1000",
    );
    let done = fixture.start("job", &[], "exit 0");
    let died = fixture.start("bad", &["--restart", "on-failure:1"], "exit 7");
    fixture
        .until(&died, "retries used up", |container| {
            matches!(container.state, ContainerState::Exited { .. }) && container.restarts == 1
        })
        .await;
    fixture
        .until(&done, "exited", |container| container.finished_at.is_some())
        .await;
    let one_off = fixture.start(
        "web",
        &["--label", "com.docker.compose.oneoff=True"],
        "sleep 1000",
    );

    let all = fixture.engine.containers(&fixture.project.name).await.unwrap();
    let seen: Vec<_> = all
        .iter()
        .map(|container| (container.id.as_str(), &container.state))
        .collect();
    let exited = |exit_code, stays| ContainerState::Exited { exit_code, stays };
    assert_eq!(seen.len(), 4);
    for expected in [
        (up.as_str(), &ContainerState::Running),
        (one_off.as_str(), &ContainerState::Running),
        (done.as_str(), &exited(0, true)),
        (died.as_str(), &exited(7, false)),
    ] {
        assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
    }
    let web = fixture
        .engine
        .service_containers(&fixture.project.name, &service("web"))
        .await
        .unwrap();
    assert_eq!(web.len(), 1, "without the one-off: {web:?}");

    let neighbours = fixture.engine.neighbours().await.unwrap();
    let web = neighbours.iter().find(|other| other.name == web[0].name).unwrap();
    let owner = (fixture.project.name.to_string(), "web".to_owned());
    assert_eq!(web.owner, Some(owner));
    assert_eq!(web.ports.len(), 1, "{web:?}");
}

#[tokio::test]
async fn only_half_made_containers_of_the_named_services_of_the_own_project_are_removed() {
    let ours = Fixture::new();
    let theirs = Fixture::new();
    const REPLACE: [&str; 2] = ["--label", "com.docker.compose.replace=old"];
    let half = ours.make(&["create"], "web", &REPLACE, "exit 0");
    let foreign = theirs.make(&["create"], "web", &REPLACE, "exit 0");
    let unnamed = ours.make(&["create"], "db", &REPLACE, "exit 0");
    let running = ours.start("api", &REPLACE, "sleep 1000");
    let created = ours.make(&["create"], "job", &[], "exit 0");

    let name = ours.container(&half).await.name;
    let named = [service("web"), service("api"), service("job")];
    let removed = ours.engine.remove_half_made(&ours.project.name, &named);
    let removed = removed.await.unwrap();
    assert_eq!(
        removed.iter().map(|gone| gone.name.as_str()).collect::<Vec<_>>(),
        [name]
    );
    assert_eq!(ours.engine.container(&half).await.unwrap(), None);
    for kept in [&foreign, &unnamed, &running, &created] {
        assert!(ours.engine.container(kept).await.unwrap().is_some());
    }
    assert!(
        ours.engine
            .remove_half_made(&ours.project.name, &named)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn the_last_lines_of_both_streams_are_read_and_bounded() {
    let fixture = Fixture::new();
    let many = "i=0; while test $i -lt 200; do echo line $i; i=$((i+1)); done";
    // Few enough lines that none is lost in whatever order the Engine takes the two streams.
    let mixed = "printf '\\377\\376 bad\\n'; echo error >&2; \
                 busybox head -c 50000 /dev/zero | busybox tr '\\0' x";
    let ids = [many, mixed].map(|script| fixture.start("web", &[], script));
    let mut tails = Vec::new();
    for id in &ids {
        fixture
            .until(id, "exited", |container| container.finished_at.is_some())
            .await;
        tails.push(fixture.engine.tail(id, 1000).await.unwrap());
    }
    assert_eq!(tails[0].len(), 50);
    assert_eq!(
        (tails[0][0].as_str(), tails[0][49].as_str()),
        ("line 150", "line 199")
    );
    let mut mixed = tails.remove(1);
    mixed.sort_unstable();
    let x = "x".repeat(2000);
    assert_eq!(mixed, ["error", x.as_str(), "\u{fffd}\u{fffd} bad"]);
    let followed = fixture.engine.logs(&ids[1], 3, true).await.unwrap();
    let pieces: Vec<_> = followed.map(Result::unwrap).collect().await;
    assert!(
        pieces.concat().ends_with(b"xxx"),
        "the stream ends with the container"
    );
}

#[tokio::test]
async fn events_of_the_past_and_the_present_come_with_service_and_exit_code() {
    let fixture = Fixture::new();
    let id = fixture.start("web", &[], "read -r line");
    let mut events = fixture
        .engine
        .events(&fixture.project.name, fixture.since)
        .await
        .unwrap();
    let event = |kind| ContainerEvent {
        container: id.clone(),
        service: service("web"),
        kind,
    };
    let next = tokio::time::timeout(Duration::from_secs(10), events.next())
        .await
        .unwrap();
    let died = event(EventKind::Died { exit_code: Some(1) });
    assert_eq!(next.unwrap().unwrap(), event(EventKind::Started));
    let next = tokio::time::timeout(Duration::from_secs(10), events.next())
        .await
        .unwrap();
    assert_eq!(next.unwrap().unwrap(), died);
}

#[tokio::test]
async fn a_command_in_a_container_gives_its_exit_code_and_is_bounded() {
    let fixture = Fixture::new();
    let id = fixture.start("web", &[], "sleep 1000");
    let exec = async |script: &str, limit| {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned);
        fixture.engine.exec(&id, &argv, limit).await.unwrap()
    };
    let long = Duration::from_secs(20);
    let begun = Instant::now();
    let ended = exec("echo out; echo err >&2; exit 3", long).await;
    eprintln!("exec: {:?}", begun.elapsed());
    let Ran::Ended { code, output } = ended else {
        panic!("{ended:?}")
    };
    assert_eq!(code, 3);
    assert!(output.contains("out") && output.contains("err"), "{output}");

    let begun = Instant::now();
    let endless = exec("echo begun; sleep 1000", Duration::from_millis(700)).await;
    assert_eq!(
        endless,
        Ran::StillRunning {
            output: "begun".into()
        }
    );
    assert!(begun.elapsed() < Duration::from_secs(3));

    let missing = fixture
        .engine
        .exec(&id, &["/no/such/program".to_owned()], long)
        .await;
    assert!(
        !matches!(missing, Ok(Ran::Ended { code: 0, .. } | Ran::StillRunning { .. })),
        "{missing:?}"
    );
    docker(&["rm", "-f", &id]);
    assert!(
        fixture
            .engine
            .exec(&id, &["/bin/sh".to_owned()], long)
            .await
            .is_err()
    );
    eventually("gone", || async {
        fixture
            .engine
            .container(&id)
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
}
