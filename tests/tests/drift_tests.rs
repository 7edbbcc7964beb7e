//! People act beside the agent: files edited by hand, containers stopped, removed and recreated. It is seen, told
//! without secrets, and brought back when asked for; and no edit is ever overwritten unasked.

use std::time::Duration;

use anyhow::{Context, Result};
use deploy_proto::event::PhaseName;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::command::docker;
use deploy_tests::ctl::{Ctl, Document};
use deploy_tests::images::{Mode, Registry};
use deploy_tests::project::Project;
use deploy_tests::until::until;
use deploy_tests::wire::Events;

const COMPOSE: &str = "\
services:
  web:
    image: REGISTRY/acme/web:v1
    restart: always
    depends_on: [db]
    environment:
      COLOUR: red
      DB_PASSWORD: first-canary
  db:
    image: REGISTRY/acme/postgres:v1
";
/// The periodic look comes within ten seconds of the start.
const LOOK_DEADLINE: Duration = Duration::from_secs(40);

fn settings() -> Settings {
    Settings::default()
        .project("settle", "\"300ms\"")
        .project("wait", "\"8s\"")
}

/// A project at release 2: `web` v2 by a push; `db` is not this agent's, for `deploy-agent add` leaves databases out.
fn shop(registry: &Registry, compose: &str, dotenv: &str, settings: Settings) -> Result<(Project, Agent)> {
    let project = Project::write(registry, &[("compose.yaml", compose), (".env", dotenv)])?;
    for (repository, tag) in [("web", "v1"), ("postgres", "v1"), ("web", "v2")] {
        project.push_image(repository, tag, Mode::Good)?;
    }
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), settings)?;
    agent
        .ctl()?
        .push(0, &[&format!("web={}", project.image("web", "v2"))], &[])?;
    Ok((project, agent))
}

fn edit(project: &Project, file: &str, from: &str, to: &str) -> Result<()> {
    let text = project.file(file)?;
    assert!(text.contains(from), "{text}");
    project.write_file(file, &text.replace(from, to))
}

/// A variable in the configuration of a service's container.
fn variable(project: &Project, service: &str, name: &str) -> Result<String> {
    let format = "{{range .Config.Env}}{{println .}}{{end}}";
    let id = project.container_id(service)?;
    let text = docker(["inspect", "--format", format, &id]).text()?;
    let start = format!("{name}=");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    Ok(line.context("no such variable")?.to_owned())
}

/// The kinds of drift that `status` tells.
fn drift(ctl: &Ctl) -> Result<Vec<String>> {
    let status = ctl.json(0, &["status"])?;
    let kind = |one: &serde_json::Value| one["kind"].as_str().unwrap_or_default().to_owned();
    Ok(status.list("/drift").iter().map(kind).collect())
}

fn warnings(document: &Document) -> String {
    document.at("/plan/warnings")
}

