//! Nobody gets in: requests that no honest caller sends, over the real listener, against a real agent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use deploy_proto::signing::PrivateKey;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::ctl::private_key;
use deploy_tests::wire::{Answer, COVERED, Connection, Input, Message, now};
use ring::rand::SystemRandom;
use serde_json::{Value, json};

const HISTORY: &str = "/v1/projects/shop/history";
const DEPLOYMENTS: &str = "/v1/projects/shop/deployments";
/// What the agent reads of a body.
const BODY_MAX_BYTES: usize = 64 * 1024;
/// The agent gives up on a slow caller after 10 s.
const PATIENCE: Duration = Duration::from_secs(15);

fn push(id: &str) -> Value {
    json!({ "id": id, "images": [{ "service": "web", "image": "127.0.0.1:1/acme/web:v2" }] })
}

fn key(agent: &Agent) -> Result<PrivateKey> {
    private_key(agent.caller_key_file())
}

/// The one answer to whoever is not let in.
fn check_closed(what: &str, answer: &Answer) -> Result<String> {
    ensure!(answer.status == 401, "{what}: {answer:?}");
    ensure!(answer.code() == "not_authenticated", "{what}: {answer:?}");
    let kind = answer.header("content-type");
    ensure!(kind == Some("application/problem+json"), "{what}: {answer:?}");
    Ok(answer.body.clone())
}

/// The other bit patterns of one character of a header: still text, but another one.
fn flipped(text: &str, index: usize) -> String {
    let flip = |(at, c): (usize, char)| match c {
        _ if at != index => c,
        'A' => 'B',
        '0' => '1',
        c if c.is_ascii_alphanumeric() => char::from(c as u8 ^ 1),
        _ => 'x',
    };
    text.chars().enumerate().map(flip).collect()
}

