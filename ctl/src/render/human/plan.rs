//! A plan as a table.

use deploy_proto::image::Digest;
use deploy_proto::release::{HookView, PlanView, PlannedService};

use crate::render::text::{Paint, clean, columns};

/// How much of a plan is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Services and warnings, before a deployment.
    Short,
    /// Also how health is judged, which lines of which files change, and what was checked: a dry run is read for these.
    Full,
}

/// The plan's lines, indented by two.
pub(crate) fn plan(plan: &PlanView, detail: Detail, paint: Paint) -> Vec<String> {
    let mut header = vec![
        "SERVICE".to_owned(),
        "NOW".to_owned(),
        "NEW".to_owned(),
        String::new(),
    ];
    if detail == Detail::Full {
        header.push("JUDGED BY".to_owned());
    }
    let mut rows = vec![header];
    rows.extend(plan.services.iter().map(|service| row(service, detail)));
    let mut lines: Vec<_> = columns(&rows).iter().map(|line| format!("  {line}")).collect();
    if let Some(header) = lines.first_mut() {
        *header = paint.dim(header);
    }
    if let Some(line) = untouched(plan) {
        lines.push(paint.dim(&line));
    }
    lines.extend(plan.hooks.iter().map(hook));
    if detail == Detail::Full {
        lines.extend(plan.edits.iter().map(|edit| {
            let [file, before, after] = [&edit.file, &edit.before, &edit.after].map(|text| clean(text));
            format!("  {file}:{}  {before} -> {after}", edit.line)
        }));
    }
    if detail == Detail::Full && !plan.checks.is_empty() {
        lines.push(paint.dim("  checked"));
        let checks = plan.checks.iter();
        lines.extend(checks.map(|check| format!("  {} {}", paint.good("✔"), clean(check))));
    }
    let warnings = plan.warnings.iter();
    lines.extend(warnings.map(|warning| format!("  {} {}", paint.warn("!"), clean(warning))));
    lines
}

fn row(service: &PlannedService, detail: Detail) -> Vec<String> {
    let now = service.now.as_ref().map_or("-", |image| image.version());
    let (new, digest) = match (&service.changes, service.new.digest()) {
        (false, _) => ("(unchanged)", String::new()),
        (true, digest) => (service.new.version(), digest.map(short).unwrap_or_default()),
    };
    let mut row = vec![
        service.service.to_string(),
        now.to_owned(),
        new.to_owned(),
        digest,
    ];
    if detail == Detail::Full {
        row.push(clean(&service.judged_by.join(", ")));
    }
    row
}

/// The first eight digits are enough to compare by eye.
fn short(digest: &Digest) -> String {
    const SHOWN: usize = "sha256:".len() + 8;
    digest.as_str().chars().take(SHOWN).collect()
}

/// `hook migrate runs before the restart, in api; it cannot be undone`.
fn hook(hook: &HookView) -> String {
    let place = match &hook.service {
        Some(service) => format!(", in {service}"),
        None => String::new(),
    };
    let for_good = if hook.irreversible {
        "; it cannot be undone"
    } else {
        ""
    };
    let moment = hook.moment.in_words();
    format!("  hook {} runs {moment}{place}{for_good}", clean(&hook.name))
}

fn untouched(plan: &PlanView) -> Option<String> {
    let names: Vec<_> = plan.untouched.iter().map(ToString::to_string).collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("  {one} is not touched")),
        several => Some(format!("  {} are not touched", several.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn a_plan_is_a_table_with_what_is_not_touched() {
        let lines = plan(&samples::plan(), Detail::Short, Paint { on: false });
        assert_eq!(
            lines.join("\n"),
            "  SERVICE  NOW     NEW
  web      v1.4.1  v1.4.2       sha256:4b1c07ae
  api      v1.4.0  (unchanged)
  db, redis are not touched
  ! api has no healthcheck\\u{1b}[2J"
        );
    }

    #[test]
    fn every_hook_is_a_line_that_says_when_and_where_it_runs() {
        use deploy_proto::release::HookMoment;
        let hook = |name: &str, moment, service: Option<&str>, irreversible| HookView {
            name: name.to_owned(),
            moment,
            service: service.map(|name| name.parse().unwrap()),
            irreversible,
        };
        let with_hooks = PlanView {
            hooks: vec![
                hook("backup", HookMoment::BeforeEverything, None, false),
                hook("migrate", HookMoment::BeforeRestart, Some("web"), true),
            ],
            ..samples::plan()
        };
        let lines = plan(&with_hooks, Detail::Short, Paint { on: false });
        assert_eq!(
            lines.get(4..6).unwrap(),
            [
                "  hook backup runs before anything is changed",
                "  hook migrate runs before the restart, in web; it cannot be undone"
            ]
        );
    }

    #[test]
    fn a_dry_run_shows_how_health_is_judged_and_what_is_edited() {
        let lines = plan(&samples::plan(), Detail::Full, Paint { on: false });
        assert_eq!(
            lines.join("\n"),
            "  SERVICE  NOW     NEW                           JUDGED BY
  web      v1.4.1  v1.4.2       sha256:4b1c07ae  healthcheck
  api      v1.4.0  (unchanged)                   state and restarts only
  db, redis are not touched
  docker-compose.yml:12  v1.4.1 -> v1.4.2
  checked
  ✔ 1 image exists for linux/amd64
  ! api has no healthcheck\\u{1b}[2J"
        );
    }
}
