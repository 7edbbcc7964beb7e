//! Log lines as a service in a container writes them: one line each, `docker logs` adds the time.

use std::io::Write;

pub(crate) fn info(text: &str) {
    // A reader that went away must not end the service.
    drop(writeln!(std::io::stdout().lock(), "INFO {text}"));
}

/// Goes to stderr as it is, for it names its own level.
pub(crate) fn error(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}
