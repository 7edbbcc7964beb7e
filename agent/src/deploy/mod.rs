//! Deciding: the state machine, the plan and the verdict are pure; the runner is the one loop that drives a `Host`.

pub mod after_stuck;
pub mod bake;
mod base64_bytes;
pub mod choice;
pub mod deadlines;
pub mod difference;
pub mod drift;
mod ending;
pub mod facts;
#[cfg(test)]
pub(crate) mod fake_host;
pub mod feed;
mod hook_runs;
#[cfg(test)]
mod hook_tests;
pub mod hooks;
pub mod phase;
pub mod plan;
pub mod planning;
pub mod platform;
pub mod port;
pub mod ports;
pub mod preflight;
pub mod reconciling;
pub mod restored;
pub mod retention;
pub mod runner;
#[cfg(test)]
mod runner_tests;
pub mod sequence;
pub mod verdict;
