//! One deployment on one host, as its events come: the lines to print and the line that moves.

use std::collections::BTreeMap;
use std::time::Duration;

use deploy_proto::event::{Event, Happened, PhaseName};
use deploy_proto::image::ImageRef;
use deploy_proto::names::{KeyName, ServiceName};
use deploy_proto::problem::Problem;
use deploy_proto::release::PlanView;

use super::plan::{Detail, plan as plan_lines};
use super::versions;
use crate::render::text::{Paint, clean, count, size, took};

/// Quick phases that go well are not worth a line; above this they are.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// Where the times stand: texts are filled up to this width.
const TEXT_WIDTH: usize = 42;

/// What is known of the deployment so far.
#[derive(Debug)]
pub(crate) struct Progress {
    paint: Paint,
    accepted_in: Option<Duration>,
    key: Option<KeyName>,
    plan: Option<PlanView>,
    plan_is_shown: bool,
    phase: Option<PhaseName>,
    pulls: BTreeMap<ImageRef, (u64, u64)>,
    seen: BTreeMap<ServiceName, String>,
    /// The last line of the hook that runs.
    said: String,
    waiting: Option<String>,
    rollback: Duration,
}

impl Progress {
    /// Begins; `shown` is the plan that the person has seen already, for instance before saying yes.
    pub(crate) fn new(paint: Paint, shown: Option<PlanView>) -> Self {
        Self {
            paint,
            accepted_in: None,
            key: None,
            plan_is_shown: shown.is_some(),
            plan: shown,
            phase: None,
            pulls: BTreeMap::new(),
            seen: BTreeMap::new(),
            said: String::new(),
            waiting: None,
            rollback: Duration::ZERO,
        }
    }

    /// Tells how long the agent took to accept.
    pub(crate) fn accepted_in(&mut self, time: Duration) {
        self.accepted_in = Some(time);
    }

    /// The plan, as far as it is known.
    pub(crate) fn into_plan(self) -> Option<PlanView> {
        self.plan
    }

    /// Takes an event and gives the lines to print.
    pub(crate) fn event(&mut self, event: &Event) -> Vec<String> {
        match &event.what {
            Happened::Accepted { key, .. } => {
                self.key = Some(key.clone());
                Vec::new()
            }
            Happened::Cancelling { key } => {
                vec![format!("  {} {key} cancels it", self.paint.warn("!"))]
            }
            Happened::HookSaid { hook, line, .. } => {
                self.said = format!("{}: {}", clean(hook), clean(line));
                Vec::new()
            }
            // The line of the phase names the hooks; what they wrote is in the events.
            Happened::HookDone { .. } => {
                self.said.clear();
                Vec::new()
            }
            Happened::Queued { behind } => {
                self.waiting = Some(format!("waits for deployment {behind}"));
                vec![format!(
                    "  {} waits for deployment {behind} to end",
                    self.paint.warn("…")
                )]
            }
            Happened::Planned { plan } => self.planned(plan),
            Happened::Phase { phase } => self.begun(*phase),
            Happened::PhaseDone {
                phase,
                summary,
                elapsed_ms,
            } => {
                let mut lines = self.acceptance();
                lines.extend(self.done(*phase, summary, Duration::from_millis(*elapsed_ms)));
                lines
            }
            Happened::PhaseFailed {
                phase,
                problem,
                elapsed_ms,
            } => {
                let mut lines = self.acceptance();
                lines.push(self.failed(*phase, problem, Duration::from_millis(*elapsed_ms)));
                lines
            }
            Happened::Note { text } => vec![format!("  {} {}", self.paint.warn("!"), clean(text))],
            Happened::Pulling {
                image,
                done_bytes,
                total_bytes,
            } => {
                self.pulls.insert(image.clone(), (*done_bytes, *total_bytes));
                Vec::new()
            }
            Happened::Watching { service, seen } => {
                self.seen.insert(service.clone(), clean(seen));
                Vec::new()
            }
            Happened::Ended { .. } => {
                self.phase = None;
                self.waiting = None;
                self.acceptance()
            }
        }
    }

