//! Acting: the only room that touches Docker and the host's files.

pub mod compose;
pub mod files;
pub mod engine;
pub mod health;
pub mod process;
