//! The parts of a request that a signature binds, and the one way each of them is written in the base.

use super::authority::Authority;
use super::canonical::{BadBase, SignatureParams, signature_base};

/// The parts of a request that a signature binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestParts<'a> {
    /// `POST`.
    pub method: &'a str,
    /// `Host`, or `:authority` in HTTP/2, as sent: `web-1.example.com:8443`.
    pub authority: &'a str,
    /// The path as sent, still percent-encoded; empty is `/`.
    pub path: &'a str,
    /// What follows `?`, as sent; none and empty are the same (RFC 9421 section 2.2.7).
    pub query: Option<&'a str>,
    /// `Content-Type` as sent. A request without a body has one too.
    pub content_type: &'a str,
    /// The body's bytes, as sent.
    pub body: &'a [u8],
}

/// What a request is aimed at, as the signature base has it (RFC 9421 section 2.2).
pub(super) struct Target<'a> {
    method: &'a str,
    authority: String,
    path: &'a str,
    query: String,
    content_type: &'a str,
}

impl<'a> Target<'a> {
    /// Checks every part; fails with the name of the part that is not as HTTP has it.
    pub(super) fn of(parts: &RequestParts<'a>) -> Result<Self, &'static str> {
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
        if parts.method.is_empty() || !parts.method.bytes().all(|b| b.is_ascii_uppercase()) {
            return Err("method");
        }
        let path = if parts.path.is_empty() { "/" } else { parts.path };
        if !path.starts_with('/') || path.contains('?') || !plain(path) {
            return Err("path");
        }
        let query = parts.query.unwrap_or_default();
        if !plain(query) {
            return Err("query");
        }
        let authority = Authority::read(parts.authority).ok_or("authority")?;
        let content_type = parts.content_type;
        if content_type.is_empty() || content_type.trim() != content_type {
            return Err("content type");
        }
        Ok(Self {
            method: parts.method,
            authority: authority.canonical(),
            path,
            query: format!("?{query}"),
            content_type,
        })
    }

    /// The signature base for what `params` lists.
    pub(super) fn base(&self, params: &SignatureParams, content_digest: &str) -> Result<String, BadBase> {
        signature_base(params, |name| match name {
            "@method" => Some(self.method),
            "@authority" => Some(&self.authority),
            "@path" => Some(self.path),
            "@query" => Some(&self.query),
            "content-type" => Some(self.content_type),
            "content-digest" => Some(content_digest),
            _ => None,
        })
    }
}
