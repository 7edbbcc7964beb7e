//! Bake: a release that falls sick after it went live is taken back by itself; what a person does, and one slow answer,
//! take nothing back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::docker;
use deploy_tests::ctl::{Ctl, Document};
use deploy_tests::engine::{Engine, with_own_engine};
use deploy_tests::http;
use deploy_tests::images::{Mode, Registry, free_port};
use deploy_tests::project::Project;
use deploy_tests::until::until;
use serde_json::Value;

/// Longer than the grace of a failing check, and a rollback on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A project of one service without a healthcheck, and its agent.
struct Host {
    registry: Registry,
    project: Project,
    agent: Agent,
    ctl: Ctl,
    port: u16,
}

impl Host {
    fn start(bake: &str) -> Result<Self> {
        let registry = Registry::start()?;
        let port = free_port()?;
        let file = format!(
            "services:\n  web:\n    image: REGISTRY/acme/web:v1\n    restart: always\n    ports: [\"127.0.0.1:{port}:8080\"]\n"
        );
        let project = Project::write(&registry, &[("compose.yaml", &file)])?;
        project.push_image("web", "v1", Mode::Good)?;
        project.compose(&["up", "-d", "--quiet-pull"]).text()?;
        let settings = Settings::default()
            .project("bake", &format!("\"{bake}\""))
            .probe(&format!(
                "service = \"web\"\nhttp = \"http://127.0.0.1:{port}/health\"\ntimeout = \"2s\""
            ));
        let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), settings)?;
        let ctl = agent.ctl()?;
        Ok(Self {
            registry,
            project,
            agent,
            ctl,
            port,
        })
    }

    /// Pushes a version that does what it is told; it goes live.
    fn push(&self, tag: &str) -> Result<Document> {
        self.project.push_image("web", tag, Mode::Moody)?;
        let set = format!("web={}", self.project.image("web", tag));
        self.ctl.push(0, &[&set], &["-v", tag])
    }

    fn become_what(&self, what: &str) {
        // One that dies gives no answer.
        drop(http::get(self.port, &format!("/become/{what}")));
    }

    fn log(&self) -> Result<String> {
        let id = self.project.container_id("web")?;
        let output = docker(["logs", &id]).output()?;
        Ok([output.stdout, output.stderr]
            .map(|stream| String::from_utf8_lossy(&stream).into_owned())
            .concat())
    }

    fn history(&self) -> Result<History> {
        Ok(History(self.ctl.json(0, &["history"])?))
    }

    /// The release that is watched, when one is.
    fn baking(&self) -> Result<Option<String>> {
        let release = self.ctl.json(0, &["status"])?.at("/baking/release");
        Ok((!release.is_empty()).then_some(release))
    }

    /// Waits until the newest deployment has ended and is an automatic rollback.
    fn is_taken_back(&self) -> Result<History> {
        until("an automatic rollback ends", DEADLINE, || {
            let history = self.history()?;
            let newest = history.newest(0);
            Ok((newest("kind") == "auto_rollback" && newest("ended_at") != "null").then_some(history))
        })
        .with_context(|| self.agent.logs())
    }

    fn is_not_watched_any_more(&self) -> Result<()> {
        until("the bake ends", DEADLINE, || {
            Ok(self.baking()?.is_none().then_some(()))
        })
        .with_context(|| self.agent.logs())
    }

    /// Waits until the release was watched for so much longer, by the agent's clock; fails when its bake ends before.
    fn bakes_on(&self, release: &str, longer: Duration) -> Result<()> {
        let left = || -> Result<u128> {
            let status = self.ctl.json(0, &["status"])?;
            ensure!(status.at("/baking/release") == release, "{status:?}");
            Ok(status.at("/baking/left_ms").parse()?)
        };
        let before = left()?;
        until("it is watched on", DEADLINE, || {
            Ok((left()? + longer.as_millis() <= before).then_some(()))
        })
        .with_context(|| self.agent.logs())
    }

    fn metric(&self, name: &str) -> Result<String> {
        let (_, text) = self.agent.monitor("/metrics")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name}{{project=\"{}\"}} ", self.project.name())));
        Ok(line.with_context(|| format!("no {name} in {text}"))?.to_owned())
    }
}

struct History(Document);

impl History {
    /// A field of a deployment, the newest first.
    fn newest(&self, at: usize) -> impl Fn(&str) -> String + use<> {
        let deployment = self.0.list("/deployments").get(at).cloned().unwrap_or_default();
        move |field| match deployment.pointer(&format!("/{field}")) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }

    /// The state of the release with this version.
    fn state(&self, version: &str) -> String {
        let releases = self.0.list("/releases");
        let release = releases.iter().find(|release| release["version"] == version);
        release
            .and_then(|release| release["state"].as_str())
            .unwrap_or_default()
            .to_owned()
    }
}

