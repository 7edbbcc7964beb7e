//! `GET /v1/deployments/{id}/events`: server-sent events that resume after `Last-Event-ID`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sse, KeepAlive, Sse as SseResponse};
use deploy_proto::event::{Event, Happened};
use deploy_proto::names::{DeploymentId, KeyName};
use futures_util::stream::{self, Stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::problem::Refusal;
use super::read::followed;
use super::{Verified, log_lines};
use crate::app::App;

/// How often a quiet stream says that it is alive, for proxies and for the caller's own deadline.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Streams a deployment's events: first those of the journal after `Last-Event-ID`, then as they happen, up to the
/// last one.
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    verified: Verified,
) -> Result<SseResponse<impl Stream<Item = Result<Sse, Infallible>>>, Refusal> {
    let deployment = followed(&app, &verified, &id).await?;
    let after = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let (id, over) = (deployment.id().clone(), deployment.ended_at.is_some());
    // Watching begins before the journal is read, so that nothing falls between the two.
    let live = app.feed.watch(&id);
    let follower = Follower {
        app,
        reader: verified,
        asked_by: deployment.key,
        id,
        live,
        after,
        ready: VecDeque::new(),
        caught_up: false,
        over,
        ended: false,
    };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(sse(&event)), follower))
    });
    Ok(SseResponse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn sse(event: &Event) -> Sse {
    let named = event
        .seq
        .map_or_else(Sse::default, |seq| Sse::default().id(seq.to_string()));
    // An event is plain data; if it could not be written the caller sees a comment and reads the journal on.
    named
        .json_data(event)
        .unwrap_or_else(|_| Sse::default().comment("event could not be written"))
}

struct Follower {
    app: Arc<App>,
    reader: Verified,
    /// Whose deployment it is.
    asked_by: KeyName,
    id: DeploymentId,
    live: Receiver<Event>,
    after: u64,
    ready: VecDeque<Event>,
    caught_up: bool,
    /// Whether the deployment had ended when the stream began: the journal has everything.
    over: bool,
    ended: bool,
}

impl Follower {
    /// The next event; `None` after the last one, and when the agent stops.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(self.passed(event));
            }
            if !self.caught_up {
                self.read_journal().await?;
                continue;
            }
            if self.over {
                return None;
            }
            let mut shutdown = self.app.shutdown.clone();
            let received = tokio::select! {
                received = self.live.recv() => received,
                _ = shutdown.wait_for(|stop| *stop) => return None,
            };
            match received {
                Ok(event) if !log_lines::may_see(self.reader.key(), &self.asked_by, &event.what) => {}
                Ok(event) if event.seq.is_none_or(|seq| seq == self.after + 1) => {
                    return Some(self.passed(event));
                }
                Ok(event) if event.seq.is_some_and(|seq| seq <= self.after) => {}
                // A gap, a reader that was too slow, or the end of the channel: the journal has what was missed.
                Ok(_) | Err(RecvError::Lagged(_)) => self.caught_up = false,
                Err(RecvError::Closed) => {
                    self.read_journal().await?;
                    if self.ready.is_empty() {
                        return None;
                    }
                }
            }
        }
    }

    async fn read_journal(&mut self) -> Option<()> {
        match self.app.history.events(self.id.clone(), self.after).await {
            Ok(events) => {
                self.ready = events.into();
                self.caught_up = true;
                Some(())
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "event stream ended: the journal cannot be read"
                );
                None
            }
        }
    }

    fn passed(&mut self, mut event: Event) -> Event {
        self.after = event.seq.unwrap_or(self.after);
        self.ended |= matches!(event.what, Happened::Ended { .. });
        log_lines::hide(self.reader.key(), &self.asked_by, &mut event.what);
        event
    }
}
