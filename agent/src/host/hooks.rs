//! Running a plan's hooks, one after the other: commands of the host's configuration, never of a caller.

use std::time::Duration;

use deploy_proto::event::{Happened, LOG_LINES_MAX};
use deploy_proto::problem::{Code, Problem};

use super::DockerHost;
use super::process::{self, ProcessError, Program};
use crate::config::Project;
use crate::deploy::phase::Failure;
use crate::deploy::plan::{Moment, Plan, PlannedHook};
use crate::deploy::port::{Progress, Summary};

impl DockerHost {
    /// Runs the plan's hooks of this moment until one fails.
    pub(super) async fn run_all_hooks(
        &self,
        project: &Project,
        plan: &Plan,
        moment: Moment,
        progress: Progress<'_>,
    ) -> Result<Summary, Failure> {
        let mut done = Vec::new();
        for hook in plan.hooks_at(moment) {
            self.run_hook(project, hook, progress).await?;
            done.push(hook.name.as_str());
        }
        Ok(done.join(", "))
    }

    async fn run_hook(
        &self,
        project: &Project,
        hook: &PlannedHook,
        progress: Progress<'_>,
    ) -> Result<(), Failure> {
        let program = match &hook.service {
            Some(service) => self.compose(project).await?.run_once(service, &hook.command),
            None => self.on_the_host(project, hook),
        };
        let program = Program {
            deadline: Duration::from_millis(hook.deadline_ms),
            ..program
        };
        let ended = process::run(&program).await;
        let lines = match &ended {
            Ok(output) => output.stdout.last_lines(),
            Err(ProcessError::Failed { last_lines, .. } | ProcessError::Deadline { last_lines, .. }) => {
                last_lines.clone()
            }
            Err(ProcessError::Start { .. } | ProcessError::Follow { .. }) => Vec::new(),
        };
        for line in lines.iter().take(LOG_LINES_MAX) {
            progress(Happened::HookSaid {
                hook: hook.name.clone(),
                line: line.clone(),
            });
        }
        match ended {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure {
                problem: Problem::new(Code::HookFailed, format!("hook {} failed: {error}", hook.name)),
                service: hook.service.clone(),
                log_lines: lines,
            }),
        }
    }

    fn on_the_host(&self, project: &Project, hook: &PlannedHook) -> Program {
        let (binary, arguments) = hook.command.split_first().map_or_else(
            || (String::new(), Vec::new()),
            |(binary, arguments)| (binary.clone(), arguments.to_vec()),
        );
        Program {
            binary: binary.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: vec![
                ("PATH".into(), self.surroundings.path.clone()),
                ("HOME".into(), self.surroundings.home.clone().into()),
            ],
            dir: project.dir.clone(),
            deadline: Duration::ZERO,
            input: Vec::new(),
        }
    }
}
