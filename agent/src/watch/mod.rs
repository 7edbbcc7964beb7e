//! Watching while nothing is deployed. These tasks look and report; what is to be done they ask the queue for.

pub mod bake;
pub mod drift;
