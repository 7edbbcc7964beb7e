//! The last words: what runs now, why, and what to type next.

use std::time::Duration;

use deploy_proto::event::{Ending, Outcome};
use deploy_proto::exit_code::ExitCode;
use deploy_proto::release::DeploymentKind;

use super::{called, plan_called, running};
use crate::error::Error;
use crate::render::text::{Paint, clean, count, took};
use crate::report::{Ended, HostReport, Report};

/// How many of the sick service's lines a person is shown; `--json` and `deployctl logs` have the rest.
const LOG_LINES_SHOWN: usize = 10;

/// The last log lines of the sick service: the heading, and the lines that are not ours.
pub(crate) fn log_lines(outcome: &Outcome) -> Option<(String, Vec<String>)> {
    if outcome.log_lines.is_empty() {
        return None;
    }
    let whose = outcome
        .sick_service
        .as_ref()
        .map_or_else(|| "the".to_owned(), |service| format!("{service}'s"));
    let when = match outcome.result {
        Ending::RolledBack => " before the rollback",
        Ending::Live | Ending::Unchanged | Ending::Refused | Ending::Stuck => "",
    };
    let all = outcome.log_lines.len();
    let lines = outcome.log_lines.iter().skip(all.saturating_sub(LOG_LINES_SHOWN));
    let of = if all > LOG_LINES_SHOWN {
        format!(" ({LOG_LINES_SHOWN} of {all})")
    } else {
        String::new()
    };
    Some((
        format!("    {whose} last lines{when}{of}:"),
        lines.map(|line| format!("    | {}", clean(line))).collect(),
    ))
}

/// An error as a person sees it: what, why, what next.
pub(crate) fn error(error: &Error, paint: Paint) -> Vec<String> {
    let mut lines = vec![format!("{} {error}", paint.bad("✖"))];
    if let Some(problem) = error.problem() {
        let more = problem.lines.iter();
        lines.extend(more.map(|line| format!("        {}", paint_sign(line, paint))));
    }
    lines.extend(why_next(&error.causes().join(": "), error.hint(), paint));
    lines
}

/// The summary of a deployment to all its hosts.
pub(crate) fn summary(report: &Report, paint: Paint) -> Vec<String> {
    let failed = report.hosts.iter().find(|host| !host.is_good());
    match failed {
        None => good(report, paint),
        Some(host) => bad(report, host, paint),
    }
}

/// What failed, in one line and without marks: the title of an annotation. None when all is well.
pub(crate) fn failure(report: &Report) -> Option<(String, String)> {
    let host = report.hosts.iter().find(|host| !host.is_good())?;
    Some((headline(report, host), why(host).join("; ")))
}

