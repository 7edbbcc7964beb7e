//! One agent: signs requests, sends them over one kept connection, reads the answers.
//!
//! It prints nothing and decides nothing; `deliver` and `follow` hold what survives a lost connection.

pub(crate) mod deliver;
pub(crate) mod error;
pub(crate) mod follow;
mod sse;
#[cfg(test)]
mod tests;
mod tls;

use std::time::Duration;

use deploy_proto::names::DeploymentId;
use deploy_proto::problem::{MEDIA_TYPE, ProblemDocument};
use deploy_proto::signing::{PrivateKey, RequestParts, sign_request};
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, Response};
use ring::rand::SecureRandom;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::pin::Pin;
use crate::target::host::Host;
pub(crate) use error::ClientError;

/// How long a connection, with its TLS handshake, may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long an answer may take. A plan resolves every tag at its registry before it answers.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The largest answer that is read, in bytes: a history of a thousand deployments is about 2 MiB.
const ANSWER_MAX_BYTES: usize = 16 * 1024 * 1024;
/// The media type of every request, those without a body too: the signature covers it.
const JSON: &str = "application/json";

/// Clock and randomness, passed in.
pub(crate) struct Surroundings {
    /// What time it is.
    pub(crate) now: fn() -> Timestamp,
    /// The source of nonces and ids.
    pub(crate) rng: Box<dyn SecureRandom>,
}

impl Surroundings {
    /// Draws a deployment's id.
    pub(crate) fn draw_id(&self) -> Result<DeploymentId, ClientError> {
        let mut bits = [0; 8];
        self.rng.fill(&mut bits).map_err(|_| ClientError::Randomness)?;
        Ok(DeploymentId::from_bits(u64::from_be_bytes(bits)))
    }
}

/// The agent of one host.
pub(crate) struct Agent<'a> {
    /// The host.
    pub(crate) host: &'a Host,
    pins: &'a [Pin],
    key: &'a PrivateKey,
    surroundings: &'a Surroundings,
    http: reqwest::Client,
}

/// One request before it is signed.
struct Request<'r> {
    method: Method,
    path: &'r str,
    query: Option<&'r str>,
    body: &'r [u8],
    last_event_id: Option<u64>,
}