#[test]
fn whatever_is_wrong_with_a_signature_is_answered_alike() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let key = key(&agent)?;
    let post = || Message::post(&agent, DEPLOYMENTS, &push("00000000000000a1"));
    let get = || Message::get(&agent, HISTORY);
    let good = get().signed(&key).send(&agent)?;
    assert_eq!(good.status, 200, "{good:?}");

    let mut cases: Vec<(String, Message)> = Vec::new();
    let mut case = |what: &str, message: Message| cases.push((what.to_owned(), message));
    case("not signed", post());
    case("no signature", post().signed(&key).without("signature"));
    case("no input", post().signed(&key).without("signature-input"));
    case("empty", post().with("signature", "").with("signature-input", ""));

    for header in ["signature", "signature-input", "content-digest", "content-type"] {
        let signed = post().signed(&key);
        let value = signed.header(header).unwrap_or_default().to_owned();
        let step = value.len() / 12 + 1;
        for index in (6..value.len().saturating_sub(1)).step_by(step) {
            case(
                &format!("{header} flipped at {index}"),
                signed.clone().with(header, &flipped(&value, index)),
            );
        }
    }
    let mut body = post().signed(&key);
    body.body.iter_mut().take(9).for_each(|byte| *byte ^= 1);
    case("body flipped", body);
    let mut body = post().signed(&key);
    body.body = push("00000000000000a2").to_string().into_bytes();
    case("body swapped", body.clone());
    let other = post().signed(&key);
    let digest = Message::post(&agent, DEPLOYMENTS, &push("00000000000000a2")).signed(&key);
    body.headers = other.headers.clone();
    case(
        "body and digest swapped",
        body.with(
            "content-digest",
            digest.header("content-digest").unwrap_or_default(),
        ),
    );

    let signed = post().signed(&key);
    let digests = [
        ("md5", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:"),
        ("sha-1", "sha=:2jmj7l5rSw0yVb/vlWAYkK/YBwk=:"),
        ("two sha-256", "sha-256=:AAAA:, sha-256=:AAAA:"),
    ];
    for (what, digest) in digests {
        let message = post().with("content-digest", digest);
        case(&format!("digest {what}"), message.signed_undigested(&key, |_| {}));
    }
    case("no digest", signed.clone().without("content-digest"));
    for component in COVERED {
        let without = |input: &mut Input| input.components.retain(|name| name != component);
        case(
            &format!("{component} not covered"),
            post().signed_as(&key, without),
        );
        let twice = |input: &mut Input| input.components.push(component.to_owned());
        case(
            &format!("{component} covered twice"),
            post().signed_as(&key, twice),
        );
    }
    let foreign = |input: &mut Input| input.components.push("date".to_owned());
    case(
        "date covered",
        post().with("date", "today").signed_as(&key, foreign),
    );

    case(
        "query added",
        Message {
            query: "?limit=1".to_owned(),
            ..get().signed(&key)
        },
    );
    case(
        "path changed",
        Message {
            path: "/v1/projects/shop/rollbacks".to_owned(),
            ..post().signed(&key)
        },
    );
    case(
        "path encoded",
        Message {
            path: "/v1/projects/sho%70/deployments".to_owned(),
            ..post().signed(&key)
        },
    );
    let host = |host: &str| Message {
        host: host.to_owned(),
        ..get()
    };
    case("signed for another host", host("web-2.example.com").signed(&key));
    case(
        "sent with another host",
        Message {
            host: "web-2.example.com".to_owned(),
            ..get().signed(&key)
        },
    );
    case("no port", host("127.0.0.1").signed(&key));
    case("another port", host("127.0.0.1:1").signed(&key));

    let at = now();
    for (what, created, expires) in [
        ("expired", at - 100, at - 40),
        ("too old", at - 400, at - 400 + 60),
        ("from the future", at + 120, at + 180),
        ("ten years", at, at + 315_360_000),
        ("no lifetime", at, at),
        ("ends before it begins", at, at - 60),
        ("negative", -at, at + 60),
    ] {
        let message = get().signed_as(&key, |input| {
            input.set("created", created);
            input.set("expires", expires);
        });
        case(what, message);
    }
    for created in [
        format!("{at}.0"),
        format!("\"{at}\""),
        "-1".to_owned(),
        "9223372036854775808".to_owned(),
        "999999999999999".to_owned(),
        "?1".to_owned(),
        format!("@{at}"),
        String::new(),
    ] {
        let message = get().signed_as(&key, |input| input.set("created", &created));
        case(&format!("created={created}"), message);
    }
    for name in ["created", "expires", "nonce", "keyid", "alg", "tag"] {
        case(
            &format!("no {name}"),
            get().signed_as(&key, |input| input.remove(name)),
        );
    }
    for (name, value) in [
        ("alg", "\"rsa-pss-sha512\""),
        ("alg", "\"hmac-sha256\""),
        ("alg", "\"Ed25519\""),
        ("tag", "\"other\""),
        ("nonce", "\"short\""),
        (
            "nonce",
            "\"-----------------------------------------------------------------\"",
        ),
        ("keyid", "\"ci\""),
        (
            "keyid",
            "\"ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"",
        ),
    ] {
        case(
            &format!("{name}={value}"),
            get().signed_as(&key, |input| input.set(name, value)),
        );
    }
    let foreign = |input: &mut Input| input.params.push(("x".to_owned(), "1".to_owned()));
    case("a foreign parameter", get().signed_as(&key, foreign));

    let signed = get().signed(&key);
    let (input, signature) = (
        signed.header("signature-input").unwrap_or_default().to_owned(),
        signed.header("signature").unwrap_or_default().to_owned(),
    );
    let second = |text: &str| format!("{text}, {}", text.replacen("sig1", "sig2", 1));
    case(
        "two labels",
        signed
            .clone()
            .with("signature", &second(&signature))
            .with("signature-input", &second(&input)),
    );
    let label = |input: &mut Input| input.signature_label = "sig2".to_owned();
    case("other label", get().signed_as(&key, label));
    let mut twice = signed.clone();
    twice.headers.push(("signature".to_owned(), signature.clone()));
    case("two signature headers", twice);
    for (what, bytes) in [
        ("63", "A".repeat(84)),
        ("66", "A".repeat(88)),
        ("0", String::new()),
    ] {
        case(
            &format!("{what} bytes"),
            signed.clone().with("signature", &format!("sig1=:{bytes}:")),
        );
    }
    let stranger = PrivateKey::generate(&SystemRandom::new())?;
    case("unknown key", get().signed(&stranger));

    // RFC 9421 B.2.6 itself: a true signature, and not of our kind.
    let rfc = Message {
        method: "POST".to_owned(),
        path: "/foo".to_owned(),
        query: "?param=Value&Pet=dog".to_owned(),
        host: "example.com".to_owned(),
        headers: [
            ("date", "Tue, 20 Apr 2021 02:07:55 GMT"),
            ("content-type", "application/json"),
            ("signature-input", "sig-b26=(\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \"content-length\");created=1618884473;keyid=\"test-key-ed25519\""),
            ("signature", "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        body: b"{\"hello\": \"world\"}".to_vec(),
    };
    let signed_path = Message {
        path: DEPLOYMENTS.to_owned(),
        ..rfc
    };
    case("RFC 9421 B.2.6", signed_path);

    let mut answers: Vec<String> = Vec::new();
    for (what, message) in &cases {
        answers.push(check_closed(what, &message.send(&agent)?)?);
    }
    // Nothing in the answer tells one reason from another.
    answers.sort_unstable();
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert!(cases.len() > 100, "{}", cases.len());
    // No path has another method of the same effect: what is left of a changed method is nothing.
    let method = Message {
        method: "PUT".to_owned(),
        ..post().signed(&key)
    };
    assert_eq!(method.send(&agent)?.status, 404);
    let history = get().signed(&key).send(&agent)?;
    assert_eq!(history.json()?.get("deployments"), Some(&json!([])));
    Ok(())
}

#[test]
fn a_request_is_for_one_host_once() -> Result<()> {
    let mut agent = Agent::start_without_containers(Settings::default())?;
    let key = key(&agent)?;

    // Two Host headers, either of them first.
    for hosts in [
        [agent.authority(), "web-2.example.com".to_owned()],
        ["web-2.example.com".to_owned(), agent.authority()],
    ] {
        let mut message = Message::get(&agent, HISTORY).signed(&key);
        let [first, second] = hosts;
        message.host = first;
        message.headers.push(("host".to_owned(), second));
        let answer = message.send(&agent)?;
        assert!([400, 401].contains(&answer.status), "{answer:?}");
    }

    // Signed for this agent, sent to another one that knows the key, with this one's name in Host.
    let public = key.public();
    let table = format!("name = \"same\"\npublic = \"{public}\"\nprojects = [\"*\"]\nallow = [\"status\"]");
    let other = Agent::start_without_containers(Settings::default().key(&table))?;
    let message = Message::get(&agent, HISTORY).signed(&key);
    check_closed("another agent", &message.send(&other)?)?;
    let own = Message::get(&other, HISTORY).signed(&key).send(&other)?;
    assert_eq!(own.status, 200, "{own:?}");

    // Once: here, and after a restart.
    let once = Message::get(&agent, HISTORY).signed(&key);
    assert_eq!(once.send(&agent)?.status, 200);
    check_closed("replayed", &once.send(&agent)?)?;
    agent.restart()?;
    check_closed("replayed after a restart", &once.send(&agent)?)?;
    assert_eq!(
        Message::get(&agent, HISTORY).signed(&key).send(&agent)?.status,
        200
    );

    // The same request twenty times at once: one is let in.
    let message = Message::post(&agent, DEPLOYMENTS, &push("00000000000000c1")).signed(&key);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let sending: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| message.send(&agent).map(|answer| answer.status)))
            .collect();
        sending
            .into_iter()
            .filter_map(|one| one.join().ok()?.ok())
            .collect()
    });
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert_eq!((statuses.len(), accepted), (20, 1), "{statuses:?}");
    assert!(
        statuses.iter().all(|status| [202, 401].contains(status)),
        "{statuses:?}"
    );
    Ok(())
}

