//! File descriptors: how many the agent may have, and how many of them callers may use up. A deployment always has its
//! own share, however many connections are open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the agent itself needs beside connections: the database, the Engine's connections and event streams of several
/// deployments at a time, the pipes of `docker compose`, hooks and probes.
pub const OWN_DESCRIPTORS: u64 = 128;
/// The most connections of the signed API. Others wait in the kernel's queue, where they cost the agent nothing.
pub const API_CONNECTIONS_MAX: u64 = 256;
/// The most connections of the monitor listener.
pub const MONITOR_CONNECTIONS_MAX: u64 = 64;
/// A connection that follows a log or asks for health has one to the Engine, too.
const PER_CONNECTION: u64 = 2;
/// With fewer connections than this on either listener the agent does not start.
const CONNECTIONS_AT_LEAST: u64 = 4;
/// One in so many of scarce connections is the monitor's.
const MONITOR_SHARE: u64 = 4;

/// How many connections each listener may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    /// Of the signed API.
    pub api: usize,
    /// Of the monitor listener.
    pub monitor: usize,
}

/// Too few file descriptors to do anything well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("have enough file descriptors: the limit is {limit}, and at least {at_least} are needed")]
pub struct TooFew {
    /// The limit.
    pub limit: u64,
    /// What would do.
    pub at_least: u64,
}

impl TooFew {
    /// What to do about it.
    pub fn hint(&self) -> String {
        format!(
            "set LimitNOFILE={} or more in the unit (`ulimit -n` in a shell)",
            wanted()
        )
    }
}

/// Raises the process's own limit as far as the agent needs and the hard limit allows, and shares it out.
///
/// # Errors
/// There are too few even for a handful of connections beside a deployment.
pub fn share_out() -> Result<Connections, TooFew> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    // None is no limit.
    let soft = current.unwrap_or(u64::MAX);
    let hard = maximum.unwrap_or(u64::MAX);
    let mut limit = soft;
    if soft < wanted() && hard > soft {
        let raised = hard.min(wanted());
        let new = Rlimit {
            current: Some(raised),
            maximum,
        };
        match setrlimit(Resource::Nofile, new) {
            Ok(()) => limit = raised,
            Err(error) => tracing::warn!(%error, "the limit on file descriptors cannot be raised"),
        }
    }
    let connections = shares(limit)?;
    if limit < wanted() {
        tracing::warn!(
            limit,
            wanted = wanted(),
            api = connections.api,
            monitor = connections.monitor,
            "few file descriptors: fewer connections are taken at a time; set LimitNOFILE in the unit"
        );
    }
    Ok(connections)
}

/// What all connections and the agent's own work need.
fn wanted() -> u64 {
    OWN_DESCRIPTORS + PER_CONNECTION * (API_CONNECTIONS_MAX + MONITOR_CONNECTIONS_MAX)
}

fn shares(limit: u64) -> Result<Connections, TooFew> {
    let left = limit.saturating_sub(OWN_DESCRIPTORS) / PER_CONNECTION;
    let monitor = (left / MONITOR_SHARE).min(MONITOR_CONNECTIONS_MAX);
    let api = (left - monitor).min(API_CONNECTIONS_MAX);
    if monitor < CONNECTIONS_AT_LEAST {
        return Err(TooFew {
            limit,
            at_least: OWN_DESCRIPTORS + PER_CONNECTION * MONITOR_SHARE * CONNECTIONS_AT_LEAST,
        });
    }
    let count = |connections| usize::try_from(connections).unwrap_or(usize::MAX);
    Ok(Connections {
        api: count(api),
        monitor: count(monitor),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_never_take_the_agents_own_share() {
        for limit in 0..2000 {
            match shares(limit) {
                Ok(Connections { api, monitor }) => {
                    let taken = u64::try_from(api + monitor).unwrap() * PER_CONNECTION;
                    assert!(taken + OWN_DESCRIPTORS <= limit, "{limit}: {api} and {monitor}");
                    assert!(api >= monitor && monitor >= 4, "{limit}: {api} and {monitor}");
                }
                Err(too_few) => assert!(limit < too_few.at_least, "{limit}"),
            }
        }
        let all = Connections {
            api: 256,
            monitor: 64,
        };
        assert_eq!(shares(wanted()), Ok(all));
        assert_eq!(shares(u64::MAX), Ok(all));
    }
}
