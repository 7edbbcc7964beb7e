//! The deploy agent: the map of its rooms.
//!
//! A push passes through them in this order: `api` (gate, then one handler per route) -> `policy` -> `queue` ->
//! `deploy` (pure: plan, phase, verdict; and the runner, the one loop) -> `host` (the only room that acts on Docker
//! and on the host's files). `history` is the journal and the releases; `retention` cleans up after deployments; `config`
//! is read before a port is bound; `app` puts them together, `serve` runs them; `fatal` ends them when the disk
//! fails; `watch` looks after what is live meanwhile.
//! `state_folder`, `descriptors` and `line_limit` hold what the process may use.

pub mod api;
pub mod app;
pub mod command;
pub mod config;
pub mod deploy;
pub mod descriptors;
mod fatal;
pub mod history;
pub mod host;
pub mod line_limit;
pub mod metrics;
pub mod policy;
pub mod queue;
pub mod retention;
pub mod serve;
pub mod settings;
pub mod state_folder;
pub mod systemd;
pub mod tls;
pub mod watch;
