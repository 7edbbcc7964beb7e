//! The only way in: size, signature, age, names, replay, cheapest check first. What comes out is `Verified`, and is made
//! nowhere else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, header};
use deploy_proto::problem::{Code, Problem};
use deploy_proto::push::BODY_MAX_BYTES;
use deploy_proto::signing::{Claim, Rejection, RequestParts};

use super::problem::Refusal;
use crate::app::App;
use crate::config::Key;
use crate::history::{Nonce, NonceUse};
use crate::line_limit::LineLimit;

/// How long a caller may take to send a body of at most 64 KiB.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// How many refused requests are logged in a minute. The metric counts them all; the log is for finding out who it is.
const REJECTION_LINES_PER_MINUTE: u32 = 60;
static REJECTION_LINES: LineLimit = LineLimit::per_minute(REJECTION_LINES_PER_MINUTE);

/// A request whose signature, age and uniqueness were checked, and the key that signed it.
#[derive(Debug)]
pub struct Verified {
    key: Arc<Key>,
    query: String,
    body: Bytes,
}

impl Verified {
    /// The key that signed the request.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Reads the body as JSON: unknown and repeated keys, and whatever is no name or image, are errors.
    ///
    /// # Errors
    /// `bad_request`, with the place of the mistake.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Problem::new(
                Code::BadRequest,
                format!("the request's body is not what it should be: {error}"),
            )
            .hint("is deployctl newer than the agent?")
        })
    }

    /// Reads the query string. It is read here, not by an extractor, which would run before the signature is checked.
    ///
    /// # Errors
    /// `bad_request`, with the mistake.
    pub fn query<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        read_query(&self.query)
    }
}

fn read_query<T: serde::de::DeserializeOwned>(query: &str) -> Result<T, Problem> {
    serde_urlencoded::from_str(query).map_err(|error| {
        Problem::new(
            Code::BadRequest,
            format!("the request's query is not what it should be: {error}"),
        )
        .hint("is deployctl newer than the agent?")
    })
}

/// Why a request was not let in, for the audit log and a metric. The caller hears one answer for all of them.
enum Closed {
    Rejected(Rejection),
    UnknownKey,
    KeyExpired,
    Replayed,
    /// The clock went back to a time whose nonces are forgotten.
    Forgotten,
    /// Signed before a backup was restored.
    BeforeRestore,
}

impl From<Rejection> for Closed {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl Closed {
    fn reason(&self) -> &'static str {
        match self {
            Self::Rejected(rejection) => rejection.as_str(),
            Self::UnknownKey => "unknown_key",
            Self::KeyExpired => "key_expired",
            Self::Replayed => "replayed",
            Self::Forgotten => "forgotten",
            Self::BeforeRestore => "before_restore",
        }
    }
}

impl FromRequest<Arc<App>> for Verified {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Refusal> {
        app.metrics.request();
        let (parts, body) = request.into_parts();
        let now = (app.now)().as_second();
        let claim = match Claim::read(|name| lines(&parts.headers, name), now) {
            Ok(claim) => claim,
            Err(rejection) => return Err(not_let_in(app, &rejection.into(), None)),
        };
        // Only now is a body read: nobody makes the agent hold one without a well-formed, fresh signature beside it.
        let body = match tokio::time::timeout(BODY_DEADLINE, to_bytes(body, BODY_MAX_BYTES)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_too_large_or_cut_off)) => return Err(too_large()),
            Err(_elapsed) => return Err(too_slow()),
        };
        let (authority, content_type) = (
            authority(&parts),
            header_text(&parts.headers, header::CONTENT_TYPE),
        );
        let signed = RequestParts {
            method: parts.method.as_str(),
            authority,
            path: parts.uri.path(),
            query: parts.uri.query(),
            content_type,
            body: &body,
        };
        match admit(app, &claim, &signed, now).await {
            Ok(Ok(key)) => Ok(Self {
                key,
                query: parts.uri.query().unwrap_or_default().to_owned(),
                body,
            }),
            Ok(Err(closed)) => Err(not_let_in(app, &closed, Some(&claim))),
            Err(refusal) => Err(refusal),
        }
    }
}