#[test]
fn a_key_may_do_what_the_host_says_and_no_more() -> Result<()> {
    let strangers = ["old", "reader", "web-only", "elsewhere"]
        .map(|name| (name, PrivateKey::generate(&SystemRandom::new())));
    let mut settings = Settings::default();
    for (name, key) in &strangers {
        let public = key.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.public();
        let rest = match *name {
            "old" => "projects = [\"*\"]\nallow = [\"push\", \"status\"]\nexpires = 2024-01-01",
            "reader" => "projects = [\"shop\"]\nallow = [\"status\"]",
            "web-only" => "projects = [\"shop\"]\nservices = [\"web\"]\nallow = [\"push\"]",
            _ => "projects = [\"billing\"]\nallow = [\"push\", \"rollback\", \"status\", \"logs\"]",
        };
        settings = settings.key(&format!("name = \"{name}\"\npublic = \"{public}\"\n{rest}"));
    }
    let agent = Agent::start_without_containers(settings)?;
    let [old, reader, web_only, elsewhere] = strangers.map(|(_, key)| key);
    let (old, reader, web_only, elsewhere) = (old?, reader?, web_only?, elsewhere?);
    let get = |path: &str, key: &PrivateKey| Message::get(&agent, path).signed(key).send(&agent);
    let post = |path: &str, key: &PrivateKey, body: &Value| {
        Message::post(&agent, path, body).signed(key).send(&agent)
    };

    let expired = check_closed("expired key", &get(HISTORY, &old)?)?;
    let unknown = check_closed(
        "unknown key",
        &get(HISTORY, &PrivateKey::generate(&SystemRandom::new())?)?,
    )?;
    assert_eq!(expired, unknown);

    let db = json!({ "id": "00000000000000d1", "images": [{ "service": "db", "image": "127.0.0.1:1/acme/db:v2" }] });
    let by_repository =
        json!({ "id": "00000000000000d2", "images": [{ "image": "127.0.0.1:1/acme/db:v2" }] });
    let other_image = json!({ "id": "00000000000000d3", "images": [{ "service": "web", "image": "127.0.0.1:1/acme/api:v2" }] });
    let rollback = json!({ "id": "00000000000000d4", "to": { "back": 1 } });
    let cases = [
        (
            "push by a reader",
            post(DEPLOYMENTS, &reader, &push("00000000000000d0"))?,
            403,
            "not_allowed",
        ),
        (
            "plan by a reader",
            post("/v1/projects/shop/plan", &reader, &push("00000000000000d0"))?,
            403,
            "not_allowed",
        ),
        (
            "rollback by a reader",
            post("/v1/projects/shop/rollbacks", &reader, &rollback)?,
            403,
            "not_allowed",
        ),
        (
            "rollback by a pusher",
            post("/v1/projects/shop/rollbacks", &web_only, &rollback)?,
            403,
            "not_allowed",
        ),
        (
            "logs by a reader",
            get("/v1/projects/shop/logs/web", &reader)?,
            403,
            "not_allowed",
        ),
        (
            "status by a pusher",
            get("/v1/projects/shop/status", &web_only)?,
            403,
            "not_allowed",
        ),
        (
            "another service",
            post(DEPLOYMENTS, &web_only, &db)?,
            403,
            "not_allowed",
        ),
        (
            "another service, planned by repository",
            post("/v1/projects/shop/plan", &web_only, &by_repository)?,
            403,
            "not_allowed",
        ),
        (
            "another image",
            post(DEPLOYMENTS, &web_only, &other_image)?,
            403,
            "image_not_allowed",
        ),
        ("another project", get(HISTORY, &elsewhere)?, 403, "not_allowed"),
        (
            "another project, which does not exist",
            get("/v1/projects/nothing/history", &elsewhere)?,
            403,
            "not_allowed",
        ),
        (
            "a project that does not exist",
            get("/v1/projects/billing/history", &elsewhere)?,
            404,
            "unknown_project",
        ),
        (
            "a deployment that does not exist",
            get("/v1/deployments/00000000000000d9", &reader)?,
            404,
            "unknown_deployment",
        ),
        ("no such path", get("/v2", &reader)?, 404, "not_found"),
    ];
    for (what, answer, status, code) in cases {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{what}: {answer:?}"
        );
    }
    assert_eq!(get(HISTORY, &reader)?.status, 200);
    Ok(())
}

