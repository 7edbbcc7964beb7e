//! The Engine and health rooms against a real Docker Engine and a real registry. Without an Engine these tests fail.
//!
//! Every test makes its own containers, images and registry under names of its own, and takes them away again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test fails by panicking, drives the docker command line, and prints what it measured"
)]

mod probes;
mod pull;
mod rooms;
mod support;
mod watch;
mod watching;
