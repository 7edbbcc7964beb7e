//! Hooks on a real Engine: commands of the host's configuration before anything is changed, before the restart in the new
//! image, and when all services are well.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deploy_proto::event::{Ending, Event, Happened, Outcome, PhaseName};
use deploy_tests::agent::{Agent, Settings, write_config};
use deploy_tests::clinic::{Clinic, FIRST_VERSION};
use deploy_tests::command::docker;
use deploy_tests::ctl::{Ctl, Document};
use deploy_tests::images::{Mode, Registry};
use deploy_tests::until::until;
use deploy_tests::wire::Events;

const SERVICE: &str = "auth_service";
/// Long enough to be caught in, and never waited for.
const LONG: &str = "600";

/// One service, its databases, and an agent whose hooks change from case to case.
struct Host {
    clinic: Clinic,
    agent: Agent,
    ctl: Ctl,
    /// The key file of a caller that may see deployments, and not read logs.
    watcher: PathBuf,
    next: u32,
}

impl Host {
    fn start(registry: &Registry, pin: &str) -> Result<Self> {
        let clinic = Clinic::start_only(registry, &[SERVICE])?;
        let settings = Settings::default()
            .project("wait", "\"6s\"")
            .project("settle", "\"200ms\"")
            .project("pin", &format!("\"{pin}\""));
        let agent = Agent::start_with(&clinic, settings)?;
        // In force from the next start on: every case begins with one.
        let (watcher, public) = agent.new_key("watcher")?;
        let path = agent.config_dir().join("agent.toml");
        let file = std::fs::read_to_string(&path)?;
        let key =
            format!("name = \"watcher\"\npublic = \"{public}\"\nprojects = [\"*\"]\nallow = [\"status\"]\n");
        write_config(&path, &format!("{file}\n[[key]]\n{key}"))?;
        let ctl = agent.ctl()?;
        Ok(Self {
            clinic,
            agent,
            ctl,
            watcher,
            next: 0,
        })
    }

    /// A fresh version that behaves so; its `--set` and a fresh id.
    fn version(&mut self, mode: Mode) -> Result<(String, String, String)> {
        self.next += 1;
        let tag = format!("dev-{:07x}", self.next);
        self.clinic.push_version(SERVICE, mode, &tag)?;
        let set = self.clinic.set_argument(SERVICE, &tag);
        Ok((tag, set, format!("{:016x}", self.next)))
    }

    fn hooks(&mut self, hooks: &[String]) -> Result<()> {
        self.agent.set_hooks(hooks)
    }

    fn push(&mut self, code: i32, mode: Mode) -> Result<(String, Document)> {
        let (tag, set, id) = self.version(mode)?;
        Ok((tag, self.ctl.push(code, &[&set], &["--id", &id])?))
    }

    /// What must be the same when nothing was changed, or all was put back: files, containers, databases.
    fn stands(&self) -> Result<(String, String, Vec<String>)> {
        Ok((
            self.clinic.file(),
            self.clinic.container_id(SERVICE)?,
            self.clinic.database_ids(),
        ))
    }

    fn events(&self, id: &str) -> Result<Vec<Event>> {
        Events::follow(&self.agent, &self.ctl.private_key()?, id, None)?.all()
    }

    /// The containers of hooks, running or not.
    fn hook_containers(&self) -> Result<Vec<String>> {
        let ids = docker(["ps", "--all", "--quiet", "--no-trunc"])
            .args([
                "--filter",
                &format!("label=com.docker.compose.project={}", self.clinic.project()),
            ])
            .args(["--filter", "label=com.docker.compose.oneoff=True"])
            .text()?;
        Ok(ids.lines().map(str::to_owned).collect())
    }

    /// Waits until a hook's container runs; its id.
    fn hook_runs(&self) -> Result<String> {
        until("a hook runs in a container", Duration::from_secs(20), || {
            let running = docker(["ps", "--quiet", "--no-trunc"])
                .args(["--filter", &format!("name={}-hook-", self.clinic.project())])
                .text()?;
            Ok(running.lines().next().map(str::to_owned))
        })
    }

