//! What does not work is put back: the same bytes, the same images, checked, and told.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use deploy_proto::event::PhaseName;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::{Clinic, FIRST_VERSION};
use deploy_tests::command::docker;
use deploy_tests::http;
use deploy_tests::images::{Mode, Registry, free_port, temporary_dir, unique};
use deploy_tests::project::Project;
use deploy_tests::until::until;
use deploy_tests::wire::Events;

const SERVICE: &str = "auth_service";

#[test]
fn a_sick_image_is_rolled_back_to_the_same_bytes_even_when_the_old_tag_has_moved() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let agent = Agent::start_with(&clinic, Settings::default().project("wait", "\"4s\""))?;
    let ctl = agent.ctl()?;
    let databases = clinic.database_ids();
    let (file, image) = (clinic.file(), clinic.image_id(SERVICE)?);

    // The first push ever: the file names the old image by its tag alone, and that tag now means another image, here
    // and at the registry.
    clinic.push_version(SERVICE, Mode::Crash, FIRST_VERSION)?;
    docker(["pull", "--quiet", &clinic.image(SERVICE, FIRST_VERSION)]).text()?;
    clinic.push_version(SERVICE, Mode::Sick, "dev-51c0001")?;
    let pushed = ctl.push(3, &[&clinic.set_argument(SERVICE, "dev-51c0001")], &[])?;
    assert_eq!(
        (pushed.result(), pushed.code()),
        ("rolled_back".into(), "unhealthy".into())
    );
    assert_eq!(pushed.at("/outcome/sick_service"), SERVICE);
    let lines = pushed.list("/outcome/log_lines");
    let has_reason = |text: &str| {
        lines
            .iter()
            .any(|line| line.as_str().is_some_and(|line| line.contains(text)))
    };
    assert!(has_reason("relation \"orders_v2\" does not exist"), "{lines:?}");
    assert_eq!(clinic.file(), file);
    assert_eq!(clinic.image_id(SERVICE)?, image);
    assert_eq!(clinic.service_version(SERVICE)?, FIRST_VERSION);

    // As a person sees it.
    let shown = ctl.expect(
        3,
        &["push", "--set", &clinic.set_argument(SERVICE, "dev-51c0001")],
    )?;
    let shown = shown
        .says("was rolled back")?
        .says("orders_v2")?
        .says("(exit 3)")?;
    shown.says("deployctl logs")?;
    assert_eq!((clinic.file(), clinic.image_id(SERVICE)?), (file, image));
    assert_eq!(clinic.database_ids(), databases);
    Ok(())
}

#[test]
fn a_crash_is_noticed_at_once_and_not_at_the_end_of_wait() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let agent = Agent::start_with(&clinic, Settings::default().project("wait", "\"60s\""))?;
    let ctl = agent.ctl()?;
    let file = clinic.file();
    for (mode, tag) in [
        (Mode::Crash, "dev-dead001"),
        (Mode::CrashLater(Duration::from_millis(700)), "dev-dead002"),
    ] {
        clinic.push_version(SERVICE, mode, tag)?;
        let begun = Instant::now();
        let pushed = ctl.push(3, &[&clinic.set_argument(SERVICE, tag)], &[])?;
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{tag}: {:?}",
            begun.elapsed()
        );
        assert_eq!(pushed.result(), "rolled_back");
        assert!(
            pushed.at("/outcome/log_lines").contains("FATAL giving up"),
            "{pushed:?}"
        );
        assert_eq!(clinic.file(), file);
        assert_eq!(clinic.service_version(SERVICE)?, FIRST_VERSION);
    }
    // What starts slowly is not sick, as long as the Engine does not call it so (here after three checks, a second each).
    clinic.push_version(SERVICE, Mode::SlowStart(Duration::from_secs(2)), "dev-510b001")?;
    let pushed = ctl.push(0, &[&clinic.set_argument(SERVICE, "dev-510b001")], &[])?;
    assert_eq!(pushed.result(), "live");
    Ok(())
}