fn good(report: &Report, paint: Paint) -> Vec<String> {
    let subject = subject(report);
    let place = &report.place;
    let hosts = count(report.hosts.len(), "host");
    let time = took(report.took);
    let mark = paint.good("✔");
    if report
        .hosts
        .iter()
        .all(|host| matches!(host.ended, Ended::Planned))
    {
        return vec!["Nothing was changed: this was a dry run".to_owned()];
    }
    if report
        .hosts
        .iter()
        .all(|host| matches!(host.ended, Ended::Accepted))
    {
        return vec![
            format!("{mark} {subject} is accepted on {place}: {hosts}"),
            format!("  Follow: deployctl watch{} {}", report.arguments, report.id),
        ];
    }
    let cancelling: Vec<_> = report
        .hosts
        .iter()
        .filter(|host| matches!(host.ended, Ended::Cancelling))
        .map(|host| host.host.name.as_str())
        .collect();
    if !cancelling.is_empty() {
        return vec![
            format!("{mark} cancelling {} on {}", report.id, cancelling.join(", ")),
            format!("  Follow: deployctl watch{} {}", report.arguments, report.id),
        ];
    }
    let cancelled: Vec<_> = report.hosts.iter().filter_map(cancelled).collect();
    if !cancelled.is_empty() {
        return vec![format!(
            "{mark} deployment {} is cancelled: {}, {time}",
            report.id,
            cancelled.join("; ")
        )];
    }
    if report.is_unchanged() {
        return vec![format!(
            "{mark} {subject} runs on {place} already: nothing to do, {time}"
        )];
    }
    let releases = releases(report);
    let mut facts = vec![hosts, releases, time];
    if report.environment.is_none() && report.hosts.len() == 1 {
        facts.remove(0);
    }
    facts.retain(|fact| !fact.is_empty());
    let again = match report.kind {
        Some(DeploymentKind::Rollback | DeploymentKind::Reconcile | DeploymentKind::AutoRollback) => " again",
        Some(DeploymentKind::Push) | None => "",
    };
    let mut lines = vec![format!(
        "{mark} {subject} runs on {place}{again}: {}",
        facts.join(", ")
    )];
    let bake = report
        .hosts
        .iter()
        .filter_map(|host| host.outcome()?.bake_ms)
        .max();
    lines.extend(bake.map(|bake| {
        let time = took(Duration::from_millis(bake));
        format!("  Watched for {time} more: it goes back by itself if it falls sick")
    }));
    let has_before = |host: &HostReport| host.plan.as_ref().is_some_and(|plan| plan.from.is_some());
    if report.kind == Some(DeploymentKind::Push) && report.hosts.iter().all(has_before) {
        lines.push(format!("  Undo: deployctl rollback{}", report.arguments));
    }
    lines
}

/// What a cancelled deployment left on a host.
fn cancelled(host: &HostReport) -> Option<String> {
    let Ended::Cancelled(outcome) = &host.ended else {
        return None;
    };
    let name = &host.host.name;
    Some(match (outcome.result, running(&outcome.now)) {
        (Ending::RolledBack, runs) if !runs.is_empty() => format!("{name} runs {runs} again"),
        (Ending::RolledBack, _) => format!("{name} was rolled back"),
        (Ending::Live | Ending::Unchanged | Ending::Refused | Ending::Stuck, _) => {
            format!("nothing was changed on {name}")
        }
    })
}

/// `release 42`, or `releases 42, 17` where the hosts count differently.
fn releases(report: &Report) -> String {
    let mut numbers: Vec<_> = report
        .hosts
        .iter()
        .filter_map(|host| host.outcome()?.release)
        .map(|number| number.to_string())
        .collect();
    numbers.dedup();
    match numbers.as_slice() {
        [] => String::new(),
        [one] => format!("release {one}"),
        several => format!("releases {}", several.join(", ")),
    }
}

fn bad(report: &Report, host: &HostReport, paint: Paint) -> Vec<String> {
    let code = host.exit_code();
    let mark = match code {
        ExitCode::StillRunning | ExitCode::Interrupted => paint.warn("…"),
        ExitCode::Done
        | ExitCode::Unexpected
        | ExitCode::Usage
        | ExitCode::RolledBack
        | ExitCode::Refused
        | ExitCode::Unreachable
        | ExitCode::Stuck
        | ExitCode::Busy
        | ExitCode::Gate => paint.bad("✖"),
    };
    let exit = paint.dim(&format!("(exit {})", code.number()));
    let mut lines = vec![format!("{mark} {}  {exit}", headline(report, host))];
    let mut label = "why";
    for reason in why(host) {
        lines.push(word(label, &reason, paint));
        label = "";
    }
    lines.extend(
        more(host)
            .iter()
            .map(|line| format!("        {}", paint_sign(line, paint))),
    );
    let now: Vec<_> = report.hosts.iter().filter_map(now).collect();
    if !now.is_empty() {
        lines.push(word("now", &now.join(", "), paint));
    }
    lines.extend(next(report, host).map(|next| word("next", &next, paint)));
    lines
}

