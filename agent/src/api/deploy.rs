//! `POST .../deployments`, `.../rollbacks` and `.../reconciliations`, and their `.../plan`s: the same request, asked for or only thought through.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::{Accepted, Reconcile, Rollback};
use deploy_proto::release::PlanView;
use serde::Deserialize;

use super::problem::Refusal;
use super::read::followed;
use super::{Verified, project};
use crate::app::App;
use crate::config::{Action, Project};
use crate::deploy::planning::{self, Asked, NoPlan};
use crate::history::{Deployment, Request};
use crate::policy::{self, ServiceScope};
use crate::queue::Acceptance;

type AcceptedAnswer = Result<(StatusCode, Json<Accepted>), Refusal>;
type PlanAnswer = Result<Json<PlanView>, Refusal>;

/// What a key was permitted to ask for.
struct Wish {
    project: Project,
    request: Request,
    services: ServiceScope,
}

/// Accepts a push.
pub(super) async fn push(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> AcceptedAnswer {
    accept(&app, push_wish(&app, &name, &verified)?, &verified).await
}

/// Says what a push would do. Its release gets its number only when it is made.
pub(super) async fn push_plan(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> PlanAnswer {
    dry_run(&app, &push_wish(&app, &name, &verified)?, &verified, false).await
}

/// Accepts a rollback.
pub(super) async fn rollback(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> AcceptedAnswer {
    accept(&app, rollback_wish(&app, &name, &verified)?, &verified).await
}

/// Says what a rollback would do.
pub(super) async fn rollback_plan(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> PlanAnswer {
    dry_run(&app, &rollback_wish(&app, &name, &verified)?, &verified, true).await
}

/// Accepts a reconciliation.
pub(super) async fn reconcile(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> AcceptedAnswer {
    accept(&app, reconcile_wish(&app, &name, &verified)?, &verified).await
}

/// Says what a reconciliation would do.
pub(super) async fn reconcile_plan(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> PlanAnswer {
    dry_run(&app, &reconcile_wish(&app, &name, &verified)?, &verified, true).await
}

fn push_wish(app: &App, name: &str, verified: &Verified) -> Result<Wish, Refusal> {
    let project = project(app, verified, name)?;
    let permitted = policy::permit_push(verified.key(), &project, verified.json()?)?;
    let request = Request::Push(permitted.request().clone());
    Ok(Wish {
        project,
        request,
        services: permitted.services().clone(),
    })
}

fn rollback_wish(app: &App, name: &str, verified: &Verified) -> Result<Wish, Refusal> {
    let project = project(app, verified, name)?;
    let rollback: Rollback = verified.json()?;
    let permitted = policy::permit(verified.key(), Action::Rollback, &project, rollback)?;
    let request = Request::Rollback(permitted.request().clone());
    Ok(Wish {
        project,
        request,
        services: permitted.services().clone(),
    })
}

/// It brings back what was deployed before, as a rollback does, and takes the same right.
fn reconcile_wish(app: &App, name: &str, verified: &Verified) -> Result<Wish, Refusal> {
    let project = project(app, verified, name)?;
    let reconcile: Reconcile = verified.json()?;
    let permitted = policy::permit(verified.key(), Action::Rollback, &project, reconcile)?;
    let request = Request::Reconcile(permitted.request().clone());
    Ok(Wish {
        project,
        request,
        services: permitted.services().clone(),
    })
}

/// Hands a permitted request to the queue.
async fn accept(app: &App, wish: Wish, verified: &Verified) -> AcceptedAnswer {
    if *app.shutdown.borrow() {
        return Err(Problem::new(Code::ShuttingDown, "the agent is being restarted")
            .hint("try again in a few seconds")
            .into());
    }
    let id = wish.request.id().clone();
    let key = verified.key().name.clone();
    let deployment = Deployment::accepted(wish.project.name, wish.request, key, wish.services, (app.now)());
    let status = match Box::pin(app.queue.accept(deployment)).await? {
        Acceptance::New => StatusCode::ACCEPTED,
        Acceptance::Known => StatusCode::OK,
    };
    Ok((status, Json(Accepted { id })))
}

/// Cancels a deployment, for a key that could have asked for it.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    verified: Verified,
) -> AcceptedAnswer {
    let NoContent {} = verified.json()?;
    let deployment = followed(&app, &verified, &id).await?;
    policy::permit_cancel(verified.key(), &deployment)?;
    let id = deployment.id().clone();
    app.queue
        .cancel(deployment, verified.key().name.clone(), (app.now)())
        .await?;
    Ok((StatusCode::ACCEPTED, Json(Accepted { id })))
}

/// The body of a request that says all in its path: `{}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoContent {}

/// Plans without taking anything over. `takes_number`: the plan's release has its number already.
async fn dry_run(app: &App, wish: &Wish, verified: &Verified, takes_number: bool) -> PlanAnswer {
    app.queue
        .check_sequence(&wish.project.name, &wish.request)
        .await?;
    let key = &verified.key().name;
    let asked = Asked {
        request: &wish.request,
        key,
        scope: &wish.services,
        now: (app.now)(),
    };
    match planning::plan(app.host.as_ref(), &app.history, &wish.project, &asked).await {
        Ok(planned) => Ok(Json(planned.plan.view(&wish.project.dir, takes_number))),
        Err(NoPlan::Refused(failure)) => Err(failure.problem.into()),
        Err(NoPlan::History(error)) => Err(error.into()),
    }
}