#[test]
fn a_rollback_that_is_asked_for_goes_where_it_is_asked_to_and_needs_no_registry() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let agent = Agent::start_with(&clinic, Settings::default().project("wait", "\"6s\""))?;
    let ctl = agent.ctl()?;
    let first_file = clinic.file();
    let mut releases = Vec::new();
    let mut files = vec![first_file];
    for tag in ["dev-a000001", "dev-a000002", "dev-a000003"] {
        clinic.push_version(SERVICE, Mode::Good, tag)?;
        let pushed = ctl.push(0, &[&clinic.set_argument(SERVICE, tag)], &["-v", tag])?;
        releases.push(pushed.at("/outcome/release"));
        files.push(clinic.file());
    }
    let images = || Ok::<_, anyhow::Error>((clinic.service_version(SERVICE)?, clinic.file()));
    // A moved tag changes nothing in what a release is, and neither does a registry that is gone.
    clinic.push_version(SERVICE, Mode::Crash, "dev-a000002")?;
    registry.stop();

    ctl.expect(0, &["rollback", "--dry-run"])?.says("dev-a000002")?;
    assert_eq!(
        images()?,
        ("dev-a000003".into(), files.last().cloned().unwrap_or_default())
    );
    let back = ctl.json(0, &["rollback"])?;
    assert_eq!(back.result(), "live");
    assert_eq!(
        images()?,
        ("dev-a000002".into(), files.get(2).cloned().unwrap_or_default())
    );
    ctl.json(0, &["rollback", "--to", "dev-a000003"])?;
    assert_eq!(images()?.0, "dev-a000003");
    let to = releases.first().cloned().unwrap_or_default();
    ctl.json(0, &["rollback", "--to", &to])?;
    assert_eq!(
        images()?,
        ("dev-a000001".into(), files.get(1).cloned().unwrap_or_default())
    );
    // Everything that ran before can be gone back to, the state that the agent found too.
    ctl.json(0, &["rollback", "--to", "1"])?;
    assert_eq!(
        images()?,
        (FIRST_VERSION.into(), files.first().cloned().unwrap_or_default())
    );
    assert_eq!(
        ctl.json(9, &["rollback", "--to", "99"])?.code(),
        "unknown_release"
    );
    assert_eq!(
        ctl.json(9, &["rollback", "--to", "v9.9.9"])?.code(),
        "unknown_release"
    );

    // Sick, and the registry goes away while it is watched.
    registry.resume()?;
    clinic.push_version(SERVICE, Mode::Sick, "dev-51c0001")?;
    let set = clinic.set_argument(SERVICE, "dev-51c0001");
    let id = "00000000000000aa";
    let pushing = ctl.spawn(&["push", "--set", &set, "--id", id])?;
    let mut events = Events::when_accepted(&agent, &ctl.private_key()?, id)?;
    events.reach(PhaseName::Watching)?;
    registry.stop();
    pushing.end()?.expect(3)?;
    assert_eq!(
        images()?,
        (FIRST_VERSION.into(), files.first().cloned().unwrap_or_default())
    );
    registry.resume()?;
    Ok(())
}

/// Holds what monitoring is told: the code of `/healthz`, and the metric that a stuck project sets.
fn monitored(agent: &Agent, code: u16, stuck: u8) -> Result<()> {
    assert_eq!(agent.monitor("/healthz")?.0, code);
    let (_, metrics) = agent.monitor("/metrics")?;
    let line = metrics
        .lines()
        .find(|line| line.starts_with("deploy_agent_stuck{project="));
    assert!(
        line.is_some_and(|line| line.ends_with(&format!(" {stuck}"))),
        "{line:?}"
    );
    Ok(())
}

