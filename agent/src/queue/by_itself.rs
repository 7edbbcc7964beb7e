//! What the agent asks of itself: the way back from a release that fell sick while it baked. It takes its turn as every
//! other deployment does, so that it and a push of the same moment never act side by side.

use std::sync::Arc;

use deploy_proto::event::Happened;
use deploy_proto::names::ProjectName;
use tokio::sync::watch;

use super::{Queue, Slot};
use crate::deploy::port::Host;
use crate::history::{Deployment, HistoryError};

impl<H: Host> Queue<H> {
    /// Tells when a project becomes busy or free.
    pub fn turns(&self) -> watch::Receiver<()> {
        self.turns.subscribe()
    }

    /// Has those who follow the turns look again, as after a reload.
    pub fn announce(&self) {
        self.turns.send_replace(());
    }

    /// Whether a deployment of the project runs or waits.
    pub async fn is_busy(&self, project: &ProjectName) -> bool {
        self.slots.lock().await.contains_key(project)
    }

    /// Journals an automatic rollback and starts it, if the project is free. The bake that it ends is over in the same
    /// transaction. Otherwise a newer deployment was faster: nothing is done, and the answer is false.
    ///
    /// # Errors
    /// The journal cannot be used: nothing was done.
    pub async fn roll_back_by_itself(self: &Arc<Self>, deployment: Deployment) -> Result<bool, HistoryError> {
        let mut slots = self.slots.lock().await;
        if slots.contains_key(&deployment.project) || !self.still_bakes(&deployment).await? {
            return Ok(false);
        }
        let accepted = Happened::Accepted {
            project: deployment.project.clone(),
            kind: deployment.request.kind(),
            key: deployment.key.clone(),
            version: None,
        };
        self.history.accept(deployment.clone(), vec![accepted]).await?;
        self.metrics.rolled_back_by_itself(&deployment.project);
        let (slot, cancelled) = Slot::of(&deployment);
        slots.insert(deployment.project.clone(), slot);
        self.turns.send_replace(());
        self.start(deployment, cancelled);
        Ok(true)
    }

    async fn still_bakes(&self, deployment: &Deployment) -> Result<bool, HistoryError> {
        let Some(rollback) = deployment.request.auto_rollback() else {
            return Ok(false);
        };
        let bakes = self.history.bakes().await?;
        Ok(bakes.iter().any(|bake| bake.deployment == rollback.undoes))
    }
}