#[test]
fn a_push_onto_edited_files_is_refused_with_the_difference_and_no_secret() -> Result<()> {
    let registry = Registry::start()?;
    let (project, agent) = shop(&registry, COMPOSE, "TOKEN=first-canary\n", settings())?;
    let ctl = agent.ctl()?;
    let container = project.container_id("web")?;
    edit(
        &project,
        "compose.yaml",
        "restart: always",
        "restart: unless-stopped",
    )?;
    edit(&project, "compose.yaml", "first-canary", "second-canary")?;
    edit(&project, ".env", "first-canary", "second-canary")?;
    let files = [project.file("compose.yaml")?, project.file(".env")?];
    let set = format!("web={}", project.image("web", "v1"));

    let expected = [
        "compose.yaml:4  -     restart: always",
        "compose.yaml:4  +     restart: unless-stopped",
        "compose.yaml:8  -       DB_PASSWORD: [hidden]",
        "compose.yaml:8  +       DB_PASSWORD: [hidden]",
        ".env:1  - TOKEN=[hidden]",
        ".env:1  + TOKEN=[hidden]",
    ];
    let refused = ctl.push(9, &[&set], &[])?;
    assert_eq!(refused.code(), "edited");
    let lines = refused.list("/outcome/problem/lines");
    for line in expected {
        assert!(lines.iter().any(|one| one == line), "{line}: {lines:?}");
    }
    let thought_through = ctl.push(9, &[&set], &["--dry-run"])?;
    assert_eq!(thought_through.list("/error/lines"), lines);
    for caller in [ctl.clone(), ctl.env("GITHUB_ACTIONS", "true")] {
        let shown = caller.expect(9, &["push", "--set", &set])?;
        for line in expected {
            shown.clone().says(line)?;
        }
        assert!(!format!("{shown:?}").contains("canary"), "{shown:?}");
    }
    let seen = format!("{refused:?}{thought_through:?}{}", agent.log());
    assert!(!seen.contains("canary"), "{seen}");
    // Nothing was touched.
    assert_eq!(
        (
            [project.file("compose.yaml")?, project.file(".env")?],
            project.container_id("web")?
        ),
        (files, container)
    );
    Ok(())
}

#[test]
fn no_way_back_overwrites_an_edit_of_dotenv_and_the_asked_for_one_says_so() -> Result<()> {
    let registry = Registry::start()?;
    let compose = COMPOSE.replace("web:v1", "web:${WEB_TAG}");
    let dotenv = "WEB_TAG=v1\nCOLOUR=red\n";
    let slow = settings().project("settle", "\"6s\"").project("wait", "\"15s\"");
    let (project, agent) = shop(&registry, &compose, dotenv, slow)?;
    let ctl = agent.ctl()?;
    project.push_image("web", "sick", Mode::CrashLater(Duration::from_secs(3)))?;

    // By itself: the edit comes while the new containers are watched.
    let id = "00000000000000d1";
    let set = format!("web={}", project.image("web", "sick"));
    ctl.expect(0, &["push", "--set", &set, "--id", id, "--detach"])?;
    Events::follow(&agent, &ctl.private_key()?, id, None)?.reach(PhaseName::Watching)?;
    edit(&project, ".env", "COLOUR=red", "COLOUR=blue # by hand")?;
    let watched = ctl.json(3, &["watch", id])?;
    assert_eq!(watched.result(), "rolled_back");
    let file = project.file(".env")?;
    assert!(file.starts_with("WEB_TAG=v2@sha256:"), "{file}");
    assert!(file.ends_with("\nCOLOUR=blue # by hand\n"), "{file}");
    assert_eq!(project.version("web")?, "v2");

    // Asked for: it goes back on the file as it is, and says so before.
    let planned = ctl.json(0, &["rollback", "--dry-run"])?;
    assert!(
        warnings(&planned).contains(".env edited by hand since release 2: line 2: the edits stay"),
        "{planned:?}"
    );
    let back = ctl.json(0, &["rollback"])?;
    assert_eq!(back.result(), "live");
    assert!(warnings(&back).contains("the edits stay"), "{back:?}");
    assert_eq!(project.file(".env")?, "WEB_TAG=v1\nCOLOUR=blue # by hand\n");
    assert_eq!(project.version("web")?, "v1");
    Ok(())
}

