//! Counters for Prometheus. Every label set exists from the start with 0, or the first failure would be invisible to
//! `increase()`.

use std::fmt::Write as _;

use deploy_proto::event::{Ending, Outcome};
use deploy_proto::names::ProjectName;
use deploy_proto::release::DeploymentKind;
use deploy_proto::signing::Rejection;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The content type of the text format 0.0.4, which every Prometheus reads.
pub const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The content type of OpenMetrics, for those who ask for it.
pub const OPENMETRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeploymentLabels {
    project: String,
    result: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProjectLabels {
    project: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: String,
}

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    deployments: Family<DeploymentLabels, Counter>,
    deployment_seconds: Family<ProjectLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    release: Family<ProjectLabels, Gauge>,
    stuck: Family<ProjectLabels, Gauge>,
    images_removed: Family<ProjectLabels, Counter>,
    image_cleanups_failed: Family<ProjectLabels, Counter>,
    kept_without_images: Family<ProjectLabels, Gauge>,
    drift: Family<ProjectLabels, Gauge>,
    baking: Family<ProjectLabels, Gauge>,
    auto_rollbacks: Family<ProjectLabels, Counter>,
    rejected: Family<ReasonLabels, Counter>,
    requests: Counter,
    reload_failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::with_prefix("deploy_agent"),
            deployments: Family::default(),
            deployment_seconds: Family::default(),
            release: Family::default(),
            stuck: Family::default(),
            images_removed: Family::default(),
            image_cleanups_failed: Family::default(),
            kept_without_images: Family::default(),
            drift: Family::default(),
            baking: Family::default(),
            auto_rollbacks: Family::default(),
            rejected: Family::default(),
            requests: Counter::default(),
            reload_failures: Counter::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let build: Family<VersionLabels, Gauge> = Family::default();
        build
            .get_or_create(&VersionLabels {
                version: env!("CARGO_PKG_VERSION").to_owned(),
            })
            .set(1);
        self.registry.register("build_info", "The agent's version", build);
        self.registry.register(
            "deployments",
            "Deployments that ended, by how",
            self.deployments.clone(),
        );
        self.registry.register(
            "last_deployment_duration_seconds",
            "How long the last deployment was worked on",
            self.deployment_seconds.clone(),
        );
        self.registry
            .register("release", "The release that runs", self.release.clone());
        self.registry.register(
            "stuck",
            "1 when the last deployment needs a person",
            self.stuck.clone(),
        );
        self.registry.register(
            "images_removed",
            "Images of older releases that were removed",
            self.images_removed.clone(),
        );
        self.registry.register(
            "image_cleanups_failed",
            "Clean-ups after a deployment that could not remove what they should",
            self.image_cleanups_failed.clone(),
        );
        self.registry.register(
            "kept_releases_without_images",
            "Kept releases whose images are not all on the host: a rollback to them needs the registry",
            self.kept_without_images.clone(),
        );
        self.registry.register(
            "drift",
            "Services and files that are not as the release left them",
            self.drift.clone(),
        );
        self.registry.register(
            "baking",
            "1 while the release that runs is watched and goes back by itself if it falls sick",
            self.baking.clone(),
        );
        self.registry.register(
            "auto_rollbacks",
            "Rollbacks that the agent began by itself because a release fell sick after it went live",
            self.auto_rollbacks.clone(),
        );
        self.registry
            .register("requests", "Requests on the signed API", self.requests.clone());
        self.registry.register(
            "requests_rejected",
            "Requests that were not let in, by reason",
            self.rejected.clone(),
        );
        self.registry.register(
            "reload_failures",
            "Reloads that kept the old configuration",
            self.reload_failures.clone(),
        );
        for reason in Rejection::ALL.iter().map(|rejection| rejection.as_str()).chain([
            "unknown_key",
            "key_expired",
            "replayed",
            "forgotten",
            "before_restore",
        ]) {
            drop(self.rejected.get_or_create(&ReasonLabels {
                reason: reason.to_owned(),
            }));
        }
        self
    }

    /// Makes a project's label sets, so that they are there before anything happens.
    pub fn know_project(&self, project: &ProjectName) {
        for result in [
            Ending::Live,
            Ending::Unchanged,
            Ending::Refused,
            Ending::RolledBack,
            Ending::Stuck,
        ] {
            drop(
                self.deployments
                    .get_or_create(&deployment_labels(project, result)),
            );
        }
        let labels = project_labels(project);
        drop(self.stuck.get_or_create(&labels));
        drop(self.images_removed.get_or_create(&labels));
        drop(self.image_cleanups_failed.get_or_create(&labels));
        drop(self.kept_without_images.get_or_create(&labels));
        drop(self.drift.get_or_create(&labels));
        drop(self.baking.get_or_create(&labels));
        drop(self.auto_rollbacks.get_or_create(&labels));
    }

    /// Notes whether the project's release is watched after it went live.
    pub fn bakes(&self, project: &ProjectName, bakes: bool) {
        self.baking
            .get_or_create(&project_labels(project))
            .set(i64::from(bakes));
    }

    /// Counts a rollback that the agent began by itself.
    pub fn rolled_back_by_itself(&self, project: &ProjectName) {
        self.auto_rollbacks.get_or_create(&project_labels(project)).inc();
    }

    /// Notes the release that runs, and whether the last deployment is stuck.
    pub fn project_stands(&self, project: &ProjectName, release: Option<u32>, stuck: bool) {
        let labels = project_labels(project);
        self.release
            .get_or_create(&labels)
            .set(release.map_or(0, i64::from));
        self.stuck.get_or_create(&labels).set(i64::from(stuck));
    }

    /// Notes how many services and files drifted.
    pub fn drifted(&self, project: &ProjectName, count: usize) {
        self.drift
            .get_or_create(&project_labels(project))
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The release that runs (0: none is recorded), and whether the last deployment is stuck.
    pub fn standing(&self, project: &ProjectName) -> (i64, bool) {
        let labels = project_labels(project);
        (
            self.release.get_or_create(&labels).get(),
            self.stuck.get_or_create(&labels).get() == 1,
        )
    }

    /// Counts a deployment that ended.
    pub fn deployment_ended(&self, project: &ProjectName, kind: DeploymentKind, outcome: &Outcome) {
        self.deployments
            .get_or_create(&deployment_labels(project, outcome.result))
            .inc();
        let seconds = std::time::Duration::from_millis(outcome.elapsed_ms).as_secs_f64();
        self.deployment_seconds
            .get_or_create(&project_labels(project))
            .set(seconds);
        match (outcome.result, kind) {
            // Put back to what it found, also where that was no release: the project stands as it stood.
            (Ending::RolledBack, DeploymentKind::Reconcile) => {}
            (Ending::RolledBack, _) if outcome.release.is_none() => {}
            (Ending::Live | Ending::RolledBack | Ending::Stuck, _) => {
                let stuck = outcome.result == Ending::Stuck;
                self.project_stands(project, outcome.release.map(|release| release.0), stuck);
            }
            // Nothing was touched: the project stands as it stood.
            (Ending::Refused | Ending::Unchanged, _) => {}
        }
    }

    /// Counts an image that was removed.
    pub fn image_removed(&self, project: &ProjectName) {
        self.images_removed.get_or_create(&project_labels(project)).inc();
    }

    /// Counts a clean-up that could not remove what it should.
    pub fn image_cleanup_failed(&self, project: &ProjectName) {
        self.image_cleanups_failed
            .get_or_create(&project_labels(project))
            .inc();
    }

    /// Notes how many kept releases lack images.
    pub fn kept_without_images(&self, project: &ProjectName, releases: usize) {
        self.kept_without_images
            .get_or_create(&project_labels(project))
            .set(i64::try_from(releases).unwrap_or(i64::MAX));
    }

    /// Counts a request on the signed API.
    pub fn request(&self) {
        self.requests.inc();
    }

    /// Counts a request that was not let in.
    pub fn rejected(&self, reason: &str) {
        self.rejected
            .get_or_create(&ReasonLabels {
                reason: reason.to_owned(),
            })
            .inc();
    }

    /// Counts a reload that kept the old configuration.
    pub fn reload_failed(&self) {
        self.reload_failures.inc();
    }

    /// All metrics as OpenMetrics 1.0.
    pub fn openmetrics(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "metrics cannot be written"
            );
        }
        text
    }

    /// All metrics in the text format 0.0.4, in which a counter's family is named like its sample, with `_total`.
    pub fn text(&self) -> String {
        let openmetrics = self.openmetrics();
        let counters: Vec<&str> = openmetrics
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
            .collect();
        let mut text = String::with_capacity(openmetrics.len());
        for line in openmetrics.lines().filter(|line| *line != "# EOF") {
            let mut words = line.splitn(4, ' ');
            let renamed = match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(&name) => {
                    writeln!(text, "# {kind} {name}_total {rest}")
                }
                _ => writeln!(text, "{line}"),
            };
            if renamed.is_err() {
                break;
            }
        }
        text
    }
}

