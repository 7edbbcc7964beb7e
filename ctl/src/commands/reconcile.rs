//! `reconcile`: back to what the release that runs says, which is a deployment like any other.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::push::Reconcile;
use deploy_proto::release::DeploymentKind;

use super::Session;
use super::deployment::{self, Order};
use crate::cli;
use crate::error::Error;
use crate::target::Target;

pub(super) async fn run(session: &Session, arguments: &cli::Reconcile) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    let id = match &arguments.following.id {
        Some(id) => id.clone(),
        None => session.surroundings.draw_id()?,
    };
    let edits = if arguments.discard_edits {
        " and discard what was edited by hand"
    } else {
        ""
    };
    let (project, place) = (target.project()?, target.place());
    let order = Order {
        command: "reconcile",
        kind: DeploymentKind::Reconcile,
        id: id.clone(),
        version: None,
        path: "/reconciliations",
        plan_path: "/reconciliations/plan",
        discards: arguments.discard_edits,
        question: format!("Reconcile {project} on {place} with its release{edits}?"),
        body: Reconcile {
            id,
            queue: arguments.queue,
            discard_edits: arguments.discard_edits,
            source: session.caller.source.clone(),
        },
    };
    deployment::run(session, &target, &order, &arguments.following, arguments.dry_run).await
}
