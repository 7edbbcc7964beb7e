//! The signed API: routes, and one handler a file. Every handler takes a `Verified` request, so none can be reached
//! unsigned.

mod deploy;
mod events;
mod gate;
pub mod listener;
mod log_lines;
mod logs;
pub mod monitor;
mod problem;
mod read;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use deploy_proto::names::ProjectName;
use deploy_proto::problem::{Code, Problem};

use crate::app::App;
use crate::config::Project;
use problem::Refusal;

pub use gate::Verified;

/// The routes of the signed API.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/projects", get(read::projects))
        .route("/v1/projects/{project}/plan", post(deploy::push_plan))
        .route("/v1/projects/{project}/deployments", post(deploy::push))
        .route("/v1/projects/{project}/rollbacks", post(deploy::rollback))
        .route(
            "/v1/projects/{project}/rollbacks/plan",
            post(deploy::rollback_plan),
        )
        .route("/v1/projects/{project}/reconciliations", post(deploy::reconcile))
        .route(
            "/v1/projects/{project}/reconciliations/plan",
            post(deploy::reconcile_plan),
        )
        .route("/v1/projects/{project}/status", get(read::status))
        .route("/v1/projects/{project}/health", get(read::health))
        .route("/v1/projects/{project}/history", get(read::history))
        .route("/v1/projects/{project}/logs/{service}", get(logs::logs))
        .route("/v1/deployments/{id}", get(read::deployment))
        .route("/v1/deployments/{id}/cancel", post(deploy::cancel))
        .route("/v1/deployments/{id}/events", get(events::events))
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::no_such_path)
        .with_state(app)
}

/// Finds a project of this host by the name in a path. A key that may not touch it hears the same whether or not it
/// exists.
fn project(app: &App, verified: &Verified, name: &str) -> Result<Project, Refusal> {
    let name: ProjectName = name
        .parse()
        .map_err(|error| Problem::new(Code::BadRequest, format!("{error}")))?;
    if !verified.key().projects.contains(&name) {
        let detail = format!("key {} may not touch project {name}", verified.key().name);
        return Err(Problem::new(Code::NotAllowed, detail)
            .hint("the host's agent.toml lists the projects of each key")
            .into());
    }
    let config = app.settings.config();
    let Some(project) = config.projects.get(&name) else {
        let known: Vec<_> = config
            .projects
            .keys()
            .filter(|name| verified.key().projects.contains(name))
            .map(ProjectName::as_str)
            .collect();
        let hint = if known.is_empty() {
            "add it on the host: deploy-agent add DIR".to_owned()
        } else {
            format!("it has {}", known.join(", "))
        };
        return Err(
            Problem::new(Code::UnknownProject, format!("this host has no project {name}"))
                .hint(hint)
                .into(),
        );
    };
    Ok(project.clone())
}
