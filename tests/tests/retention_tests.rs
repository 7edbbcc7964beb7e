//! What can be gone back to stays on the host, what cannot is removed, and what others use is left alone.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use deploy_proto::event::PhaseName;
use deploy_tests::agent::{Agent, Settings, write_config};
use deploy_tests::command::{Run, docker};
use deploy_tests::ctl::Ctl;
use deploy_tests::engine::with_own_engine;
use deploy_tests::images::{Image, Mode, Registry, unique};
use deploy_tests::project::Project;
use deploy_tests::until::until;
use deploy_tests::wire::Events;

/// From the end of a deployment to the end of what is cleaned up after it.
const SOON: Duration = Duration::from_secs(20);

/// A project of one service, whose images are all of one repository.
fn project(registry: &Registry, tag: &str) -> Result<Project> {
    let file = format!("services:\n  web:\n    image: REGISTRY/acme/web:{tag}\n");
    let project = Project::write(registry, &[("docker-compose.yml", &file)])?;
    project.push_image("web", tag, Mode::Good)?;
    project.compose(&["up", "-d", "--quiet-pull"]).text()?;
    Ok(project)
}

fn agent(project: &Project, registry: &Registry, keep: u32) -> Result<Agent> {
    let settings = Settings::default()
        .project("keep", &keep.to_string())
        .project("settle", "\"0s\"");
    Agent::start_on(project.dir(), project.name(), &registry.docker_config(), settings)
}

fn deploy(ctl: &Ctl, project: &Project, tag: &str) -> Result<()> {
    project.push_image("web", tag, Mode::Good)?;
    deploy_pushed(ctl, project, tag)
}

fn deploy_pushed(ctl: &Ctl, project: &Project, tag: &str) -> Result<()> {
    let set = format!("web={}", project.image("web", tag));
    let pushed = ctl.push(0, &[&set], &["-v", tag])?;
    ensure!(pushed.result() == "live", "{tag}: {pushed:?}");
    Ok(())
}

/// Which of these tags of the repository are on the Engine.
fn here<'t>(project: &Project, tags: &[&'t str]) -> Result<Vec<&'t str>> {
    let repository = project.image("web", "x");
    let repository = repository.trim_end_matches(":x");
    let listed = docker(["images", "--format", "{{.Tag}}", repository]).text()?;
    Ok(tags
        .iter()
        .copied()
        .filter(|tag| listed.lines().any(|line| line == *tag))
        .collect())
}

fn image_id(project: &Project, tag: &str) -> Result<String> {
    docker([
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        &project.image("web", tag),
    ])
    .text()
}

/// Waits until the clean-ups of a project that ended have removed this many images, and the metric says so too.
fn removed(agent: &Agent, project: &Project, count: u32) -> Result<()> {
    until(&format!("{count} images are removed"), SOON, || {
        let mut removed = 0;
        for line in agent.log().lines() {
            if line.contains("clean-up ended") && line.contains(project.name()) {
                let (_, rest) = line.split_once("removed=").context("no count")?;
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                removed += digits.parse::<u32>()?;
            }
        }
        ensure!(removed <= count, "{removed} are removed");
        Ok((removed == count).then_some(()))
    })?;
    metric_is(agent, project, "images_removed_total", count)
}

/// Waits until a metric of the project has this value.
fn metric_is(agent: &Agent, project: &Project, name: &str, value: u32) -> Result<()> {
    let line = format!("deploy_agent_{name}{{project=\"{}\"}} {value}\n", project.name());
    until(&line, SOON, || {
        Ok(agent.monitor("/metrics")?.1.contains(&line).then_some(()))
    })
}

/// Reads the configuration again, for the first time.
fn reload(agent: &Agent) -> Result<()> {
    agent.reload()?;
    until("the configuration is read again", SOON, || {
        Ok(agent.log().contains("configuration reloaded").then_some(()))
    })
}

/// A container that was made and never started; gone on drop.
struct Made(String);

impl Made {
    fn of(image: &str) -> Result<Self> {
        let name = unique("clinic-made");
        docker(["create", "--name", &name, image]).text()?;
        Ok(Self(name))
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // The test says itself what went wrong.
        drop(docker(["rm", "--force", &self.0]).text());
    }
}

