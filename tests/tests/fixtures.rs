//! The fixtures themselves, on the real Engine: what the other tests rely on.

use std::time::{Duration, Instant};

use anyhow::Result;
use deploy_tests::clinic::{Clinic, DATABASES, FIRST_VERSION, SERVICES, WITHOUT_HEALTHCHECK};
use deploy_tests::command::docker;
use deploy_tests::images::{Healthcheck, Image, Login, Mode, Registry, unique};
use deploy_tests::until::until;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn the_clinic_starts_healthy_and_leaves_nothing_behind() -> Result<()> {
    let registry = Registry::start()?;
    let host = registry.host();
    let clinic = Clinic::start(&registry)?;
    for service in SERVICES {
        let expected = if service == WITHOUT_HEALTHCHECK {
            "running"
        } else {
            "healthy"
        };
        assert_eq!(clinic.health(service)?, expected, "{service}");
        assert_eq!(clinic.service_version(service)?, FIRST_VERSION, "{service}");
    }
    for database in DATABASES {
        assert_eq!(
            (clinic.health(database)?.as_str(), clinic.boots(database)?),
            ("healthy", 1),
            "{database}"
        );
    }
    let (project, dir) = (clinic.project().to_owned(), clinic.dir().to_owned());
    drop(clinic);
    drop(registry);
    let label = format!("label=com.docker.compose.project={project}");
    for list in [["ps", "--all"], ["volume", "ls"], ["network", "ls"]] {
        assert_eq!(
            docker(list).args(["--quiet", "--filter", &label]).text()?,
            "",
            "{list:?}"
        );
    }
    assert!(!docker(["images"]).text()?.contains(&host));
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn a_tag_decides_how_a_service_behaves() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start(&registry)?;
    let databases = clinic.database_ids();
    clinic.push_version("auth_service", Mode::Sick, "dev-51c4000")?;
    clinic.push_version("user_service", Mode::Crash, "dev-dead000")?;
    clinic.push_version("api_gateway", Mode::Good, "dev-900d000")?;
    for (service, tag) in [
        ("auth_service", "dev-51c4000"),
        ("user_service", "dev-dead000"),
        ("api_gateway", "dev-900d000"),
    ] {
        clinic.set_tag(service, tag)?;
        clinic.compose(&["up", "-d", "--no-deps", service]).text()?;
    }
    until("the sick one is unhealthy", SOON, || {
        Ok((clinic.health("auth_service")? == "unhealthy").then_some(()))
    })?;
    assert_eq!(clinic.get("auth_service", "/health")?.0, 500);
    let logs = clinic
        .compose(&["logs", "--no-log-prefix", "auth_service"])
        .text()?;
    assert!(
        logs.contains("ERROR: relation \"orders_v2\" does not exist"),
        "{logs}"
    );

    until("the crashing one restarts for ever", SOON, || {
        let container = clinic.inspect("user_service")?;
        let restarts = container
            .pointer("/RestartCount")
            .and_then(serde_json::Value::as_u64);
        Ok(restarts.filter(|restarts| *restarts >= 2))
    })?;
    until("the good one serves", SOON, || {
        Ok((clinic.service_version("api_gateway")? == "dev-900d000").then_some(()))
    })?;
    assert_eq!(clinic.database_ids(), databases);
    Ok(())
}

#[test]
fn a_part_of_the_clinic_brings_only_what_it_depends_on() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &["auth_service"])?;
    assert_eq!(clinic.versions()?, [FIRST_VERSION]);
    assert_eq!(clinic.database_ids().len(), 2);
    assert!(clinic.container_id("user_service").is_err());
    // What stands on the volume counts, not the container.
    assert_eq!(clinic.boots("auth_db")?, 1);
    clinic
        .compose(&["up", "-d", "--wait", "--force-recreate", "auth_db"])
        .text()?;
    assert_eq!(clinic.boots("auth_db")?, 2);
    Ok(())
}

/// One container of an image, gone at the end of the test.
struct Container {
    name: String,
}

impl Container {
    fn run(registry: &Registry, image: &Image) -> Result<Self> {
        let name = unique("fixture");
        image.build_and_push(registry, "one", &name)?;
        let reference = format!("{}/one:{name}", registry.host());
        docker(["run", "--detach", "--name", &name, &reference]).text()?;
        Ok(Self { name })
    }

    fn state(&self, field: &str) -> Result<String> {
        docker([
            "inspect",
            "--format",
            &format!("{{{{.State.{field}}}}}"),
            &self.name,
        ])
        .text()
    }