/// Checks key, signature and nonce. The outer error is a database that cannot be written, which closes the gate.
async fn admit(
    app: &App,
    claim: &Claim,
    signed: &RequestParts<'_>,
    now: i64,
) -> Result<Result<Arc<Key>, Closed>, Refusal> {
    let known = app.settings.key(claim.public_key());
    // An unknown key costs a caller the same time as a bad signature of a known one.
    let verified = claim.verify(claim.public_key(), signed, &app.settings.names());
    let Some(key) = known else {
        return Ok(Err(Closed::UnknownKey));
    };
    if key.expires.is_some_and(|expires| expires.as_second() <= now) {
        return Ok(Err(Closed::KeyExpired));
    }
    if let Err(rejection) = verified {
        return Ok(Err(rejection.into()));
    }
    // The nonce is spent before the request is looked at any further, in a commit of its own: a crash after it costs the
    // caller a new signature, and no request can be let in twice.
    let nonce = Nonce {
        key: claim.public_key().to_string(),
        nonce: claim.nonce().to_owned(),
        created: claim.created(),
        expires: claim.expires(),
    };
    match app.history.use_nonce(nonce, now).await? {
        NonceUse::First => Ok(Ok(key)),
        NonceUse::Again => Ok(Err(Closed::Replayed)),
        NonceUse::Forgotten => Ok(Err(Closed::Forgotten)),
        NonceUse::BeforeRestore => Ok(Err(Closed::BeforeRestore)),
    }
}

fn not_let_in(app: &App, closed: &Closed, claim: Option<&Claim>) -> Refusal {
    app.metrics.rejected(closed.reason());
    let key = claim.map(|claim| claim.public_key().to_string());
    if let Some(unsaid) = REJECTION_LINES.next(Instant::now()) {
        tracing::warn!(
            reason = closed.reason(),
            key = key.as_deref().unwrap_or(""),
            unsaid,
            "request not let in"
        );
    }
    Problem::new(Code::NotAuthenticated, "the request's signature was not accepted")
        .hint("is this key in the host's agent.toml, is the host's name in server.names, and are both clocks right? The host's log has the reason")
        .into()
}

fn too_large() -> Refusal {
    Problem::new(
        Code::TooLarge,
        format!("the body is larger than {BODY_MAX_BYTES} bytes, or was cut off"),
    )
    .into()
}

fn too_slow() -> Refusal {
    Problem::new(
        Code::BadRequest,
        format!("the body did not arrive within {}s", BODY_DEADLINE.as_secs()),
    )
    .into()
}

fn lines<'h>(headers: &'h HeaderMap, name: &'static str) -> impl Iterator<Item = &'h [u8]> {
    headers.get_all(name).iter().map(HeaderValue::as_bytes)
}

fn header_text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("")
}

/// What the caller says it is talking to: the target's authority, else the one `Host` header (RFC 9112 section 3.2). Two
/// `Host` headers are no answer at all, and match no name.
fn authority(parts: &axum::http::request::Parts) -> &str {
    if let Some(authority) = parts.uri.authority() {
        return authority.as_str();
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or(""),
        (_, _) => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_query_is_read_as_callers_write_it_and_a_bad_one_is_a_bad_request() {
        let read = |query| read_query::<BTreeMap<String, u32>>(query);
        assert_eq!(read(""), Ok(BTreeMap::new()));
        assert_eq!(
            read("tail=5&release=2").map(|read| read.into_values().collect()),
            Ok(vec![2, 5])
        );
        for bad in ["tail=-1", "tail=many", "tail", "tail=5&release="] {
            assert_eq!(
                read(bad).map_err(|problem| problem.code),
                Err(Code::BadRequest),
                "{bad}"
            );
        }
    }
}