    /// What is going on now, in a few words: the line that moves, and the heartbeat.
    pub(crate) fn doing(&self) -> String {
        let Some(phase) = self.phase else {
            return self.waiting.clone().unwrap_or_else(|| "starting".to_owned());
        };
        let detail = match phase {
            PhaseName::Pulling if !self.pulls.is_empty() => {
                let sum = |part: fn(&(u64, u64)) -> u64| size(self.pulls.values().map(part).sum());
                format!(
                    "{}, {} of {}",
                    count(self.pulls.len(), "image"),
                    sum(|(done, _)| *done),
                    sum(|(_, total)| *total)
                )
            }
            PhaseName::Watching | PhaseName::WatchingOld => {
                let each: Vec<_> = self
                    .seen
                    .iter()
                    .map(|(service, seen)| format!("{service}: {seen}"))
                    .collect();
                each.join(", ")
            }
            PhaseName::BeforeHook | PhaseName::AfterHook | PhaseName::BackingUp => self.said.clone(),
            PhaseName::Accepted
            | PhaseName::Pulling
            | PhaseName::Gating
            | PhaseName::Editing
            | PhaseName::Restarting
            | PhaseName::Live
            | PhaseName::Restoring
            | PhaseName::RestartingOld
            | PhaseName::RolledBack
            | PhaseName::Refused
            | PhaseName::Stuck => String::new(),
        };
        format!("{:<8}  {detail}", label(phase)).trim_end().to_owned()
    }

    fn planned(&mut self, plan: &PlanView) -> Vec<String> {
        let same = self.plan.as_ref().is_some_and(|shown| is_the_same(shown, plan));
        let mut lines = Vec::new();
        if !(self.plan_is_shown && same) {
            lines = plan_lines(plan, Detail::Short, self.paint);
        }
        self.plan = Some(plan.clone());
        self.plan_is_shown = true;
        lines.extend(self.acceptance());
        lines
    }

    /// The line of the acceptance, once: with the plan, or with the first thing after it.
    fn acceptance(&mut self) -> Vec<String> {
        let Some(key) = self.key.take() else {
            return Vec::new();
        };
        let release = self.plan.as_ref().and_then(|plan| plan.to);
        let text = match release {
            Some(release) => format!("release {release}, signed by {key}"),
            None => format!("signed by {key}"),
        };
        vec![self.line(&self.paint.good("✔"), "accepted", &text, self.accepted_in)]
    }

    fn begun(&mut self, phase: PhaseName) -> Vec<String> {
        self.phase = Some(phase);
        self.waiting = None;
        self.seen.clear();
        self.said.clear();
        Vec::new()
    }

    fn done(&mut self, phase: PhaseName, summary: &str, time: Duration) -> Option<String> {
        let summary = clean(summary);
        match phase {
            PhaseName::Pulling
            | PhaseName::BeforeHook
            | PhaseName::Restarting
            | PhaseName::Watching
            | PhaseName::AfterHook => {
                Some(self.line(&self.paint.good("✔"), label(phase), &summary, Some(time)))
            }
            PhaseName::Gating | PhaseName::BackingUp | PhaseName::Editing => (time >= WORTH_A_LINE)
                .then(|| self.line(&self.paint.good("✔"), label(phase), &summary, Some(time))),
            PhaseName::Restoring | PhaseName::RestartingOld => {
                self.rollback += time;
                None
            }
            PhaseName::WatchingOld => {
                self.rollback += time;
                let text = self.rolled_back().unwrap_or(summary);
                Some(self.line(&self.paint.warn("↩"), label(phase), &text, Some(self.rollback)))
            }
            PhaseName::Accepted
            | PhaseName::Live
            | PhaseName::RolledBack
            | PhaseName::Refused
            | PhaseName::Stuck => None,
        }
    }

    fn failed(&self, phase: PhaseName, problem: &Problem, time: Duration) -> String {
        self.line(
            &self.paint.bad("✖"),
            label(phase),
            &clean(&problem.detail),
            Some(time),
        )
    }

    /// `web, api to v1.4.1`.
    fn rolled_back(&self) -> Option<String> {
        let plan = self.plan.as_ref()?;
        let changed: Vec<_> = plan.services.iter().filter(|service| service.changes).collect();
        let names: Vec<_> = changed
            .iter()
            .map(|service| service.service.to_string())
            .collect();
        let old = versions(
            changed
                .iter()
                .map(|service| (&service.service, service.now.as_ref())),
        );
        Some(format!("{} to {old}", names.join(", ")))
    }

    fn line(&self, mark: &str, label: &str, text: &str, time: Option<Duration>) -> String {
        let line = format!("  {mark} {label:<8}  {text:<TEXT_WIDTH$}");
        match time {
            Some(time) => format!("{line}  {}", self.paint.dim(&format!("{:>6}", took(time)))),
            None => line.trim_end().to_owned(),
        }
    }
}

/// What a phase is called in front of a line.
fn label(phase: PhaseName) -> &'static str {
    match phase {
        PhaseName::Accepted => "accepted",
        PhaseName::Pulling => "pull",
        PhaseName::Gating => "check",
        PhaseName::BackingUp => "backup",
        PhaseName::Editing => "edit",
        PhaseName::BeforeHook | PhaseName::AfterHook => "hook",
        PhaseName::Restarting => "up",
        PhaseName::Watching => "health",
        PhaseName::Restoring | PhaseName::RestartingOld | PhaseName::WatchingOld => "rollback",
        PhaseName::Live => "live",
        PhaseName::RolledBack => "back",
        PhaseName::Refused => "refused",
        PhaseName::Stuck => "stuck",
    }
}

