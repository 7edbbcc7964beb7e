//! `cancel`: has a deployment end refused or rolled back, and watches it do so.
//!
//! Every host is asked before one is watched: a rollout may have ended on the first and run on the second.

use std::time::Instant;

use deploy_proto::event::{Ending, Outcome};
use deploy_proto::exit_code::ExitCode;
use deploy_proto::names::DeploymentId;
use deploy_proto::problem::Code;
use deploy_proto::push::Accepted;
use serde::Serialize;
use tokio::time::Instant as Moment;

use super::Session;
use super::deployment::{report, tell};
use super::interrupt::interrupted;
use super::view::View;
use crate::cli::Cancel;
use crate::client::follow::{FollowError, follow};
use crate::client::{Agent, ClientError};
use crate::error::Error;
use crate::key;
use crate::report::{Ended, HostReport};
use crate::target::Target;

/// What a host said to the cancellation.
#[derive(Debug)]
enum Answer {
    /// It has the deployment, and cancels it.
    Took,
    /// It does not, or could not be asked.
    Failed(Error),
    /// The command was interrupted before it answered.
    Unanswered,
    /// The command was interrupted before it was asked.
    NotAsked,
}

/// What is left to do about a host.
#[derive(Debug)]
enum Part {
    /// Its deployment is watched to the end.
    Watch,
    /// Nothing: this is what is told of it.
    Told(Ended),
    /// It never had the deployment, others have: it is left out.
    LeftOut,
}

pub(super) async fn run(session: &Session, arguments: &Cancel) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    let key = key::load(session.globals.key_file.as_deref(), &session.caller)?;
    let begun = Instant::now();
    let agents = target
        .hosts
        .iter()
        .map(|host| Agent::new(host, &target.pins, &key, &session.surroundings))
        .collect::<Result<Vec<_>, _>>()?;
    let answers = ask(&agents, &arguments.id).await;
    let mut hosts = Vec::new();
    let mut is_interrupted = false;
    let deadline = Moment::now() + session.globals.timeout;
    for (agent, part) in agents.iter().zip(parts(answers, arguments.detach)?) {
        let (plan, ended) = match part {
            Part::LeftOut => continue,
            Part::Told(ended) => (None, ended),
            Part::Watch if is_interrupted => (None, Ended::Cancelling),
            Part::Watch => {
                let titled = target.hosts.len() > 1;
                let view = View::new(session, &agent.host.name, titled, arguments.jsonl, None);
                let ended = tokio::select! {
                    ended = watch(agent, &target, &arguments.id, deadline, &view) => ended,
                    never = view.beat() => match never {},
                    () = interrupted() => {
                        is_interrupted = true;
                        Ended::Interrupted { accepted: true }
                    }
                };
                (view.end(), ended)
            }
        };
        hosts.push(HostReport {
            host: agent.host.clone(),
            plan,
            ended,
        });
    }
    let report = report(&target, arguments.id.clone(), hosts, begun);
    Ok(tell(session, "cancel", &report))
}

