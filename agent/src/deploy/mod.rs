//! Deciding: the state machine, the plan and the verdict are pure; the runner is the one loop that drives a `Host`.

pub mod phase;
pub mod verdict;
