//! The harness of the tests on a real Docker Engine.
//!
//! [`images`] makes images that are good, sick, slow or dying and a registry to pull them from; [`clinic`] runs the
//! project that the agent is to deploy; [`agent`] runs the agent on it and [`ctl`] its caller, with [`wire`] for requests
//! that no honest caller sends, and [`torture`] breaks all of it. Whatever a test starts has a name of its own and is
//! removed on drop. [`engine`] is the Engine that all of this uses: the machine's, or one that a test may break, which is
//! what [`faults`] does; [`liar`] is a registry that lies.

pub mod agent;
pub mod clinic;
pub mod command;
pub mod ctl;
pub mod engine;
pub mod faults;
pub mod http;
pub mod images;
pub mod liar;
pub mod platforms;
pub mod process;
pub mod project;
pub mod torture;
pub mod until;
pub mod wire;
