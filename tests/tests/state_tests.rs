//! The state folder: one agent at a time, a database that is locked, damaged or of another time, backup and restore.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::until::until;
use deploy_tests::wire::{Answer, Message};
use rusqlite::Connection;
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);
const PATH: &str = "/v1/projects/shop/deployments";

fn database(agent: &Agent) -> PathBuf {
    agent.state_dir().join("history.db")
}

/// A signed question that needs no Engine: the deployments of `shop`.
fn question(agent: &Agent) -> Result<Message> {
    let key = agent.ctl()?.private_key()?;
    Ok(
        Message::get(agent, "/v1/projects/shop/history").signed_as(&key, |input| {
            input.set("expires", deploy_tests::wire::now() + 300);
        }),
    )
}

/// Waits until requests are let in: those of the second of a restore are not.
fn is_open(agent: &Agent) -> Result<()> {
    until("requests are let in", SOON, || {
        Ok((ask(agent)?.status == 200).then_some(()))
    })
}

fn ask(agent: &Agent) -> Result<Answer> {
    question(agent)?.send(agent)
}

/// A push that ends refused by itself: its registry does not exist.
fn refused_push(agent: &Agent, id: &str) -> Result<()> {
    let body = json!({
        "id": id,
        "images": [{ "service": "web", "image": "127.0.0.1:1/acme/web:v2" }],
    });
    let key = agent.ctl()?.private_key()?;
    let accepted = Message::post(agent, PATH, &body).signed(&key).send(agent)?;
    ensure!(accepted.status == 202, "{accepted:?}");
    until("it ends", SOON, || Ok(ended_as(agent, id)?.map(|_| ())))
}

/// How a deployment ended, as the agent tells it.
fn ended_as(agent: &Agent, id: &str) -> Result<Option<String>> {
    let key = agent.ctl()?.private_key()?;
    let answer = Message::get(agent, &format!("/v1/deployments/{id}"))
        .signed(&key)
        .send(agent)?;
    if answer.status != 200 {
        return Ok(Some(format!("{} {}", answer.status, answer.code())));
    }
    let result = answer.json()?.pointer("/outcome/result").cloned();
    Ok(result.and_then(|result| Some(result.as_str()?.to_owned())))
}