impl<'a> Agent<'a> {
    /// Sets up the client of one host; nothing is sent yet.
    pub(crate) fn new(
        host: &'a Host,
        pins: &'a [Pin],
        key: &'a PrivateKey,
        surroundings: &'a Surroundings,
    ) -> Result<Self, ClientError> {
        let builder = reqwest::Client::builder()
            .user_agent(concat!("deployctl/", env!("CARGO_PKG_VERSION")))
            .https_only(true)
            .http1_only()
            .redirect(Policy::none())
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_DEADLINE);
        // The system's roots are read only without a pin: it takes longer than all the rest of a push with nothing to do.
        let builder = if pins.is_empty() {
            // A second agent of the same process finds the provider installed already, which is as good.
            drop(rustls::crypto::ring::default_provider().install_default());
            builder
        } else {
            builder.tls_backend_preconfigured(tls::pinned(pins).map_err(ClientError::Tls)?)
        };
        Ok(Self {
            host,
            pins,
            key,
            surroundings,
            http: builder.build().map_err(|source| match pins {
                [] => ClientError::Roots(source),
                [..] => ClientError::Http(source),
            })?,
        })
    }

    /// Asks, and reads the answer.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: Option<&str>,
    ) -> Result<T, ClientError> {
        let request = Request {
            method: Method::GET,
            path,
            query,
            body: b"",
            last_event_id: None,
        };
        self.answer(&request).await
    }

    /// Posts a body, and reads the answer.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| ClientError::Unreadable {
            host: self.host.name.clone(),
            source,
        })?;
        let request = Request {
            method: Method::POST,
            path,
            query: None,
            body: &body,
            last_event_id: None,
        };
        self.answer(&request).await
    }

    /// Opens an answer that goes on: a log.
    pub(crate) async fn open_log(&self, path: &str, query: &str) -> Result<Log<'_>, ClientError> {
        let request = Request {
            method: Method::GET,
            path,
            query: Some(query),
            body: b"",
            last_event_id: None,
        };
        let response = self.open(&request).await?;
        Ok(Log {
            agent: self,
            response,
        })
    }

    async fn answer<T: DeserializeOwned>(&self, request: &Request<'_>) -> Result<T, ClientError> {
        let whole = async {
            let response = self.open(request).await?;
            self.body(response).await
        };
        let body = tokio::time::timeout(ANSWER_DEADLINE, whole)
            .await
            .map_err(|_| self.silent(ANSWER_DEADLINE))??;
        serde_json::from_slice(&body).map_err(|source| ClientError::Unreadable {
            host: self.host.name.clone(),
            source,
        })
    }

    /// Signs and sends a request, and turns an error answer into an error. The body of a good one is not read yet.
    async fn open(&self, request: &Request<'_>) -> Result<Response, ClientError> {
        let send = self
            .http
            .request(
                request.method.clone(),
                self.host.url.join(request.path, request.query),
            )
            .headers(self.headers(request)?)
            .body(request.body.to_vec())
            .send();
        let response = tokio::time::timeout(ANSWER_DEADLINE, send)
            .await
            .map_err(|_| self.silent(ANSWER_DEADLINE))?
            .map_err(|source| ClientError::of_request(self.host, self.pins, source))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    fn headers(&self, request: &Request<'_>) -> Result<HeaderMap, ClientError> {
        let parts = RequestParts {
            method: request.method.as_str(),
            authority: &self.host.url.authority(),
            path: request.path,
            query: request.query,
            content_type: JSON,
            body: request.body,
        };
        let now = (self.surroundings.now)().as_second();
        let signed =
            sign_request(self.key, &parts, now, self.surroundings.rng.as_ref()).map_err(ClientError::Sign)?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
        for (name, text) in [
            ("content-digest", signed.content_digest),
            ("signature-input", signed.signature_input),
            ("signature", signed.signature),
        ] {
            // Structured fields are ASCII without control characters (RFC 9651 section 4.1).
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if let Some(seq) = request.last_event_id {
            headers.insert(HeaderName::from_static("last-event-id"), HeaderValue::from(seq));
        }
        Ok(headers)
    }

    async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status();
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.starts_with(MEDIA_TYPE));
        let host_time = response
            .headers()
            .get(DATE)
            .and_then(|value| value.to_str().ok())
            .and_then(http_date);
        let ahead_seconds = host_time.map(|time| (self.surroundings.now)().as_second() - time.as_second());
        let host = self.host.name.clone();
        if !is_problem {
            let what = format!("HTTP status {status}");
            return ClientError::Foreign { host, what };
        }
        match self.body(response).await {
            Ok(body) => match serde_json::from_slice::<ProblemDocument>(&body) {
                Ok(document) => ClientError::Answered {
                    host,
                    problem: Box::new(document.problem),
                    ahead_seconds,
                },
                Err(source) => ClientError::Unreadable { host, source },
            },
            Err(error) => error,
        }
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|source| ClientError::of_request(self.host, self.pins, source))?
        {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_MAX_BYTES {
                return Err(ClientError::Foreign {
                    host: self.host.name.clone(),
                    what: format!("it has more than {ANSWER_MAX_BYTES} bytes"),
                });
            }
        }
        Ok(body)
    }

    fn silent(&self, waited: Duration) -> ClientError {
        ClientError::Silent {
            host: self.host.name.clone(),
            seconds: waited.as_secs(),
        }
    }
}

/// A log as it comes.
pub(crate) struct Log<'a> {
    agent: &'a Agent<'a>,
    response: Response,
}

impl Log<'_> {
    /// The next bytes; none at the end. Without a deadline: a quiet service writes nothing for days.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, ClientError> {
        let chunk = self.response.chunk().await;
        chunk
            .map(|chunk| chunk.map(|bytes| bytes.to_vec()))
            .map_err(|source| ClientError::of_request(self.agent.host, self.agent.pins, source))
    }
}

/// Reads the `Date` of an answer (RFC 9110 section 5.6.7).
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text)
        .ok()
        .map(|zoned| zoned.timestamp())
}