#[test]
fn kept_releases_need_no_registry_and_older_images_go_unless_somebody_has_a_use_for_them() -> Result<()> {
    const ALL: [&str; 9] = ["v1", "v2", "v3", "v4", "v5", "v6", "mine", "golden", "b1"];
    let registry = Registry::start()?;
    let (shop, blog) = (project(&registry, "v1")?, project(&registry, "b1")?);
    let agent = agent(&shop, &registry, 2)?;
    agent.add(blog.dir(), blog.name())?;
    reload(&agent)?;
    let ctl = agent.ctl()?;
    let blog_ctl = agent.ctl()?.to(&agent.url(), &agent.pin()?, blog.name());

    // The second project's release needs v2, though nothing of it runs.
    deploy(&blog_ctl, &blog, "v2")?;
    blog.compose(&["down"]).text()?;
    // A container that never ran has v1; a person has an image of the same repository, and another name for v3.
    let made = Made::of(&shop.image("web", "v1"))?;
    shop.push_image("web", "mine", Mode::Good)?;
    docker(["pull", "--quiet", &shop.image("web", "mine")]).text()?;

    deploy_pushed(&ctl, &shop, "v2")?;
    deploy(&ctl, &shop, "v3")?;
    deploy(&ctl, &shop, "v4")?;
    deploy(&ctl, &shop, "v5")?;
    removed(&agent, &shop, 1)?;
    assert_eq!(here(&shop, &ALL)?, ["v1", "v2", "v4", "v5", "mine", "b1"]);
    let (_, metrics) = agent.monitor("/metrics")?;
    for name in [shop.name(), blog.name()] {
        let none = format!("deploy_agent_image_cleanups_failed_total{{project=\"{name}\"}} 0\n");
        assert!(metrics.contains(&none), "{metrics}");
    }

    // Back to the oldest that is kept, without a registry; one step further is refused before anything is touched.
    registry.stop();
    ctl.json(0, &["rollback"])?;
    assert_eq!(shop.version("web")?, "v4");
    let (file, container) = (shop.file("docker-compose.yml")?, shop.container_id("web")?);
    let refused = ctl.json(9, &["rollback", "--to", "v3"])?;
    assert_eq!(refused.result(), "refused");
    assert_eq!(
        (shop.file("docker-compose.yml")?, shop.container_id("web")?),
        (file, container)
    );
    // With the registry an older one than those that are kept can be gone back to as well, by its digest.
    registry.resume()?;
    ctl.json(0, &["rollback", "--to", "v3"])?;
    assert_eq!(shop.version("web")?, "v3");

    // What could not go for a container's sake goes after the next deployment, and somebody's other name stays.
    drop(made);
    docker(["tag", &shop.image("web", "v4"), &shop.image("web", "golden")]).text()?;
    deploy(&ctl, &shop, "v6")?;
    removed(&agent, &shop, 2)?;
    assert_eq!(
        here(&shop, &ALL)?,
        ["v2", "v3", "v4", "v5", "v6", "mine", "golden", "b1"]
    );
    Ok(())
}

#[test]
fn an_image_removed_by_hand_is_noticed_and_a_rollback_pulls_it_by_digest() -> Result<()> {
    let registry = Registry::start()?;
    let shop = project(&registry, "v1")?;
    let mut agent = agent(&shop, &registry, 3)?;
    let ctl = agent.ctl()?;
    deploy(&ctl, &shop, "v2")?;
    deploy(&ctl, &shop, "v3")?;
    assert!(ctl.json(0, &["status"])?.list("/missing").is_empty());
    let without_images = "kept_releases_without_images";
    metric_is(&agent, &shop, without_images, 0)?;

    docker(["rmi", "--force", &image_id(&shop, "v2")?]).text()?;
    let status = ctl.json(0, &["status"])?;
    let missing = status.list("/missing");
    let of = |pointer: &str| missing.first().and_then(|first| first.pointer(pointer)).cloned();
    assert_eq!(
        (
            missing.len(),
            of("/release"),
            of("/version"),
            of("/images/0/service")
        ),
        (1, Some(2.into()), Some("v2".into()), Some("web".into())),
        "{status:?}"
    );
    let shown = ctl.expect(0, &["status"])?;
    shown.says("release 2 (v2): the image of web is not on this host any more")?;
    ctl.expect(0, &["history"])?.says("(away)")?;
    // The metric is looked after at every start, after every deployment, and every 15 minutes.
    agent.restart()?;
    metric_is(&agent, &shop, without_images, 1)?;

    // Without the registry that is said before anything is stopped.
    registry.stop();
    let container = shop.container_id("web")?;
    let refused = ctl.json(9, &["rollback"])?;
    assert_eq!(refused.result(), "refused");
    assert_eq!(refused.code(), "image_unavailable", "{refused:?}");
    assert_eq!(shop.container_id("web")?, container);
    registry.resume()?;
    // The tag means something else by now: the digest counts.
    shop.push_image("web", "v2", Mode::Crash)?;
    ctl.json(0, &["rollback"])?;
    assert_eq!(shop.version("web")?, "v2");
    assert!(ctl.json(0, &["status"])?.list("/missing").is_empty());
    metric_is(&agent, &shop, without_images, 0)?;

    // The image that ran is removed while the next one is watched: the way back pulls it by its digest.
    let old = image_id(&shop, "v2")?;
    shop.push_image("web", "v4", Mode::CrashLater(Duration::from_secs(4)))?;
    let file = agent.project_file(shop.name());
    let text = fs::read_to_string(&file)?.replace("settle = \"0s\"", "settle = \"20s\"");
    write_config(&file, &text)?;
    reload(&agent)?;
    let id = "00000000000000cc";
    let set = format!("web={}", shop.image("web", "v4"));
    let pushing = ctl.spawn(&["push", "--set", &set, "--id", id])?;
    let mut events = Events::when_accepted(&agent, &ctl.private_key()?, id)?;
    events.reach(PhaseName::Watching)?;
    docker(["rmi", "--force", &old]).text()?;
    pushing.end()?.expect(3)?;
    assert_eq!(shop.version("web")?, "v2");
    let runs = docker(["inspect", "--format", "{{.Image}}", &shop.container_id("web")?]).text()?;
    assert_eq!(runs, old, "the same image, pulled again");
    Ok(())
}

