//! What a signed request must look like: made by the caller, read and verified by the host, fail closed.
//!
//! The host's half is in two steps, so that the key can be looked up between them: [`Claim::read`] looks at headers
//! alone and costs microseconds; [`Claim::verify`] computes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SecureRandom;
use sfv::{BareItem, Dictionary, InnerList, ListEntry};

use super::authority::{Authority, AuthorityNames};
use super::canonical::{BadBase, Param, SignatureParams, component_name, read_dictionary};
use super::digest::{ContentDigest, content_digest};
use super::key::{NoRandomness, PrivateKey, PublicKey};
use super::parts::{RequestParts, Target};
use super::rejection::Rejection;

/// The components that every request covers: each of them once, in any order, and nothing else.
pub const COVERED: [&str; 6] = [
    "@method",
    "@authority",
    "@path",
    "@query",
    "content-type",
    "content-digest",
];
/// The `tag` of our signatures: one made with the same key for another purpose is not taken.
pub const TAG: &str = "deployctl/v1";
/// How long a signature made here is valid, in seconds.
pub const LIFETIME_SECONDS: i64 = 60;
/// The longest lifetime that a host takes from others' signers, in seconds. Its nonces are kept that long.
pub const MAX_LIFETIME_SECONDS: i64 = 300;
/// The greatest age of a signature, in seconds.
pub const MAX_AGE_SECONDS: i64 = 300;
/// How far the caller's clock may be ahead of the host's, in seconds.
pub const FUTURE_SKEW_SECONDS: i64 = 30;

const ALGORITHM: &str = "ed25519";
const LABEL: &str = "sig1";
/// Ours has about 300 bytes.
const INPUT_MAX_BYTES: usize = 1024;
/// 64 bytes are 88 in base64; the rest is for the label.
const SIGNATURE_MAX_BYTES: usize = 256;
/// Room for SHA-256, SHA-512 and some that are ignored.
const DIGEST_MAX_BYTES: usize = 512;
const CONTENT_TYPE_MAX_BYTES: usize = 128;
/// 128 bits are 22 characters of base64 or 32 hexadecimal digits.
const NONCE_CHARACTERS: std::ops::RangeInclusive<usize> = 22..=64;

/// The headers that make a request a signed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeaders {
    /// `Content-Digest`.
    pub content_digest: String,
    /// `Signature-Input`.
    pub signature_input: String,
    /// `Signature`.
    pub signature: String,
}

/// Why a request cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// No nonce.
    #[error("failed to draw a nonce")]
    Nonce(#[source] NoRandomness),
    /// A part that no host would take.
    #[error("the request's {part} cannot be signed")]
    Part {
        /// Which.
        part: &'static str,
    },
    /// A signature base that cannot be written.
    #[error("failed to write the signature's base")]
    Base(#[source] BadBase),
}

/// Signs a request, valid from `now_unix_seconds` for [`LIFETIME_SECONDS`], with a new nonce. A request that is sent
/// again is signed again: a host takes a nonce once.
///
/// # Errors
/// When there are no random bytes, or a part is not what HTTP allows.
pub fn sign_request(
    key: &PrivateKey,
    request: &RequestParts<'_>,
    now_unix_seconds: i64,
    rng: &dyn SecureRandom,
) -> Result<SignedHeaders, SignError> {
    let mut nonce = [0; 16];
    rng.fill(&mut nonce).map_err(|_| SignError::Nonce(NoRandomness))?;
    sign_with_nonce(key, request, now_unix_seconds, &URL_SAFE_NO_PAD.encode(nonce))
}

pub(super) fn sign_with_nonce(
    key: &PrivateKey,
    request: &RequestParts<'_>,
    created: i64,
    nonce: &str,
) -> Result<SignedHeaders, SignError> {
    let target = Target::of(request).map_err(|part| SignError::Part { part })?;
    let params = SignatureParams::new(
        &COVERED,
        &[
            ("created", Param::Integer(created)),
            (
                "expires",
                Param::Integer(created.saturating_add(LIFETIME_SECONDS)),
            ),
            ("nonce", Param::Text(nonce)),
            ("keyid", Param::Text(&key.public().to_string())),
            ("alg", Param::Text(ALGORITHM)),
            ("tag", Param::Text(TAG)),
        ],
    )
    .map_err(SignError::Base)?;
    let content_digest = content_digest(request.body);
    let base = target.base(&params, &content_digest).map_err(SignError::Base)?;
    let signature = BareItem::ByteSequence(key.sign(base.as_bytes()));
    Ok(SignedHeaders {
        content_digest,
        signature_input: format!("{LABEL}={}", params.text()),
        signature: format!(
            "{LABEL}={}",
            sfv::ItemSerializer::new().bare_item(&signature).finish()
        ),
    })
}

/// What a request says of its signature: well-formed, complete and in time, but not yet true.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    params: SignatureParams,
    signature: Vec<u8>,
    key: PublicKey,
    nonce: String,
    created: i64,
    expires: i64,
    content_type: String,
    digest: ContentDigest,
    digest_text: String,
}

