//! A pin: the SHA-256 of a server's public key, in the form of curl's `--pinnedpubkey`.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

const PREFIX: &str = "sha256//";

/// The SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 7469 section 2.4), written `sha256//BASE64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pin([u8; 32]);

/// Why a text is not a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPin {
    /// Another form than `sha256//...`.
    #[error("a pin begins with sha256// and not with {0:?}")]
    Prefix(String),
    /// The rest is not 32 bytes of Base64.
    #[error("a pin is sha256// and 44 characters of Base64, the last one =")]
    Hash,
}

impl Pin {
    /// The pin of a public key, given its SubjectPublicKeyInfo in DER.
    pub(crate) fn of_public_key(spki_der: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, spki_der).as_ref());
        Self(hash)
    }

    /// Reads several pins, separated by commas, semicolons (curl's way) or white space.
    pub(crate) fn parse_list(text: &str) -> Result<Vec<Self>, BadPin> {
        text.split([',', ';', ' ', '\t', '\n'])
            .filter(|part| !part.is_empty())
            .map(str::parse)
            .collect()
    }
}

impl FromStr for Pin {
    type Err = BadPin;

    fn from_str(text: &str) -> Result<Self, BadPin> {
        let hash = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| BadPin::Prefix(text.chars().take(PREFIX.len()).collect()))?;
        let bytes = STANDARD.decode(hash).map_err(|_| BadPin::Hash)?;
        Ok(Self(bytes.try_into().map_err(|_| BadPin::Hash)?))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_reads_as_it_is_written_and_anything_else_is_refused() {
        let pin = Pin::of_public_key(b"key");
        assert_eq!(pin.to_string().parse(), Ok(pin));
        assert_eq!(Pin::parse_list(&format!("{pin}, {pin}\n")), Ok(vec![pin, pin]));
        assert_eq!(Pin::parse_list(" "), Ok(vec![]));
        for bad in [
            "",
            "sha256/AAAA",
            "sha256//",
            "sha256//AAAA",
            "sha256//????",
            "md5//AAAA",
            &pin.to_string().replace('=', ""),
            &format!("{pin}x"),
        ] {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }
}