#[test]
fn who_manages_images_by_hand_can_say_so() -> Result<()> {
    let registry = Registry::start()?;
    let (shop, blog) = (project(&registry, "v1")?, project(&registry, "b1")?);
    let agent = agent(&shop, &registry, 1)?;
    agent.add(blog.dir(), blog.name())?;
    let file = agent.project_file(shop.name());
    let text = fs::read_to_string(&file)?;
    write_config(&file, &format!("remove_images = false\n{text}"))?;
    reload(&agent)?;
    let ctl = agent.ctl()?;
    for tag in ["v2", "v3"] {
        deploy(&ctl, &shop, tag)?;
    }
    // One is cleaned up after as the other, in the order in which they ended.
    let blog_ctl = ctl.to(&agent.url(), &agent.pin()?, blog.name());
    for tag in ["b2", "b3"] {
        deploy(&blog_ctl, &blog, tag)?;
    }
    removed(&agent, &blog, 1)?;
    let left = here(&shop, &["v1", "v2", "v3", "b1", "b2", "b3"])?;
    // However small `keep` is, the one before what runs stays.
    assert_eq!(left, ["v1", "v2", "v3", "b2", "b3"]);
    Ok(())
}

#[test]
fn a_clean_up_that_fails_fails_no_deployment_and_is_made_up_for() -> Result<()> {
    with_own_engine(|engine| {
        let registry = Registry::start_on(engine)?;
        let project = project(&registry, "v1")?;
        let settings = Settings::default()
            .project("keep", "1")
            .project("settle", "\"0s\"")
            .docker_socket(&engine.socket().context("the machine's Engine")?);
        let agent = Agent::start_on(project.dir(), project.name(), &registry.docker_config(), settings)?;
        let ctl = agent.ctl()?;
        // The Engine cannot remove the layers that it has, as on a disk that is broken there.
        let frozen = Frozen(engine.data_root()?);
        for tag in ["v2", "v3", "v4"] {
            // With a layer of its own, or nothing but its name would go.
            Image::new("web", tag, Mode::Good)
                .extra_bytes(1000)
                .build_and_push(&registry, "acme/web", tag)?;
            frozen.freeze()?;
            deploy_pushed(&ctl, &project, tag)?;
        }
        until("a clean-up failed", SOON, || {
            let metrics = agent.monitor("/metrics")?.1;
            let name = format!(
                "deploy_agent_image_cleanups_failed_total{{project=\"{}\"}} ",
                project.name()
            );
            let count = metrics.lines().find_map(|line| line.strip_prefix(&name));
            Ok(count.is_some_and(|count| count != "0").then_some(()))
        })
        .with_context(|| agent.log())?;
        drop(frozen);
        // The first one's image went; of the second the Engine has lost all but the layer.
        deploy(&ctl, &project, "v5")?;
        removed(&agent, &project, 2)
    })
}

/// An Engine's folder in which no image layer that is there can be removed; all can again on drop.
struct Frozen(PathBuf);

impl Frozen {
    fn freeze(&self) -> Result<()> {
        self.change("+i")
    }

    /// A file of each image layer; those of containers go and come as ever.
    fn change(&self, flag: &str) -> Result<()> {
        for layer in fs::read_dir(self.0.join("image/overlay2/layerdb/sha256"))? {
            let name = fs::read_to_string(layer?.path().join("cache-id"))?;
            let file = self.0.join("overlay2").join(name.trim()).join("link");
            Run::new("chattr").args([flag]).args([&file]).text()?;
        }
        Ok(())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Nothing is frozen where it was never begun.
        drop(self.change("-i"));
    }
}
