//! What only reads: projects, status, health, history, one deployment.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use deploy_proto::event::Ending;
use deploy_proto::names::DeploymentId;
use deploy_proto::problem::{Code, Problem};
use deploy_proto::release::{
    DeploymentView, Drift, History as HistoryView, MissingImages, ProjectHealth, ProjectStatus, Projects,
    ServiceHealth,
};
use serde::Deserialize;

use super::problem::Refusal;
use super::{Verified, log_lines, project};
use crate::app::App;
use crate::config::{Action, Project};
use crate::deploy::after_stuck;
use crate::deploy::difference::edited_files;
use crate::deploy::planning::NoPlan;
use crate::deploy::reconciling;
use crate::deploy::retention::{self, Records};
use crate::history::{Deployment, HISTORY_MAX, Release};
use crate::host::health::Checks;
use crate::policy;

/// How many deployments and releases an answer has when the caller does not say.
const HISTORY_DEFAULT: u32 = 20;

/// How long the history waits for the Engine to list its images.
const IMAGES_DEADLINE: Duration = Duration::from_secs(2);

/// How many deployments `status` looks at for the last that ended: one may run, and one may wait.
const RECENT: u32 = 3;

/// The projects that this key may touch.
pub(super) async fn projects(State(app): State<Arc<App>>, verified: Verified) -> Json<Projects> {
    let config = app.settings.config();
    let projects = config
        .projects
        .keys()
        .filter(|name| verified.key().projects.contains(name))
        .cloned()
        .collect();
    Json(Projects {
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        projects,
    })
}