#[test]
fn what_a_push_may_say_is_bounded() -> Result<()> {
    const CANARY: &str = "canary-5f0e1c-secret";
    let agent = Agent::start_without_containers(Settings::default())?;
    let key = key(&agent)?;
    let send = |body: &[u8]| {
        let mut message = Message::get(&agent, DEPLOYMENTS).with("authorization", CANARY);
        message.method = "POST".to_owned();
        message.body = body.to_vec();
        message.signed(&key).send(&agent)
    };
    let web =
        |image: &str| json!({ "id": "00000000000000e1", "images": [{ "service": "web", "image": image }] });
    let service = |name: &str| json!({ "id": "00000000000000e1", "images": [{ "service": name, "image": "127.0.0.1:1/acme/web:v2" }] });
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    for bad in [
        "; rm -rf /",
        "$(id)",
        "`id`",
        "v1\nv2",
        "v1\0",
        "-v1",
        "../../etc/passwd",
        CANARY.repeat(20).as_str(),
    ] {
        bodies.push(
            web(&format!("127.0.0.1:1/acme/web:{bad}"))
                .to_string()
                .into_bytes(),
        );
        bodies.push(service(bad).to_string().into_bytes());
    }
    bodies.push(
        web(&format!("127.0.0.1:1/acme/web:{}", "v".repeat(10_000)))
            .to_string()
            .into_bytes(),
    );
    bodies.push(
        web(&format!("127.0.0.1:1/{}/web:v1", "../".repeat(10)))
            .to_string()
            .into_bytes(),
    );
    for text in [
        String::new(),
        "null".to_owned(),
        "{}".to_owned(),
        "[]".to_owned(),
        "{\"id\":\"00000000000000e1\",\"images\":[]}".to_owned(),
        format!("{{\"id\":\"00000000000000e1\",\"images\":[],\"{CANARY}\":1}}"),
        "{\"id\":\"00000000000000e1\",\"id\":\"00000000000000e2\",\"images\":[]}".to_owned(),
        "[".repeat(60_000),
        push(CANARY).to_string(),
        push("00000000000000E1").to_string(),
    ] {
        bodies.push(text.into_bytes());
    }
    bodies.push(b"{\"id\":\"\xff\xfe\"}".to_vec());
    for body in &bodies {
        let answer = send(body)?;
        let shown = String::from_utf8_lossy(body.get(..body.len().min(200)).unwrap_or_default()).into_owned();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request"),
            "{shown}: {answer:?}"
        );
        assert!(answer.body.len() < 2000, "{shown}: {answer:?}");
    }

    // The cap is on bytes, and exact.
    let padded = |length: usize| {
        let mut body = push("00000000000000e3").to_string().into_bytes();
        body.resize(length, b' ');
        send(&body)
    };
    let over = padded(BODY_MAX_BYTES + 1)?;
    assert_eq!(
        (over.status, over.code().as_str()),
        (413, "too_large"),
        "{over:?}"
    );
    assert_eq!(padded(BODY_MAX_BYTES)?.status, 202);

    // A compressed body is not inflated: it is not JSON.
    let mut bomb = Message::get(&agent, DEPLOYMENTS).with("content-encoding", "gzip");
    bomb.method = "POST".to_owned();
    bomb.body = [&[0x1f, 0x8b, 8, 0][..], &[0; 4096]].concat();
    assert_eq!(bomb.signed(&key).send(&agent)?.status, 400);

    assert!(!agent.logs().contains(CANARY), "{}", agent.logs());
    Ok(())
}

