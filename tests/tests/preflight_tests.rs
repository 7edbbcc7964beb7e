//! What is checked before anything is stopped: every reason at once, in a dry run and in a push, and nothing is changed.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::Result;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::command::docker;
use deploy_tests::ctl::{Ctl, CtlOutput};
use deploy_tests::images::{Login, Mode, Registry, free_port, unique};
use deploy_tests::platforms::{push_for, push_list};
use deploy_tests::project::Project;
use deploy_tests::until::until;

const FOREIGN: &str = if cfg!(target_arch = "aarch64") {
    "linux/amd64"
} else {
    "linux/arm64"
};
const OURS: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};
const FILE: &str = "compose.yaml";
const ONE_SERVICE: &str = "services:\n  web:\n    image: REGISTRY/acme/web:v1\n    restart: always\n";

/// All that a refused push must leave as it is.
fn everything(project: &Project, registry: &Registry) -> Result<(String, String, String)> {
    let images = docker(["images", "--all", "--digests", "--no-trunc"])
        .args(["--format", "{{.Repository}} {{.Tag}} {{.Digest}} {{.ID}}"])
        .text()?;
    let of_registry: Vec<&str> = images
        .lines()
        .filter(|line| line.starts_with(&registry.host()))
        .collect();
    let containers = project
        .compose(&["ps", "--all", "--quiet", "--no-trunc"])
        .text()?;
    Ok((project.file(FILE)?, containers, of_registry.join("\n")))
}

fn push_argument(project: &Project, service: &str, repository: &str, tag: &str) -> String {
    format!("{service}={}", project.image(repository, tag))
}

fn dry_run(ctl: &Ctl, code: i32, set: &[&str]) -> Result<CtlOutput> {
    let mut arguments = vec!["push", "--dry-run"];
    arguments.extend(set.iter().flat_map(|image| ["--set", image]));
    ctl.expect(code, &arguments)
}

fn start(project: &Project) -> Result<()> {
    project.compose(&["up", "-d", "--quiet-pull"]).text().map(drop)
}

fn agent_of(project: &Project, registry: &Registry) -> Result<Agent> {
    Agent::start_on(
        project.dir(),
        project.name(),
        &registry.docker_config(),
        Settings::default(),
    )
}

#[test]
fn an_image_for_another_platform_is_refused_before_anything_is_stopped() -> Result<()> {
    let registry = Registry::start()?;
    let project = Project::write(&registry, &[(FILE, ONE_SERVICE)])?;
    let ours = project.push_image("web", "v1", Mode::Good)?;
    let good = project.push_image("web", "good", Mode::Good)?;
    start(&project)?;
    let agent = agent_of(&project, &registry)?;
    let ctl = agent.ctl()?;
    let foreign = push_for(&registry, "acme/web", "foreign", FOREIGN)?;
    for (tag, entries) in [
        ("list", vec![(FOREIGN, foreign.as_str())]),
        // Build attestations stand beside the images like this.
        ("attested", vec![(FOREIGN, &foreign), ("unknown/unknown", &ours)]),
        // The list says what the image is not.
        ("lie", vec![(OURS, &foreign)]),
        (
            "both",
            vec![("unknown/unknown", &ours), (FOREIGN, &foreign), (OURS, &good)],
        ),
    ] {
        push_list(&registry, "acme/web", tag, &entries)?;
    }
    let before = everything(&project, &registry)?;
    for tag in ["foreign", "list", "attested"] {
        let set = push_argument(&project, "web", "web", tag);
        dry_run(&ctl, 9, &[&set])?.says(&format!("built for {FOREIGN}, and this host is {OURS}"))?;
        let pushed = ctl.push(9, &[&set], &[])?;
        assert_eq!(
            (pushed.result().as_str(), pushed.code().as_str()),
            ("refused", "image_unavailable")
        );
        assert_eq!(everything(&project, &registry)?, before, "{tag}");
    }

    // Only the image itself tells, once it is here; what runs is still as it was.
    let set = push_argument(&project, "web", "web", "lie");
    dry_run(&ctl, 0, &[&set])?;
    assert_eq!(everything(&project, &registry)?, before);
    let pushed = ctl.push(9, &[&set], &[])?;
    assert_eq!(
        (pushed.result().as_str(), pushed.code().as_str()),
        ("refused", "image_unavailable"),
        "{pushed:?}"
    );
    let after = everything(&project, &registry)?;
    assert_eq!((after.0, after.1), (before.0, before.1));

    // A list that has ours too is good.
    let set = push_argument(&project, "web", "web", "both");
    dry_run(&ctl, 0, &[&set])?.says(&format!("1 image exists for {OURS}"))?;
    assert_eq!(ctl.push(0, &[&set], &[])?.result(), "live");
    assert_eq!(project.version("web")?, "good");
    Ok(())
}

