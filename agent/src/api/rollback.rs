//! `POST .../rollbacks` and `POST .../rollbacks/plan`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use deploy_proto::push::{Accepted, Rollback};
use deploy_proto::release::PlanView;

use super::problem::Refusal;
use super::push::{accept, dry_run};
use super::{Verified, project};
use crate::app::App;
use crate::config::{Action, Project};
use crate::history::Request;
use crate::policy::{self, Permitted};

/// Accepts a rollback.
pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> Result<(StatusCode, Json<Accepted>), Refusal> {
    let (project, permitted) = permitted(&app, &name, &verified)?;
    let services = permitted.services().clone();
    accept(
        &app,
        &project,
        Request::Rollback(permitted.request().clone()),
        &verified,
        services,
    )
    .await
}

/// Says what a rollback would do.
pub(super) async fn plan(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> Result<Json<PlanView>, Refusal> {
    let (project, permitted) = permitted(&app, &name, &verified)?;
    let services = permitted.services().clone();
    dry_run(
        &app,
        &project,
        &Request::Rollback(permitted.request().clone()),
        &verified,
        &services,
        true,
    )
    .await
}

fn permitted(app: &App, name: &str, verified: &Verified) -> Result<(Project, Permitted<Rollback>), Refusal> {
    let project = project(app, verified, name)?;
    let permitted = policy::permit(verified.key(), Action::Rollback, &project, verified.json()?)?;
    Ok((project, permitted))
}