/// Runs a command of `deploy-agent` on the agent's configuration: its exit code, and what it said on both streams.
fn run(agent: &Agent, words: &[&str], file: &Path) -> Result<(i32, String)> {
    let output = agent
        .command(words)
        .args([file, Path::new("--config"), &agent.config_dir()])
        .output()?;
    let said = [output.stdout, output.stderr].concat();
    let code = output.status.code().context("a signal ended it")?;
    Ok((code, String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn a_second_agent_on_the_same_state_folder_refuses_to_start_and_the_first_goes_on() -> Result<()> {
    let mut agent = Agent::start_without_containers(Settings::default())?;
    // The same folder, other ports: only the lock can tell.
    let second = agent.folder().join("second");
    fs::create_dir_all(second.join("projects.d"))?;
    let port = |at: u16| format!("127.0.0.1:{at}");
    let free = deploy_tests::images::free_port()?;
    let text = fs::read_to_string(agent.config_dir().join("agent.toml"))?
        .replace(
            &format!("listen = \"{}\"", port(agent.port())),
            &format!("listen = \"{}\"", port(free)),
        )
        .replace(
            &format!("listen = \"{}\"", port(agent.monitor_port())),
            &format!("listen = \"{}\"", port(deploy_tests::images::free_port()?)),
        );
    deploy_tests::agent::write_config(&second.join("agent.toml"), &text)?;
    let output = agent.command(&["serve", "--config"]).args([&second]).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        format!("process {}", agent.pid()?),
        agent.state_dir().display().to_string(),
        "systemctl stop deploy-agent".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    assert_eq!(ask(&agent)?.status, 200);
    // A killed agent leaves no lock behind.
    agent.kill9()?;
    agent.resume()?;
    assert_eq!(ask(&agent)?.status, 200);
    Ok(())
}

#[test]
fn a_damaged_or_newer_database_is_refused_with_what_to_do_and_a_restore_brings_it_back() -> Result<()> {
    let mut agent = Agent::start_without_containers(Settings::default())?;
    refused_push(&agent, "00000000000000a1")?;
    let backup = agent.folder().join("backup.db");
    let (code, said) = run(&agent, &["backup"], &backup)?;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("0 releases and 1 deployments"), "{said}");
    assert_eq!(fs::metadata(&backup)?.permissions().mode() & 0o777, 0o600);
    let (code, said) = run(&agent, &["backup"], &backup)?;
    assert!(code == 1 && said.contains("--force"), "{code}: {said}");
    let (code, said) = run(&agent, &["backup", "--force"], &database(&agent))?;
    assert!(code == 1 && said.contains("state folder"), "{code}: {said}");
    let (code, said) = run(&agent, &["backup", "--force"], &backup)?;
    assert_eq!(code, 0, "{said}");
    let (code, said) = run(&agent, &["restore"], &backup)?;
    assert!(
        code == 1 && said.contains("systemctl stop deploy-agent"),
        "{code}: {said}"
    );
    let recorded = question(&agent)?;
    assert_eq!(recorded.send(&agent)?.status, 200);

    agent.kill9()?;
    let sound = fs::read(&backup)?;
    let harmed: [(&str, Vec<u8>, &str); 4] = [
        (
            "header",
            [&[0xA5; 100], &sound[100..]].concat(),
            "deploy-agent restore",
        ),
        ("cut", sound[..sound.len() / 2].to_vec(), "deploy-agent restore"),
        ("empty", Vec::new(), "deploy-agent restore"),
        // user_version, a big-endian number at offset 60 of the header.
        (
            "newer",
            [&sound[..60], &1000_u32.to_be_bytes(), &sound[64..]].concat(),
            "install the agent that wrote it",
        ),
    ];
    for (name, bytes, advice) in harmed {
        for part in ["-wal", "-shm"] {
            drop(fs::remove_file(
                agent.state_dir().join(format!("history.db{part}")),
            ));
        }
        fs::write(database(&agent), &bytes)?;
        let (code, said) = agent.refuses_to_start()?;
        assert_eq!(code, 1, "{name}: {said}");
        assert!(
            said.contains("history.db") && said.contains(advice),
            "{name}: {said}"
        );
        assert_eq!(fs::read(database(&agent))?, bytes, "{name}: it was changed");
        // As a backup it is refused as well, and nothing is replaced.
        let bad = agent.folder().join("bad.db");
        fs::write(&bad, &bytes)?;
        let (code, said) = run(&agent, &["restore"], &bad)?;
        assert!(
            code == 1 && said.contains("nothing was changed"),
            "{name}: {said}"
        );
        assert_eq!(fs::read(database(&agent))?, bytes, "{name}: it was replaced");
    }

    let (code, said) = run(&agent, &["restore"], &backup)?;
    assert_eq!(code, 0, "{said}");
    let kept: Vec<_> = fs::read_dir(agent.state_dir())?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .filter(|name| name.starts_with("history.db.before-restore-"))
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert!(said.contains(&kept[0]), "{said}");
    agent.resume()?;
    // The backup does not know that this one was used; it is refused all the same.
    assert_eq!(recorded.send(&agent)?.code(), "not_authenticated");
    assert!(agent.log().contains("before_restore"), "{}", agent.log());
    is_open(&agent)?;
    assert_eq!(ended_as(&agent, "00000000000000a1")?.as_deref(), Some("refused"));
    Ok(())
}

#[test]
fn what_was_under_way_in_a_backup_is_not_carried_on_but_ends_stuck_and_says_why() -> Result<()> {
    let mut agent = Agent::start_without_containers(Settings::default())?;
    for id in ["00000000000000b1", "00000000000000b2"] {
        refused_push(&agent, id)?;
    }
    let backup = agent.folder().join("backup.db");
    assert_eq!(run(&agent, &["backup"], &backup)?.0, 0);
    agent.kill9()?;
    // As the backup would be, had it been made while one was being pulled and the other restarted its services.
    let connection = Connection::open(&backup)?;
    for (id, phase) in [
        ("00000000000000b1", "pulling"),
        ("00000000000000b2", "restarting"),
    ] {
        connection.execute(
            "UPDATE deployment SET phase = json_object('phase', ?2), ended_at = NULL, outcome = NULL WHERE id = ?1",
            (id, phase),
        )?;
        connection.execute(
            "DELETE FROM event WHERE deployment = ?1 AND json_extract(event, '$.type') = 'ended'",
            [id],
        )?;
    }
    drop(connection);
    let (code, said) = run(&agent, &["restore"], &backup)?;
    assert_eq!(code, 0, "{said}");
    assert!(
        said.contains("00000000000000b1") && said.contains("00000000000000b2"),
        "{said}"
    );
    agent.resume()?;
    is_open(&agent)?;
    assert!(!agent.log().contains("resuming"), "{}", agent.log());
    for (id, phase) in [
        ("00000000000000b1", "pulling"),
        ("00000000000000b2", "restarting"),
    ] {
        assert_eq!(ended_as(&agent, id)?.as_deref(), Some("stuck"), "{id}");
        let key = agent.ctl()?.private_key()?;
        let told = Message::get(&agent, &format!("/v1/deployments/{id}"))
            .signed(&key)
            .send(&agent)?;
        assert!(
            told.body.contains("restored from a backup") && told.body.contains(phase),
            "{told:?}"
        );
    }
    Ok(())
}

#[test]
fn while_a_person_locks_the_database_requests_hear_503_in_time_and_afterwards_all_is_well() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    refused_push(&agent, "00000000000000c1")?;
    let person = Connection::open(database(&agent))?;
    person.execute_batch("BEGIN EXCLUSIVE")?;
    let begun = Instant::now();
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..6).map(|_| scope.spawn(|| ask(&agent))).collect();
        asking
            .into_iter()
            .map(|answer| answer.join().expect("no panic"))
            .collect::<Result<_>>()
    })?;
    let took = begun.elapsed();
    for answer in &answers {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "database_busy"),
            "{answer:?}"
        );
    }
    // Not six times five seconds: whoever waits for its turn has its own limit.
    assert!(took < Duration::from_secs(14), "{took:?}");
    assert_eq!(agent.monitor("/livez")?.0, 200);
    assert_eq!(agent.monitor("/healthz")?.0, 200);
    person.execute_batch("ROLLBACK")?;
    until("requests are answered", SOON, || {
        Ok((ask(&agent)?.status == 200).then_some(()))
    })?;
    assert_eq!(ended_as(&agent, "00000000000000c1")?.as_deref(), Some("refused"));
    refused_push(&agent, "00000000000000c2")?;
    Ok(())
}
