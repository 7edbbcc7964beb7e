//! The images of this host: which there are, and removing those that nothing needs, without taking one from under a
//! deployment that has just found it here.

use deploy_proto::problem::Problem;
use tokio::sync::MutexGuard;

use super::DockerHost;
use super::engine::Removed;
use crate::deploy::retention::{ImagesHere, Removal};

/// As long as it lives, no deployment begins to pull, so none finds an image here that is about to go. One whose plan is
/// in the journal by then counts as under way; one that is planned later pulls what is gone.
#[derive(Debug)]
pub struct PullsHeld<'h> {
    _guard: MutexGuard<'h, ()>,
}

impl DockerHost {
    /// The images of this host, and which of them containers were made from.
    ///
    /// # Errors
    /// The Engine does not answer.
    pub async fn images_here(&self) -> Result<ImagesHere, Problem> {
        let (images, in_use) = tokio::join!(self.engine.images(), self.engine.images_in_use());
        Ok(ImagesHere {
            images: images?,
            in_use: in_use?,
        })
    }

    /// Waits for a moment in which no image is being removed, and holds pulls back.
    pub async fn hold_pulls(&self) -> PullsHeld<'_> {
        PullsHeld {
            _guard: self.removing.lock().await,
        }
    }

    /// Waits until the image that is being removed just now is gone.
    pub(super) async fn wait_for_removal(&self) {
        drop(self.removing.lock().await);
    }

    /// Removes an image: its names but one, then itself. What the Engine finds to be needed after all stays.
    ///
    /// # Errors
    /// The Engine does not answer, or cannot remove it.
    pub async fn remove_image(&self, _held: &PullsHeld<'_>, removal: &Removal) -> Result<Removed, Problem> {
        for name in &removal.names_first {
            if let Removed::Kept(why) = self.engine.remove_image(name).await? {
                return Ok(Removed::Kept(why));
            }
        }
        Ok(self.engine.remove_image(&removal.image_id).await?)
    }
}
