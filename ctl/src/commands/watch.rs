//! `watch`: follows a deployment that was started elsewhere, or before the connection was lost.

use std::time::Instant;

use deploy_proto::exit_code::ExitCode;
use deploy_proto::names::DeploymentId;
use deploy_proto::problem::Code;
use tokio::time::Instant as Moment;

use super::Session;
use super::deployment::{report, tell};
use super::interrupt::interrupted;
use super::view::View;
use crate::cli::Watch;
use crate::client::Agent;
use crate::client::follow::{FollowError, follow};
use crate::error::Error;
use crate::key;
use crate::report::{Ended, HostReport};
use crate::target::Target;

/// Watches a deployment on every host of the target that has it.
pub(super) async fn run(session: &Session, arguments: &Watch) -> Result<ExitCode, Error> {
    let id = &arguments.id;
    let target = Target::resolve(&session.globals, &session.caller)?;
    let key = key::load(session.globals.key_file.as_deref(), &session.caller)?;
    let begun = Instant::now();
    let mut hosts: Vec<HostReport> = Vec::new();
    let mut unknown = None;
    for host in &target.hosts {
        let agent = Agent::new(host, &target.pins, &key, &session.surroundings)?;
        let titled = target.hosts.len() > 1;
        let view = View::new(session, &host.name, titled, arguments.jsonl, None);
        let ended = tokio::select! {
            ended = on_one(session, &agent, id, &view) => ended,
            never = view.beat() => match never {},
            () = interrupted() => Ended::Interrupted { accepted: true },
        };
        let plan = view.end();
        // A rollout that stopped before this host, or has not come to it: not this host's deployment.
        if let Ended::Failed(Error::Client(error) | Error::Follow(FollowError::Client(error))) = &ended
            && error.is_answer(Code::UnknownDeployment)
        {
            unknown.get_or_insert(ended);
            continue;
        }
        hosts.push(HostReport {
            host: host.clone(),
            plan,
            ended,
        });
        if !hosts.iter().all(HostReport::is_good) {
            break;
        }
    }
    match unknown {
        Some(Ended::Failed(error)) if hosts.is_empty() => Err(error),
        Some(_) | None => {
            let report = report(&target, id.clone(), hosts, begun);
            Ok(tell(session, "watch", &report))
        }
    }
}

async fn on_one(session: &Session, agent: &Agent<'_>, id: &DeploymentId, view: &View<'_>) -> Ended {
    let deadline = Moment::now() + session.globals.timeout;
    match follow(agent, id, deadline, &mut |seen| view.see(seen)).await {
        Ok(outcome) => Ended::Outcome(Box::new(outcome)),
        Err(error @ FollowError::StillRunning) => Ended::StillRunning(error.into()),
        Err(error @ FollowError::Client(_)) => Ended::Failed(error.into()),
    }
}
