//! What both sides share: names, image references, the shapes of requests, answers and events, and signatures.
//!
//! Nothing here reads a clock, a file or a socket, and nothing here depends on tokio, axum, reqwest, bollard or clap.

pub mod event;
pub mod exit_code;
pub mod image;
pub mod names;
pub mod problem;
pub mod push;
pub mod release;
pub mod signing;
