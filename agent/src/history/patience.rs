//! How long the database is waited for while another program holds it: a person with `sqlite3`, a copy that is made.

use std::thread;
use std::time::Duration;

use rusqlite::Connection;

use super::{HistoryError, sql};

/// How long a request waits, for its turn and then for a lock: a caller should hear that the database is locked rather
/// than nothing.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How long a deployment under way waits to write its journal. Nothing is done meanwhile (journal before act); ending
/// the process instead would only find the same lock at its next start. When this is over, that is what happens.
const DEPLOYMENT_WAIT: Duration = Duration::from_mins(10);
/// Between two tries to get a lock.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Who waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// A request, or a start of the agent.
    OfARequest,
    /// A deployment that is being carried out.
    OfADeployment,
}

impl Patience {
    /// How long it waits, at most, for its turn; and as long again for a lock.
    pub(super) fn limit(self) -> Duration {
        match self {
            Self::OfARequest => REQUEST_WAIT,
            Self::OfADeployment => DEPLOYMENT_WAIT,
        }
    }

    /// Makes the connection wait so long for locks.
    pub(super) fn set(self, connection: &mut Connection) -> Result<(), HistoryError> {
        let wait = match self {
            Self::OfARequest => wait_for_a_request,
            Self::OfADeployment => wait_for_a_deployment,
        };
        connection
            .busy_handler(Some(wait))
            .map_err(sql("set the database's patience"))
    }
}

/// SQLite calls it with the number of tries so far, on the thread that wants the lock; false gives up.
fn wait_for_a_request(tries: i32) -> bool {
    wait(tries, REQUEST_WAIT)
}

fn wait_for_a_deployment(tries: i32) -> bool {
    if waited(tries) == REQUEST_WAIT {
        tracing::warn!("the database is locked by another program: a deployment waits for it");
    }
    wait(tries, DEPLOYMENT_WAIT)
}

fn wait(tries: i32, limit: Duration) -> bool {
    let goes_on = waited(tries) < limit;
    if goes_on {
        thread::sleep(RETRY_PAUSE);
    }
    goes_on
}

fn waited(tries: i32) -> Duration {
    RETRY_PAUSE.saturating_mul(u32::try_from(tries).unwrap_or(0))
}