fn headline(report: &Report, host: &HostReport) -> String {
    let subject = subject(report);
    let name = &host.host.name;
    match &host.ended {
        Ended::Outcome(outcome) | Ended::Cancelled(outcome) => match outcome.result {
            Ending::RolledBack if outcome.is_cancelled() => {
                format!("{subject} was cancelled on {name} and rolled back")
            }
            Ending::RolledBack => match outcome.undone {
                None => format!("{subject} failed on {name} and was rolled back"),
                Some(sick) => {
                    format!("release {sick} fell sick on {name} after it had gone live: {subject} runs again")
                }
            },
            Ending::Refused => format!("{subject} was refused on {name}: nothing was changed there"),
            Ending::Stuck => {
                let what = match outcome.undone {
                    None => format!("{subject} failed on {name}"),
                    Some(sick) => format!("release {sick} fell sick on {name} after it had gone live"),
                };
                format!("{what} and could NOT be rolled back: a person is needed")
            }
            Ending::Live | Ending::Unchanged => format!("{subject} runs on {name}"),
        },
        Ended::Planned => format!("{subject} is planned on {name}"),
        Ended::Accepted => format!("{subject} is accepted on {name}"),
        Ended::Cancelling => format!("cancelling {} on {name}", report.id),
        Ended::StillRunning(error) => format!("{subject} on {name}: {error}"),
        Ended::Failed(error) => error.to_string(),
        Ended::Interrupted { accepted: true } => {
            format!("Stopped watching: {subject} goes on on {name}")
        }
        Ended::Interrupted { accepted: false } => {
            format!("Interrupted before {name} answered: it may have taken it")
        }
        Ended::Untouched => format!("{name} was not touched"),
    }
}

fn why(host: &HostReport) -> Vec<String> {
    match &host.ended {
        Ended::Outcome(outcome) | Ended::Cancelled(outcome) => [&outcome.problem, &outcome.trouble]
            .into_iter()
            .flatten()
            .map(|problem| clean(&problem.detail))
            .collect(),
        Ended::StillRunning(error) | Ended::Failed(error) => {
            let causes = error.causes();
            if causes.is_empty() {
                Vec::new()
            } else {
                vec![clean(&causes.join(": "))]
            }
        }
        Ended::Planned
        | Ended::Accepted
        | Ended::Cancelling
        | Ended::Interrupted { .. }
        | Ended::Untouched => Vec::new(),
    }
}

/// The lines that say more of the reason: a difference.
fn more(host: &HostReport) -> &[String] {
    let problem = match &host.ended {
        Ended::Outcome(outcome) | Ended::Cancelled(outcome) => outcome.problem.as_ref(),
        Ended::StillRunning(error) | Ended::Failed(error) => error.problem(),
        Ended::Planned
        | Ended::Accepted
        | Ended::Cancelling
        | Ended::Interrupted { .. }
        | Ended::Untouched => None,
    };
    problem.map_or(&[], |problem| problem.lines.as_slice())
}

/// A line of a difference: what went in one colour, what came in another.
fn paint_sign(line: &str, paint: Paint) -> String {
    let line = clean(line);
    let sign = line.split_once("  ").and_then(|(_, rest)| rest.chars().next());
    match sign {
        Some('-') => paint.bad(&line),
        Some('+') => paint.good(&line),
        Some(_) | None => line,
    }
}

/// What runs on a host now, as far as it is known.
fn now(host: &HostReport) -> Option<String> {
    let name = &host.host.name;
    match &host.ended {
        Ended::Outcome(outcome) | Ended::Cancelled(outcome) => {
            let runs = running(&outcome.now);
            let again = match outcome.result {
                Ending::RolledBack => " again",
                Ending::Refused => " still",
                Ending::Live | Ending::Unchanged | Ending::Stuck => "",
            };
            let release = outcome.release.map(|release| format!(" (release {release})"));
            if runs.is_empty() {
                return None;
            }
            Some(format!(
                "{name} runs {runs}{again}{}",
                release.unwrap_or_default()
            ))
        }
        Ended::Untouched => Some(format!("{name} was not touched")),
        Ended::Failed(error) if error.is_certainly_not_accepted() => Some(format!("{name} was not touched")),
        Ended::Planned
        | Ended::Accepted
        | Ended::Cancelling
        | Ended::StillRunning(_)
        | Ended::Failed(_)
        | Ended::Interrupted { .. } => None,
    }
}

