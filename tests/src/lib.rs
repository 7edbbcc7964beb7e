//! The harness of the tests on a real Docker Engine.
//!
//! [`images`] makes images that are good, sick, slow or dying and a registry to pull them from; [`clinic`] runs the
//! project that the agent is to deploy. Whatever a test starts has a name of its own and is removed on drop.

pub mod clinic;
pub mod command;
pub mod http;
pub mod images;
pub mod until;
