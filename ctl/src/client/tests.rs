//! The client against real TLS on loopback: trust, lost answers, cut streams. Not an agent: a server with a script.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use deploy_proto::event::{Ending, Happened, PhaseName};
use deploy_proto::push::Accepted;
use ring::rand::SystemRandom;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tokio::time::Instant;

use super::deliver::{DeliverError, deliver};
use super::follow::{FollowError, Seen, follow};
use super::*;
use crate::render::human::samples::{done, event, live};

/// The most a test's request has, in bytes.
const REQUEST_MAX_BYTES: usize = 64 * 1024;

/// A server that answers each connection's one request with the next text, and closes.
struct Server {
    host: Host,
    pin: Pin,
    requests: JoinHandle<Vec<String>>,
}

impl Server {
    fn start(answers: Vec<String>) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let pin = Pin::of_public_key(&rcgen::PublicKeyData::subject_public_key_info(&made.signing_key));
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let hosts = Host::name_all(&[url.parse().unwrap()]);
        let requests = std::thread::spawn(move || serve(&listener, &Arc::new(config), &answers));
        Self {
            host: hosts.into_iter().next().unwrap(),
            pin,
            requests,
        }
    }
}

fn serve(listener: &TcpListener, config: &Arc<ServerConfig>, answers: &[String]) -> Vec<String> {
    answers
        .iter()
        .map(|answer| {
            let (socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let tls = ServerConnection::new(Arc::clone(config)).unwrap();
            let mut stream = StreamOwned::new(tls, socket);
            let request = read_request(&mut stream);
            if !request.is_empty() {
                stream.write_all(answer.as_bytes()).unwrap();
                stream.conn.send_close_notify();
                stream.flush().unwrap();
            }
            request
        })
        .collect()
}

/// Reads head and body; empty when the client went away in the handshake.
fn read_request(stream: &mut impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while bytes.len() < REQUEST_MAX_BYTES {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = header(head, "content-length").map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            break;
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn header(request: &str, name: &str) -> Option<String> {
    request.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

fn answer(status: &str, media_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

/// A stream of events that is cut where the texts end.
fn stream(messages: &[String]) -> String {
    let body = messages.concat();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{body}")
}

fn message(seq: u64, mut event: deploy_proto::event::Event) -> String {
    event.seq = Some(seq);
    format!("id: {seq}\ndata: {}\n\n", serde_json::to_string(&event).unwrap())
}

/// Runs a client's part against the server's host, with these pins.
fn client<T>(host: &Host, pins: &[Pin], part: impl AsyncFnOnce(&Agent<'_>) -> T) -> T {
    let surroundings = Surroundings {
        now: Timestamp::now,
        rng: Box::new(SystemRandom::new()),
    };
    let key = PrivateKey::generate(surroundings.rng.as_ref()).unwrap();
    let agent = Agent::new(host, pins, &key, &surroundings).unwrap();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(part(&agent))
}

fn in_seconds(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn id() -> DeploymentId {
    DeploymentId::from_bits(0xabc)
}

fn accepted() -> String {
    answer("202 Accepted", JSON, r#"{"id":"0000000000000abc"}"#)
}

#[test]
fn a_server_with_the_pinned_key_is_trusted_and_gets_signed_requests() {
    let server = Server::start(vec![answer("200 OK", JSON, r#"{"id":"0000000000000abc"}"#)]);
    let other = Pin::of_public_key(b"the key before its renewal");
    let got: Accepted = client(&server.host, &[other, server.pin], async |agent| {
        agent.get("/v1/x", Some("tail=5")).await.unwrap()
    });
    assert_eq!(got.id, id());
    let requests = server.requests.join().unwrap();
    let request = requests.first().unwrap();
    assert!(request.starts_with("GET /v1/x?tail=5 HTTP/1.1\r\n"), "{request}");
    assert_eq!(header(request, "content-type").as_deref(), Some(JSON));
    assert_eq!(header(request, "host"), Some(server.host.url.authority()));
    for name in ["content-digest", "signature-input", "signature"] {
        assert!(header(request, name).is_some(), "{name} is missing: {request}");
    }
}

#[test]
fn a_server_with_another_key_is_refused_with_both_pins() {
    let server = Server::start(vec![accepted()]);
    let pinned = Pin::of_public_key(b"another key");
    let error = client(&server.host, &[pinned], async |agent| {
        agent.get::<Accepted>("/v1/x", None).await.unwrap_err()
    });
    let hint = error.hint().unwrap();
    assert!(matches!(error, ClientError::WrongPin { .. }), "{error:?}");
    assert!(hint.contains(&pinned.to_string()), "{hint}");
    assert!(hint.contains(&server.pin.to_string()), "{hint}");
    assert_eq!(
        server.requests.join().unwrap(),
        [""],
        "nothing may be sent to a stranger"
    );
}

#[test]
fn a_self_signed_server_without_a_pin_is_refused_with_what_to_type() {
    let server = Server::start(vec![accepted()]);
    let surroundings = Surroundings {
        now: Timestamp::now,
        rng: Box::new(SystemRandom::new()),
    };
    let key = PrivateKey::generate(surroundings.rng.as_ref()).unwrap();
    // A machine without any root certificates says so before it connects.
    let error = match Agent::new(&server.host, &[], &key, &surroundings) {
        Ok(_) => client(&server.host, &[], async |agent| {
            agent.get::<Accepted>("/v1/x", None).await.unwrap_err()
        }),
        Err(error) => error,
    };
    assert_eq!(error.code(), "untrusted", "{error:?}");
    assert!(error.hint().unwrap().contains("deploy-agent pin"));
}

#[test]
fn a_push_whose_answer_is_lost_is_sent_again_with_the_same_body_and_a_new_signature() {
    let server = Server::start(vec![String::new(), accepted()]);
    let mut lost = 0;
    let got = client(&server.host, &[server.pin], async |agent| {
        deliver(
            agent,
            "/v1/x",
            &Accepted { id: id() },
            in_seconds(20),
            &mut |_| lost += 1,
        )
        .await
    });
    assert_eq!(got.unwrap().id, id());
    assert_eq!(lost, 1);
    let requests = server.requests.join().unwrap();
    let [first, second] = requests.as_slice() else {
        panic!("{requests:?}");
    };
    let body = |request: &str| request.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(first), body(second));
    assert_ne!(header(first, "signature"), header(second, "signature"));
}

#[test]
fn a_refusal_is_not_sent_again() {
    let problem = r#"{"type":"about:blank","title":"Conflict","status":409,"code":"busy","detail":"deployment 1 is running"}"#;
    let server = Server::start(vec![answer("409 Conflict", "application/problem+json", problem)]);
    let error = client(&server.host, &[server.pin], async |agent| {
        deliver(
            agent,
            "/v1/x",
            &Accepted { id: id() },
            in_seconds(20),
            &mut |_| {},
        )
        .await
    })
    .unwrap_err();
    let DeliverError::NotAccepted(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.exit_code().number(), 7);
    assert!(error.to_string().ends_with("deployment 1 is running"), "{error}");
}

#[test]
fn an_agent_that_is_not_there_is_unreachable_after_a_short_patience() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    drop(listener);
    let hosts = Host::name_all(&[url.parse().unwrap()]);
    let begun = Instant::now();
    let error = client(
        hosts.first().unwrap(),
        &[Pin::of_public_key(b"")],
        async |agent| {
            deliver(
                agent,
                "/v1/x",
                &Accepted { id: id() },
                in_seconds(60),
                &mut |_| {},
            )
            .await
        },
    )
    .unwrap_err();
    let DeliverError::NotAccepted(error) = error else {
        panic!("{error:?}");
    };
    assert_eq!(error.exit_code().number(), 5);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_answer_that_stays_away_leaves_it_open_whether_the_agent_has_it() {
    let server = Server::start(vec![String::new()]);
    let error = client(&server.host, &[server.pin], async |agent| {
        deliver(agent, "/v1/x", &Accepted { id: id() }, in_seconds(1), &mut |_| {}).await
    })
    .unwrap_err();
    assert!(matches!(error, DeliverError::Unknown(_)), "{error:?}");
}

#[test]
fn a_cut_stream_is_resumed_after_the_last_event_and_each_event_is_seen_once() {
    let pull = done(PhaseName::Pulling, "", 1);
    let up = done(PhaseName::Restarting, "", 1);
    let end = event(Happened::Ended { outcome: live() });
    let server = Server::start(vec![
        stream(&[message(1, pull.clone()), "id: 2\ndata: {\"cut".to_owned()]),
        stream(&[
            message(1, pull),
            ": still here\n\ndata: {\"type\":\"of_a_newer_agent\"}\n\n".to_owned(),
            message(2, up),
        ]),
        stream(&[message(3, end)]),
    ]);
    let mut seqs = Vec::new();
    let outcome = client(&server.host, &[server.pin], async |agent| {
        follow(agent, &id(), in_seconds(20), &mut |seen| match seen {
            Seen::Event(event) => seqs.extend(event.seq),
            Seen::Lost(_) | Seen::Back => {}
        })
        .await
    })
    .unwrap();
    assert_eq!(outcome.result, Ending::Live);
    assert_eq!(seqs, [1, 2, 3]);
    let resumed: Vec<_> = server
        .requests
        .join()
        .unwrap()
        .iter()
        .map(|request| header(request, "last-event-id"))
        .collect();
    assert_eq!(resumed, [None, Some("1".to_owned()), Some("2".to_owned())]);
}

#[test]
fn following_ends_when_the_time_to_wait_is_over() {
    let server = Server::start(vec![stream(&[message(1, done(PhaseName::Pulling, "", 1))])]);
    let error = client(&server.host, &[server.pin], async |agent| {
        follow(agent, &id(), in_seconds(1), &mut |_| {}).await
    })
    .unwrap_err();
    assert!(matches!(error, FollowError::StillRunning), "{error:?}");
}