#[test]
fn slow_endless_and_many_requests_hold_nobody_up() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let key = key(&agent)?;
    let (stop, slowest, polls) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| -> Result<()> {
        let health = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let (status, _) = agent.monitor("/healthz")?;
                ensure!(status == 200, "{status}");
                slowest.fetch_max(u32::try_from(begun.elapsed().as_millis())?, Ordering::Relaxed);
                polls.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let cases: [fn(&Agent, &PrivateKey) -> Result<()>; 5] =
            [silent, slow_headers, slow_body, endless_chunks, endless_headers];
        let (host, caller) = (&agent, &key);
        let running = cases.map(|case| scope.spawn(move || case(host, caller)));
        let flood = scope.spawn(|| flood(&agent, &key, Duration::from_secs(3)));
        let ended: Vec<Result<()>> = running
            .into_iter()
            .map(|one| {
                one.join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("a case panicked")))
            })
            .collect();
        let flooded = flood
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the flood panicked")));
        stop.store(true, Ordering::Relaxed);
        health
            .join()
            .unwrap_or_else(|_| Err(anyhow::anyhow!("health panicked")))?;
        ended.into_iter().collect::<Result<()>>()?;
        let refused = flooded?;
        // The machine runs other tests; an idle one refuses thousands a second.
        ensure!(refused > 600, "only {refused} requests were refused in 3 s");
        Ok(())
    })?;
    let (slowest, polls) = (slowest.into_inner(), polls.into_inner());
    assert!(
        slowest < 1000 && polls > 50,
        "{polls} polls, the slowest took {slowest} ms"
    );
    assert_eq!(
        Message::get(&agent, HISTORY).signed(&key).send(&agent)?.status,
        200
    );
    Ok(())
}