    fn no_hook_is_left(&self) -> Result<()> {
        let left = self.hook_containers()?;
        ensure!(left.is_empty(), "hook containers are left: {left:?}");
        Ok(())
    }

    /// Pushes in the background and waits until a hook runs in a container.
    fn pushed_into_a_hook(&mut self, mode: Mode) -> Result<(String, String, String)> {
        let (tag, set, id) = self.version(mode)?;
        self.ctl
            .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
        Ok((tag, id, self.hook_runs()?))
    }

    fn outcome(&self, id: &str) -> Result<Outcome> {
        let events = self.events(id)?;
        let Some(Happened::Ended { outcome }) = events.last().map(|event| event.what.clone()) else {
            anyhow::bail!("{id} has no end: {events:?}");
        };
        Ok(outcome)
    }
}

/// `before = "restart"` in the service's new image.
fn migration(name: &str, words: &[&str], more: &str) -> String {
    in_the_image("before = \"restart\"", name, words, more)
}

fn in_the_image(moment: &str, name: &str, words: &[&str], more: &str) -> String {
    format!("{moment}\nname = \"{name}\"\nservice = \"{SERVICE}\"\ncommand = {words:?}\n{more}")
}

/// A script on the host.
fn on_the_host(moment: &str, name: &str, script: &str) -> String {
    format!("{moment}\nname = \"{name}\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\n")
}

/// The lines of a hook that ended well.
fn lines_of(events: &[Event], name: &str) -> Result<Vec<String>> {
    for event in events {
        if let Happened::HookDone { hook, last_lines, .. } = &event.what
            && hook == name
        {
            return Ok(last_lines.clone());
        }
    }
    anyhow::bail!("hook {name} did not end well: {events:?}")
}

