//! Why a push comes too late: a newer run was accepted before it, or another release runs than it was made for. Pure.

use deploy_proto::names::{DeploymentId, ProjectName, ReleaseNumber};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::{Push, Sequence};

use crate::history::NewestRun;

/// Why an older run is refused, and which one won.
pub fn stale(project: &ProjectName, sequence: &Sequence, newer: &NewestRun) -> Problem {
    let detail = format!(
        "this push is of run {sequence}, and {} of project {project} was accepted before it",
        in_words(newer)
    );
    Problem::new(Code::Stale, detail).hint(
        "nothing is to be done: the newer run has it; to deploy the older one all the same, --allow-older",
    )
}

/// What the history tells of an older run that was let in.
pub fn allowed(sequence: &Sequence, newer: &NewestRun) -> String {
    format!(
        "run {sequence} is older than {}, and was let in by --allow-older",
        in_words(newer)
    )
}

fn in_words(newer: &NewestRun) -> String {
    let place = match &newer.run_url {
        Some(url) => format!("{url}, "),
        None => String::new(),
    };
    format!(
        "the newer run {} ({place}deployment {} by {}, {:.0})",
        newer.sequence, newer.deployment, newer.key, newer.accepted_at
    )
}

/// What runs, beside what the history calls live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs<'a> {
    /// The live release.
    Live,
    /// What this deployment left when it got stuck.
    Stuck(&'a DeploymentId),
    /// Something that was deployed past the agent, or before it came.
    Found,
}

/// Refuses a push that expects another release than the one that runs.
///
/// # Errors
/// `stale`.
pub fn check_expected(
    project: &ProjectName,
    push: &Push,
    live: Option<ReleaseNumber>,
    runs: Runs<'_>,
) -> Result<(), Problem> {
    let Some(expected) = push.expect_release else {
        return Ok(());
    };
    let runs = match (live, runs) {
        (Some(live), Runs::Live) if live == expected => return Ok(()),
        (Some(live), Runs::Live) => format!("release {live} does"),
        (_, Runs::Stuck(id)) => format!("the project is stuck in deployment {id}"),
        (Some(_), Runs::Found) => "what runs was not deployed by this agent".to_owned(),
        (None, Runs::Live | Runs::Found) => "no release is recorded".to_owned(),
    };
    let detail = format!("release {expected} of project {project} was expected to run, and {runs}");
    Err(Problem::new(Code::Stale, detail).hint("look at deployctl status, then push again"))
}
