//! `Content-Digest` (RFC 9530): what binds a body to the signature, which covers only this header.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Algorithm, SHA256, SHA512, digest};
use sfv::ListEntry;

use super::canonical::read_dictionary;
use super::rejection::Rejection;

/// The value of `Content-Digest` for a body, by SHA-256.
pub fn content_digest(body: &[u8]) -> String {
    format!("sha-256=:{}:", STANDARD.encode(digest(&SHA256, body)))
}

/// The digests that a request claims for its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentDigest {
    sha256: Vec<u8>,
    sha512: Option<Vec<u8>>,
}

impl ContentDigest {
    /// Reads the header. SHA-256 must be there; SHA-512 may be, and then has to match too; others are ignored, as
    /// RFC 9530 section 2 lets a recipient: they neither help nor harm.
    pub(super) fn read(raw: &[u8]) -> Result<Self, Rejection> {
        let members = read_dictionary(raw).ok_or(Rejection::DigestMalformed)?;
        let mut sha256 = None;
        let mut sha512 = None;
        for (name, entry) in &members {
            let slot = match name.as_str() {
                "sha-256" => &mut sha256,
                "sha-512" => &mut sha512,
                _ => continue,
            };
            *slot = Some(bytes(entry).ok_or(Rejection::DigestMalformed)?);
        }
        Ok(Self {
            sha256: sha256.ok_or(Rejection::DigestAlgorithm)?,
            sha512,
        })
    }

    /// Whether every digest that was claimed is the body's.
    pub(super) fn matches(&self, body: &[u8]) -> bool {
        let is = |algorithm: &'static Algorithm, claimed: &[u8]| digest(algorithm, body).as_ref() == claimed;
        is(&SHA256, &self.sha256) && self.sha512.as_ref().is_none_or(|claimed| is(&SHA512, claimed))
    }
}

fn bytes(entry: &ListEntry) -> Option<Vec<u8>> {
    match entry {
        ListEntry::Item(item) if item.params.is_empty() => {
            item.bare_item.as_byte_sequence().map(<[u8]>::to_vec)
        }
        ListEntry::Item(_) | ListEntry::InnerList(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body of RFC 9421 appendix B.2, whose digests RFC 9530 appendix A and B give as well.
    const BODY: &[u8] = b"{\"hello\": \"world\"}";
    const SHA_256: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
    const SHA_512: &str =
        "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";

    #[test]
    fn the_vectors_of_the_rfc_match() {
        assert_eq!(content_digest(BODY), SHA_256);
        for header in [
            SHA_256.to_owned(),
            format!("{SHA_256}, {SHA_512}"),
            format!("{SHA_512}, {SHA_256}"),
            format!("{SHA_256}, unixsum=:AAA=:"),
        ] {
            let claimed = ContentDigest::read(header.as_bytes()).unwrap();
            assert!(claimed.matches(BODY), "{header}");
            assert!(!claimed.matches(b""), "{header}");
        }
    }

    #[test]
    fn every_digest_given_must_match() {
        let other = SHA_512.replace("WZDP", "WZDQ");
        let claimed = ContentDigest::read(format!("{SHA_256}, {other}").as_bytes()).unwrap();
        assert!(!claimed.matches(BODY));
        let short = ContentDigest::read(b"sha-256=::").unwrap();
        assert!(!short.matches(BODY));
    }

    #[test]
    fn weak_missing_and_unclear_digests_are_refused() {
        for (header, reason) in [
            ("md5=:AAAA:", Rejection::DigestAlgorithm),
            ("sha=:AAAA:", Rejection::DigestAlgorithm),
            (SHA_512, Rejection::DigestAlgorithm),
            ("", Rejection::DigestMalformed),
            ("sha-256", Rejection::DigestMalformed),
            ("sha-256=\"x\"", Rejection::DigestMalformed),
            ("sha-256=(:AAAA:)", Rejection::DigestMalformed),
            ("sha-256=:AAAA:;x", Rejection::DigestMalformed),
            ("sha-256=:AAA:", Rejection::DigestMalformed),
            ("sha-256=:AAAA:, sha-256=:AAAA:", Rejection::DigestMalformed),
            ("SHA-256=:AAAA:", Rejection::DigestMalformed),
        ] {
            assert_eq!(ContentDigest::read(header.as_bytes()), Err(reason), "{header}");
        }
    }
}