#[test]
fn what_cannot_be_put_back_is_stuck_and_says_so_after_a_restart_too() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let settings = Settings::default().project("wait", "\"6s\"");
    let mut agent = Agent::start_with(&clinic, settings)?;
    let ctl = agent.ctl()?;
    let old = clinic.image_id(SERVICE)?;
    clinic.push_version(SERVICE, Mode::Sick, "dev-51c0001")?;
    monitored(&agent, 200, 0)?;
    let id = "00000000000000bb";
    let set = clinic.set_argument(SERVICE, "dev-51c0001");
    let pushing = ctl.spawn(&["push", "--set", &set, "--id", id])?;
    let mut events = Events::when_accepted(&agent, &ctl.private_key()?, id)?;
    events.reach(PhaseName::Watching)?;
    // The old image is lost, here and at the registry.
    registry.stop();
    docker(["rmi", "--force", &old]).text()?;
    let said = pushing.end()?.expect(6)?.says("a person is needed")?;
    said.says("(exit 6)")?;

    let attention = |agent: &Agent| -> Result<()> {
        let status = agent.ctl()?.json(0, &["status"])?;
        assert!(!status.list("/attention").is_empty(), "{status:?}");
        monitored(agent, 503, 1)
    };
    attention(&agent)?;
    agent.restart()?;
    attention(&agent)?;
    let logged = agent.log().to_lowercase();
    assert!(
        logged.contains("stuck") || logged.contains("attention"),
        "{logged}"
    );

    // A good push gets out of it.
    registry.resume()?;
    clinic.push_version(SERVICE, Mode::Good, "dev-900d001")?;
    let pushed = ctl.push(
        0,
        &[&clinic.set_argument(SERVICE, "dev-900d001")],
        &["--accept-edits"],
    )?;
    assert_eq!(pushed.result(), "live");
    assert_eq!(clinic.service_version(SERVICE)?, "dev-900d001");
    monitored(&agent, 200, 0)
}

#[test]
fn one_sick_service_takes_the_whole_release_back() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE, "user_service"])?;
    for order in ["together", "one-by-one"] {
        let settings = Settings::default()
            .project("order", &format!("\"{order}\""))
            .project("wait", "\"5s\"");
        let agent = Agent::start_with(&clinic, settings)?;
        let file = clinic.file();
        let both =
            || Ok::<_, anyhow::Error>([SERVICE, "user_service"].map(|service| clinic.image_id(service).ok()));
        let images = both()?;
        clinic.push_version(SERVICE, Mode::Good, "dev-a000001")?;
        clinic.push_version("user_service", Mode::Sick, "dev-a000001")?;
        let set = [SERVICE, "user_service"].map(|service| clinic.set_argument(service, "dev-a000001"));
        let pushed = agent.ctl()?.push(3, &set.each_ref().map(String::as_str), &[])?;
        assert_eq!(pushed.at("/outcome/sick_service"), "user_service", "{order}");
        assert_eq!((clinic.file(), both()?), (file, images), "{order}");
    }
    Ok(())
}

#[test]
fn what_the_host_has_no_room_for_is_refused_and_what_docker_cannot_start_is_put_back() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &[SERVICE])?;
    let (file, container) = (clinic.file(), clinic.container_id(SERVICE)?);

    // More than any disk has left: refused before the pull, nothing is touched.
    clinic.push_version(SERVICE, Mode::Good, "dev-a000001")?;
    let greedy = Agent::start_with(&clinic, Settings::default().project("min_free", "\"1000TiB\""))?;
    let refused = greedy
        .ctl()?
        .push(9, &[&clinic.set_argument(SERVICE, "dev-a000001")], &[])?;
    assert_eq!(
        (refused.result(), refused.code()),
        ("refused".into(), "host_unfit".into())
    );
    assert_eq!(
        (clinic.file(), clinic.container_id(SERVICE)?),
        (file.clone(), container)
    );
    drop(greedy);

    // An image without a command: Docker cannot make a container of it.
    let empty = clinic.image(SERVICE, "dev-e000001");
    let folder = temporary_dir("image")?;
    fs::write(
        folder.path().join("Dockerfile"),
        format!("FROM scratch\nCOPY Dockerfile /{}\n", unique("empty")),
    )?;
    docker(["build", "--quiet", "--tag", &empty])
        .args([folder.path()])
        .env("DOCKER_BUILDKIT", "0")
        .text()?;
    docker(["push", "--quiet", &empty]).text()?;
    docker(["rmi", &empty]).text()?;
    let agent = Agent::start(&clinic)?;
    let pushed = agent
        .ctl()?
        .push(3, &[&clinic.set_argument(SERVICE, "dev-e000001")], &[])?;
    assert_eq!(
        (pushed.result(), pushed.code()),
        ("rolled_back".into(), "restart_failed".into())
    );
    assert!(
        pushed.at("/outcome/problem/detail").contains("command"),
        "{pushed:?}"
    );
    assert_eq!(clinic.file(), file);
    assert_eq!(clinic.service_version(SERVICE)?, FIRST_VERSION);
    Ok(())
}