fn next(report: &Report, host: &HostReport) -> Option<String> {
    let arguments = &report.arguments;
    let watch = || format!("deployctl watch{arguments} {}", report.id);
    match &host.ended {
        Ended::Outcome(outcome) | Ended::Cancelled(outcome) => {
            let hint = [&outcome.trouble, &outcome.problem]
                .into_iter()
                .flatten()
                .find_map(|problem| problem.hint.as_deref());
            let planned = host.plan.as_ref().and_then(|plan| plan.to);
            let failed = outcome.undone.or(planned);
            match (outcome.result, hint, &outcome.sick_service, failed) {
                (_, Some(hint), _, _) => Some(clean(hint)),
                (Ending::RolledBack | Ending::Stuck, None, Some(service), Some(release)) => {
                    Some(format!("deployctl logs{arguments} --release {release} {service}"))
                }
                (Ending::Stuck, None, _, _) => Some(format!("deployctl status{arguments}")),
                (Ending::RolledBack | Ending::Refused | Ending::Live | Ending::Unchanged, None, _, _) => None,
            }
        }
        Ended::StillRunning(_) | Ended::Interrupted { .. } => Some(watch()),
        Ended::Failed(error) => error.hint(),
        Ended::Planned | Ended::Accepted | Ended::Cancelling | Ended::Untouched => None,
    }
}

/// `shop v1.4.2`.
fn subject(report: &Report) -> String {
    let project = report.project.as_ref().or_else(|| {
        report
            .hosts
            .iter()
            .find_map(|host| Some(&host.plan.as_ref()?.project))
    });
    let version = match report.hosts.iter().find_map(|host| host.plan.as_ref()) {
        Some(plan) => plan_called(report.version.as_ref(), plan),
        None => match &report.version {
            Some(version) => called(Some(version), std::iter::empty()),
            None => format!("deployment {}", report.id),
        },
    };
    match project {
        Some(project) => format!("{project} {version}"),
        None => version,
    }
}

fn why_next(why: &str, next: Option<String>, paint: Paint) -> Vec<String> {
    let mut lines = Vec::new();
    if !why.is_empty() {
        lines.push(word("why", &clean(why), paint));
    }
    lines.extend(next.map(|next| word("next", &next, paint)));
    lines
}

fn word(label: &str, text: &str, paint: Paint) -> String {
    format!("  {}  {text}", paint.dim(&format!("{label:<4}")))
}

/// The heartbeat of a log without a terminal: what is waited for, and for how long.
pub(crate) fn heartbeat(doing: &str, waited: Duration, paint: Paint) -> String {
    paint.dim(&format!("  … {doing}  {}", took(waited)))
}

#[cfg(test)]
mod tests {
    use deploy_proto::names::DeploymentId;
    use deploy_proto::problem::{Code, Problem};

    use super::super::samples::{live, plan, refused, rolled_back, stuck};
    use super::*;
    use crate::client::ClientError;
    use crate::client::follow::FollowError;
    use crate::target::host::Host;

    const PLAIN: Paint = Paint { on: false };

    fn report(ended: Vec<Ended>) -> Report {
        let urls = ["https://web-1.example.com", "https://web-2.example.com"];
        let urls: Vec<_> = urls
            .iter()
            .take(ended.len())
            .map(|url| url.parse().unwrap())
            .collect();
        Report {
            kind: Some(DeploymentKind::Push),
            project: Some("shop".parse().unwrap()),
            id: DeploymentId::from_bits(0xabc),
            version: Some("v1.4.2".parse().unwrap()),
            place: "production".into(),
            environment: Some("production".into()),
            arguments: " -e production".into(),
            hosts: Host::name_all(&urls)
                .into_iter()
                .zip(ended)
                .map(|(host, ended)| HostReport {
                    host,
                    plan: matches!(ended, Ended::Outcome(_)).then(plan),
                    ended,
                })
                .collect(),
            took: Duration::from_secs(54),
        }
    }