#[test]
fn a_release_that_crashes_after_it_went_live_is_taken_back_and_the_history_tells_both() -> Result<()> {
    let host = Host::start("60s")?;
    let file = host.project.file("compose.yaml")?;
    assert_eq!(host.metric("deploy_agent_auto_rollbacks_total")?, "0");
    let pushed = host.push("v2")?;
    assert_eq!(pushed.at("/outcome/bake_ms"), "60000");
    until("it bakes", DEADLINE, || {
        Ok((host.baking()? == Some("2".to_owned())).then_some(()))
    })?;
    host.ctl
        .expect(0, &["status"])?
        .says("release 2 is watched for")?;
    assert_eq!(host.metric("deploy_agent_baking")?, "1");

    host.become_what("dead");
    let history = host.is_taken_back()?;
    let (back, push) = (history.newest(0), history.newest(1));
    assert_eq!(back("outcome/result"), "rolled_back");
    assert_eq!((back("from"), back("to")), ("2".to_owned(), "1".to_owned()));
    assert_eq!((back("undoes"), back("key")), (push("id"), push("key")));
    let reason = back("outcome/problem/detail");
    assert!(reason.contains("web: it exited with code 3"), "{reason}");
    assert!(back("outcome/log_lines").contains("FATAL giving up"));
    assert_eq!(
        (push("outcome/result"), push("undone_by")),
        ("live".to_owned(), back("id"))
    );
    assert_eq!(history.state("v2"), "failed");
    assert_eq!(host.project.version("web")?, "v1");
    assert_eq!(host.project.file("compose.yaml")?, file);
    assert_eq!(host.baking()?, None);
    assert_eq!(host.metric("deploy_agent_auto_rollbacks_total")?, "1");
    assert_eq!(host.metric("deploy_agent_baking")?, "0");
    host.ctl
        .expect(0, &["history"])?
        .says("automatic rollback 2 -> 1")?;
    let watched = host.ctl.expect(3, &["watch", &back("id")])?;
    watched.says("release 2 fell sick")?.says("FATAL giving up")?;
    let late = host.ctl.json(9, &["cancel", &back("id")])?;
    assert_eq!(late.code(), "too_late");

    // The next one falls sick as well, and what ran before it is lost, here and at the registry.
    host.push("v3")?;
    host.registry.stop();
    let old = docker([
        "images",
        "--quiet",
        "--no-trunc",
        &host.project.image("web", "v1"),
    ])
    .text()?;
    ensure!(!old.trim().is_empty(), "the old image is not here");
    for id in old.lines() {
        docker(["rmi", "--force", id]).text()?;
    }
    host.become_what("dead");
    let history = host.is_taken_back()?;
    let back = history.newest(0);
    assert_eq!(back("outcome/result"), "stuck");
    assert!(back("outcome/problem/detail").contains("it exited with code 3"));
    assert!(!back("outcome/trouble/detail").is_empty());
    let attention = host.ctl.json(0, &["status"])?.at("/attention");
    assert!(attention.contains("a person is needed"), "{attention}");
    host.ctl.expect(6, &["watch", &back("id")])?;
    assert_eq!(host.project.version("web")?, "v3");
    Ok(())
}

#[test]
fn a_check_is_believed_only_when_it_fails_on_end() -> Result<()> {
    let host = Host::start("25s")?;
    host.push("v2")?;
    let checks =
        |status: &str| Ok::<_, anyhow::Error>(host.log()?.matches(&format!("/health {status}")).count());
    host.become_what("sick-once");
    until("a check fails", DEADLINE, || {
        Ok((checks("500")? == 1).then_some(()))
    })?;
    let before = checks("200")?;
    until("the next one passes", DEADLINE, || {
        Ok((checks("200")? > before).then_some(()))
    })?;
    assert_eq!(host.history()?.newest(0)("kind"), "push");
    assert_eq!(host.baking()?, Some("2".to_owned()));

    let sick = Instant::now();
    host.become_what("sick");
    // Also beyond the end of the bake: it does not end in the middle of a doubt.
    let history = host.is_taken_back()?;
    assert!(sick.elapsed() > Duration::from_secs(14), "{:?}", sick.elapsed());
    let reason = history.newest(0)("outcome/problem/detail");
    assert!(reason.contains("gave 500, on end for 1"), "{reason}");
    assert_eq!(history.newest(0)("outcome/result"), "rolled_back");
    assert_eq!(host.project.version("web")?, "v1");
    Ok(())
}