    fn reaches(&self, field: &str, value: &str) -> Result<()> {
        until(&format!("{field} is {value}"), SOON, || {
            Ok((self.state(field)? == value).then_some(()))
        })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        drop(docker(["rm", "--force", "--volumes", &self.name]).text());
    }
}

#[test]
fn every_mode_does_what_it_is_called() -> Result<()> {
    let registry = Registry::start()?;
    let often = Healthcheck::every(Duration::from_millis(200));
    let run = |mode| {
        Container::run(
            &registry,
            &Image::new("one", "1", mode).healthcheck(often.clone()),
        )
    };

    let crash = run(Mode::Crash)?;
    crash.reaches("ExitCode", "3")?;
    let oneshot = run(Mode::Oneshot)?;
    oneshot.reaches("Status", "exited")?;
    assert_eq!(oneshot.state("ExitCode")?, "0");

    let later = run(Mode::CrashLater(Duration::from_secs(2)))?;
    later.reaches("Health.Status", "healthy")?;
    later.reaches("ExitCode", "3")?;

    let slow = run(Mode::SlowStart(Duration::from_secs(2)))?;
    slow.reaches("Health.Status", "unhealthy")?;
    slow.reaches("Health.Status", "healthy")?;

    let flapping = run(Mode::Flapping(Duration::from_secs(1)))?;
    for health in ["healthy", "unhealthy", "healthy"] {
        flapping.reaches("Health.Status", health)?;
    }

    let hang = Container::run(
        &registry,
        &Image::new("one", "1", Mode::Hang).healthcheck(Healthcheck {
            timeout: Duration::from_millis(300),
            ..often.clone()
        }),
    )?;
    hang.reaches("Health.Status", "unhealthy")?;

    let database = run(Mode::Database)?;
    database.reaches("Health.Status", "healthy")?;
    Ok(())
}

#[test]
fn a_good_service_stops_at_once_and_a_deaf_one_takes_its_grace_period() -> Result<()> {
    let registry = Registry::start()?;
    for (mode, is_quick, exit_code) in [(Mode::Good, true, "0"), (Mode::Deaf, false, "137")] {
        let container = Container::run(&registry, &Image::new("one", "1", mode))?;
        until("it listens", SOON, || {
            Ok(docker(["logs", &container.name])
                .text()?
                .contains("listening")
                .then_some(()))
        })?;
        let started = Instant::now();
        docker(["stop", "--time", "3", &container.name]).text()?;
        assert_eq!(
            started.elapsed() < Duration::from_secs(2),
            is_quick,
            "{mode:?} {:?}",
            started.elapsed()
        );
        assert_eq!(container.state("ExitCode")?, exit_code);
    }
    Ok(())
}

#[test]
fn a_pushed_image_must_be_pulled_and_a_moved_tag_leaves_the_old_image_alone() -> Result<()> {
    let registry = Registry::start()?;
    let image = Image::new("one", "1", Mode::Good).extra_bytes(1_000_000);
    let first = image.build_and_push(&registry, "team/one", "v1")?;
    let reference = format!("{}/team/one:v1", registry.host());
    assert!(
        !docker(["image", "inspect", &reference])
            .output()?
            .status
            .success()
    );
    docker(["pull", "--quiet", &reference]).text()?;
    let second = image.build_and_push(&registry, "team/one", "v1")?;
    assert_ne!(first, second);
    let digests = docker(["image", "inspect", "--format", "{{.RepoDigests}}", &reference]).text()?;
    assert!(digests.contains(&first), "{digests} has not {first}");
    Ok(())
}

#[test]
fn a_registry_with_a_login_serves_only_who_has_it() -> Result<()> {
    let login = Login {
        user: "clinic-ci".to_owned(),
        password: "pa?ss>>word~~ü".to_owned(),
    };
    let registry = Registry::start_with_login(&login)?;
    Image::new("one", "1", Mode::Good).build_and_push(&registry, "private/one", "v1")?;
    let reference = format!("{}/private/one:v1", registry.host());
    assert!(!docker(["pull", "--quiet", &reference]).output()?.status.success());
    docker(["pull", "--quiet", &reference])
        .env("DOCKER_CONFIG", registry.docker_config())
        .text()?;

    registry.stop();
    assert!(deploy_tests::http::get(registry.port(), "/v2/").is_err());
    registry.resume()?;
    assert_eq!(deploy_tests::http::get(registry.port(), "/v2/")?.0, 401);
    Ok(())
}
