//! The probes of one service: all at once, the first that fails in words.

use std::io;

use deploy_proto::names::ServiceName;
use futures_util::future::join_all;

use super::http::Http;
use super::tcp;
use crate::config::{Probe, ProbeCheck, Project};

/// Runs every probe of a service. None when it has none; else what each gave, or the first failure.
pub(super) async fn run_all(
    http: &Http,
    project: &Project,
    service: &ServiceName,
) -> Option<Result<Vec<String>, String>> {
    let probes = project.probes.iter().filter(|probe| probe.service == *service);
    let results = join_all(probes.map(|probe| run(http, probe))).await;
    (!results.is_empty()).then(|| results.into_iter().collect())
}

async fn run(http: &Http, probe: &Probe) -> Result<String, String> {
    match &probe.check {
        ProbeCheck::Http { url, status } => http.check(url, *status, probe.timeout).await,
        ProbeCheck::Tcp { address } => tcp::check(address, probe.timeout).await,
    }
}

/// An I/O error as people write it, without the number.
pub(super) fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_lowercase(),
        None => text,
    }
}
