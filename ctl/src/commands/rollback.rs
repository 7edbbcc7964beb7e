//! `rollback`: back to an earlier release, which is a deployment like any other.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::push::{Rollback, RollbackTarget};
use deploy_proto::release::DeploymentKind;

use super::Session;
use super::deployment::{self, Order};
use crate::cli;
use crate::error::Error;
use crate::target::Target;

pub(super) async fn run(session: &Session, arguments: &cli::Rollback) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    let id = match &arguments.following.id {
        Some(id) => id.clone(),
        None => session.surroundings.draw_id()?,
    };
    let to = arguments
        .to
        .clone()
        .unwrap_or(RollbackTarget::Back(arguments.releases));
    let order = Order {
        command: "rollback",
        kind: DeploymentKind::Rollback,
        id: id.clone(),
        version: None,
        path: "/rollbacks",
        plan_path: "/rollbacks/plan",
        discards: false,
        question: format!("Roll {} back on {}?", target.project()?, target.place()),
        body: Rollback {
            id,
            to,
            queue: arguments.queue,
            across_migration: arguments.across_migration,
            source: session.caller.source.clone(),
        },
    };
    deployment::run(session, &target, &order, &arguments.following, arguments.dry_run).await
}
