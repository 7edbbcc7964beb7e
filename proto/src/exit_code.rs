//! The exit codes of `deployctl`: a contract with pipelines, never renumbered.

/// How a `deployctl` command ended, for the script that called it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or nothing to do.
    Done = 0,
    /// An unexpected error.
    Unexpected = 1,
    /// Wrong usage, or a configuration mistake on the caller's side.
    Usage = 2,
    /// The deployment failed and was rolled back: the previous release serves.
    RolledBack = 3,
    /// Refused: key, signature or policy.
    Refused = 4,
    /// The agent cannot be reached.
    Unreachable = 5,
    /// Failed and **not** restored: a person is needed.
    Stuck = 6,
    /// Busy, superseded or stale.
    Busy = 7,
    /// Still running, or unknown: re-attach with `deployctl watch ID`.
    StillRunning = 8,
    /// Refused by a gate or a preflight check: nothing changed.
    Gate = 9,
    /// Interrupted here; the deployment goes on on the host.
    Interrupted = 130,
}

impl ExitCode {
    /// The number the process exits with.
    pub fn number(self) -> u8 {
        self as u8
    }
}
