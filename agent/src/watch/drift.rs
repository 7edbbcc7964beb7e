//! The periodic look whether projects are still as their releases left them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use deploy_proto::names::ProjectName;
use tokio::time::Instant;

use crate::app::App;
use crate::config::Project;
use crate::deploy::planning::NoPlan;
use crate::deploy::reconciling;

/// How often a project is looked at: a scrape a minute is what most monitoring makes.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How long after the start the first project is looked at: what was under way goes first.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Over how long the projects' looks are spread, so that many of them ask the Engine one after the other.
const SPREAD: Duration = Duration::from_secs(8);
/// How long one look may take; the Engine answers in milliseconds, and `docker compose config` may take its time.
const LOOK_DEADLINE: Duration = Duration::from_secs(45);

/// Looks until the agent stops.
pub async fn run(app: Arc<App>) {
    let mut due: HashMap<ProjectName, Instant> = HashMap::new();
    let mut shutdown = app.shutdown.clone();
    loop {
        let config = app.settings.config();
        let now = Instant::now();
        due.retain(|name, _| config.projects.contains_key(name));
        for name in config
            .projects
            .keys()
            .filter(|name| !due.contains_key(name))
            .collect::<Vec<_>>()
        {
            due.insert(name.clone(), now + first_look(name));
        }
        let next = due
            .iter()
            .min_by_key(|(_, at)| **at)
            .map(|(name, at)| (name.clone(), *at));
        // Not longer, for a reload may add a project.
        let wake = next.as_ref().map_or(now + LOOK_EVERY, |(_, at)| *at);
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
            stopped = shutdown.wait_for(|stop| *stop) => {
                drop(stopped);
                return;
            }
        }
        if let Some((name, at)) = next {
            if let Some(project) = config.projects.get(&name) {
                look_at(&app, project).await;
            }
            // From when it was due, so that the spread stays; a look that took longer is not made up for.
            due.insert(name, (at + LOOK_EVERY).max(Instant::now()));
        }
    }
}

/// The place of a project's looks within the spread: always the same.
fn first_look(name: &ProjectName) -> Duration {
    let mut hasher = DefaultHasher::new();
    name.as_str().hash(&mut hasher);
    let spread_ms = u64::try_from(SPREAD.as_millis()).unwrap_or(1).max(1);
    FIRST_LOOK + Duration::from_millis(hasher.finish() % spread_ms)
}

/// Looks at one project and tells the metric. What cannot be seen just now leaves the last value as it is.
async fn look_at(app: &App, project: &Project) {
    if is_deploying(app, &project.name).await {
        return;
    }
    let look = reconciling::look(app.host.as_ref(), &app.history, project);
    let seen = tokio::time::timeout(LOOK_DEADLINE, Box::pin(look)).await;
    // What a deployment that began meanwhile changes is no drift.
    if is_deploying(app, &project.name).await {
        return;
    }
    let name = project.name.as_str();
    match seen {
        Ok(Ok(drift)) => app.metrics.drifted(&project.name, drift.len()),
        Ok(Err(NoPlan::Refused(failure))) => {
            tracing::debug!(
                project = name,
                problem = failure.problem.detail,
                "drift not looked for"
            );
        }
        Ok(Err(NoPlan::History(error))) => {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(project = name, error, "drift not looked for");
        }
        Err(_elapsed) => tracing::debug!(project = name, "drift not looked for: no answer in time"),
    }
}

async fn is_deploying(app: &App, project: &ProjectName) -> bool {
    let running = app.queue.running().await;
    running.iter().any(|(name, _)| name == project)
}
