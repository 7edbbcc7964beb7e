//! What is shown while a deployment runs on one host.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use deploy_proto::event::{Event, Happened};
use deploy_proto::release::PlanView;

use super::Session;
use crate::client::ClientError;
use crate::client::follow::Seen;
use crate::render::human::ending::log_lines;
use crate::render::human::progress::Progress;
use crate::render::json_v1::EventLine;

/// How often it is looked whether something is to be shown: often enough for a line that moves.
const BEAT: Duration = Duration::from_millis(200);

/// The view of one host. All its methods take `&self`: the follower and the beat share it on one thread.
pub(super) struct View<'v> {
    session: &'v Session,
    host: &'v str,
    titled: bool,
    jsonl: bool,
    progress: RefCell<Progress>,
    begun: Instant,
    since: Cell<Instant>,
    is_accepted: Cell<bool>,
    is_broken: Cell<bool>,
}

impl<'v> View<'v> {
    /// Begins; `titled` says whether the host needs a heading, `shown` is the plan that was shown already.
    pub(super) fn new(
        session: &'v Session,
        host: &'v str,
        titled: bool,
        jsonl: bool,
        shown: Option<PlanView>,
    ) -> Self {
        if titled {
            session.output.begin_group(host);
        }
        let now = Instant::now();
        Self {
            session,
            host,
            titled,
            jsonl,
            progress: RefCell::new(Progress::new(session.output.paint, shown)),
            begun: now,
            since: Cell::new(now),
            is_accepted: Cell::new(false),
            is_broken: Cell::new(false),
        }
    }

    /// The agent has taken it over.
    pub(super) fn accepted(&self) {
        self.is_accepted.set(true);
        self.progress.borrow_mut().accepted_in(self.begun.elapsed());
    }

    /// Whether the agent has taken it over.
    pub(super) fn is_accepted(&self) -> bool {
        self.is_accepted.get()
    }

    /// Shows what the follower sees.
    pub(super) fn see(&self, seen: Seen<'_>) {
        match seen {
            Seen::Event(event) => self.event(event),
            Seen::Lost(error) => self.lost(error),
            Seen::Back => self.message("connected again"),
        }
    }

    /// Shows that the connection is lost and is tried again.
    pub(super) fn lost(&self, error: &ClientError) {
        self.message(&format!("{error}; trying again"));
    }

    /// Moves the line, or prints a heartbeat, for ever.
    pub(super) async fn beat(&self) -> Infallible {
        loop {
            tokio::time::sleep(BEAT).await;
            if !self.jsonl {
                let doing = self.progress.borrow().doing();
                self.session.output.doing(&doing, self.since.get());
            }
        }
    }

    /// Ends the view and gives the plan that was seen.
    pub(super) fn end(self) -> Option<PlanView> {
        self.session.output.still();
        if self.titled {
            self.session.output.end_group();
        }
        self.progress.into_inner().into_plan()
    }

    fn event(&self, event: &Event) {
        if matches!(event.what, Happened::Phase { .. } | Happened::Planned { .. }) {
            self.since.set(Instant::now());
        }
        let lines = self.progress.borrow_mut().event(event);
        let output = &self.session.output;
        if self.jsonl {
            // Whoever read the events may be gone; how the deployment ends is still to be told, by the exit code.
            if output.json(&EventLine::new(self.host, event)).is_err() && !self.is_broken.replace(true) {
                self.message("standard output is closed: no more events are printed");
            }
            return;
        }
        output.messages(&lines);
        if let Happened::Ended { outcome } = &event.what
            && let Some((heading, lines)) = log_lines(outcome)
        {
            output.message(&heading);
            output.foreign(&lines, self.session.surroundings.rng.as_ref());
        }
    }

    fn message(&self, text: &str) {
        let mark = self.session.output.paint.warn("!");
        self.session.output.message(&format!("  {mark} {text}"));
    }
}