    fn outcome(outcome: Outcome) -> Ended {
        Ended::Outcome(Box::new(outcome))
    }

    fn shown(ended: Vec<Ended>) -> String {
        summary(&report(ended), PLAIN).join("\n")
    }

    #[test]
    fn success_says_what_runs_where_and_how_to_undo_it() {
        assert_eq!(
            shown(vec![outcome(live()), outcome(live())]),
            "✔ shop v1.4.2 runs on production: 2 hosts, release 42, 54s
  Undo: deployctl rollback -e production"
        );
        let unchanged = Outcome {
            result: Ending::Unchanged,
            ..live()
        };
        assert_eq!(
            shown(vec![outcome(unchanged)]),
            "✔ shop v1.4.2 runs on production already: nothing to do, 54s"
        );
    }

    #[test]
    fn failure_says_why_what_runs_on_each_host_and_what_next() {
        assert_eq!(
            shown(vec![outcome(rolled_back()), Ended::Untouched]),
            "✖ shop v1.4.2 failed on web-1 and was rolled back  (exit 3)
  why   web: GET http://127.0.0.1:8080/health gave 500, 12 times in 60s
  now   web-1 runs v1.4.1 again (release 41), web-2 was not touched
  next  deployctl logs -e production --release 42 web"
        );
        assert_eq!(
            shown(vec![outcome(live()), outcome(refused())]),
            "✖ shop v1.4.2 was refused on web-2: nothing was changed there  (exit 9)
  why   acme/web:v1.4.2 does not exist
  now   web-1 runs v1.4.2 (release 42), web-2 runs v1.4.1 still (release 41)
  next  push the image first"
        );
        assert_eq!(
            shown(vec![outcome(stuck())]),
            "✖ shop v1.4.2 failed on web-1 and could NOT be rolled back: a person is needed  (exit 6)
  why   web: GET http://127.0.0.1:8080/health gave 500, 12 times in 60s
        port 8080 is taken
  now   web-1 runs nothing
  next  deployctl logs -e production --release 42 web"
        );
    }

    #[test]
    fn who_stops_waiting_is_told_how_to_come_back() {
        let running = Ended::StillRunning(FollowError::StillRunning.into());
        assert_eq!(
            shown(vec![running, Ended::Untouched]),
            "… shop v1.4.2 on web-1: the deployment has not ended in the time to wait for it  (exit 8)
  now   web-2 was not touched
  next  deployctl watch -e production 0000000000000abc"
        );
        assert_eq!(
            shown(vec![Ended::Interrupted { accepted: true }]),
            "… Stopped watching: shop v1.4.2 goes on on web-1  (exit 130)
  next  deployctl watch -e production 0000000000000abc"
        );
    }

    #[test]
    fn a_refusal_at_the_door_shows_the_agents_words() {
        let refusal = ClientError::Answered {
            host: "web-1".into(),
            problem: Box::new(
                Problem::new(Code::ImageNotAllowed, "evil/miner is not allowed in shop")
                    .hint("allowed: acme/*"),
            ),
            ahead_seconds: None,
        };
        assert_eq!(
            shown(vec![Ended::Failed(refusal.into())]),
            "✖ web-1: evil/miner is not allowed in shop  (exit 4)
  now   web-1 was not touched
  next  allowed: acme/*"
        );
    }

    #[test]
    fn log_lines_are_escaped_and_marked_as_foreign() {
        let (heading, lines) = log_lines(&rolled_back()).unwrap();
        assert_eq!(heading, "    web's last lines before the rollback:");
        assert_eq!(
            lines,
            [
                "    | ERROR: relation \"orders_v2\" does not exist\\u{1b}[0m",
                "    | ::error::forged"
            ]
        );
        assert!(log_lines(&live()).is_none());
    }
}
