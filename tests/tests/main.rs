//! Every promise on a real Docker Engine, one topic a module: `cargo test --package deploy-tests --test all push_tests`.
//!
//! One program, so that it is linked once and its threads are busy while a test waits for health, settle or a clock.

mod bake_tests;
mod cancel_tests;
mod compose_tests;
mod docs_tests;
mod drift_tests;
mod engine_faults_tests;
mod fixtures;
mod follow_tests;
mod gate_tests;
mod hooks_tests;
mod keys_tests;
mod layering_tests;
mod limits_tests;
mod monitor_tests;
mod order_tests;
mod preflight_tests;
mod push_tests;
mod registry_faults_tests;
mod resources_tests;
mod resume_tests;
mod retention_tests;
mod rollback_tests;
mod state_tests;
mod systemd_tests;
mod torture_tests;
