//! A push in all its forms, on the whole clinic: what is named changes, nothing else does.

use std::fs;

use anyhow::Result;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::{Clinic, DATABASES, FIRST_VERSION, SERVICES};
use deploy_tests::images::{Image, Mode, Registry};

#[test]
fn every_form_of_a_push_is_one_release_and_touches_only_what_it_names() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start(&registry)?;
    let agent = Agent::start(&clinic)?;
    let ctl = agent.ctl()?;
    let databases = clinic.database_ids();
    let mut file = clinic.file();
    let ids = || SERVICES.map(|service| clinic.container_id(service).unwrap_or_default());
    let mut before = ids();

    // --dry-run: the plan, and nothing else.
    let auth = clinic.push_version("auth_service", Mode::Good, "dev-a000001")?;
    let user = clinic.push_version("user_service", Mode::Good, "dev-a000001")?;
    let set = ["auth_service", "user_service"].map(|service| clinic.set_argument(service, "dev-a000001"));
    let set = set.each_ref().map(String::as_str);
    let plan = ctl.push(0, &set, &["--dry-run"])?;
    assert_eq!(plan.result(), "planned");
    assert_eq!(plan.list("/plan/services").len(), 2);
    assert_eq!(
        plan.list("/plan/untouched").len(),
        SERVICES.len() + DATABASES.len() - 2
    );
    assert!(plan.at("/plan/services/0/new").ends_with(&auth), "{plan:?}");
    assert_eq!((clinic.file(), ids()), (file.clone(), before.clone()));

    // --set: two services are one release.
    let pushed = ctl.push(0, &set, &[])?;
    assert_eq!(pushed.result(), "live");
    for (service, digest) in [("auth_service", &auth), ("user_service", &user)] {
        let old = clinic.image(service, FIRST_VERSION);
        file = file.replace(
            &old,
            &format!("{}@{digest}", clinic.image(service, "dev-a000001")),
        );
        assert_eq!(clinic.service_version(service)?, "dev-a000001");
    }
    assert_eq!(clinic.file(), file);
    let after = ids();
    for (index, service) in SERVICES.iter().enumerate() {
        let is_named = ["auth_service", "user_service"].contains(service);
        assert_eq!(after.get(index) != before.get(index), is_named, "{service}");
    }
    before = after;
    let release: u32 = pushed.at("/outcome/release").parse()?;

    // The same again changes nothing.
    let again = ctl.push(0, &set, &[])?;
    assert_eq!(again.result(), "unchanged");
    assert_eq!((clinic.file(), ids()), (file.clone(), before.clone()));

    // --image: every service of this repository, as the sed did.
    let digest = clinic.push_version("patient_service", Mode::Good, "dev-b000001")?;
    let pushed = ctl.json(
        0,
        &["push", "--image", &clinic.image("patient_service", "dev-b000001")],
    )?;
    assert_eq!(pushed.at("/outcome/release"), (release + 1).to_string());
    file = file.replace(
        &clinic.image("patient_service", FIRST_VERSION),
        &format!("{}@{digest}", clinic.image("patient_service", "dev-b000001")),
    );
    assert_eq!(clinic.file(), file);

    // tag@digest: the tag is a label, the digest decides.
    let digest = clinic.push_version("patient_service", Mode::Good, "dev-b000002")?;
    clinic.push_version("patient_service", Mode::Sick, "dev-b000002")?;
    let image = format!(
        "{}@{digest}",
        clinic.set_argument("patient_service", "dev-b000002")
    );
    ctl.push(0, &[&image], &[])?;
    assert_eq!(clinic.service_version("patient_service")?, "dev-b000002");

    // -v: every image of deploy.toml, by the name of the environment.
    clinic.push_all("dev-c000001")?;
    let images: String = SERVICES
        .iter()
        .map(|service| format!("{service} = \"{}\"\n", clinic.repository(service)))
        .collect();
    let text = format!(
        "project = \"{}\"\npin = \"{}\"\n[images]\n{images}[environment.production]\nhosts = [\"{}\"]\nconfirm = true\n",
        clinic.project(),
        agent.pin()?,
        agent.url()
    );
    fs::write(agent.folder().join("deploy.toml"), text)?;
    let bare = ctl.clone().untargeted();
    bare.expect(2, &["push", "-e", "production", "-v", "dev-c000001"])?
        .says("--yes")?;
    let words = ["push", "-e", "production", "-v", "dev-c000001", "--yes"];
    let pushed = bare.json(0, &words)?;
    assert_eq!(pushed.result(), "live");
    assert_eq!(clinic.versions()?, ["dev-c000001"; 6]);

    // The databases never noticed any of it.
    assert_eq!(clinic.database_ids(), databases);
    for database in DATABASES {
        assert_eq!(clinic.boots(database)?, 1, "{database}");
    }

    let status = ctl.json(0, &["status"])?;
    assert_eq!(status.at("/release/version"), "dev-c000001", "{status:?}");
    assert_eq!(status.at("/release/key"), "ci");
    let history = ctl.json(0, &["history"])?;
    assert_eq!(history.list("/deployments").len(), 5, "{history:?}");
    ctl.expect(0, &["health"])?;
    ctl.expect(0, &["logs", "auth_service"])?.says("listening on")?;
    ctl.expect(0, &["status"])?.says("dev-c000001")?;
    ctl.expect(0, &["history"])?.says("dev-c000001")?;
    Ok(())
}

