//! Events on their way to those who watch a deployment just now. The journal has them all; this only wakes watchers.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use deploy_proto::event::Event;
use deploy_proto::names::DeploymentId;
use tokio::sync::broadcast;

/// How many events a slow watcher may be behind before it reads on from the journal instead.
const BACKLOG: usize = 256;

/// One channel per deployment that somebody watches.
#[derive(Debug, Default)]
pub struct Feed {
    channels: Mutex<HashMap<DeploymentId, broadcast::Sender<Event>>>,
}

impl Feed {
    /// Starts watching. Events sent from now on arrive; earlier ones are in the journal.
    pub fn watch(&self, id: &DeploymentId) -> broadcast::Receiver<Event> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever watched an ended deployment left a channel that nobody closes.
        channels.retain(|_, channel| channel.receiver_count() > 0);
        channels
            .entry(id.clone())
            .or_insert_with(|| broadcast::channel(BACKLOG).0)
            .subscribe()
    }

    /// Passes an event on to whoever watches.
    pub fn send(&self, event: Event) {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = channels.get(&event.deployment) else {
            return;
        };
        let id = event.deployment.clone();
        if channel.send(event).is_err() {
            // The last watcher left.
            channels.remove(&id);
        }
    }

    /// Ends a deployment's channel: its watchers see the end of the stream.
    pub fn close(&self, id: &DeploymentId) {
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }
}
