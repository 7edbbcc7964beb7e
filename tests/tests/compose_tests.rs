//! The Compose files that people really have, end to end: the tag in a variable, in an override file, behind a link;
//! edited by somebody else before, during and after.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

use anyhow::{Context, Result, anyhow};
use deploy_proto::event::PhaseName;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::images::{Mode, Registry};
use deploy_tests::project::Project;
use deploy_tests::wire::Events;

const COMPOSE: &str = "\
# Kitchen: everything that a tag can stand in.\r
services:\r
  web: {image: 'REGISTRY/acme/web:${WEB_TAG:-v0}', restart: always}   # one variable, one service\r
  api:\r
    image: REGISTRY/acme/api:${API_TAG}\r
  worker:\r
    image: \"REGISTRY/acme/api:${API_TAG}\"\r
  plain:\r
    image: REGISTRY/acme/plain:v1 # literal\r
  front:\r
    image: REGISTRY/acme/front:v0\r
  later:\r
    profiles: [never]\r
    image: REGISTRY/acme/later:v1\r
  tools:\r
    profiles: [never]\r
    build: .\r
";
const OVERRIDE: &str = "services:\n  front:\n    image: REGISTRY/acme/front:v1\n";
const ENV: &str =
    "# tags, written by the old pipeline\nexport WEB_TAG=v1 # web\nAPI_TAG=\"v1\"\nSECRET='v1$x'\n";

fn short() -> Settings {
    Settings::default()
        .project("settle", "\"300ms\"")
        .project("wait", "\"6s\"")
        .project("order", "\"together\"")
}

fn kitchen(registry: &Registry) -> Result<(Project, Agent)> {
    let files = [
        ("docker-compose.yml", COMPOSE),
        ("docker-compose.override.yml", OVERRIDE),
        (".env", ENV),
    ];
    let project = Project::write(registry, &files)?;
    for repository in ["web", "api", "plain", "front"] {
        project.push_image(repository, "v1", Mode::Good)?;
    }
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), short())?;
    Ok((project, agent))
}

#[test]
fn the_tag_is_changed_where_it_stands() -> Result<()> {
    let registry = Registry::start()?;
    let (project, agent) = kitchen(&registry)?;
    let ctl = agent.ctl()?;
    let files = ["docker-compose.yml", "docker-compose.override.yml", ".env"];
    let read = || files.map(|file| project.file(file).unwrap_or_default());
    let set = |service: &str, repository: &str| format!("{service}={}", project.image(repository, "v2"));
    let mut expected = read();
    let mut pinned = Vec::new();
    for repository in ["web", "api", "plain", "front"] {
        pinned.push(format!(
            "v2@{}",
            project.push_image(repository, "v2", Mode::Good)?
        ));
    }
    let [web, api, plain, front] = pinned.try_into().map_err(|_| anyhow!("four images"))?;

    // In a variable of .env that only this service uses.
    ctl.push(0, &[&set("web", "web")], &[])?;
    expected[2] = expected[2].replace("WEB_TAG=v1", &format!("WEB_TAG={web}"));
    assert_eq!(read(), expected);
    assert_eq!(project.version("web")?, "v2");

    // In a variable that another service uses too: only with that one.
    let worker = project.container_id("worker")?;
    let refused = ctl.push(9, &[&set("api", "api")], &[])?;
    assert_eq!(refused.code(), "other_services", "{refused:?}");
    assert!(format!("{refused:?}").contains("worker"), "{refused:?}");
    assert_eq!(
        (read(), project.container_id("worker")?),
        (expected.clone(), worker)
    );
    ctl.json(0, &["push", "--image", &project.image("api", "v2")])?;
    expected[2] = expected[2].replace("API_TAG=\"v1\"", &format!("API_TAG=\"{api}\""));
    assert_eq!(read(), expected);
    assert_eq!(
        [project.version("api")?, project.version("worker")?],
        ["v2", "v2"]
    );

    // In the override file, which is the one that counts.
    ctl.push(0, &[&set("front", "front")], &[])?;
    expected[1] = expected[1].replace("front:v1", &format!("front:{front}"));
    assert_eq!(read(), expected);
    assert_eq!(project.version("front")?, "v2");

    // In the line itself; comment and line ends stay.
    ctl.push(0, &[&set("plain", "plain")], &[])?;
    expected[0] = expected[0].replace("plain:v1", &format!("plain:{plain}"));
    assert_eq!(read(), expected);

    // A service without an image cannot be pushed.
    let refused = ctl.push(9, &[&set("tools", "plain")], &[])?;
    assert!(
        ["compose_file", "unknown_service"].contains(&refused.code().as_str()),
        "{refused:?}"
    );
    assert_eq!(read(), expected);

    // Back through all of it.
    let rolled_back = ctl.json(0, &["rollback", "--to", "1"])?;
    assert_eq!(rolled_back.result(), "live");
    for service in ["web", "api", "worker", "plain", "front"] {
        assert_eq!(project.version(service)?, "v1", "{service}");
    }
    assert!(project.container_id("later").is_err());
    Ok(())
}