#[test]
fn what_is_refused_changes_nothing() -> Result<()> {
    let registry = Registry::start()?;
    let other_registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &["auth_service"])?;
    let agent = Agent::start(&clinic)?;
    let ctl = agent.ctl()?;
    for tag in ["latest", "dev-a000001"] {
        clinic.push_version("auth_service", Mode::Good, tag)?;
    }
    Image::new("auth_service", "dev-e000001", Mode::Good).build_and_push(
        &other_registry,
        "drassistant/auth_service",
        "dev-e000001",
    )?;
    let elsewhere = format!("{}/drassistant/auth_service:dev-e000001", other_registry.host());
    let unlisted = format!("{}/drassistant/billing:dev-a000001", registry.host());
    let good = clinic.image("auth_service", "dev-a000001");
    let latest = clinic.image("auth_service", "latest");
    let untagged = clinic.repository("auth_service");
    let missing = clinic.image("auth_service", "dev-404");
    let wrong_digest = format!("{good}@sha256:{}", "0".repeat(64));
    let no_project: &[&str] = &["--project", "shop"];
    let nothing: &[&str] = &[];
    let cases = [
        (format!("billing={good}"), nothing, 9, "unknown_service"),
        (format!("auth_service={good}"), no_project, 4, "unknown_project"),
        (
            format!("auth_service={elsewhere}"),
            nothing,
            4,
            "image_not_allowed",
        ),
        (
            format!("auth_service={unlisted}"),
            nothing,
            4,
            "image_not_allowed",
        ),
        (
            "auth_service=drassistant/auth_service:dev-a000001".to_owned(),
            nothing,
            4,
            "image_not_allowed",
        ),
        (format!("auth_service={latest}"), nothing, 4, "tag_not_allowed"),
        (format!("auth_service={untagged}"), nothing, 4, "tag_not_allowed"),
        (format!("auth_service={missing}"), nothing, 9, "image_unavailable"),
        (
            format!("auth_service={wrong_digest}"),
            nothing,
            9,
            "image_unavailable",
        ),
    ];
    let databases = clinic.database_ids();
    let (file, container) = (clinic.file(), clinic.container_id("auth_service")?);
    for (image, more, exit, code) in &cases {
        // clap takes an option once: the project that is asked for stands instead of the usual one.
        let ctl = if more.is_empty() {
            ctl.clone()
        } else {
            ctl.clone().to(&agent.url(), &agent.pin()?, "shop")
        };
        for dry_run in [&["--dry-run"][..], &[]] {
            let refused = ctl.push(*exit, &[image], dry_run)?;
            assert_eq!(&refused.code(), code, "{image} {dry_run:?}: {refused:?}");
        }
        assert_eq!(clinic.file(), file, "{image}");
    }
    // A repository that the file names, with a tag that nobody pushed.
    let by_repository = ctl.json(9, &["push", "--image", &clinic.image("user_service", "dev-404")])?;
    assert_eq!(by_repository.code(), "image_unavailable");
    assert_eq!(clinic.file(), file);
    assert_eq!(clinic.container_id("auth_service")?, container);
    assert_eq!(clinic.database_ids(), databases);

    // The agent goes on serving, and what is allowed still goes.
    let pushed = ctl.push(0, &[&format!("auth_service={good}")], &[])?;
    assert_eq!(pushed.result(), "live");
    Ok(())
}

#[test]
fn pin_tag_writes_only_the_tag_and_allow_latest_allows_it() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &["auth_service"])?;
    let settings = Settings::default()
        .project("pin", "\"tag\"")
        .project("allow_latest", "true");
    let agent = Agent::start_with(&clinic, settings)?;
    let ctl = agent.ctl()?;
    let file = clinic.file();
    let first = clinic.image("auth_service", FIRST_VERSION);
    for tag in ["dev-a000001", "latest"] {
        let digest = clinic.push_version("auth_service", Mode::Good, tag)?;
        ctl.push(0, &[&clinic.set_argument("auth_service", tag)], &[])?;
        assert_eq!(
            clinic.file(),
            file.replace(&first, &clinic.image("auth_service", tag))
        );
        assert_eq!(clinic.service_version("auth_service")?, tag);
        // The release knows the digest all the same.
        let status = ctl.json(0, &["status"])?;
        let recorded = status.list("/release/services").into_iter().any(|service| {
            let image = service.get("image").and_then(|image| image.as_str());
            image.is_some_and(|image| image.ends_with(&digest))
        });
        assert!(recorded, "{status:?}");
    }
    Ok(())
}