#[test]
fn hooks_run_in_the_new_image_and_on_the_host_and_know_what_is_deployed() -> Result<()> {
    let registry = Registry::start()?;
    // With the tag alone in the file, the same tag could mean the old image: the hardest case.
    let mut host = Host::start(&registry, "tag")?;
    host.hooks(&[
        on_the_host(
            "before = \"everything\"",
            "backup",
            "pwd; env; echo to the error stream >&2",
        ),
        migration("migrate", &["env", "DEPLOY_"], ""),
        in_the_image("after = \"live\"", "smoke", &["env", "DEPLOY_"], ""),
    ])?;
    let plan = host.version(Mode::Good)?;
    let dry = host.ctl.push(0, &[&plan.1], &["--dry-run"])?;
    let hooks: Vec<String> = dry.list("/plan/hooks").iter().map(ToString::to_string).collect();
    assert_eq!(hooks.len(), 3, "{dry:?}");
    host.ctl
        .expect(0, &["push", "--set", &plan.1, "--dry-run"])?
        .says(&format!("hook migrate runs before the restart, in {SERVICE}"))?;

    let (tag, set, id) = plan;
    host.ctl.push(0, &[&set], &["--id", &id, "--version", "v1.4.2"])?;
    let events = host.events(&id)?;
    let backup = lines_of(&events, "backup")?;
    let says = |lines: &[String], line: &str| lines.iter().any(|said| said == line);
    assert!(
        says(&backup, &host.clinic.dir().display().to_string()),
        "{backup:?}"
    );
    assert!(says(&backup, "to the error stream"), "{backup:?}");
    assert!(says(&backup, "DEPLOY_KIND=push"), "{backup:?}");
    assert!(
        !backup.iter().any(|line| line.contains("RUST_BACKTRACE")),
        "{backup:?}"
    );
    let new = host.clinic.image(SERVICE, &tag);
    // Each knows the same, the one on the host and those in the image.
    for (name, begins) in [("backup", ""), ("migrate", "INFO "), ("smoke", "INFO ")] {
        let lines = lines_of(&events, name)?;
        for line in [
            format!("DEPLOY_PROJECT={}", host.clinic.project()),
            format!("DEPLOY_ID={id}"),
            format!("DEPLOY_HOOK={name}"),
            "DEPLOY_VERSION=v1.4.2".to_owned(),
            "DEPLOY_RELEASE=2".to_owned(),
            "DEPLOY_PREVIOUS_RELEASE=1".to_owned(),
            format!("DEPLOY_SERVICES={SERVICE}"),
            format!(
                "DEPLOY_OLD_IMAGE_AUTH_SERVICE={}",
                host.clinic.image(SERVICE, FIRST_VERSION)
            ),
        ] {
            assert!(
                says(&lines, &format!("{begins}{line}")),
                "{line} is not in {lines:#?}"
            );
        }
        let names_new = format!("{begins}DEPLOY_NEW_IMAGE_AUTH_SERVICE={new}@sha256:");
        assert!(
            lines.iter().any(|line| line.starts_with(&names_new)),
            "{lines:#?}"
        );
        let ran_in = says(&lines, &format!("INFO SERVICE_VERSION={tag}"));
        assert_eq!(ran_in, name != "backup", "{lines:#?}");
    }
    assert_eq!(host.clinic.service_version(SERVICE)?, tag);
    host.no_hook_is_left()?;

    // The same tag again with other bytes: it is the new image that the hook runs in.
    host.hooks(&[migration("migrate", &["sleep", LONG], "deadline = \"8s\"")])?;
    host.clinic.push_version(SERVICE, Mode::Good, &tag)?;
    let before = host.stands()?;
    let old = host.clinic.image_id(SERVICE)?;
    let id = "00000000000000aa";
    host.ctl
        .expect(0, &["push", "--set", &set, "--id", id, "--detach"])?;
    let container = host.hook_runs()?;
    let runs = docker(["inspect", "--format", "{{.Image}}", &container]).text()?;
    assert_ne!(runs.trim(), old, "the hook runs in the old image");
    // It is on the project's network, and publishes none of the ports that the service has.
    let networks = docker([
        "inspect",
        "--format",
        "{{json .NetworkSettings.Networks}}",
        &container,
    ])
    .text()?;
    assert!(
        networks.contains(&format!("{}_backend", host.clinic.project())),
        "{networks}"
    );
    let ports = docker([
        "inspect",
        "--format",
        "{{json .HostConfig.PortBindings}}",
        &container,
    ])
    .text()?;
    assert!(["{}", "null"].contains(&ports.trim()), "{ports}");
    // It does not end in time: the tag means the old image again, whose container was not touched.
    let outcome = host.outcome(id)?;
    assert_eq!(outcome.result, Ending::RolledBack, "{outcome:?}");
    let problem = outcome.problem.context("no problem")?;
    assert!(problem.detail.contains("did not end within 8s"), "{problem:?}");
    assert_eq!(host.stands()?, before);
    let named = docker([
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        &host.clinic.image(SERVICE, &tag),
    ])
    .text()?;
    assert_eq!(named.trim(), old);
    host.no_hook_is_left()
}