#[test]
fn what_drifted_is_seen_and_brought_back_and_nothing_else() -> Result<()> {
    let registry = Registry::start()?;
    let (project, mut agent) = shop(&registry, COMPOSE, "", settings())?;
    let ctl = agent.ctl()?;
    let file = project.file("compose.yaml")?;
    let release = || Ok::<_, anyhow::Error>(ctl.json(0, &["status"])?.at("/release/number"));
    let metric = |agent: &Agent, count: u32| -> Result<bool> {
        let line = format!("deploy_agent_drift{{project=\"{}\"}} {count}\n", project.name());
        Ok(agent.monitor("/metrics")?.1.contains(&line))
    };
    let first = release()?;
    assert_eq!(drift(&ctl)?, Vec::<String>::new());
    assert!(metric(&agent, 0)?);

    // The same files brought up by hand give the containers another hash, and are no drift; neither is a database.
    let container = project.container_id("web")?;
    project.compose(&["up", "-d", "--force-recreate"]).text()?;
    assert_ne!(project.container_id("web")?, container);
    project.compose(&["rm", "--stop", "--force", "db"]).text()?;
    assert_eq!(drift(&ctl)?, Vec::<String>::new());
    let container = project.container_id("web")?;
    let reconciled = ctl.json(0, &["reconcile"])?;
    assert_eq!(reconciled.result(), "unchanged");
    assert_eq!(project.container_id("web")?, container);

    let other = |what: &str| {
        let text = format!("services:\n  web:\n    {what}\n");
        project.write_file("other.yaml", &text)?;
        let words = [
            "-f",
            "compose.yaml",
            "-f",
            "other.yaml",
            "up",
            "-d",
            "--no-deps",
            "web",
        ];
        project.compose(&words).text().map(drop)
    };
    let old = format!("image: {}", project.image("web", "v1"));
    let stop = || project.compose(&["stop", "web"]).text().map(drop);
    let remove = || {
        project
            .compose(&["rm", "--stop", "--force", "web"])
            .text()
            .map(drop)
    };
    let recolour = || other("environment: {COLOUR: green}");
    let reimage = || other(&old);
    let cases: [(&str, &dyn Fn() -> Result<()>); 4] = [
        ("not_running", &stop),
        ("missing", &remove),
        ("configuration", &recolour),
        ("image", &reimage),
    ];
    for (kind, drift_away) in cases {
        drift_away()?;
        assert_eq!(drift(&ctl)?, [kind]);
        assert!(metric(&agent, 1)?, "{kind}");
        ctl.expect(0, &["status"])?.says("deployctl reconcile")?;
        let planned = ctl.json(0, &["reconcile", "--dry-run"])?;
        assert_eq!(
            planned.at("/plan/services/0/changes"),
            "true",
            "{kind}: {planned:?}"
        );
        assert_eq!(drift(&ctl)?, [kind]);
        let reconciled = ctl.json(0, &["reconcile"])?;
        assert_eq!(reconciled.result(), "live", "{kind}");
        assert_eq!(drift(&ctl)?, Vec::<String>::new(), "{kind}");
        assert_eq!(project.version("web")?, "v2", "{kind}");
        assert_eq!(variable(&project, "web", "COLOUR")?, "red", "{kind}");
        assert_eq!(
            (project.file("compose.yaml")?, release()?),
            (file.clone(), first.clone())
        );
    }
    assert!(project.container_id("db").is_err());
    ctl.expect(0, &["history"])?.says("reconcile 2 -> 2")?;

    // The periodic look finds it too.
    remove()?;
    agent.restart()?;
    until("the metric tells the drift", LOOK_DEADLINE, || {
        Ok(metric(&agent, 1)?.then_some(()))
    })
}