impl Claim {
    /// Reads a request's headers. `headers` gives the lines of a header by its lower-case name, without white space
    /// around them, for instance `|name| map.get_all(name).iter().map(HeaderValue::as_bytes)`.
    ///
    /// # Errors
    /// The first thing that is wrong, cheapest check first.
    pub fn read<'h, L>(headers: impl Fn(&'static str) -> L, now_unix_seconds: i64) -> Result<Self, Rejection>
    where
        L: IntoIterator<Item = &'h [u8]>,
    {
        use Rejection as R;
        let input = only(headers("signature-input"), INPUT_MAX_BYTES, R::NotSigned)?;
        let signature = only(headers("signature"), SIGNATURE_MAX_BYTES, R::NotSigned)?;
        let digest_text = only(headers("content-digest"), DIGEST_MAX_BYTES, R::DigestMissing)?;
        let content_type = only(headers("content-type"), CONTENT_TYPE_MAX_BYTES, R::ContentType)?;

        let (label, input) = only_member(input)?;
        let (signature_label, signature) = only_member(signature)?;
        if label != signature_label {
            return Err(R::LabelMismatch);
        }
        let ListEntry::InnerList(input) = input else {
            return Err(R::Malformed);
        };
        check_components(&input)?;
        let stated = Stated::read(&input)?;
        stated.check_time(now_unix_seconds)?;
        Ok(Self {
            signature: signature_bytes(&signature)?,
            key: stated.key,
            nonce: stated.nonce,
            created: stated.created,
            expires: stated.expires,
            content_type: utf8(content_type).ok_or(R::ContentType)?,
            digest: ContentDigest::read(digest_text)?,
            digest_text: utf8(digest_text).ok_or(R::DigestMalformed)?,
            params: SignatureParams(input),
        })
    }

    /// The key that the request names. Whether it may do anything is the caller's question.
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// The number used once: 22 to 64 characters of `A-Z a-z 0-9 + / - _ =`. It is to be refused a second time from
    /// the same key until [`Self::expires`] has passed.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// The second in which the request was signed, by the caller's clock, in Unix time.
    pub fn created(&self) -> i64 {
        self.created
    }

    /// The last second in which the signature is valid, in Unix time.
    pub fn expires(&self) -> i64 {
        self.expires
    }

    /// Verifies that `key` signed this very request, for a host that answers to `own_names`.
    ///
    /// So that an unknown key cannot be told from a wrong signature by the time it takes, call this for an unknown
    /// key too, with [`Self::public_key`], and refuse whatever it says. The nonce has not been looked at.
    ///
    /// # Errors
    /// The first thing that is wrong: another key or content type, the authority, the signature, the body.
    pub fn verify(
        &self,
        key: &PublicKey,
        parts: &RequestParts<'_>,
        own_names: &AuthorityNames,
    ) -> Result<(), Rejection> {
        if *key != self.key {
            return Err(Rejection::OtherKey);
        }
        if parts.content_type != self.content_type {
            return Err(Rejection::ContentType);
        }
        let authority = Authority::read(parts.authority).ok_or(Rejection::Authority)?;
        if !own_names.include(&authority) {
            return Err(Rejection::Authority);
        }
        let target = Target::of(parts).map_err(|_| Rejection::Target)?;
        let base = target
            .base(&self.params, &self.digest_text)
            .map_err(|_| Rejection::Target)?;
        if !key.verifies(base.as_bytes(), &self.signature) {
            return Err(Rejection::BadSignature);
        }
        if !self.digest.matches(parts.body) {
            return Err(Rejection::BodyMismatch);
        }
        Ok(())
    }
}

