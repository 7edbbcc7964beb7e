//! Who sent a request, and is it what they sent: RFC 9421 signatures with Ed25519, the one way in.
//!
//! Pure: the time and the source of randomness are passed in, and nothing is remembered. What needs memory or
//! configuration (is the key known, was the nonce used) is the caller's, between [`Claim::read`] and [`Claim::verify`]
//! and after it.

mod authority;
mod canonical;
mod digest;
mod key;
mod parts;
mod rejection;
mod signature;
#[cfg(test)]
mod tests;

pub use authority::{AuthorityNames, BadAuthority};
pub use canonical::{BadBase, Param, SignatureParams, signature_base};
pub use digest::content_digest;
pub use key::{BadKey, BadPublicKey, NoRandomness, PrivateKey, PublicKey};
pub use parts::RequestParts;
pub use rejection::Rejection;
pub use signature::{
    COVERED, Claim, FUTURE_SKEW_SECONDS, LIFETIME_SECONDS, MAX_AGE_SECONDS, MAX_LIFETIME_SECONDS, SignError,
    SignedHeaders, TAG, sign_request,
};