#[test]
fn edits_stay_in_a_reconciliation_unless_they_are_to_be_discarded() -> Result<()> {
    let registry = Registry::start()?;
    let slow = settings().project("settle", "\"6s\"");
    let (project, agent) = shop(&registry, COMPOSE, "", slow)?;
    let ctl = agent.ctl()?;
    let left = project.file("compose.yaml")?;
    let colour = || variable(&project, "web", "COLOUR");

    // The image line and another one are edited, and brought up by hand.
    let line = left
        .lines()
        .find(|line| line.contains("acme/web"))
        .context("no image line")?;
    let old_line = format!("    image: {}", project.image("web", "v1"));
    edit(&project, "compose.yaml", line, &old_line)?;
    edit(&project, "compose.yaml", "COLOUR: red", "COLOUR: blue")?;
    project.compose(&["up", "-d"]).text()?;
    assert_eq!(drift(&ctl)?, ["image", "edited"]);
    let reconciled = ctl.json(0, &["reconcile"])?;
    assert_eq!(reconciled.result(), "live");
    assert!(warnings(&reconciled).contains("the edits stay"), "{reconciled:?}");
    let edited = left.replace("COLOUR: red", "COLOUR: blue");
    assert_eq!(project.file("compose.yaml")?, edited);
    assert_eq!((project.version("web")?, colour()?), ("v2".into(), "blue".into()));
    // They are no base for a push yet.
    assert_eq!(drift(&ctl)?, ["edited"]);
    let set = format!("web={}", project.image("web", "v1"));
    assert_eq!(ctl.push(9, &[&set], &[])?.code(), "edited");

    // Discarded, and cancelled half way: what was found is put back, the edit with it.
    let id = "00000000000000d2";
    ctl.expect(0, &["reconcile", "--discard-edits", "--id", id, "--detach"])?;
    Events::follow(&agent, &ctl.private_key()?, id, None)?.reach(PhaseName::Watching)?;
    assert_eq!(
        (project.file("compose.yaml")?, colour()?),
        (left.clone(), "red".into())
    );
    ctl.expect(0, &["cancel", id])?;
    assert_eq!(ctl.json(3, &["watch", id])?.result(), "rolled_back");
    assert_eq!(
        (project.file("compose.yaml")?, colour()?),
        (edited, "blue".into())
    );

    // Discarded.
    let reconciled = ctl.json(0, &["reconcile", "--discard-edits"])?;
    assert_eq!(reconciled.result(), "live");
    assert!(
        warnings(&reconciled).contains("the edits are discarded"),
        "{reconciled:?}"
    );
    assert_eq!((project.file("compose.yaml")?, colour()?), (left, "red".into()));
    assert_eq!(drift(&ctl)?, Vec::<String>::new());
    assert_eq!(
        ctl.json(0, &["reconcile", "--discard-edits"])?.result(),
        "unchanged"
    );
    Ok(())
}

#[test]
fn a_stuck_project_is_reconciled_and_a_key_without_the_right_is_refused() -> Result<()> {
    const SERVICE: &str = "auth_service";
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let mut agent = Agent::start_with(&clinic, Settings::default().project("wait", "\"6s\""))?;
    let ctl = agent.ctl()?;
    let (file, old) = (clinic.file(), clinic.image_id(SERVICE)?);
    clinic.push_version(SERVICE, Mode::Sick, "dev-51c0001")?;
    let id = "00000000000000d3";
    let set = clinic.set_argument(SERVICE, "dev-51c0001");
    let pushing = ctl.spawn(&["push", "--set", &set, "--id", id])?;
    Events::when_accepted(&agent, &ctl.private_key()?, id)?.reach(PhaseName::Watching)?;
    // The old image is lost, here and at the registry.
    registry.stop();
    docker(["rmi", "--force", &old]).text()?;
    pushing.end()?.expect(6)?;
    registry.resume()?;

    let reconciled = ctl.json(0, &["reconcile"])?;
    assert_eq!(reconciled.result(), "live");
    assert_eq!(
        (clinic.image_id(SERVICE)?, reconciled.at("/outcome/release")),
        (old, "1".into())
    );
    let status = ctl.json(0, &["status"])?;
    assert_eq!(
        (status.list("/attention").len(), status.at("/release/number")),
        (0, "1".into())
    );
    assert_eq!(clinic.file(), file);

    agent.terminate()?;
    drop(agent);
    let agent = Agent::start_with(&clinic, Settings::default().allow("[\"push\", \"status\"]"))?;
    assert_eq!(agent.ctl()?.json(4, &["reconcile"])?.code(), "not_allowed");
    Ok(())
}
