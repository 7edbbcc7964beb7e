//! What planning does otherwise in a project that is stuck: the files may be those of a release that never went live, and
//! one step back is the release that did.

use deploy_proto::names::{ProjectName, ReleaseNumber};
use deploy_proto::push::RollbackTarget;
use deploy_proto::release::DeploymentKind;

use super::difference::edited_files;
use super::facts::SourceFile;
use crate::history::{Deployment, History, HistoryError, Release};

/// Whether the project is stuck and its files are as that deployment left them: nobody edited them by hand.
///
/// # Errors
/// The history cannot be read.
pub async fn files_are_as_left(
    history: &History,
    project: &ProjectName,
    files: &[SourceFile],
) -> Result<bool, HistoryError> {
    let Some(stuck) = history.stuck(project.clone()).await? else {
        return Ok(false);
    };
    let whole = history.deployment(stuck.id().clone()).await?;
    let plan = whole.and_then(|deployment| deployment.plan);
    Ok(plan.is_some_and(|plan| edited_files(&plan.files_after(), files).is_empty()))
}

/// Where a rollback goes. From a push that is stuck the first step back is to the release that ran before it, which is
/// the one that the history still calls live.
///
/// # Errors
/// The history cannot be read.
pub(super) async fn rollback_target(
    history: &History,
    project: &ProjectName,
    asked: &RollbackTarget,
) -> Result<RollbackTarget, HistoryError> {
    let RollbackTarget::Back(steps) = asked else {
        return Ok(asked.clone());
    };
    let stuck = history.stuck(project.clone()).await?;
    let in_a_push = stuck.is_some_and(|stuck| stuck.request.kind() == DeploymentKind::Push);
    let live = history.live_release(project.clone()).await?;
    Ok(match (in_a_push, live) {
        (true, Some(live)) if *steps <= 1 => RollbackTarget::Release(live.number),
        (true, Some(_)) => RollbackTarget::Back(steps - 1),
        (true, None) | (false, _) => asked.clone(),
    })
}

/// Whether the deployment that a project is stuck in began a migration that cannot be undone. What ran before never ran on
/// the data as it is now: neither does it for a push that gets the project out.
///
/// # Errors
/// The history cannot be read.
pub(super) async fn is_migrated(history: &History, stuck: Option<&Deployment>) -> Result<bool, HistoryError> {
    let Some((stuck, to)) = stuck.and_then(|stuck| Some((stuck, stuck.to?))) else {
        return Ok(false);
    };
    let before = ReleaseNumber(to.0.saturating_sub(1));
    let migrations = history.migrations_since(stuck.project.clone(), before).await?;
    Ok(migrations.iter().any(|release| release.number == to))
}

/// The migration that cannot be undone and that the project is stuck in, if it is: nothing goes back before it by itself.
///
/// # Errors
/// The history cannot be read.
pub(super) async fn migration(
    history: &History,
    project: &ProjectName,
    target: &Release,
) -> Result<Vec<Release>, HistoryError> {
    let Some(stuck) = history.stuck(project.clone()).await? else {
        return Ok(Vec::new());
    };
    let mut migrations = history.migrations_since(project.clone(), target.number).await?;
    migrations.retain(|release| Some(release.number) == stuck.to);
    Ok(migrations)
}