#[test]
fn a_failed_hook_refuses_or_rolls_back_and_its_lines_are_for_those_who_may_read_logs() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry, "digest")?;
    let before = host.stands()?;
    let canary = "CANARY-4d1f";

    host.hooks(&[on_the_host(
        "before = \"everything\"",
        "backup",
        &format!("echo the disk said {canary}; exit 7"),
    )])?;
    let (_, refused) = host.push(9, Mode::Good)?;
    assert_eq!(
        (refused.result().as_str(), refused.code().as_str()),
        ("refused", "hook_failed")
    );
    let detail = refused.at("/outcome/problem/detail");
    assert!(
        detail.contains("hook backup") && detail.contains("exit code 7"),
        "{detail}"
    );
    assert!(!detail.contains(canary), "{detail}");
    assert!(refused.at("/outcome/log_lines").contains(canary), "{refused:?}");
    assert_eq!(host.stands()?, before);

    host.hooks(&[migration("migrate", &["fail", canary], "")])?;
    let (_, back) = host.push(3, Mode::Good)?;
    assert_eq!(back.result(), "rolled_back");
    assert!(back.at("/outcome/log_lines").contains(canary), "{back:?}");
    // The very same container: it was never touched.
    assert_eq!(host.stands()?, before);

    host.hooks(&[
        migration("migrate", &["print", canary], ""),
        in_the_image("after = \"live\"", "smoke", &["fail", canary], ""),
    ])?;
    let (_, back) = host.push(3, Mode::Good)?;
    assert_eq!(back.result(), "rolled_back");
    assert!(
        back.at("/outcome/problem/detail").contains("hook smoke"),
        "{back:?}"
    );
    assert_eq!(host.clinic.service_version(SERVICE)?, FIRST_VERSION);
    assert_eq!(host.clinic.file(), before.0);
    host.no_hook_is_left()?;

    // A key that may see deployments and not logs sees no line of any hook; the agent's own log has none either.
    let id = format!("{:016x}", host.next);
    let watcher = host.agent.ctl_with_key(&host.watcher)?.private_key()?;
    let seen = Events::follow(&host.agent, &watcher, &id, None)?.all()?;
    let text = serde_json::to_string(&seen)?;
    assert!(text.contains("hook_done") && !text.contains(canary), "{text}");
    assert!(serde_json::to_string(&host.events(&id)?)?.contains(canary));
    assert!(!host.agent.logs().contains(canary));

    // What is not there to be run says so, and a service that is not there is refused.
    host.hooks(&[migration("migrate", &["print"], "").replace(SERVICE, "nobody")])?;
    let (_, refused) = host.push(9, Mode::Good)?;
    assert_eq!(refused.code(), "host_unfit");
    assert!(
        refused.at("/outcome/problem/detail").contains("nobody"),
        "{refused:?}"
    );

    // A smoke test that fails during a rollback brings the newer release back.
    host.hooks(&[])?;
    let (tag, _) = host.push(0, Mode::Good)?;
    let newer = host.stands()?.0;
    host.hooks(&[
        on_the_host("after = \"live\"", "smoke", "exit 1"),
        migration("migrate", &["fail"], ""),
    ])?;
    let back = host.ctl.json(3, &["rollback"])?;
    assert_eq!(back.result(), "rolled_back");
    assert_eq!(host.clinic.service_version(SERVICE)?, tag);
    assert_eq!(host.stands()?.0, newer);
    assert_eq!(host.stands()?.2, before.2, "a database was touched");
    Ok(())
}

#[test]
fn after_an_irreversible_migration_nothing_goes_back_by_itself() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry, "digest")?;
    let old = host.stands()?;
    host.hooks(&[migration(
        "migrate",
        &["fail", "half done"],
        "irreversible = true",
    )])?;
    let (_, stuck) = host.push(6, Mode::Good)?;
    assert_eq!(stuck.result(), "stuck");
    let trouble = stuck.at("/outcome/trouble/detail");
    assert!(
        trouble.contains("previous containers were not touched"),
        "{trouble}"
    );
    let now = host.stands()?;
    assert_eq!((&now.1, &now.2), (&old.1, &old.2), "a container was touched");
    assert_ne!(now.0, old.0, "the file names the new image");
    assert_eq!(host.agent.monitor("/healthz")?.0, 503);
    assert!(
        host.agent.log().contains("a person is needed"),
        "{}",
        host.agent.log()
    );
    host.no_hook_is_left()?;

    // The step back goes to what ran before, asks for the word, and is well with it.
    let refused = host.ctl.json(9, &["rollback"])?;
    assert_eq!(refused.code(), "irreversible");
    let back = host.ctl.json(0, &["rollback", "--across-migration"])?;
    assert_eq!(back.result(), "live");
    assert_eq!(host.clinic.file(), old.0);
    assert_eq!(host.clinic.service_version(SERVICE)?, FIRST_VERSION);
    assert_eq!(host.agent.monitor("/healthz")?.0, 200);

    // A sick version after a migration that went well is stuck at once; a fixed one gets out of it.
    host.hooks(&[migration("migrate", &["print", "done"], "irreversible = true")])?;
    let (sick, stuck) = host.push(6, Mode::Sick)?;
    assert_eq!(stuck.result(), "stuck");
    assert_eq!(stuck.at("/outcome/sick_service"), SERVICE);
    assert_eq!(host.clinic.service_version(SERVICE)?, sick, "it was rolled back");
    let (fixed, live) = host.push(0, Mode::Good)?;
    assert_eq!(live.result(), "live");
    assert_eq!(host.clinic.service_version(SERVICE)?, fixed);
    assert_eq!(host.agent.monitor("/healthz")?.0, 200);
    assert_eq!(host.clinic.database_ids(), old.2);
    Ok(())
}

