//! The runner's part for hooks: one after the other, each noted in the journal when it is done, so that an agent that was
//! killed runs again only the one that it was killed in.

use std::time::Instant;

use deploy_proto::event::Happened;
use deploy_proto::names::DeploymentId;
use deploy_proto::problem::{Code, Problem};

use super::hooks::{self, About};
use super::phase::{Action, Seen};
use super::plan::{Moment, PlannedHook};
use super::port::{Host, Summary};
use super::runner::Runner;
use crate::config::Project;
use crate::history::{Deployment, HistoryError};

impl<H: Host> Runner<H> {
    /// Runs the plan's hooks of a moment until one fails.
    ///
    /// # Errors
    /// The journal cannot be read or written.
    pub(super) async fn run_hooks(
        &self,
        project: &Project,
        deployment: &Deployment,
        moment: Moment,
    ) -> Result<(Seen, Summary), HistoryError> {
        let Some(plan) = &deployment.plan else {
            let problem = Problem::new(Code::Internal, "the journal has no plan for this deployment");
            return Ok((Seen::Failed(problem.into()), Summary::new()));
        };
        let about = About {
            id: deployment.id(),
            kind: deployment.request.kind(),
            key: &deployment.key,
            version: deployment.request.version(),
        };
        let progress = self.progress(deployment.id());
        let before = self.hooks_done(deployment.id()).await?;
        let mut cannot_be_undone = false;
        let mut names = Vec::new();
        for hook in plan.hooks_at(moment) {
            names.push(hook.name.as_str());
            if before.contains(&hook.name) {
                cannot_be_undone |= hook.is_irreversible;
                continue;
            }
            if hook.is_irreversible {
                // An Engine that is away now is no reason to get stuck: nothing was begun yet.
                if let Err(failure) = self.host.end_hooks(project).await
                    && !cannot_be_undone
                {
                    return Ok((Seen::Undone(failure), Summary::new()));
                }
                // Before anything is done that cannot be undone: from here on a rollback must ask for it.
                cannot_be_undone = true;
                self.history
                    .mark_irreversible(project.name.clone(), plan.to)
                    .await?;
            }
            let began = Instant::now();
            let environment = hooks::environment(plan, hook, &about);
            match self
                .host
                .run_hook(project, plan, hook, &environment, &progress)
                .await
            {
                Ok(last_lines) => self.hook_done(deployment.id(), hook, began, last_lines).await?,
                Err(failure) if moment == Moment::BeforeRestart && !cannot_be_undone => {
                    return Ok((Seen::Undone(failure), Summary::new()));
                }
                Err(failure) => return Ok((Seen::Failed(failure), Summary::new())),
            }
        }
        Ok((Seen::Done, names.join(", ")))
    }

    /// Ends what may be left of the hooks of an action that did not go well: it was cancelled, its deadline passed, or the
    /// agent was killed in it too often.
    pub(super) async fn end_hooks_unless_done(
        &self,
        action: Action,
        project: &Project,
        deployment: &Deployment,
        seen: &Seen,
    ) {
        let has_hooks = deployment
            .plan
            .as_ref()
            .is_some_and(|plan| !plan.hooks.is_empty());
        let runs_hooks = matches!(
            action,
            Action::BackUp | Action::RunBeforeHooks | Action::RunAfterHooks
        );
        if !has_hooks || !runs_hooks || !matches!(seen, Seen::Failed(_) | Seen::Undone(_)) {
            return;
        }
        // The way back does the same once more, and waits for the Engine.
        if let Err(failure) = self.host.end_hooks(project).await {
            tracing::error!(
                problem = failure.problem.detail,
                "a hook may still be running: its container could not be removed"
            );
        }
    }

    async fn hook_done(
        &self,
        id: &DeploymentId,
        hook: &PlannedHook,
        began: Instant,
        last_lines: Vec<String>,
    ) -> Result<(), HistoryError> {
        let event = Happened::HookDone {
            hook: hook.name.clone(),
            service: hook.service.clone(),
            elapsed_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            last_lines,
        };
        self.tell(self.history.note(id.clone(), (self.now)(), event).await?);
        Ok(())
    }

    /// The hooks that ended well before the agent was restarted.
    async fn hooks_done(&self, id: &DeploymentId) -> Result<Vec<String>, HistoryError> {
        let events = self.history.events(id.clone(), 0).await?;
        let done = events.into_iter().filter_map(|event| match event.what {
            Happened::HookDone { hook, .. } => Some(hook),
            Happened::Accepted { .. }
            | Happened::Cancelling { .. }
            | Happened::Queued { .. }
            | Happened::Planned { .. }
            | Happened::Phase { .. }
            | Happened::PhaseDone { .. }
            | Happened::PhaseFailed { .. }
            | Happened::Note { .. }
            | Happened::HookSaid { .. }
            | Happened::Pulling { .. }
            | Happened::Watching { .. }
            | Happened::Ended { .. } => None,
        });
        Ok(done.collect())
    }
}
