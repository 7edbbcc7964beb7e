//! `deploy-agent pin`: what callers know this host by. Data only, so that a script can read it.

use std::io::{self, Write};

use jiff::Timestamp;

use super::ConfigFolder;
use crate::config::{self, Mistakes};
use crate::tls::{self, TlsError};

/// Print the pin of this host's TLS key, which callers need
///
/// Makes the self-signed certificate if there is none yet. No caller's key need be configured for that.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigFolder,
}

/// Why there is no pin.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The configuration has mistakes that concern the server.
    #[error("read the configuration")]
    Config(#[source] Mistakes),
    /// There is no certificate, and none could be made.
    #[error("load the TLS certificate")]
    Tls(#[source] TlsError),
    /// The pin could not be written.
    #[error("print the pin")]
    Print(#[source] io::Error),
}

impl PinError {
    /// What to do about it; mistakes have their own hints.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tls(error) => error.hint(),
            Self::Config(_) | Self::Print(_) => None,
        }
    }
}

/// Prints `sha256//` and base64, and a line break.
///
/// # Errors
/// Mistakes in `[server]`, a certificate that cannot be used or made.
pub fn pin(args: &Args, now: Timestamp, out: &mut dyn Write) -> Result<(), PinError> {
    let part = config::load_server(&args.config.path).map_err(PinError::Config)?;
    let identity = tls::load(&part.server, &part.state_dir, now).map_err(PinError::Tls)?;
    writeln!(out, "{}", identity.pin).map_err(PinError::Print)
}
