//! `POST .../deployments` and `POST .../plan`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::{Accepted, Push};
use deploy_proto::release::PlanView;

use super::problem::Refusal;
use super::{Verified, project};
use crate::app::App;
use crate::config::Project;
use crate::deploy::planning::{self, Asked, NoPlan};
use crate::history::{Deployment, Request};
use crate::policy::{self, Permitted, ServiceScope};
use crate::queue::Acceptance;

/// Accepts a push.
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> Result<(StatusCode, Json<Accepted>), Refusal> {
    let (project, permitted) = permitted(&app, &name, &verified)?;
    let services = permitted.services().clone();
    accept(
        &app,
        &project,
        Request::Push(permitted.request().clone()),
        &verified,
        services,
    )
    .await
}

/// Says what a push would do.
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
        &Request::Push(permitted.request().clone()),
        &verified,
        &services,
        false,
    )
    .await
}

fn permitted(app: &App, name: &str, verified: &Verified) -> Result<(Project, Permitted<Push>), Refusal> {
    let project = project(app, verified, name)?;
    let permitted = policy::permit_push(verified.key(), &project, verified.json()?)?;
    Ok((project, permitted))
}

/// Hands a permitted request to the queue.
pub(super) async fn accept(
    app: &App,
    project: &Project,
    request: Request,
    verified: &Verified,
    services: ServiceScope,
) -> Result<(StatusCode, Json<Accepted>), Refusal> {
    if *app.shutdown.borrow() {
        return Err(Problem::new(Code::ShuttingDown, "the agent is being restarted")
            .hint("try again in a few seconds")
            .into());
    }
    let id = request.id().clone();
    let deployment = Deployment::accepted(
        project.name.clone(),
        request,
        verified.key().name.clone(),
        services,
        (app.now)(),
    );
    let status = match app.queue.accept(deployment).await? {
        Acceptance::New => StatusCode::ACCEPTED,
        Acceptance::Known => StatusCode::OK,
    };
    Ok((status, Json(Accepted { id })))
}

/// Plans without taking anything over. `takes_number`: the plan's release has its number already.
pub(super) async fn dry_run(
    app: &App,
    project: &Project,
    request: &Request,
    verified: &Verified,
    services: &ServiceScope,
    takes_number: bool,
) -> Result<Json<PlanView>, Refusal> {
    let asked = Asked {
        request,
        key: &verified.key().name,
        scope: services,
        now: (app.now)(),
    };
    match planning::plan(app.host.as_ref(), &app.history, project, &asked).await {
        Ok(planned) => Ok(Json(planned.plan.view(&project.dir, takes_number))),
        Err(NoPlan::Refused(failure)) => Err(failure.problem.into()),
        Err(NoPlan::History(error)) => Err(error.into()),
    }
}
