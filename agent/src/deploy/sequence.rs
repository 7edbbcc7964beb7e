//! Why a push comes too late: a newer run was accepted before it, or another release runs than it was made for. Pure.

use deploy_proto::names::{ProjectName, ReleaseNumber};
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

/// Refuses a push that expects another release than the one that runs. `is_what_runs`: whether the live release
/// describes what is there.
///
/// # Errors
/// `stale`.
pub fn check_expected(
    project: &ProjectName,
    push: &Push,
    live: Option<ReleaseNumber>,
    is_what_runs: bool,
) -> Result<(), Problem> {
    let Some(expected) = push.expect_release else {
        return Ok(());
    };
    let runs = match live {
        Some(live) if live == expected && is_what_runs => return Ok(()),
        Some(live) if is_what_runs => format!("release {live} does"),
        Some(_) => "what runs was not deployed by this agent".to_owned(),
        None => "no release is recorded".to_owned(),
    };
    let detail = format!("release {expected} of project {project} was expected to run, and {runs}");
    Err(Problem::new(Code::Stale, detail).hint("look at deployctl status, then push again"))
}