#[test]
fn cancelled_or_killed_in_a_hook_it_converges_with_one_hook_at_a_time() -> Result<()> {
    let registry = Registry::start()?;
    let mut host = Host::start(&registry, "digest")?;
    let before = host.stands()?;
    let sleeping = |moment: &str| in_the_image(moment, "slow", &["sleep", LONG], "");

    host.hooks(&[sleeping("before = \"restart\"")])?;
    let (_, id, _) = host.pushed_into_a_hook(Mode::Good)?;
    host.ctl.expect(0, &["cancel", &id])?;
    let outcome = host.outcome(&id)?;
    assert_eq!(outcome.result, Ending::RolledBack, "{outcome:?}");
    assert_eq!(host.stands()?, before);
    host.no_hook_is_left()?;

    // The agent is killed in the hook, alone and with all it started: the next one ends what is left, then runs it anew.
    for (moment, all) in [
        ("before = \"restart\"", false),
        ("before = \"restart\"", true),
        ("after = \"live\"", false),
    ] {
        host.hooks(&[sleeping(moment)])?;
        let (tag, id, first) = host.pushed_into_a_hook(Mode::Good)?;
        if all {
            host.agent.kill9_all()?;
        } else {
            host.agent.kill9()?;
        }
        host.agent.resume()?;
        let second = until("the hook runs anew", Duration::from_secs(30), || {
            Ok(Some(host.hook_runs()?).filter(|id| *id != first))
        })?;
        assert_eq!(
            host.hook_containers()?,
            std::slice::from_ref(&second),
            "{moment} {all}"
        );
        // It is ended from outside, which is a failure like any other.
        docker(["kill", "--signal", "KILL", &second]).text()?;
        let outcome = host.outcome(&id)?;
        assert_eq!(outcome.result, Ending::RolledBack, "{moment} {all}: {outcome:?}");
        assert_ne!(host.clinic.service_version(SERVICE)?, tag);
        assert_eq!(host.clinic.file(), before.0);
        host.no_hook_is_left()?;
    }

    // On the host: what a killed agent left running is ended before the hook runs again.
    let marks = host.agent.folder().join("marks");
    let script = format!(
        "echo $$ >> {0}; test $(wc -l < {0}) -gt 1 && exit 0; exec sleep {LONG}",
        marks.display()
    );
    host.hooks(&[on_the_host("before = \"everything\"", "backup", &script)])?;
    let (tag, set, id) = host.version(Mode::Good)?;
    host.ctl
        .expect(0, &["push", "--set", &set, "--id", &id, "--detach"])?;
    let pids = || std::fs::read_to_string(&marks).unwrap_or_default();
    until("the backup runs", Duration::from_secs(20), || {
        Ok((!pids().is_empty()).then_some(()))
    })?;
    host.agent.kill9()?;
    host.agent.resume()?;
    let outcome = host.outcome(&id)?;
    assert_eq!(outcome.result, Ending::Live, "{outcome:?}");
    assert_eq!(host.clinic.service_version(SERVICE)?, tag);
    assert_eq!(pids().lines().count(), 2, "{}", pids());
    let first = pids().lines().next().unwrap_or_default().to_owned();
    let stat = std::fs::read_to_string(format!("/proc/{first}/stat")).unwrap_or_default();
    assert!(
        stat.is_empty() || stat.contains(") Z "),
        "the first backup still runs: {stat}"
    );
    let phases: Vec<_> = host
        .events(&id)?
        .into_iter()
        .filter(|event| matches!(&event.what, Happened::Phase { phase } if *phase == PhaseName::BackingUp))
        .collect();
    assert_eq!(phases.len(), 1);
    Ok(())
}
