//! Waiting without sleeping for a fixed time: poll with a deadline.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(25);

/// Asks until the answer is `Ok(Some)`, and fails at the deadline with what was waited for and the last error.
pub fn until<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let started = Instant::now();
    loop {
        let last = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => String::new(),
            Err(error) => format!("; last error: {error:#}"),
        };
        if started.elapsed() >= deadline {
            bail!(
                "waited {:.1} s in vain until {what}{last}",
                started.elapsed().as_secs_f32()
            );
        }
        thread::sleep(PAUSE);
    }
}
