//! Gets a push or a rollback accepted, once, over a network that loses answers.

use std::time::Duration;

use deploy_proto::push::Accepted;
use serde::Serialize;
use tokio::time::Instant;

use super::{Agent, ClientError};

/// How long to try when nothing has ever been sent: an agent's restart takes a second, a wrong address stays wrong.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Why a deployment was not seen to be accepted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliverError {
    /// The agent refused it, or never got it.
    #[error(transparent)]
    NotAccepted(ClientError),
    /// It was sent, and no answer came: the agent may have it.
    #[error("it is not known whether the deployment was accepted")]
    Unknown(#[source] ClientError),
}

/// Waits between attempts, doubling.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(FIRST_WAIT)
    }

    pub(super) fn next_wait(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(LONGEST_WAIT);
        wait
    }
}

/// Posts `body`, again and again while the connection is what fails, until `deadline`. The body names the deployment,
/// so that however often it arrives it deploys once; each attempt is signed anew. `lost` is told before the first retry.
pub(crate) async fn deliver(
    agent: &Agent<'_>,
    path: &str,
    body: &impl Serialize,
    deadline: Instant,
    lost: &mut dyn FnMut(&ClientError),
) -> Result<Accepted, DeliverError> {
    let patience_ends = (Instant::now() + CONNECT_PATIENCE).min(deadline);
    let mut backoff = Backoff::new();
    let mut may_have_it = false;
    let mut is_retry = false;
    loop {
        let error = match tokio::time::timeout_at(deadline, agent.post(path, body)).await {
            Ok(Ok(accepted)) => return Ok(accepted),
            Ok(Err(error)) => error,
            Err(_) => agent.silent(super::ANSWER_DEADLINE),
        };
        may_have_it |= !error.never_sent() && error.is_passing();
        let wait = backoff.next_wait();
        let until = if may_have_it { deadline } else { patience_ends };
        if !error.is_passing() || Instant::now() + wait >= until {
            let settled = matches!(error, ClientError::Answered { .. }) || !may_have_it;
            return Err(if settled {
                DeliverError::NotAccepted(error)
            } else {
                DeliverError::Unknown(error)
            });
        }
        if !std::mem::replace(&mut is_retry, true) {
            lost(&error);
        }
        tokio::time::sleep(wait).await;
    }
}
