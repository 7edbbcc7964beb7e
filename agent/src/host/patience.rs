//! Waiting for others that are away: the Docker Engine while it is restarted, and a registry that is busy or broken for
//! a moment. What waiting is worth depends on what has been changed already.

use std::time::{Duration, Instant};

use deploy_proto::image::{ImageRef, registry_host};
use deploy_proto::problem::{Code, Problem};

use super::DockerHost;
use super::engine::{self, RegistryTrouble};
use crate::deploy::deadlines::BACK_ATTEMPTS;
use crate::deploy::phase::Failure;

/// How long one absence of the Engine is waited for before anything was changed: its restart takes some seconds.
const ENGINE_PATIENCE_UNCHANGED: Duration = Duration::from_secs(10);
/// The same while new containers are brought up and watched.
const ENGINE_PATIENCE_FORWARD: Duration = Duration::from_mins(1);
/// The same on the way back, where giving up means that a person is needed.
const ENGINE_PATIENCE_BACK: Duration = Duration::from_mins(15);
/// Before a step of the way back is tried again: what failed has to pass first.
pub(super) const BACK_PAUSE: Duration = Duration::from_secs(1);
/// The first and the longest pause between two questions whether the Engine is there.
const PING_PAUSE: Duration = Duration::from_millis(100);
const PING_PAUSE_MAX: Duration = Duration::from_secs(2);
/// The pauses before a registry that is busy or has an error of its own is asked again. The Engine retries layers by
/// itself, for 50 s; what it does not retry are lookups and manifests.
const REGISTRY_PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// No new try is begun later than this after the first: a push that is refused is not to keep its caller for minutes.
const REGISTRY_PATIENCE: Duration = Duration::from_secs(40);

/// How long an Engine that is away is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Nothing was changed: a restart of the Engine is waited for, and then refusing costs nothing.
    Unchanged,
    /// New containers are being brought up: giving up means to go back.
    Forward,
    /// Giving up means that a person is needed.
    Back,
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Self::Unchanged => ENGINE_PATIENCE_UNCHANGED,
            Self::Forward => ENGINE_PATIENCE_FORWARD,
            Self::Back => ENGINE_PATIENCE_BACK,
        }
    }

    /// How often a step is begun.
    fn attempts(self) -> u32 {
        match self {
            Self::Unchanged | Self::Forward => 2,
            Self::Back => BACK_ATTEMPTS,
        }
    }
}

/// Whether a step of the way back may go well when it is tried again: the Engine comes back, or stops hanging after Compose
/// was ended for it; a file can be read or written a moment later; a registry that the old image is pulled from is there
/// again; a `docker compose` that something killed is not killed twice. A sick service is sick.
pub(super) fn may_pass(problem: &Problem) -> bool {
    matches!(
        problem.code,
        Code::Engine
            | Code::Internal
            | Code::HostUnfit
            | Code::ComposeFile
            | Code::RestartFailed
            | Code::DeadlinePassed
            | Code::ImageUnavailable
    )
}

impl DockerHost {
    /// Performs a step, told its number from 1, and again when the Engine was away meanwhile and has come back; on the way
    /// back also when what failed may pass.
    pub(super) async fn while_engine_is_away<T, F>(
        &self,
        patience: Patience,
        step: impl Fn(u32) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut attempt = 1;
        loop {
            let outages = self.engine.outages();
            let failure = match step(attempt).await {
                Ok(done) => return Ok(done),
                Err(failure) => failure,
            };
            // Compose has many ways to say that the Engine went away under it, and a service that ended with the Engine
            // looks like one that crashed.
            let was_away = failure.problem.code == Code::Engine
                || self.engine.outages() != outages
                || self.ping().await.is_err();
            let passes = patience == Patience::Back && may_pass(&failure.problem);
            if attempt == patience.attempts() || !(was_away || passes) {
                return Err(failure);
            }
            tracing::warn!(
                attempt,
                was_away,
                problem = failure.problem.detail,
                "a step is tried again"
            );
            self.wait_for_engine(patience).await?;
            if passes {
                tokio::time::sleep(BACK_PAUSE).await;
            }
            attempt += 1;
        }
    }

    /// Waits until the Engine answers; its last error when it does not.
    pub(super) async fn wait_for_engine(&self, patience: Patience) -> Result<(), Problem> {
        let begun = Instant::now();
        let mut pause = PING_PAUSE;
        loop {
            let Err(problem) = self.ping().await else {
                return Ok(());
            };
            if begun.elapsed() >= patience.limit() {
                return Err(problem);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PING_PAUSE_MAX);
        }
    }

    /// Asks something of an image's registry, and again while it is busy or has an error of its own.
    pub(super) async fn while_registry_is_busy<T, F>(
        &self,
        image: &ImageRef,
        ask: impl Fn() -> F,
    ) -> Result<T, Problem>
    where
        F: Future<Output = engine::Result<T>>,
    {
        let begun = Instant::now();
        let mut pauses = REGISTRY_PAUSES.into_iter();
        let mut tries = 1;
        loop {
            let error = match ask().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            let passes = error.registry_trouble().is_some_and(RegistryTrouble::passes);
            let pause = pauses
                .next()
                .filter(|pause| passes && begun.elapsed() + *pause < REGISTRY_PATIENCE);
            let Some(pause) = pause else {
                let mut problem = self.registry_problem(image, error);
                if tries > 1 {
                    let waited = begun.elapsed().as_secs();
                    problem.detail = format!("{} ({tries} tries in {waited}s)", problem.detail);
                }
                return Err(problem);
            };
            tracing::warn!(
                registry = registry_host(image.repository()),
                error = &error as &dyn std::error::Error,
                "the registry is asked again"
            );
            tokio::time::sleep(pause).await;
            tries += 1;
        }
    }
}