/// What runs, what is under way, and what needs attention.
pub(super) async fn status(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> Result<Json<ProjectStatus>, Refusal> {
    let project = readable(&app, &verified, &name)?;
    let name = project.name.clone();
    let (release, running, deployments, last_live, stuck, services, missing) = tokio::join!(
        app.history.live_release(name.clone()),
        app.history.under_way(name.clone()),
        app.history.deployments(name.clone(), RECENT),
        app.history.last_live_plan(name.clone()),
        app.history.stuck(name.clone()),
        app.host.services(&project, Checks::Engine),
        missing_of_kept(&app, &project),
    );
    let (services, files) = services?;
    let (deployments, stuck) = (deployments?, stuck?);
    let running = running?.map(|deployment| log_lines::view(verified.key(), &deployment));
    let last = deployments
        .iter()
        .find(|deployment| deployment.ended_at.is_some())
        .map(|deployment| log_lines::view(verified.key(), deployment));
    let baking = app.bakes.of(&name);
    let mut attention: Vec<String> = stuck.iter().map(needs_a_person).collect();
    let as_left = stuck.is_some() && after_stuck::files_are_as_left(&app.history, &name, &files).await?;
    if let (Some(plan), None, false) = (last_live?, &running, as_left) {
        let left = plan.files_after();
        let edited = edited_files(&left, &files).into_iter().map(|(path, lines)| {
            format!(
                "edited by hand since release {}: {} {lines}",
                plan.to,
                path.display()
            )
        });
        attention.extend(edited);
    }
    let drift = match &running {
        // What it changes is no drift, and what it leaves is not known yet.
        Some(_) => Vec::new(),
        None => drift(&app, &project).await?,
    };
    Ok(Json(ProjectStatus {
        project: name,
        // Stuck, no release runs whole: naming one would be a claim that was not checked.
        release: release?.filter(|_| stuck.is_none()).map(|release| release.view()),
        services,
        running,
        last,
        baking,
        attention,
        missing: missing?,
        drift,
    }))
}

/// The kept releases of which images are gone.
async fn missing_of_kept(app: &App, project: &Project) -> Result<Vec<MissingImages>, Refusal> {
    let (here, releases) = tokio::join!(
        app.host.images_here(),
        app.history.releases(project.name.clone(), u32::MAX)
    );
    let records = Records {
        project: project.clone(),
        releases: releases?,
    };
    Ok(retention::missing_of_kept(&records, &here?))
}

/// The same of these releases. The Engine is asked for no longer than a moment: without it the history is told all the
/// same.
async fn missing_of(app: &App, project: &Project, releases: &[Release]) -> Vec<MissingImages> {
    let here = tokio::time::timeout(IMAGES_DEADLINE, app.host.images_here()).await;
    match here {
        Ok(Ok(here)) => retention::missing(project, releases, &here),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// What drifted, looked at now; the metric hears of it at once.
async fn drift(app: &App, project: &Project) -> Result<Vec<Drift>, Refusal> {
    match reconciling::look(app.host.as_ref(), &app.history, project).await {
        Ok(drift) => {
            app.metrics.drifted(&project.name, drift.len());
            Ok(drift)
        }
        Err(NoPlan::Refused(failure)) => Err(failure.problem.into()),
        Err(NoPlan::History(error)) => Err(error.into()),
    }
}

fn needs_a_person(stuck: &Deployment) -> String {
    let outcome = stuck.outcome.as_ref();
    let trouble = outcome
        .and_then(|outcome| outcome.trouble.as_ref())
        .map_or("", |problem| &problem.detail);
    format!(
        "deployment {} is stuck, a person is needed: {trouble}",
        stuck.id()
    )
}

/// Every check of every service, run now.
pub(super) async fn health(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> Result<Json<ProjectHealth>, Refusal> {
    let project = readable(&app, &verified, &name)?;
    let (release, stuck, services) = tokio::join!(
        app.history.live_release(project.name.clone()),
        app.history.stuck(project.name.clone()),
        app.host.services(&project, Checks::Now)
    );
    // Stuck, no release runs whole.
    let release = if stuck?.is_some() { None } else { release? };
    let (services, _files) = services?;
    Ok(Json(ProjectHealth {
        project: project.name,
        healthy: services
            .iter()
            .all(|service| service.health == ServiceHealth::Healthy),
        release: release.map(|release| release.number),
        services,
    }))
}

/// How many to answer with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    limit: Option<u32>,
}

/// The newest deployments and releases.
pub(super) async fn history(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    verified: Verified,
) -> Result<Json<HistoryView>, Refusal> {
    let configured = readable(&app, &verified, &name)?;
    let project = configured.name.clone();
    let query: Limit = verified.query()?;
    let limit = query.limit.unwrap_or(HISTORY_DEFAULT).clamp(1, HISTORY_MAX);
    let deployments = app.history.deployments(project.clone(), limit).await?;
    let releases = app.history.releases(project.clone(), limit).await?;
    let missing = missing_of(&app, &configured, &releases).await;
    // What undid a deployment is newer than it, and so in the list as well.
    let undone_by = |id: &DeploymentId| {
        let undid = deployments.iter().find(|deployment| {
            let undoes = deployment
                .request
                .auto_rollback()
                .map(|rollback| &rollback.undoes);
            let result = deployment.outcome.as_ref().map(|outcome| outcome.result);
            undoes == Some(id) && result == Some(Ending::RolledBack)
        });
        undid.map(|deployment| deployment.id().clone())
    };
    Ok(Json(HistoryView {
        project,
        deployments: deployments
            .iter()
            .map(|deployment| DeploymentView {
                undone_by: undone_by(deployment.id()),
                ..log_lines::view(verified.key(), deployment)
            })
            .collect(),
        releases: releases.iter().map(Release::view).collect(),
        missing,
    }))
}

/// One deployment.
pub(super) async fn deployment(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    verified: Verified,
) -> Result<Json<DeploymentView>, Refusal> {
    let deployment = followed(&app, &verified, &id).await?;
    Ok(Json(DeploymentView {
        undone_by: app.history.undone_by(deployment.id().clone()).await?,
        ..log_lines::view(verified.key(), &deployment)
    }))
}

/// Finds a deployment that this key may follow. One of a project that the key may not touch does not exist for it.
pub(super) async fn followed(app: &App, verified: &Verified, id: &str) -> Result<Deployment, Refusal> {
    let id: DeploymentId = id
        .parse()
        .map_err(|error| Problem::new(Code::BadRequest, format!("{error}")))?;
    let found = app.history.deployment(id.clone()).await?;
    let mine = found.filter(|deployment| {
        let key = verified.key();
        key.projects.contains(&deployment.project)
            && (key.allow.contains(&Action::Status) || deployment.key == key.name)
    });
    mine.ok_or_else(|| {
        Problem::new(
            Code::UnknownDeployment,
            format!("this host has no deployment {id}"),
        )
        .hint("deployctl history lists the deployments of a project")
        .into()
    })
}

/// The project, if this key may read its status.
fn readable(app: &App, verified: &Verified, name: &str) -> Result<Project, Refusal> {
    let project = project(app, verified, name)?;
    policy::permit(verified.key(), Action::Status, &project, ())?;
    Ok(project)
}