#[test]
fn a_named_service_that_runs_already_and_falls_sick_meanwhile_takes_the_release_back() -> Result<()> {
    let registry = Registry::start()?;
    // The probe is all that its health is known by: the Engine calls it well.
    let port = free_port()?;
    let file = format!(
        "services:\n  web:\n    image: REGISTRY/acme/web:v1\n    restart: always\n  api:\n    image: REGISTRY/acme/api:v1\n    restart: always\n    ports: [\"127.0.0.1:{port}:8080\"]\n"
    );
    let project = Project::write(&registry, &[("compose.yaml", &file)])?;
    project.push_image("web", "v1", Mode::Good)?;
    project.push_image("web", "v2", Mode::Good)?;
    project.push_image("api", "v1", Mode::Moody)?;
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let probe = format!("service = \"api\"\nhttp = \"http://127.0.0.1:{port}/health\"");
    let settings = Settings::default().project("wait", "\"5s\"").probe(&probe);
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), settings)?;
    let ctl = agent.ctl()?;
    let api = format!("api={}", project.image("api", "v1"));
    ctl.push(0, &[&api], &[])?;
    let stands = || -> Result<_> {
        Ok((
            project.file("compose.yaml")?,
            project.version("web")?,
            project.container_id("api")?,
        ))
    };
    let before = stands()?;

    http::get(port, "/become/sick")?;
    let web = format!("web={}", project.image("web", "v2"));
    let pushed = ctl.push(3, &[&web, &api], &[])?;
    assert_eq!(pushed.at("/outcome/sick_service"), "api");
    assert_eq!(stands()?, before);
    http::get(port, "/become/well")?;
    assert_eq!(ctl.push(0, &[&web, &api], &[])?.result(), "live");
    Ok(())
}

/// A job that is done, and a service that somebody stopped, are in the release, and were not come to.
#[test]
fn the_way_back_leaves_what_was_not_touched_as_it_was() -> Result<()> {
    let registry = Registry::start()?;
    let file = "services:\n  web:\n    image: REGISTRY/acme/web:v1\n    restart: always\n  job:\n    image: REGISTRY/acme/job:v1\n  idle:\n    image: REGISTRY/acme/idle:v1\n";
    let project = Project::write(&registry, &[("compose.yaml", file)])?;
    for (service, mode) in [("web", Mode::Good), ("job", Mode::Oneshot), ("idle", Mode::Good)] {
        project.push_image(service, "v1", mode)?;
        project.push_image(service, "v2", mode)?;
    }
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    project.compose(&["stop", "--timeout", "1", "idle"]).text()?;
    let mut agent = Agent::start_on(
        project.dir(),
        project.name(),
        &registry.docker_config(),
        Settings::default(),
    )?;
    let stands = || -> Result<Vec<String>> {
        ["web", "job", "idle"]
            .into_iter()
            .map(|service| {
                let id = project.container_id(service)?;
                let format = "{{.Id}} {{.State.Status}} {{.State.StartedAt}} {{.Image}}";
                docker(["inspect", "--type", "container", "--format", format, &id]).text()
            })
            .collect()
    };
    until("the job is done", Duration::from_secs(20), || {
        Ok(stands()?.iter().any(|one| one.contains(" exited ")).then_some(()))
    })?;
    let before = (stands()?, project.file("compose.yaml")?);
    let set: Vec<String> = ["web", "job", "idle"]
        .map(|service| format!("{service}={}", project.image(service, "v2")))
        .into();
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    // Before the first container: a hook. After it: web itself, which is restarted after job and idle.
    agent.set_hooks(&[
        "before = \"restart\"\nname = \"migrate\"\nservice = \"web\"\ncommand = [\"fail\", \"no\"]"
            .to_owned(),
    ])?;
    let refused = agent.ctl()?.push(3, &set, &[])?;
    assert_eq!(refused.result(), "rolled_back");
    assert_eq!((stands()?, project.file("compose.yaml")?), before);
    Ok(())
}
