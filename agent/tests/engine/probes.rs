//! Probes during a watch, and the snapshot that `status` and `health` show.

use std::time::{Duration, Instant};

use deploy_agent::config::{Probe, ProbeCheck};
use deploy_agent::host::health::{Checks, Health};
use deploy_proto::release::ServiceHealth;
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::{Fixture, service};
use super::watching::{ALWAYS, LONG, UP, ms, watch};

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
