//! Running a plan's hooks: commands of the host's configuration, never of a caller. There is never more than one of a
//! project at a time, also when the agent was killed in one.

use std::time::Duration;

use deploy_proto::event::Happened;
use deploy_proto::names::{ProjectName, ServiceName};
use deploy_proto::problem::{Code, Problem};

use super::DockerHost;
use super::compose::Once;
use super::process::{self, How, ProcessError, Program};
use crate::config::Project;
use crate::deploy::phase::Failure;
use crate::deploy::plan::{Moment, Plan, PlannedHook};
use crate::deploy::port::Progress;

/// The label of the containers that hooks run in.
const LABEL: &str = "deploy-agent.hook";
/// What the processes of hooks carry in their environment, with the project's name, so that a later run of the agent
/// knows them.
const MARK: &str = "DEPLOY_AGENT_HOOK_OF";

impl DockerHost {
    /// Runs a hook to its end, after whatever is left of an earlier one is gone; what it wrote last.
    pub(super) async fn run_one_hook(
        &self,
        project: &Project,
        plan: &Plan,
        hook: &PlannedHook,
        environment: &[(String, String)],
        progress: Progress<'_>,
    ) -> Result<Vec<String>, Failure> {
        self.end_all_hooks(project).await?;
        if hook.moment == Moment::BeforeRestart {
            self.nothing_is_unfinished_yet(&project.name);
        }
        let mut program = match &hook.service {
            Some(service) => {
                self.name_new_image(plan, service).await?;
                self.in_a_container(project, hook, service, environment).await?
            }
            None => self.on_the_host(project, hook, environment),
        };
        program
            .environment
            .push((MARK.into(), project.name.as_str().into()));
        program.deadline = Duration::from_millis(hook.deadline_ms);
        let said = |line: &str| {
            progress(Happened::HookSaid {
                hook: hook.name.clone(),
                service: hook.service.clone(),
                line: line.to_owned(),
            });
        };
        let ended = match process::run_aloud(&program, &said).await {
            Ok(ended) => ended,
            Err(error) => return Err(failed(hook, &not_run(&error), Vec::new())),
        };
        let why = match ended.how {
            How::Exited(status) if status.success() => return Ok(ended.last_lines),
            How::Exited(status) => match status.code() {
                Some(code) => format!("ended with exit code {code}"),
                None => format!("was ended by a signal ({status})"),
            },
            How::Deadline => format!("did not end within {:?} and was killed", program.deadline),
        };
        let failure = failed(hook, &why, ended.last_lines);
        // Compose that is killed leaves the container running. Not being able to remove it is told beside the failure,
        // and the way back tries again.
        if let Err(left) = self.end_all_hooks(project).await {
            tracing::warn!(
                problem = left.problem.detail,
                "the container of a hook was not removed"
            );
        }
        Err(failure)
    }

    /// Ends the processes and removes the containers of the project's hooks.
    pub(super) async fn end_all_hooks(&self, project: &Project) -> Result<(), Failure> {
        // The processes first: one of them could be a Compose that is about to make a container.
        process::end_marked(MARK, project.name.as_str())
            .await
            .map_err(|error| {
                Problem::new(Code::HookFailed, format!("a hook that was left running: {error}"))
            })?;
        let removed = self
            .engine
            .remove_labelled(&project.name, LABEL)
            .await
            .map_err(Problem::from)?;
        for container in removed {
            tracing::warn!(container, "the container of a hook was removed");
        }
        Ok(())
    }

    /// Makes the name that stands in the Compose file mean the new image, as is done before `docker compose up`. The way
    /// back gives it to the old one again.
    async fn name_new_image(&self, plan: &Plan, service: &ServiceName) -> Result<(), Problem> {
        let Some(planned) = plan.services.iter().find(|plan| &plan.service == service) else {
            let detail = format!("the plan has a hook for {service}, which does not change");
            return Err(Problem::new(Code::Internal, detail));
        };
        let image_id = self.planned_image_id(planned).await?;
        self.name_locally(&planned.written, &image_id).await?;
        let named = self.engine.image(&planned.written.to_string()).await?;
        if named.is_none_or(|named| named.id != image_id) {
            let detail = format!(
                "{} is not the image that was pulled for {service}",
                planned.written
            );
            return Err(Problem::new(Code::ImageUnavailable, detail)
                .hint("did somebody tag another image just now? Push again"));
        }
        Ok(())
    }

    async fn in_a_container(
        &self,
        project: &Project,
        hook: &PlannedHook,
        service: &ServiceName,
        environment: &[(String, String)],
    ) -> Result<Program, Problem> {
        let once = Once {
            container: &container_name(&project.name, hook),
            label: &format!("{LABEL}={}", hook.name),
            environment,
            command: &hook.command,
        };
        Ok(self.compose(project).await?.run_once(service, &once))
    }

    fn on_the_host(
        &self,
        project: &Project,
        hook: &PlannedHook,
        environment: &[(String, String)],
    ) -> Program {
        let (binary, arguments) = hook.command.split_first().map_or_else(
            || (String::new(), Vec::new()),
            |(binary, arguments)| (binary.clone(), arguments.to_vec()),
        );
        let own = [
            ("PATH".into(), self.surroundings.path.clone()),
            ("HOME".into(), self.surroundings.home.clone().into()),
        ];
        let told = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        Program {
            binary: binary.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: own.into_iter().chain(told).collect(),
            dir: project.dir.clone(),
            deadline: Duration::ZERO,
            input: Vec::new(),
        }
    }
}

/// Without the deployment in it: two deployments of a project never run the same hook side by side.
fn container_name(project: &ProjectName, hook: &PlannedHook) -> String {
    format!("{project}-hook-{}", hook.name)
}

fn not_run(error: &ProcessError) -> String {
    match error {
        ProcessError::Start { source, .. } => format!("could not be started: {source}"),
        ProcessError::Follow { source, .. } => format!("could not be followed, and was killed: {source}"),
        ProcessError::Deadline { .. } | ProcessError::Failed { .. } => error.to_string(),
    }
}

/// What the hook wrote goes into the lines, which not every key may read, and never into the sentence.
fn failed(hook: &PlannedHook, why: &str, log_lines: Vec<String>) -> Failure {
    let place = hook
        .service
        .as_ref()
        .map_or_else(|| "on the host".to_owned(), |service| format!("in {service}"));
    let (moment, hint) = match hook.moment {
        Moment::BeforeChange => (
            "before anything is changed",
            "nothing was changed: see its last lines, put right what they tell, and push again",
        ),
        Moment::BeforeRestart => (
            "before the restart",
            "the old containers were not touched: see its last lines; `deployctl logs` has none of them",
        ),
        Moment::AfterLive => (
            "when all services were well",
            "see its last lines: it judges the release, and the release was not good enough for it",
        ),
    };
    let detail = format!("hook {} ({moment}, {place}) {why}", hook.name);
    Failure {
        problem: Problem::new(Code::HookFailed, detail).hint(hint),
        service: hook.service.clone(),
        log_lines,
    }
}