fn deployment_labels(project: &ProjectName, result: Ending) -> DeploymentLabels {
    let result = match result {
        Ending::Live => "live",
        Ending::Unchanged => "unchanged",
        Ending::Refused => "refused",
        Ending::RolledBack => "rolled_back",
        Ending::Stuck => "stuck",
    };
    DeploymentLabels {
        project: project.to_string(),
        result: result.to_owned(),
    }
}

fn project_labels(project: &ProjectName) -> ProjectLabels {
    ProjectLabels {
        project: project.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_there_from_the_start_and_named_as_the_text_format_wants() {
        let metrics = Metrics::default();
        metrics.know_project(&"shop".parse().unwrap());
        let text = metrics.text();
        assert!(
            text.contains("# TYPE deploy_agent_deployments_total counter\n"),
            "{text}"
        );
        assert!(
            text.contains("deploy_agent_deployments_total{project=\"shop\",result=\"rolled_back\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("deploy_agent_requests_rejected_total{reason=\"replayed\"} 0\n"),
            "{text}"
        );
        assert!(
            text.contains("deploy_agent_drift{project=\"shop\"} 0\n"),
            "{text}"
        );
        assert!(!text.contains("# EOF"));
        assert!(metrics.openmetrics().ends_with("# EOF\n"));
    }
}