/// The one line of a header.
fn only<'h>(
    lines: impl IntoIterator<Item = &'h [u8]>,
    max_bytes: usize,
    missing: Rejection,
) -> Result<&'h [u8], Rejection> {
    let mut lines = lines.into_iter();
    let line = lines.next().ok_or(missing)?;
    if lines.next().is_some() {
        Err(Rejection::Several)
    } else if line.len() > max_bytes {
        Err(Rejection::HeaderTooLong)
    } else {
        Ok(line)
    }
}

/// The one member of a dictionary, and its label.
fn only_member(raw: &[u8]) -> Result<(sfv::Key, ListEntry), Rejection> {
    let dictionary: Dictionary = read_dictionary(raw).ok_or(Rejection::Malformed)?;
    let mut members = dictionary.into_iter();
    match (members.next(), members.next()) {
        (Some(member), None) => Ok(member),
        (None, _) => Err(Rejection::Malformed),
        (Some(_), Some(_)) => Err(Rejection::Several),
    }
}

fn check_components(input: &InnerList) -> Result<(), Rejection> {
    let mut seen: Vec<&str> = Vec::with_capacity(COVERED.len());
    for item in &input.items {
        if !item.params.is_empty() {
            return Err(Rejection::ComponentParameters);
        }
        let name = component_name(item).ok_or(Rejection::Malformed)?;
        if !COVERED.contains(&name) {
            return Err(Rejection::ComponentForeign);
        }
        if seen.contains(&name) {
            return Err(Rejection::ComponentRepeated);
        }
        seen.push(name);
    }
    if seen.len() == COVERED.len() {
        Ok(())
    } else {
        Err(Rejection::ComponentMissing)
    }
}

fn signature_bytes(entry: &ListEntry) -> Result<Vec<u8>, Rejection> {
    match entry {
        ListEntry::Item(item) if item.params.is_empty() => {
            let bytes = item.bare_item.as_byte_sequence().ok_or(Rejection::Malformed)?;
            if bytes.len() == 64 {
                Ok(bytes.to_vec())
            } else {
                Err(Rejection::SignatureLength)
            }
        }
        ListEntry::Item(_) | ListEntry::InnerList(_) => Err(Rejection::Malformed),
    }
}

fn utf8(raw: &[u8]) -> Option<String> {
    std::str::from_utf8(raw).ok().map(str::to_owned)
}

/// What the signature's parameters say.
struct Stated {
    created: i64,
    expires: i64,
    nonce: String,
    key: PublicKey,
}

impl Stated {
    fn read(input: &InnerList) -> Result<Self, Rejection> {
        const KNOWN: [&str; 6] = ["created", "expires", "nonce", "keyid", "alg", "tag"];
        if !input.params.keys().all(|name| KNOWN.contains(&name.as_str())) {
            return Err(Rejection::ParameterForeign);
        }
        let integer = |name| {
            let value = input.params.get(name).and_then(BareItem::as_integer);
            value.map(i64::from)
        };
        let text = |name| {
            let value = input.params.get(name).and_then(BareItem::as_string);
            value.map(|value| value.as_str())
        };
        let created = integer("created").ok_or(Rejection::Created)?;
        let expires = integer("expires").ok_or(Rejection::Expires)?;
        if text("alg") != Some(ALGORITHM) {
            return Err(Rejection::Algorithm);
        }
        if text("tag") != Some(TAG) {
            return Err(Rejection::Tag);
        }
        let nonce = text("nonce")
            .filter(|nonce| is_nonce(nonce))
            .ok_or(Rejection::Nonce)?;
        let key = text("keyid").and_then(|text| text.parse().ok());
        Ok(Self {
            created,
            expires,
            nonce: nonce.to_owned(),
            key: key.ok_or(Rejection::KeyId)?,
        })
    }

    fn check_time(&self, now: i64) -> Result<(), Rejection> {
        // Structured integers have at most 15 digits, so their difference cannot overflow; `now` is the host's own.
        let lifetime = self.expires.saturating_sub(self.created);
        let age = now.saturating_sub(self.created);
        if !(1..=MAX_LIFETIME_SECONDS).contains(&lifetime) {
            Err(Rejection::Lifetime)
        } else if age < -FUTURE_SKEW_SECONDS {
            Err(Rejection::FromTheFuture)
        } else if age > MAX_AGE_SECONDS {
            Err(Rejection::TooOld)
        } else if now > self.expires {
            Err(Rejection::Expired)
        } else {
            Ok(())
        }
    }
}

fn is_nonce(text: &str) -> bool {
    NONCE_CHARACTERS.contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b))
}
