//! The monitor listener: read-only and unsigned, so it is served apart from the API, on loopback unless told otherwise.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::app::App;
use crate::metrics::{OPENMETRICS_CONTENT_TYPE, TEXT_CONTENT_TYPE};

/// The routes of the monitor listener.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .with_state(app)
}

/// The process serves requests.
async fn livez() -> &'static str {
    "ok\n"
}

/// The agent can take a deployment: its database answers, Docker answers, and it is not stopping.
async fn readyz(State(app): State<Arc<App>>) -> Response {
    if *app.shutdown.borrow() {
        return not_ready("the agent is stopping");
    }
    if let Err(problem) = app.host.ping().await {
        return not_ready(&problem.detail);
    }
    if let Err(error) = app.history.unfinished().await {
        return not_ready(&error.to_string());
    }
    "ok\n".into_response()
}

fn not_ready(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response()
}

/// What `/healthz` answers.
#[derive(Debug, Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    projects: Vec<ProjectStanding>,
}

/// One project, as the agent's own record has it: no request to Docker or the disk is made for it.
#[derive(Debug, Serialize)]
struct ProjectStanding {
    project: String,
    release: i64,
    stuck: bool,
    deployment: Option<String>,
}

/// The agent's own record in one small document: `ok`, or `stuck` (503) when a project needs a person.
async fn healthz(State(app): State<Arc<App>>) -> Response {
    let running = app.queue.running().await;
    let config = app.settings.config();
    let standing = |name: &deploy_proto::names::ProjectName| {
        let (release, stuck) = app.metrics.standing(name);
        let deployment = running
            .iter()
            .find(|(project, _)| project == name)
            .map(|(_, id)| id.to_string());
        ProjectStanding {
            project: name.to_string(),
            release,
            stuck,
            deployment,
        }
    };
    let projects: Vec<_> = config.projects.keys().map(standing).collect();
    let is_stuck = projects.iter().any(|project| project.stuck);
    let (code, status) = if is_stuck {
        (StatusCode::SERVICE_UNAVAILABLE, "stuck")
    } else {
        (StatusCode::OK, "ok")
    };
    (
        code,
        Json(Health {
            status,
            version: env!("CARGO_PKG_VERSION"),
            projects,
        }),
    )
        .into_response()
}

/// All metrics: text format 0.0.4, or OpenMetrics for those who accept it.
async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let accepts = |value: &axum::http::HeaderValue| {
        value
            .to_str()
            .is_ok_and(|text| text.contains("application/openmetrics-text"))
    };
    if headers.get(header::ACCEPT).is_some_and(accepts) {
        (
            [(header::CONTENT_TYPE, OPENMETRICS_CONTENT_TYPE)],
            app.metrics.openmetrics(),
        )
            .into_response()
    } else {
        ([(header::CONTENT_TYPE, TEXT_CONTENT_TYPE)], app.metrics.text()).into_response()
    }
}
