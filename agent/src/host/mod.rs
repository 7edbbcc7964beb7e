//! Acting: the only room that touches Docker and the host's files.

pub mod compose;
pub mod engine;
pub mod files;
pub mod health;
pub mod process;
