//! What monitoring sees: it cannot sign, so it is served apart, read-only, and tells the truth about Docker.

use std::path::Path;

use anyhow::{Context, Result};
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::images::{Mode, Registry};
use serde_json::Value;

/// The value of a series in the text format.
fn series(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let found = metrics.lines().find(|line| {
        let is_named = line.split(['{', ' ']).next() == Some(name);
        is_named && labels.iter().all(|label| line.contains(label))
    });
    found?.rsplit(' ').next()?.parse().ok()
}

#[test]
fn health_and_metrics_follow_what_happens() -> Result<()> {
    let registry = Registry::start()?;
    let clinic = Clinic::start_only(&registry, &["auth_service"])?;
    let agent = Agent::start_with(&clinic, Settings::default().project("wait", "\"4s\""))?;
    let ctl = agent.ctl()?;
    for path in ["/livez", "/readyz", "/healthz", "/metrics"] {
        assert_eq!(agent.monitor(path)?.0, 200, "{path}");
    }
    assert_eq!(agent.monitor("/v1/projects")?.0, 404);
    let healthz = || -> Result<Value> { Ok(serde_json::from_str(&agent.monitor("/healthz")?.1)?) };
    let project = healthz()?;
    let named = project.pointer("/projects/0/project").and_then(Value::as_str);
    assert_eq!(named, Some(clinic.project()), "{project}");

    // Every outcome is there from the start at 0, or the first failure would be invisible.
    let before = agent.monitor("/metrics")?.1;
    let outcome = |metrics: &str, outcome: &str| {
        let name = "deploy_agent_deployments_total";
        series(metrics, name, &[&format!("\"{outcome}\"")])
            .with_context(|| format!("no {outcome} in {metrics}"))
    };
    for name in ["live", "rolled_back", "refused", "stuck"] {
        assert_eq!(outcome(&before, name)?, 0.0, "{name}");
    }
    clinic.push_version("auth_service", Mode::Good, "dev-a000001")?;
    clinic.push_version("auth_service", Mode::Crash, "dev-dead001")?;
    ctl.push(0, &[&clinic.set_argument("auth_service", "dev-a000001")], &[])?;
    ctl.push(3, &[&clinic.set_argument("auth_service", "dev-dead001")], &[])?;
    ctl.push(9, &[&clinic.set_argument("auth_service", "dev-404")], &[])?;
    let (stranger, _) = agent.new_key("stranger")?;
    agent.ctl_with_key(&stranger)?.expect(4, &["status"])?;
    let after = agent.monitor("/metrics")?.1;
    assert_eq!(
        [
            outcome(&after, "live")?,
            outcome(&after, "rolled_back")?,
            outcome(&after, "stuck")?
        ],
        [1.0, 1.0, 0.0]
    );
    assert!(
        after
            .lines()
            .any(|line| line.contains("unknown_key") && line.ends_with(" 1")),
        "{after}"
    );
    assert_eq!(healthz()?.pointer("/projects/0/release"), Some(&Value::from(2)));
    assert_eq!(agent.monitor("/healthz")?.0, 200);
    Ok(())
}

#[test]
fn without_docker_it_lives_but_is_not_ready_and_says_why() -> Result<()> {
    let settings = Settings::default().docker_socket(Path::new("/nonexistent/docker.sock"));
    let agent = Agent::start_without_containers(settings)?;
    assert_eq!(agent.monitor("/livez")?.0, 200);
    let (status, why) = agent.monitor("/readyz")?;
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("/nonexistent/docker.sock"), "{why}");
    let refused = agent.ctl()?.push(9, &["web=127.0.0.1:1/acme/web:v2"], &[])?;
    assert_eq!(refused.code(), "engine", "{refused:?}");
    Ok(())
}