#[test]
fn a_platform_that_the_compose_file_asks_for_is_pulled_and_run() -> Result<()> {
    let registry = Registry::start()?;
    let file = format!("{ONE_SERVICE}    platform: {FOREIGN}\n");
    let project = Project::write(&registry, &[(FILE, &file)])?;
    push_for(&registry, "acme/web", "v1", FOREIGN)?;
    start(&project)?;
    let agent = agent_of(&project, &registry)?;
    let ctl = agent.ctl()?;
    let foreign = push_for(&registry, "acme/web", "foreign", FOREIGN)?;
    let ours = project.push_image("web", "ours", Mode::Good)?;
    push_list(
        &registry,
        "acme/web",
        "both",
        &[(OURS, &ours), (FOREIGN, &foreign)],
    )?;

    let set = push_argument(&project, "web", "web", "ours");
    dry_run(&ctl, 9, &[&set])?.says(&format!("asks for {FOREIGN} (platform)"))?;
    let set = push_argument(&project, "web", "web", "both");
    dry_run(&ctl, 0, &[&set])?.says("emulates")?;
    let pushed = ctl.push(0, &[&set], &[])?;
    assert_eq!(pushed.result(), "live", "{pushed:?}");
    assert_eq!(project.version("web")?, "foreign");
    Ok(())
}

/// A container of nobody's project; removed on drop.
struct Stranger(String);

impl Stranger {
    fn start(image: &str, arguments: &[&str]) -> Result<Self> {
        let name = unique("fixture");
        let stranger = Self(name.clone());
        docker(["run", "--detach", "--name", &name])
            .args(arguments)
            .args([image])
            .text()?;
        Ok(stranger)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // It may never have started.
        drop(docker(["rm", "--force", "--volumes", &self.0]).output());
    }
}

