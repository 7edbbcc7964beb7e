//! The one place that prints: data to standard output, messages to standard error, the moving line on a terminal.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ring::rand::SecureRandom;
use serde::Serialize;

use crate::caller::Caller;
use crate::cli::When;
use crate::error::Error;
use crate::render::github;
use crate::render::human::ending::heartbeat;
use crate::render::text::{Paint, took};

/// How often a log without a terminal says that the work goes on.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Both streams, and what they can show.
pub(crate) struct Output {
    /// Colour for standard output.
    pub(crate) data_paint: Paint,
    /// Colour for standard error.
    pub(crate) paint: Paint,
    /// Whether a person can be asked: standard input and standard error are a terminal.
    pub(crate) can_ask: bool,
    is_live: bool,
    github: bool,
    line: RefCell<Option<ProgressBar>>,
    last_message: Cell<Instant>,
}

impl Output {
    /// Looks at the streams once.
    pub(crate) fn new(color: When, caller: &Caller) -> Self {
        let messages_to_terminal = io::stderr().is_terminal();
        let paint = |is_terminal: bool| Paint {
            on: match color {
                When::Auto => is_terminal && !caller.no_color,
                When::Always => true,
                When::Never => false,
            },
        };
        Self {
            data_paint: paint(io::stdout().is_terminal()),
            paint: paint(messages_to_terminal),
            can_ask: messages_to_terminal && io::stdin().is_terminal(),
            is_live: messages_to_terminal && !caller.github_actions,
            github: caller.github_actions,
            line: RefCell::new(None),
            last_message: Cell::new(Instant::now()),
        }
    }

    /// Prints lines of data.
    pub(crate) fn data(&self, lines: &[String]) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        for line in lines {
            let line = if self.github {
                github::defuse(line)
            } else {
                line.clone()
            };
            writeln!(out, "{line}").map_err(Error::Output)?;
        }
        out.flush().map_err(Error::Output)
    }

    /// Prints lines that are an application's own, fenced where a CI system reads lines.
    pub(crate) fn foreign_data(&self, lines: &[String], rng: &dyn SecureRandom) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        let fence = self.fence(rng);
        let [before, after] = fence.unwrap_or_default();
        let edge = |line: &str| {
            if line.is_empty() {
                String::new()
            } else {
                format!("{line}\n")
            }
        };
        write!(out, "{}", edge(&before)).map_err(Error::Output)?;
        for line in lines {
            writeln!(out, "{line}").map_err(Error::Output)?;
        }
        write!(out, "{}", edge(&after)).map_err(Error::Output)?;
        out.flush().map_err(Error::Output)
    }

    /// Prints one JSON document on one line.
    pub(crate) fn json(&self, document: &impl Serialize) -> Result<(), Error> {
        let mut text = serde_json::to_string(document).map_err(Error::Json)?;
        if self.github {
            text = github::defuse_json(&text);
        }
        let mut out = io::stdout().lock();
        writeln!(out, "{text}").map_err(Error::Output)?;
        out.flush().map_err(Error::Output)
    }

    /// Prints lines for a person.
    pub(crate) fn messages(&self, lines: &[String]) {
        for line in lines {
            if self.github {
                self.raw(&github::defuse(line));
            } else {
                self.raw(line);
            }
        }
    }

    /// Prints one line for a person.
    pub(crate) fn message(&self, line: &str) {
        self.messages(&[line.to_owned()]);
    }

    /// Prints lines for a person that are an application's own, fenced where a CI system reads lines.
    pub(crate) fn foreign(&self, lines: &[String], rng: &dyn SecureRandom) {
        match self.fence(rng) {
            Some([before, after]) => {
                self.raw(&before);
                lines.iter().for_each(|line| self.raw(line));
                self.raw(&after);
            }
            None => lines.iter().for_each(|line| self.raw(line)),
        }
    }

    /// Begins a host's part.
    pub(crate) fn begin_group(&self, title: &str) {
        if self.github {
            self.raw(&github::group(title));
        } else {
            self.raw(&self.paint.bold(title));
        }
    }

    /// Ends a host's part.
    pub(crate) fn end_group(&self) {
        if self.github {
            self.raw(&github::end_group());
        }
    }

    /// Marks the CI run's page with an error; elsewhere nothing.
    pub(crate) fn annotate(&self, title: &str, text: &str) {
        if self.github {
            self.raw(&github::error(title, text));
        }
    }

    /// Shows what is going on: the moving line on a terminal, a line now and then elsewhere.
    pub(crate) fn doing(&self, text: &str, since: Instant) {
        if self.is_live {
            self.move_line(&format!("{text}  {}", took(since.elapsed())));
        } else if self.last_message.get().elapsed() >= HEARTBEAT {
            self.message(&heartbeat(text, since.elapsed(), self.paint));
        }
    }

    /// Takes the moving line away.
    pub(crate) fn still(&self) {
        if let Some(bar) = self.line.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }

    /// Asks a person; anything but yes is no.
    pub(crate) fn ask(&self, question: &str) -> Result<bool, Error> {
        let mut err = io::stderr().lock();
        write!(err, "{question} [y/N] ").map_err(Error::Output)?;
        err.flush().map_err(Error::Output)?;
        drop(err);
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(Error::Output)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES"))
    }

    fn move_line(&self, text: &str) {
        let mut line = self.line.borrow_mut();
        let bar = line.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            // The template is fixed; should it ever be wrong, the default one is shown.
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        bar.set_message(text.to_owned());
        bar.tick();
    }

    fn raw(&self, line: &str) {
        self.last_message.set(Instant::now());
        match self.line.borrow().as_ref() {
            Some(bar) => bar.suspend(|| write_message(line)),
            None => write_message(line),
        }
    }

    fn fence(&self, rng: &dyn SecureRandom) -> Option<[String; 2]> {
        if !self.github {
            return None;
        }
        let mut bits = [0; 16];
        // Without randomness nothing could have been signed: there is no output to fence then.
        rng.fill(&mut bits).ok()?;
        Some(github::fence(&format!("{:032x}", u128::from_be_bytes(bits))))
    }
}

/// Writes to standard error. Where that is closed there is nobody left to tell.
fn write_message(line: &str) {
    writeln!(io::stderr().lock(), "{line}").unwrap_or_default();
}