#[test]
fn what_a_person_stops_is_not_sick_and_what_is_pushed_next_bakes_in_its_place() -> Result<()> {
    let host = Host::start("10m")?;
    host.push("v2")?;
    // A restart by hand is nothing, also when the time has passed after which a stop ends the bake.
    host.project.compose(&["restart", "web"]).text()?;
    host.bakes_on("2", Duration::from_secs(18))?;
    host.project.compose(&["stop", "web"]).text()?;
    host.is_not_watched_any_more()?;
    let said = host.agent.log();
    assert!(said.contains("web: its container was stopped"), "{said}");
    assert_eq!(host.history()?.newest(0)("kind"), "push");
    assert_eq!(host.history()?.state("v2"), "live");
    host.project.compose(&["start", "web"]).text()?;

    host.push("v3")?;
    // What touches nothing takes no protection away.
    let missing = format!("web={}", host.project.image("web", "v404"));
    host.ctl.push(9, &[&missing], &[])?;
    until("it bakes again", DEADLINE, || {
        Ok((host.baking()? == Some("3".to_owned())).then_some(()))
    })?;
    host.push("v4")?;
    until("the newer one bakes", DEADLINE, || {
        Ok((host.baking()? == Some("4".to_owned())).then_some(()))
    })?;
    host.become_what("dead");
    let history = host.is_taken_back()?;
    assert_eq!(history.newest(0)("outcome/result"), "rolled_back");
    assert_eq!(host.project.version("web")?, "v3");
    assert_eq!(history.state("v3"), "live");
    Ok(())
}

#[test]
fn a_restarted_agent_goes_on_baking_until_the_time_is_over() -> Result<()> {
    let mut host = Host::start("6s")?;
    host.push("v2")?;
    host.agent.kill9()?;
    host.become_what("dead");
    until("the Engine starts it again", DEADLINE, || {
        Ok((http::get(host.port, "/health")?.0 == 200).then_some(()))
    })?;
    host.agent.resume()?;
    let history = host.is_taken_back()?;
    assert_eq!(history.newest(0)("outcome/result"), "rolled_back");
    assert_eq!(host.project.version("web")?, "v1");

    // A stop does not wait for a bake, and the next start begins it anew.
    host.push("v3")?;
    let stopping = Instant::now();
    host.agent.terminate()?;
    assert!(
        stopping.elapsed() < Duration::from_secs(5),
        "{:?}",
        stopping.elapsed()
    );
    host.agent.resume()?;
    until("it bakes again", DEADLINE, || host.baking())?;
    host.is_not_watched_any_more()?;
    let said = host.agent.log();
    assert!(said.contains("the release stayed well"), "{said}");
    // From now on it is monitoring's.
    host.become_what("dead");
    until("the Engine starts it again", DEADLINE, || {
        Ok((http::get(host.port, "/health")?.0 == 200).then_some(()))
    })?;
    // A whole deployment and its bake later nothing was taken back.
    host.push("v4")?;
    host.is_not_watched_any_more()?;
    let history = host.history()?;
    assert_eq!([0, 1].map(|at| history.newest(at)("kind")), ["push", "push"]);
    assert_eq!([0, 1].map(|at| history.newest(at)("undone_by")), ["", ""]);
    assert_eq!(history.state("v3"), "replaced");
    assert_eq!(host.project.version("web")?, "v4");
    Ok(())
}

#[test]
fn a_reconciliation_leaves_the_release_baking_in_its_new_containers() -> Result<()> {
    let host = Host::start("10m")?;
    host.push("v2")?;
    until("it bakes", DEADLINE, || host.baking())?;
    docker(["rm", "--force", &host.project.container_id("web")?]).text()?;
    assert_eq!(host.ctl.json(0, &["reconcile"])?.result(), "live");
    until("it bakes on", DEADLINE, || {
        Ok((host.baking()? == Some("2".to_owned())).then_some(()))
    })?;
    host.become_what("dead");
    let history = host.is_taken_back()?;
    assert_eq!(history.newest(0)("outcome/result"), "rolled_back");
    assert_eq!(host.project.version("web")?, "v1");
    Ok(())
}

#[test]
fn an_engine_that_is_killed_while_a_release_bakes_is_no_reason_to_take_it_back() -> Result<()> {
    with_own_engine(|engine| {
        let registry = Registry::start_on(engine)?;
        let clinic = Clinic::start_only(&registry, &["auth_service"])?;
        let agent = Agent::start_with(&clinic, Settings::default().project("bake", "\"25s\""))?;
        clinic.push_version("auth_service", Mode::Good, "dev-0000001")?;
        let ctl = agent.ctl()?;
        ctl.push(0, &[&clinic.set_argument("auth_service", "dev-0000001")], &[])?;
        for restart in [Engine::kill9, Engine::stop] {
            restart(engine)?;
            engine.start()?;
        }
        until("the bake ends", DEADLINE, || {
            Ok(agent.log().contains("bake ended").then_some(()))
        })
        .with_context(|| agent.log())?;
        let log = agent.log();
        ensure!(log.contains("the release stayed well"), "{log}");
        let history = History(ctl.json(0, &["history"])?);
        assert_eq!(history.newest(0)("kind"), "push");
        assert_eq!(clinic.service_version("auth_service")?, "dev-0000001");
        Ok(())
    })
}