#[test]
fn ports_names_and_missing_images_are_told_all_at_once_and_nobody_trips_over_his_own() -> Result<()> {
    let registry = Registry::start()?;
    let [of_container, of_process, twice] = [free_port()?, free_port()?, free_port()?];
    let project = Project::write(&registry, &[(FILE, "")])?;
    for repository in ["web", "api", "job"] {
        project.push_image(repository, "v1", Mode::Good)?;
        project.push_image(repository, "v2", Mode::Good)?;
    }
    project.push_image("web", "crash", Mode::Crash)?;
    let stranger = Stranger::start(
        &project.image("web", "v1"),
        &["--publish", &format!("{of_container}:8080")],
    )?;
    let listener = TcpListener::bind(("0.0.0.0", of_process))?;
    let name = &stranger.0.clone();
    let host = registry.host();
    let file = format!(
        "services:\n  \
           web:\n    image: {host}/acme/web:v1\n    ports: ['127.0.0.1:{of_container}:8080', '127.0.0.1:{twice}:8081']\n  \
           api:\n    image: {host}/acme/api:v1\n    ports: ['{of_process}:8080']\n    container_name: {name}\n  \
           job:\n    image: {host}/acme/job:v1\n    ports: ['{twice}:8080']\n"
    );
    project.write_file(FILE, &file)?;
    let agent = agent_of(&project, &registry)?;
    let ctl = agent.ctl()?;
    let before = everything(&project, &registry)?;
    let set = [("web", "v2"), ("api", "v2"), ("job", "gone")]
        .map(|(service, tag)| push_argument(&project, service, service, tag));
    let set = set.each_ref().map(String::as_str);
    let reasons = [
        "acme/job:gone: the registry has no such tag".to_owned(),
        format!("web publishes 127.0.0.1 port {of_container}, and container {name} has it"),
        format!(
            "api publishes port {of_process}, and a process of the host that is no container listens there"
        ),
        format!("web and job both publish 127.0.0.1 port {twice}"),
        format!("the container of api is to be called {name}, and container {name} is"),
    ];
    let mut said = dry_run(&ctl, 9, &set)?.says("5 things are in the way")?;
    for reason in &reasons {
        said = said.says(reason)?;
    }
    let pushed = ctl.push(9, &set, &[])?;
    assert_eq!(pushed.result(), "refused");
    let detail = pushed.at("/outcome/problem/detail");
    assert!(reasons.iter().all(|reason| detail.contains(reason)), "{detail}");
    assert_eq!(everything(&project, &registry)?, before);

    // With all of it out of the way the same push goes through, and says what it looked at.
    drop(stranger);
    drop(listener);
    project.write_file(FILE, &file.replace(&format!("{twice}:8081"), "0:8081"))?;
    let set = set.map(|set| set.replace(":gone", ":v2"));
    let set = set.each_ref().map(String::as_str);
    dry_run(&ctl, 0, &set)?
        .says(&format!("3 images exist for {OURS}"))?
        .says("nobody else has ports")?
        .says(&format!("nobody else is called {name}"))?
        .says("min_free 1 MiB")?;
    assert_eq!(ctl.push(0, &set, &[])?.result(), "live");

    // What its own containers have is no obstacle, not even while one is starting over and over.
    let back = push_argument(&project, "web", "web", "v1");
    assert_eq!(ctl.push(0, &[&back], &[])?.result(), "live");
    project.write_file(
        FILE,
        &project.file(FILE)?.replace(
            "  web:\n",
            "  web:\n    restart: always\n    environment: {MODE: crash}\n",
        ),
    )?;
    project.compose(&["up", "-d", "web"]).text()?;
    until("web starts over and over", Duration::from_secs(30), || {
        let id = project.container_id("web")?;
        let count = docker(["inspect", "--format", "{{.RestartCount}}", &id]).text()?;
        Ok((count.parse::<u32>()? > 2).then_some(()))
    })?;
    let again = push_argument(&project, "web", "web", "v2");
    for _ in 0..10 {
        ctl.expect(0, &["push", "--dry-run", "--accept-edits", "--set", &again])?;
    }
    Ok(())
}

#[test]
fn a_login_that_is_missing_or_wrong_is_told_with_the_command_that_repairs_it() -> Result<()> {
    let login = Login {
        user: "ann".to_owned(),
        password: "right".to_owned(),
    };
    let registry = Registry::start_with_login(&login)?;
    let project = Project::write(&registry, &[(FILE, ONE_SERVICE)])?;
    project.push_image("web", "v1", Mode::Good)?;
    start(&project)?;
    project.push_image("web", "v2", Mode::Good)?;
    let folder = deploy_tests::images::temporary_dir("unit")?;
    let agent = Agent::start_on(project.dir(), project.name(), folder.path(), Settings::default())?;
    let ctl = agent.ctl()?;
    let set = push_argument(&project, "web", "web", "v2");
    let command = format!(
        "docker --config {} login {}",
        folder.path().display(),
        registry.host()
    );
    let before = everything(&project, &registry)?;
    dry_run(&ctl, 9, &[&set])?
        .says("the registry wants a login, and this host has none for it")?
        .says(&command)?;
    let config = std::fs::read_to_string(registry.docker_config().join("config.json"))?;
    std::fs::write(
        folder.path().join("config.json"),
        config.replace("right", "wrong"),
    )?;
    dry_run(&ctl, 9, &[&set])?
        .says("the registry denies access")?
        .says(&command)?;
    assert_eq!(everything(&project, &registry)?, before);
    std::fs::write(folder.path().join("config.json"), config)?;
    dry_run(&ctl, 0, &[&set])?;
    Ok(())
}