#[test]
fn what_a_person_edited_is_never_overwritten() -> Result<()> {
    let registry = Registry::start()?;
    let compose = "services:\n  web:\n    image: REGISTRY/acme/web:v1\n    environment:\n      COLOUR: red\n";
    let project = Project::write(&registry, &[("compose.yaml", compose)])?;
    for (tag, mode) in [("v1", Mode::Good), ("v2", Mode::Good), ("v3", Mode::Good)] {
        project.push_image("web", tag, mode)?;
    }
    project.push_image("web", "sick", Mode::CrashLater(std::time::Duration::from_secs(3)))?;
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let settings = short().project("settle", "\"8s\"").project("wait", "\"20s\"");
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), short())?;
    let ctl = agent.ctl()?;
    let set = |tag: &str| format!("web={}", project.image("web", tag));
    let edit = |from: &str, to: &str| {
        let file = project.file("compose.yaml")?;
        assert!(file.contains(from), "{file}");
        project.write_file("compose.yaml", &file.replace(from, to))
    };
    ctl.push(0, &[&set("v2")], &[])?;

    // Before: refused, then taken as the base.
    edit("COLOUR: red", "COLOUR: blue # by hand")?;
    let edited = project.file("compose.yaml")?;
    let container = project.container_id("web")?;
    let refused = ctl.push(9, &[&set("v3")], &[])?;
    assert_eq!(refused.code(), "edited", "{refused:?}");
    assert_eq!(
        (project.file("compose.yaml")?, project.container_id("web")?),
        (edited, container)
    );
    ctl.expect(0, &["status"])?.says("edited by hand")?;
    ctl.push(0, &[&set("v3")], &["--accept-edits"])?;
    assert!(project.file("compose.yaml")?.contains("COLOUR: blue # by hand"));
    assert_eq!(project.version("web")?, "v3");

    // During: the deployment fails, the image goes back, the edit stays.
    drop(agent);
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), settings)?;
    let ctl = agent.ctl()?;
    let before = project.file("compose.yaml")?;
    let id = "00000000000000a5";
    ctl.expect(0, &["push", "--set", &set("sick"), "--id", id, "--detach"])?;
    let mut events = Events::follow(&agent, &ctl.private_key()?, id, None)?;
    events.reach(PhaseName::Watching)?;
    edit("COLOUR: blue", "COLOUR: green")?;
    let watched = ctl.json(3, &["watch", id])?;
    assert_eq!(watched.result(), "rolled_back");
    assert_eq!(
        project.file("compose.yaml")?,
        before.replace("COLOUR: blue", "COLOUR: green")
    );
    assert_eq!(project.version("web")?, "v3");
    Ok(())
}

#[test]
fn owner_mode_and_links_stay() -> Result<()> {
    let registry = Registry::start()?;
    let compose = "services:\n  web:\n    image: REGISTRY/acme/web:v1\n";
    let project = Project::write(&registry, &[("real.yml", compose)])?;
    let real = project.dir().join("real.yml");
    let link = project.dir().join("compose.yaml");
    symlink("real.yml", &link)?;
    chown(&real, Some(1234), Some(4321))?;
    fs::set_permissions(&real, Permissions::from_mode(0o640))?;
    for tag in ["v1", "v2"] {
        project.push_image("web", tag, Mode::Good)?;
    }
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), short())?;
    agent
        .ctl()?
        .push(0, &[&format!("web={}", project.image("web", "v2"))], &[])?;
    let metadata = fs::symlink_metadata(&real)?;
    assert_eq!(
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
        (1234, 4321, 0o640)
    );
    assert!(fs::symlink_metadata(&link)?.is_symlink());
    assert!(project.file("real.yml")?.contains("web:v2@sha256:"));
    assert_eq!(project.version("web")?, "v2");
    Ok(())
}

#[test]
fn files_that_cannot_be_read_or_come_from_elsewhere_are_refused() -> Result<()> {
    let registry = Registry::start()?;
    let good = "services:\n  web:\n    image: REGISTRY/acme/web:v1\n";
    let good = good.replace("REGISTRY", &registry.host());
    let project = Project::write(&registry, &[("compose.yaml", &good)])?;
    for tag in ["v1", "v2"] {
        project.push_image("web", tag, Mode::Good)?;
    }
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    let container = project.container_id("web")?;
    let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), short())?;
    let ctl = agent.ctl()?;
    let set = format!("web={}", project.image("web", "v2"));
    for (what, text, says) in [
        (
            "remote include",
            format!("include:\n  - https://example.com/evil.yml\n{good}"),
            "https://example.com/evil.yml",
        ),
        (
            "oci include",
            format!("include: [oci://example.com/evil:1]\n{good}"),
            "oci://example.com/evil",
        ),
        (
            "remote extends",
            format!("{good}  api:\n    extends: {{file: 'git@example.com:evil.git', service: x}}\n"),
            "example.com",
        ),
        ("a tab", format!("{good}\tbad: 1\n"), "compose.yaml"),
        ("not a mapping", "- services\n".to_owned(), ""),
        ("a list of services", "services: [web]\n".to_owned(), ""),
    ] {
        project.write_file("compose.yaml", &text)?;
        let refused = ctl.push(9, &[&set], &["--accept-edits"]).context(what)?;
        assert_eq!(refused.code(), "compose_file", "{what}: {refused:?}");
        assert!(format!("{refused:?}").contains(says), "{what}: {refused:?}");
        assert_eq!(project.file("compose.yaml")?, text, "{what}");
        // The same at the first look.
        let other = Agent::prepare(project.name(), Settings::default())?;
        let said = other
            .command(&["add"])
            .args([project.dir()])
            .args(["--config".as_ref(), other.config_dir().as_os_str()]);
        let output = said.output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(says),
            "{what}: {stderr}"
        );
        assert!(!other.project_file(project.name()).exists(), "{what}");
    }
    // Line and column of what is not YAML.
    project.write_file("compose.yaml", &format!("{good}  api: [\n"))?;
    let refused = ctl.push(9, &[&set], &["--accept-edits"])?;
    assert!(format!("{refused:?}").contains("line "), "{refused:?}");
    assert_eq!(project.container_id("web")?, container);
    project.write_file("compose.yaml", &good)?;
    ctl.push(0, &[&set], &[])?;
    Ok(())
}
