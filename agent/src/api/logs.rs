//! `GET .../logs/{service}`: what a service's containers print now, or what a release's printed last.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use deploy_proto::names::{ReleaseNumber, ServiceName};
use deploy_proto::problem::{Code, Problem};
use serde::Deserialize;

use super::problem::Refusal;
use super::{Verified, project};
use crate::app::App;
use crate::config::Action;
use crate::config::Project;
use crate::policy;

/// How many lines an answer begins with when the caller does not say.
const TAIL_DEFAULT: u32 = 100;
/// The most lines an answer begins with.
const TAIL_MAX: u32 = 10_000;

/// Which lines.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lines {
    tail: Option<u32>,
    #[serde(default)]
    follow: bool,
    release: Option<u32>,
}

/// Answers with log lines as plain text.
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    Path((name, service)): Path<(String, String)>,
    verified: Verified,
) -> Result<Response, Refusal> {
    let project = project(&app, &verified, &name)?;
    let permitted = policy::permit(verified.key(), Action::Logs, &project, ())?;
    let service: ServiceName = service
        .parse()
        .map_err(|error| Problem::new(Code::BadRequest, format!("{error}")))?;
    permitted.services().permits_logs(&service)?;
    let lines: Lines = verified.query()?;
    let tail = lines.tail.unwrap_or(TAIL_DEFAULT).min(TAIL_MAX);
    let live = app
        .history
        .live_release(project.name.clone())
        .await?
        .map(|release| release.number);
    let body = match lines.release.map(ReleaseNumber) {
        Some(release) if Some(release) != live => {
            Body::from(kept(&app, &project, release, &service, tail).await?)
        }
        Some(_) | None => {
            let stream = app
                .host
                .log_stream(&project, &service, tail, lines.follow, app.shutdown.clone())
                .await?;
            Body::from_stream(stream)
        }
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

/// The lines that were kept when a release's containers were replaced.
async fn kept(
    app: &App,
    project: &Project,
    release: ReleaseNumber,
    service: &ServiceName,
    tail: u32,
) -> Result<String, Refusal> {
    let kept = app
        .history
        .kept_log(project.name.clone(), release, service.clone())
        .await?;
    let Some(lines) = kept else {
        let detail = format!(
            "no lines of {service} were kept from release {release} of project {}",
            project.name
        );
        return Err(Problem::new(Code::UnknownRelease, detail)
            .hint("lines are kept when a deployment replaces a service's containers; deployctl history shows the releases")
            .into());
    };
    let skipped = lines
        .len()
        .saturating_sub(usize::try_from(tail).unwrap_or(usize::MAX));
    Ok(lines
        .iter()
        .skip(skipped)
        .map(|line| format!("{line}\n"))
        .collect())
}
