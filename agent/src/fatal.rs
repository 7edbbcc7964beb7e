//! The end of the process when the disk lost what it was given: the one place that ends it, for the history's database
//! and for the host's files alike. See `docs/decisions/0007-failed-fsync-is-fatal.md`.

use std::error::Error;
use std::process;

use crate::serve::error_chain;

/// What systemd sees as "went wrong, start it again": the agent then goes on from the journal.
const EXIT_CODE: i32 = 1;

/// Ends the process at once, as if it had been killed.
///
/// After a failed fsync the kernel may have dropped the bytes and counts them as written: whoever asks again hears of
/// success. So nothing in this process may go on, ask again, or tell anybody anything on the strength of what it knows
/// in memory. What every phase survives is a crash; this is one.
#[expect(
    clippy::exit,
    reason = "nothing may run after this, also not what would run on the way back to main"
)]
pub(crate) fn disk_failed(error: &(dyn Error + 'static)) -> ! {
    tracing::error!(
        error = error_chain(error),
        "the disk failed: the agent ends here, and goes on from its journal when it is started again"
    );
    process::exit(EXIT_CODE)
}
