//! A sample of `make torture`: some cases of every group, always the same ones. Each is judged as there: files to the
//! byte with their owners and modes, each hook once, what runs against what history names, the journal, the database, leftovers, and the next push.

use anyhow::{Context, Result, ensure};
use deploy_tests::torture::strace::{Seen, counts_by_thread};
use deploy_tests::torture::{Came, GROUPS, Options, Tally};

/// Tries so many cases of some groups.
fn try_some(groups: &[&str], sample: usize) -> Result<()> {
    let options = Options {
        seed: 20_261_121,
        sample: Some(sample),
        workers: 1,
        is_verbose: false,
    };
    for name in groups {
        let group = GROUPS.iter().find(|group| group.name == *name);
        let group = group.with_context(|| format!("there is no group {name}"))?;
        let tally = Tally::default();
        (group.run)(&options, &tally)?;
        let violations = tally.violations();
        ensure!(violations.is_empty(), "{name}: {}", violations.join("\n"));
        ensure!(tally.tried() > 0, "{name}: nothing was tried");
    }
    Ok(())
}

#[test]
fn killed_at_any_moment_it_ends_as_it_would_have() -> Result<()> {
    try_some(&["kill-forward", "kill-back", "kill-one-by-one"], 2)
}

#[test]
fn killed_in_a_rollback_or_several_times_it_ends_as_it_would_have() -> Result<()> {
    try_some(&["kill-rollback", "kill-again"], 2)
}

#[test]
fn killed_in_what_is_not_a_push_it_ends_as_it_would_have() -> Result<()> {
    try_some(&["kill-reconcile", "kill-cancel", "kill-bake"], 1)
}

#[test]
fn a_flush_that_fails_ends_the_agent_and_the_next_one_goes_on() -> Result<()> {
    try_some(&["fault-sync"], 2)
}

#[test]
fn a_write_that_fails_or_is_the_last_one_breaks_no_promise() -> Result<()> {
    try_some(&["fault-write", "fault-kill"], 2)
}

#[test]
fn a_file_that_cannot_be_opened_or_renamed_breaks_no_promise() -> Result<()> {
    try_some(&["fault-name"], 2)
}

#[test]
fn a_start_that_fails_in_the_middle_of_a_deployment_is_started_again() -> Result<()> {
    try_some(&["fault-start"], 2)
}

#[test]
fn a_disk_that_never_flushes_again_ends_the_deployment_truthfully() -> Result<()> {
    try_some(&["fault-for-ever"], 1)
}

#[test]
fn a_full_disk_under_the_journal_or_the_project_breaks_no_promise() -> Result<()> {
    try_some(&["full-state", "full-project"], 1)
}

#[test]
fn a_group_that_does_not_reach_what_it_is_to_break_is_a_violation() {
    let with_unreached = |unreached: usize| {
        let tally = Tally::default();
        for number in 0..20 {
            let came = if number < unreached {
                Came::NotReached
            } else {
                Came::Tried(Vec::new())
            };
            tally.add("case", &came);
        }
        tally.violations()
    };
    assert_eq!(with_unreached(2), Vec::<String>::new());
    assert_eq!(with_unreached(3), ["3 of 20 cases were not reached"]);
}

#[test]
fn a_thread_has_the_same_number_whether_or_not_those_before_it_call_anything() -> Result<()> {
    let seen = |thread| Seen {
        thread,
        call: "fsync".to_owned(),
        line: String::new(),
        is_injected: false,
    };
    let counts = counts_by_thread(&[seen(12), seen(14), seen(14)], &[11, 12, 14])?;
    let expected = [(("fsync".to_owned(), 1), 1), (("fsync".to_owned(), 2), 2)];
    assert_eq!(counts, expected.into());
    ensure!(counts_by_thread(&[seen(13)], &[11, 12, 14]).is_err());
    Ok(())
}
