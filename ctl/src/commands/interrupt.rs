//! Ctrl-C, and the signal with which a CI system cancels a job.

use tokio::signal::unix::{SignalKind, signal};

/// Ends when the process is asked to end. Where signals cannot be listened to they keep their default, and this never
/// ends.
pub(crate) async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}