/// Asks every host, also after one that failed.
async fn ask(agents: &[Agent<'_>], id: &DeploymentId) -> Vec<Answer> {
    let path = format!("/v1/deployments/{id}/cancel");
    let mut answers = Vec::new();
    for agent in agents {
        if matches!(answers.last(), Some(Answer::Unanswered | Answer::NotAsked)) {
            answers.push(Answer::NotAsked);
            continue;
        }
        let body = NoContent {};
        let asked = tokio::select! {
            asked = agent.post::<Accepted>(&path, &body) => asked.map_or_else(failed, |_| Answer::Took),
            () = interrupted() => Answer::Unanswered,
        };
        answers.push(asked);
    }
    answers
}

fn failed(error: ClientError) -> Answer {
    Answer::Failed(error.into())
}

/// What is left to do about each host. Fails when none has the deployment.
fn parts(answers: Vec<Answer>, detach: bool) -> Result<Vec<Part>, Error> {
    let is_unknown = |answer: &Answer| matches!(answer, Answer::Failed(Error::Client(error)) if error.is_answer(Code::UnknownDeployment));
    let nobody_has_it = answers.iter().all(is_unknown);
    let is_interrupted = answers.iter().any(|answer| matches!(answer, Answer::Unanswered));
    answers
        .into_iter()
        .map(|answer| match answer {
            Answer::Failed(error) if nobody_has_it => Err(error),
            answer if is_unknown(&answer) => Ok(Part::LeftOut),
            Answer::Took if detach || is_interrupted => Ok(Part::Told(Ended::Cancelling)),
            Answer::Took => Ok(Part::Watch),
            Answer::Failed(error) => Ok(Part::Told(Ended::Failed(error))),
            Answer::Unanswered => Ok(Part::Told(Ended::Interrupted { accepted: false })),
            Answer::NotAsked => Ok(Part::Told(Ended::Untouched)),
        })
        .collect()
}

async fn watch(
    agent: &Agent<'_>,
    target: &Target,
    id: &DeploymentId,
    deadline: Moment,
    view: &View<'_>,
) -> Ended {
    match follow(agent, id, deadline, &mut |seen| view.see(seen)).await {
        Ok(outcome) => ended(outcome, id, &target.arguments_of(agent.host)),
        Err(error @ FollowError::StillRunning) => Ended::StillRunning(error.into()),
        Err(error @ FollowError::Client(_)) => Ended::Failed(error.into()),
    }
}

/// What a cancelled deployment's end means to whoever cancelled it.
fn ended(outcome: Outcome, id: &DeploymentId, arguments: &str) -> Ended {
    match outcome.result {
        Ending::Refused | Ending::RolledBack if outcome.is_cancelled() => Ended::Cancelled(Box::new(outcome)),
        Ending::Live => Ended::Failed(Error::NotCancelled {
            id: id.clone(),
            how: "its release went live before the agent came to it",
            hint: Some(format!("go back from it: deployctl rollback{arguments}")),
        }),
        Ending::Unchanged => Ended::Failed(Error::NotCancelled {
            id: id.clone(),
            how: "it had ended with nothing to change",
            hint: None,
        }),
        Ending::Refused | Ending::RolledBack | Ending::Stuck => Ended::Outcome(Box::new(outcome)),
    }
}

/// A body that says nothing: `{}`.
#[derive(Serialize)]
struct NoContent {}

#[cfg(test)]
mod tests {
    use deploy_proto::problem::Problem;

    use super::super::super::render::human::samples::live;
    use super::*;

    fn answered(code: Code) -> Answer {
        failed(ClientError::Answered {
            host: "web".to_owned(),
            problem: Box::new(Problem::new(code, "no")),
            ahead_seconds: None,
        })
    }

    fn told(answers: Vec<Answer>, detach: bool) -> Vec<&'static str> {
        let parts = parts(answers, detach).unwrap();
        parts
            .iter()
            .map(|part| match part {
                Part::Watch => "watch",
                Part::LeftOut => "left out",
                Part::Told(Ended::Failed(error)) => error.code(),
                Part::Told(Ended::Cancelling) => "cancelling",
                Part::Told(Ended::Interrupted { accepted: false }) => "unanswered",
                Part::Told(Ended::Untouched) => "untouched",
                Part::Told(_) => "other",
            })
            .collect()
    }

    #[test]
    fn a_host_that_is_done_does_not_keep_the_next_from_being_cancelled_and_watched() {
        let ended_then_running = || vec![answered(Code::TooLate), Answer::Took];
        assert_eq!(told(ended_then_running(), false), ["too_late", "watch"]);
        assert_eq!(told(ended_then_running(), true), ["too_late", "cancelling"]);
        let running_then_unknown = vec![Answer::Took, answered(Code::UnknownDeployment)];
        assert_eq!(told(running_then_unknown, false), ["watch", "left out"]);
    }

    #[test]
    fn a_deployment_that_no_host_has_is_an_error() {
        let unknown = || answered(Code::UnknownDeployment);
        let error = parts(vec![unknown(), unknown()], false).unwrap_err();
        assert_eq!(error.code(), "unknown_deployment");
        assert_eq!(
            told(vec![unknown(), answered(Code::TooLate)], false),
            ["left out", "too_late"]
        );
    }

    #[test]
    fn an_interruption_tells_which_host_took_it_and_which_never_answered() {
        let answers = vec![Answer::Took, Answer::Unanswered, Answer::NotAsked];
        assert_eq!(told(answers, false), ["cancelling", "unanswered", "untouched"]);
    }

    #[test]
    fn a_release_that_is_live_is_told_with_the_way_back_on_that_host_alone() {
        let id = DeploymentId::from_bits(0xabc);
        let Ended::Failed(error) = ended(live(), &id, " -e production --host https://web-1.a.com") else {
            panic!("it was live");
        };
        assert_eq!(
            error.to_string(),
            "deployment 0000000000000abc was not cancelled: its release went live before the agent came to it"
        );
        assert_eq!(
            error.hint().unwrap(),
            "go back from it: deployctl rollback -e production --host https://web-1.a.com"
        );
        assert!(!error.is_certainly_not_accepted());
    }
}
