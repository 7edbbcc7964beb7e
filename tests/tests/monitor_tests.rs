//! The monitor listener: read-only, unsigned, and true.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use deploy_tests::agent::{Agent, Settings};
use deploy_tests::until::until;

#[test]
fn a_started_agent_lives_is_ready_and_has_every_counter() -> Result<()> {
    let agent = Agent::start_without_containers(Settings::default())?;
    assert_eq!(agent.monitor("/livez")?, (200, "ok\n".to_owned()));
    assert_eq!(agent.monitor("/readyz")?, (200, "ok\n".to_owned()));

    let (status, body) = agent.monitor("/healthz")?;
    let health: serde_json::Value = serde_json::from_str(&body)?;
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
