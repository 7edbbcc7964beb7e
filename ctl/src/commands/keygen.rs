//! `keygen`: makes a key pair, keeps the private half here, and prints what to write on the host.

use deploy_proto::exit_code::ExitCode;
use deploy_proto::signing::PrivateKey;
use jiff::ToSpan as _;
use serde::Serialize;

use super::Session;
use crate::cli::Keygen;
use crate::error::Error;
use crate::key::{self, KeyError};
use crate::render::json_v1::Document;
use crate::target::likely_project;

#[derive(Serialize)]
struct NewKey {
    public: String,
    toml: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<String>,
}

pub(super) fn run(session: &Session, arguments: &Keygen) -> Result<ExitCode, Error> {
    let key = PrivateKey::generate(session.surroundings.rng.as_ref()).map_err(KeyError::Randomness)?;
    let public = key.public().to_string();
    let block = block(session, arguments, &public);
    let key_file = if arguments.print {
        None
    } else {
        Some(write(session, &key)?)
    };
    let output = &session.output;
    if session.globals.json {
        let content = NewKey {
            public,
            toml: block.join("\n"),
            private: arguments.print.then(|| key.to_line()),
            key_file,
        };
        output.json(&Document::new("keygen", ExitCode::Done, content))?;
        return Ok(ExitCode::Done);
    }
    let place = "Add this on the host to /etc/deploy-agent/agent.toml, then: systemctl reload deploy-agent";
    match &key_file {
        Some(path) => {
            output.message(&format!("Private key: {path} (mode 0600)"));
            output.message("Public key:");
            output.data(&[public])?;
            output.message("");
            output.message(place);
            output.message("");
            output.data(&block)?;
        }
        None => {
            output.message("Public key:");
            output.message(&public);
            output.message("");
            output.message(place);
            output.message("");
            output.messages(&block);
            output.message("");
            output.message("Private key, shown this once; store it as the CI secret DEPLOYCTL_KEY:");
            output.data(&[key.to_line()])?;
        }
    }
    Ok(ExitCode::Done)
}

fn write(session: &Session, key: &PrivateKey) -> Result<String, Error> {
    let path = session
        .globals
        .key_file
        .clone()
        .or_else(|| session.caller.default_key_file())
        .ok_or(KeyError::NoPlace)?;
    key::write_new(&path, key)?;
    Ok(path.display().to_string())
}

/// The `[[key]]` of agent.toml, valid for a year.
fn block(session: &Session, arguments: &Keygen, public: &str) -> Vec<String> {
    let project = likely_project(&session.globals, &session.caller)
        .map_or_else(|| "PROJECT".to_owned(), |project| project.to_string());
    let today = (session.surroundings.now)()
        .to_zoned(jiff::tz::TimeZone::UTC)
        .date();
    let expires = today.checked_add(1.year()).unwrap_or(today);
    vec![
        "[[key]]".to_owned(),
        format!("name = \"{}\"", arguments.name),
        format!("public = \"{public}\""),
        format!("projects = [\"{project}\"]"),
        "allow = [\"push\", \"rollback\", \"status\", \"logs\"]".to_owned(),
        format!("expires = {expires}"),
    ]
}