/// Whether two plans look the same in the table; the release's number is not in it.
pub(crate) fn is_the_same(a: &PlanView, b: &PlanView) -> bool {
    (&a.services, &a.untouched, &a.hooks, &a.warnings) == (&b.services, &b.untouched, &b.hooks, &b.warnings)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{begun, done, event, plan, sick};
    use super::*;

    const PLAIN: Paint = Paint { on: false };

    fn lines(progress: &mut Progress, events: &[Event]) -> String {
        let lines: Vec<_> = events.iter().flat_map(|event| progress.event(event)).collect();
        lines.join("\n")
    }

    #[test]
    fn a_good_push_is_a_table_and_a_line_for_each_phase_that_matters() {
        let mut progress = Progress::new(PLAIN, None);
        progress.accepted_in(Duration::from_millis(210));
        let mut events = begun().to_vec();
        events.extend([
            done(PhaseName::Accepted, "planned", 3),
            done(PhaseName::Pulling, "2 images, 41 MB", 8_700),
            done(PhaseName::Gating, "", 30),
            done(PhaseName::Editing, "1 line", 12),
            done(PhaseName::Restarting, "web, api", 4_000),
            done(PhaseName::Watching, "web 200 in 42 ms; steady for 7s", 9_800),
            done(PhaseName::Live, "", 0),
        ]);
        assert_eq!(
            lines(&mut progress, &events),
            "  SERVICE  NOW     NEW
  web      v1.4.1  v1.4.2       sha256:4b1c07ae
  api      v1.4.0  (unchanged)
  db, redis are not touched
  ! api has no healthcheck\\u{1b}[2J
  ✔ accepted  release 42, signed by github-shop             0.2s
  ✔ pull      2 images, 41 MB                               8.7s
  ✔ up        web, api                                      4.0s
  ✔ health    web 200 in 42 ms; steady for 7s               9.8s"
        );
    }

    #[test]
    fn a_rollback_is_one_line_with_the_time_of_all_its_phases() {
        let mut progress = Progress::new(PLAIN, Some(plan()));
        let mut events = begun().to_vec();
        events.extend([
            event(Happened::PhaseFailed {
                phase: PhaseName::Watching,
                problem: sick(),
                elapsed_ms: 60_000,
            }),
            done(PhaseName::Restoring, "", 100),
            done(PhaseName::RestartingOld, "", 2_000),
            done(PhaseName::WatchingOld, "", 3_000),
        ]);
        assert_eq!(
            lines(&mut progress, &events),
            "  ✔ accepted  release 42, signed by github-shop
  ✖ health    web: GET http://127.0.0.1:8080/health gave 500, 12 times in 60s   1m 0s
  ↩ rollback  web to v1.4.1                                 5.1s"
        );
    }

    #[test]
    fn a_plan_that_was_seen_is_shown_again_only_when_it_changed() {
        let mut seen = plan();
        let mut progress = Progress::new(PLAIN, Some(seen.clone()));
        assert!(!lines(&mut progress, &begun()).contains("SERVICE"));
        seen.untouched.clear();
        let mut progress = Progress::new(PLAIN, Some(seen));
        assert!(lines(&mut progress, &begun()).contains("SERVICE"));
    }

    #[test]
    fn the_moving_line_says_what_is_waited_for() {
        let mut progress = Progress::new(PLAIN, None);
        assert_eq!(progress.doing(), "starting");
        let phase = |phase| event(Happened::Phase { phase });
        let pulling = |image: &str, done_bytes| {
            event(Happened::Pulling {
                image: image.parse().unwrap(),
                done_bytes,
                total_bytes: 20_000_000,
            })
        };
        let events = [
            phase(PhaseName::Pulling),
            pulling("a:1", 5_000_000),
            pulling("b:1", 1),
            pulling("b:1", 7_000_000),
        ];
        assert_eq!(lines(&mut progress, &events), "");
        assert_eq!(progress.doing(), "pull      2 images, 12 MB of 40 MB");
        let watching = event(Happened::Watching {
            service: "web".parse().unwrap(),
            seen: "GET / gave 503\r".into(),
        });
        assert_eq!(lines(&mut progress, &[phase(PhaseName::Watching), watching]), "");
        assert_eq!(progress.doing(), "health    web: GET / gave 503\\r");
    }
}
