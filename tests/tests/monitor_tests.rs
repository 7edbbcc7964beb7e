//! The monitor listener: read-only, unsigned, and true.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::clinic::Clinic;
use deploy_tests::images::{Mode, Registry};
use deploy_tests::until::until;
use serde_json::Value;

#[test]
fn a_started_agent_lives_is_ready_and_has_every_counter() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    assert_eq!(agent.monitor("/livez")?, (200, "ok\n".to_owned()));
    assert_eq!(agent.monitor("/readyz")?, (200, "ok\n".to_owned()));

    let (status, body) = agent.monitor("/healthz")?;
    let health: Value = serde_json::from_str(&body)?;
    assert_eq!((status, health["status"].as_str()), (200, Some("ok")), "{body}");
    assert_eq!(health["projects"][0]["project"], "shop", "{body}");

    let (status, metrics) = agent.monitor("/metrics")?;
    assert_eq!(status, 200);
    for line in [
        "# TYPE deploy_agent_deployments_total counter",
        "deploy_agent_deployments_total{project=\"shop\",result=\"rolled_back\"} 0",
        "deploy_agent_deployments_total{project=\"shop\",result=\"stuck\"} 0",
        "deploy_agent_requests_rejected_total{reason=\"replayed\"} 0",
        "deploy_agent_requests_rejected_total{reason=\"unknown_key\"} 0",
        "deploy_agent_stuck{project=\"shop\"} 0",
    ] {
        assert!(
            metrics.lines().any(|have| have == line),
            "{line} is not in\n{metrics}"
        );
    }

    // What is not there is not there, and nothing of the API is.
    for path in ["/", "/v1/projects", "/healthz/x"] {
        assert_eq!(agent.monitor(path)?.0, 404, "{path}");
    }
    Ok(())
}

#[test]
fn an_agent_without_its_engine_lives_and_is_not_ready() -> Result<()> {
    let nowhere = Settings::default().docker_socket(Path::new("/nonexistent/docker.sock"));
    let mut agent = Agent::prepare("shop", nowhere)?;
    agent.add(&agent.shop()?, "shop")?;
    agent.resume()?;
    assert_eq!(agent.monitor("/livez")?.0, 200);
    let (status, body) = agent.monitor("/readyz")?;
    assert_eq!(status, 503, "{body}");
    assert!(body.starts_with("not ready: "), "{body}");
    assert!(body.contains("/nonexistent/docker.sock"), "{body}");
    let refused = agent.ctl()?.push(9, &["web=127.0.0.1:1/acme/web:v2"], &[])?;
    assert_eq!(refused.code(), "engine", "{refused:?}");
    Ok(())
}

#[test]
fn what_was_let_in_and_what_was_not_is_counted() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    let counter = |name: &str| -> Result<u64> {
        let (_, metrics) = agent.monitor("/metrics")?;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line
            .unwrap_or_else(|| panic!("no {name} in\n{metrics}"))
            .parse()?)
    };
    let before = counter("deploy_agent_requests_total")?;
    agent.ctl()?.expect(0, &["history"])?;
    until("the request is counted", Duration::from_secs(5), || {
        Ok((counter("deploy_agent_requests_total")? > before).then_some(()))
    })?;
    let rejected = "deploy_agent_requests_rejected_total{reason=\"unknown_key\"}";
    assert_eq!(counter(rejected)?, 0);
    let (stranger, _public) = agent.new_key("stranger")?;
    agent.ctl_with_key(&stranger)?.expect(4, &["history"])?;
    assert_eq!(counter(rejected)?, 1);
    Ok(())
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

/// The value of a series in the text format.
fn series(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let found = metrics.lines().find(|line| {
        let is_named = line.split(['{', ' ']).next() == Some(name);
        is_named && labels.iter().all(|label| line.contains(label))
    });
    found?.rsplit(' ').next()?.parse().ok()
}
