//! deploy-agent.
fn main() {}
