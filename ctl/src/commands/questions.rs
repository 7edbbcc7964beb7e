//! `status`, `history`, `health` and `version`: one question to each host, one answer from each.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::problem::Code;
use deploy_proto::release::{History, ProjectHealth, ProjectStatus, Projects};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Session;
use crate::cli;
use crate::client::Agent;
use crate::error::Error;
use crate::key;
use crate::render::human::{ending, state};
use crate::render::json_v1::{Document, Failure, HostPart, Hosts};
use crate::target::Target;
use crate::target::host::Host;

/// One host's answer, or why there is none.
type Answer<T> = (Host, Result<T, Error>);

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a, T> {
    Answer(&'a T),
    Error { error: Failure },
}

pub(super) async fn status(session: &Session) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    let path = format!("/v1/projects/{}/status", target.project()?);
    let answers: Vec<Answer<ProjectStatus>> = ask(session, &target, &path, None).await?;
    let now = (session.surroundings.now)();
    let paint = session.output.data_paint;
    tell(session, "status", &answers, ExitCode::Done, |answer, host| {
        state::status(answer, &host.name, &target.arguments_of(host), now, paint)
    })
}

pub(super) async fn history(session: &Session, arguments: &cli::History) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    let path = format!("/v1/projects/{}/history", target.project()?);
    let query = format!("limit={}", arguments.limit);
    let answers: Vec<Answer<History>> = ask(session, &target, &path, Some(&query)).await?;
    let now = (session.surroundings.now)();
    let paint = session.output.data_paint;
    tell(session, "history", &answers, ExitCode::Done, |answer, host| {
        state::history(answer, &host.name, now, paint)
    })
}

pub(super) async fn health(session: &Session) -> Result<ExitCode, Error> {
    let target = Target::resolve(&session.globals, &session.caller)?;
    let path = format!("/v1/projects/{}/health", target.project()?);
    let answers: Vec<Answer<ProjectHealth>> = ask(session, &target, &path, None).await?;
    let paint = session.output.data_paint;
    let sick = answers
        .iter()
        .any(|(_, answer)| answer.as_ref().is_ok_and(|health| !health.healthy));
    let code = if sick {
        Code::Unhealthy.exit_code()
    } else {
        ExitCode::Done
    };
    tell(session, "health", &answers, code, |answer, host| {
        state::health(answer, &host.name, paint)
    })
}

pub(super) async fn version(session: &Session) -> Result<ExitCode, Error> {
    let own = format!("deployctl {}", env!("CARGO_PKG_VERSION"));
    let globals = &session.globals;
    let asks_agents = globals.environment.is_some() || !globals.hosts.is_empty();
    if !globals.json {
        session.output.data(&[own])?;
    }
    let answers: Vec<Answer<Projects>> = if asks_agents {
        let target = Target::resolve(globals, &session.caller)?;
        ask(session, &target, "/v1/projects", None).await?
    } else {
        Vec::new()
    };
    tell(session, "version", &answers, ExitCode::Done, |answer, host| {
        vec![format!("deploy-agent {} on {}", answer.agent, host.name)]
    })
}

/// Asks every host; one that fails does not keep the others from answering.
async fn ask<T: DeserializeOwned>(
    session: &Session,
    target: &Target,
    path: &str,
    query: Option<&str>,
) -> Result<Vec<Answer<T>>, Error> {
    let key = key::load(session.globals.key_file.as_deref(), &session.caller)?;
    let mut answers = Vec::new();
    for host in &target.hosts {
        let agent = Agent::new(host, &target.pins, &key, &session.surroundings)?;
        let answer = agent.get(path, query).await.map_err(Error::from);
        answers.push((host.clone(), answer));
    }
    Ok(answers)
}

/// Prints all answers; the exit code is that of the first host that failed, else `code`.
fn tell<T: Serialize>(
    session: &Session,
    command: &'static str,
    answers: &[Answer<T>],
    code: ExitCode,
    lines: impl Fn(&T, &Host) -> Vec<String>,
) -> Result<ExitCode, Error> {
    let failed = answers.iter().find_map(|(_, answer)| answer.as_ref().err());
    let code = failed.map_or(code, Error::exit_code);
    let output = &session.output;
    for (index, (host, answer)) in answers.iter().enumerate() {
        match answer {
            Ok(answer) if !session.globals.json => {
                if index > 0 && command != "version" {
                    output.data(&[String::new()])?;
                }
                output.data(&lines(answer, host))?;
            }
            Ok(_) => {}
            Err(error) => output.messages(&ending::error(error, output.paint)),
        }
    }
    if session.globals.json {
        let hosts = answers
            .iter()
            .map(|(host, answer)| HostPart {
                host: host.name.clone(),
                url: host.url.to_string(),
                part: match answer {
                    Ok(answer) => Part::Answer(answer),
                    Err(error) => Part::Error { error: error.into() },
                },
            })
            .collect();
        output.json(&Document::new(command, code, Hosts { hosts }))?;
    }
    Ok(code)
}