/// Bad requests on kept connections; returns how many were answered.
fn flood(agent: &Agent, key: &PrivateKey, time: Duration) -> Result<u32> {
    let begun = Instant::now();
    let bad = Message::get(agent, HISTORY)
        .signed(key)
        .with("signature", &format!("sig1=:{}==:", "A".repeat(86)));
    let bytes = bad.bytes();
    let flooding = |_| -> Result<u32> {
        let mut connection = Connection::open(agent.port())?;
        let mut answered = 0;
        while begun.elapsed() < time {
            connection.write(&bytes)?;
            ensure!(connection.answer()?.status == 401, "let in");
            answered += 1;
        }
        Ok(answered)
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|n| scope.spawn(move || flooding(n))).collect();
        all.into_iter().map(|one| one.join().unwrap_or(Ok(0))).sum()
    })
}

/// A connection on which nobody says anything, not even a TLS hello.
fn silent(agent: &Agent, _: &PrivateKey) -> Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, agent.port()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    ensure!(stream.read(&mut [0; 16])? == 0, "the agent spoke first");
    Ok(())
}

fn slow_headers(agent: &Agent, key: &PrivateKey) -> Result<()> {
    let head = Message::get(agent, HISTORY).signed(key).head(Some(0));
    drip(agent, &[], head.as_bytes())
}

fn slow_body(agent: &Agent, key: &PrivateKey) -> Result<()> {
    let message = Message::post(agent, DEPLOYMENTS, &push("00000000000000f1")).signed(key);
    drip(
        agent,
        message.head(Some(message.body.len())).as_bytes(),
        &message.body,
    )
}

/// Sends the first bytes at once and the others one a second, until the agent has enough of it.
fn drip(agent: &Agent, at_once: &[u8], slowly: &[u8]) -> Result<()> {
    let mut connection = Connection::open(agent.port())?;
    connection.write(at_once)?;
    connection.set_deadline(Duration::from_secs(1))?;
    let begun = Instant::now();
    for byte in slowly {
        if connection.write(&[*byte]).is_err() {
            return Ok(());
        }
        match connection.answer() {
            Ok(answer) => {
                ensure!((400..500).contains(&answer.status), "{answer:?}");
                return Ok(());
            }
            Err(error) if !is_timeout(&error) => return Ok(()),
            Err(_) => {}
        }
        ensure!(begun.elapsed() < PATIENCE, "still listening after {PATIENCE:?}");
    }
    Ok(())
}

fn is_timeout(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(
        kind,
        Some(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
    )
}

fn endless_chunks(agent: &Agent, key: &PrivateKey) -> Result<()> {
    let message = Message::post(agent, DEPLOYMENTS, &push("00000000000000f2"))
        .signed(key)
        .with("transfer-encoding", "chunked");
    let chunk = [b"2000\r\n".as_slice(), &[b' '; 0x2000], b"\r\n"].concat();
    endless(agent, message.head(None).as_bytes(), &chunk)
}

fn endless_headers(agent: &Agent, key: &PrivateKey) -> Result<()> {
    let head = Message::get(agent, HISTORY).signed(key).head(None);
    let line = format!("x: {}\r\n", "y".repeat(8000));
    endless(agent, head.trim_end().as_bytes(), line.as_bytes())
}

fn endless(agent: &Agent, head: &[u8], more: &[u8]) -> Result<()> {
    const MUCH: usize = 32 << 20;
    let mut connection = Connection::open(agent.port())?;
    connection.write(head)?;
    let mut sent = 0;
    while sent < MUCH {
        if connection.write(more).is_err() {
            return Ok(());
        }
        sent += more.len();
    }
    anyhow::bail!("the agent took {sent} bytes")
}

#[test]
fn old_tls_and_plain_http_are_not_spoken() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    // A ClientHello of TLS 1.0 with TLS_RSA_WITH_AES_128_CBC_SHA: record 3.1, handshake 3.1.
    let mut hello = vec![0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let http = format!("GET {HISTORY} HTTP/1.1\r\nHost: {}\r\n\r\n", agent.authority());
    for (what, bytes) in [("TLS 1.0", hello), ("plain HTTP", http.into_bytes())] {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, agent.port()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&bytes)?;
        let mut answer = Vec::new();
        // The connection may be reset instead of closed.
        drop(stream.read_to_end(&mut answer));
        // At most an alert: fatal, and no ServerHello.
        assert!(
            answer.is_empty() || answer.starts_with(&[0x15]),
            "{what}: {answer:?}"
        );
    }
    assert_eq!(agent.monitor("/livez")?.0, 200);
    Ok(())
}
