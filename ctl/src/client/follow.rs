//! Follows a deployment's events to the end, across lost connections and restarts of the agent.

use std::time::Duration;

use deploy_proto::event::{Event, Happened, Outcome};
use deploy_proto::names::DeploymentId;
use reqwest::Method;
use tokio::time::Instant;

use super::deliver::Backoff;
use super::sse::Parser;
use super::{Agent, ClientError, Request};

/// The agent sends a comment every 10 s: three missed ones mean that the connection is dead.
const SILENCE_MAX: Duration = Duration::from_secs(35);

/// What a follower sees.
#[derive(Debug)]
pub(crate) enum Seen<'s> {
    /// The next event.
    Event(&'s Event),
    /// The connection is lost; a new one is being tried.
    Lost(&'s ClientError),
    /// The connection is there again.
    Back,
}

/// Why the end of a deployment was not seen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    /// The time to wait is over; the deployment goes on.
    #[error("the deployment has not ended in the time to wait for it")]
    StillRunning,
    /// The agent does not let us follow.
    #[error(transparent)]
    Client(ClientError),
}

/// Follows until the deployment ends or `deadline` passes. Each journaled event is seen once.
pub(crate) async fn follow(
    agent: &Agent<'_>,
    id: &DeploymentId,
    deadline: Instant,
    see: &mut dyn FnMut(Seen<'_>),
) -> Result<Outcome, FollowError> {
    let following = Following {
        agent,
        path: format!("/v1/deployments/{id}/events"),
        last_seq: None,
        backoff: Backoff::new(),
        lost: false,
    };
    tokio::time::timeout_at(deadline, following.run(see))
        .await
        .map_err(|_| FollowError::StillRunning)?
        .map_err(FollowError::Client)
}

struct Following<'a> {
    agent: &'a Agent<'a>,
    path: String,
    last_seq: Option<u64>,
    backoff: Backoff,
    lost: bool,
}

impl Following<'_> {
    async fn run(mut self, see: &mut dyn FnMut(Seen<'_>)) -> Result<Outcome, ClientError> {
        loop {
            match self.one_connection(see).await {
                Ok(Some(outcome)) => return Ok(outcome),
                // The agent closed the stream early, as it does when it restarts.
                Ok(None) => {}
                Err(error) if error.is_passing() => {
                    if !self.lost {
                        see(Seen::Lost(&error));
                    }
                    self.lost = true;
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(self.backoff.next_wait()).await;
        }
    }

    /// Reads one stream; none when it ended before the deployment did.
    async fn one_connection(
        &mut self,
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Result<Option<Outcome>, ClientError> {
        let request = Request {
            method: Method::GET,
            path: &self.path,
            query: None,
            body: b"",
            last_event_id: self.last_seq,
        };
        let mut response = self.agent.open(&request).await?;
        if std::mem::take(&mut self.lost) {
            see(Seen::Back);
        }
        let mut parser = Parser::default();
        loop {
            let chunk = tokio::time::timeout(SILENCE_MAX, response.chunk())
                .await
                .map_err(|_| self.agent.silent(SILENCE_MAX))?
                .map_err(|source| ClientError::of_request(self.agent.host, self.agent.pins, source))?;
            let Some(chunk) = chunk else {
                return Ok(None);
            };
            let messages = parser.push(&chunk).map_err(|source| ClientError::Stream {
                host: self.agent.host.name.clone(),
                source,
            })?;
            for message in messages {
                if let Some(outcome) = self.event(&message.data, see)? {
                    return Ok(Some(outcome));
                }
            }
        }
    }

    fn event(&mut self, data: &str, see: &mut dyn FnMut(Seen<'_>)) -> Result<Option<Outcome>, ClientError> {
        let event: Event = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(_) if is_of_a_newer_agent(data) => return Ok(None),
            Err(source) => {
                return Err(ClientError::Unreadable {
                    host: self.agent.host.name.clone(),
                    source,
                });
            }
        };
        if event.seq.is_some() && event.seq <= self.last_seq {
            return Ok(None);
        }
        self.last_seq = event.seq.or(self.last_seq);
        self.backoff = Backoff::new();
        see(Seen::Event(&event));
        match event.what {
            Happened::Ended { outcome } => Ok(Some(outcome)),
            Happened::Accepted { .. }
            | Happened::Cancelling { .. }
            | Happened::Queued { .. }
            | Happened::Planned { .. }
            | Happened::Phase { .. }
            | Happened::PhaseDone { .. }
            | Happened::PhaseFailed { .. }
            | Happened::Note { .. }
            | Happened::HookSaid { .. }
            | Happened::HookDone { .. }
            | Happened::Pulling { .. }
            | Happened::Watching { .. } => Ok(None),
        }
    }
}

/// Whether this is an event of a type that this version does not know: one to pass over.
fn is_of_a_newer_agent(data: &str) -> bool {
    const KNOWN: [&str; 13] = [
        "accepted",
        "cancelling",
        "hook_said",
        "hook_done",
        "queued",
        "planned",
        "phase",
        "phase_done",
        "phase_failed",
        "note",
        "pulling",
        "watching",
        "ended",
    ];
    serde_json::from_str::<serde_json::Value>(data)
        .ok()
        .and_then(|event| event.get("type")?.as_str().map(|name| !KNOWN.contains(&name)))
        .unwrap_or(false)
}
