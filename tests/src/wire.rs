//! Requests byte by byte over TLS: what no honest caller sends, and what a caller in another language would.
//!
//! The signatures are made here a second time, from RFC 9421 and not with `deploy_proto::signing`, so that every part of
//! them can be wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use deploy_proto::event::{Event, Happened, Outcome, PhaseName};
use deploy_proto::signing::PrivateKey;
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use serde_json::Value;

use crate::agent::Agent;
use crate::images::unique;
use crate::until::until;

/// No answer of the agent takes longer, but those that are asked to.
const DEADLINE: Duration = Duration::from_secs(20);

/// What every signature must cover, in the order in which `deployctl` writes it.
pub const COVERED: [&str; 6] = [
    "@method",
    "@authority",
    "@path",
    "@query",
    "content-type",
    "content-digest",
];

/// Returns the time as Unix seconds.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// A request as it is sent: every part can be changed before it is signed, and after.
#[derive(Debug, Clone)]
pub struct Message {
    /// `POST`.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// With its `?`, or empty.
    pub query: String,
    /// What `Host` says.
    pub host: String,
    /// All other headers.
    pub headers: Vec<(String, String)>,
    /// The body; its length is sent in `Content-Length`.
    pub body: Vec<u8>,
}

/// What is said of a signature, before it is made.
#[derive(Debug, Clone)]
pub struct Input {
    /// `sig1`, in `Signature-Input`.
    pub label: String,
    /// The label in `Signature`.
    pub signature_label: String,
    /// The covered components.
    pub components: Vec<String>,
    /// What follows the list of components, each as it is written: `created=1618884473`, `alg="ed25519"`.
    pub params: Vec<(String, String)>,
}

impl Input {
    fn new(key: &PrivateKey) -> Self {
        let params = [
            ("created", now().to_string()),
            ("expires", (now() + 60).to_string()),
            // 22 characters at least; unique() has the process, a counter and random bits.
            ("nonce", format!("\"{:-<32}\"", unique("nonce"))),
            ("keyid", format!("\"{}\"", key.public())),
            ("alg", "\"ed25519\"".to_owned()),
            ("tag", "\"deployctl/v1\"".to_owned()),
        ];
        Self {
            label: "sig1".to_owned(),
            signature_label: "sig1".to_owned(),
            components: COVERED.map(str::to_owned).to_vec(),
            params: params.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        }
    }

    /// Writes a parameter otherwise, in its place.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        for (key, old) in &mut self.params {
            if key == name {
                *old = value.to_string();
            }
        }
    }

    /// Leaves a parameter out.
    pub fn remove(&mut self, name: &str) {
        self.params.retain(|(key, _)| key != name);
    }

    fn text(&self) -> String {
        let components: Vec<String> = self.components.iter().map(|name| format!("\"{name}\"")).collect();
        let params: String = self
            .params
            .iter()
            .map(|(name, value)| format!(";{name}={value}"))
            .collect();
        format!("({}){params}", components.join(" "))
    }
}

impl Message {
    /// A POST of JSON that is not signed yet.
    pub fn post(agent: &Agent, path: &str, body: &Value) -> Self {
        Self::new(agent, "POST", path, body.to_string().as_bytes())
    }

    /// A GET that is not signed yet.
    pub fn get(agent: &Agent, path: &str) -> Self {
        Self::new(agent, "GET", path, b"")
    }

    fn new(agent: &Agent, method: &str, path: &str, body: &[u8]) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: String::new(),
            host: agent.authority(),
            headers: vec![("content-type".to_owned(), "application/json".to_owned())],
            body: body.to_vec(),
        }
    }

    /// The header's value; the first, if there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Replaces a header, or adds it.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves a header out.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self
    }

    /// Digests and signs it as `deployctl` does.
    #[must_use]
    pub fn signed(self, key: &PrivateKey) -> Self {
        self.signed_as(key, |_| {})
    }

    /// Digests it, and signs it with another input: a true signature of whatever it says.
    #[must_use]
    pub fn signed_as(self, key: &PrivateKey, change: impl FnOnce(&mut Input)) -> Self {
        let digest = format!("sha-256=:{}:", STANDARD.encode(digest(&SHA256, &self.body)));
        self.with("content-digest", &digest)
            .signed_undigested(key, change)
    }

    /// Signs it with the digest that it has.
    #[must_use]
    pub fn signed_undigested(self, key: &PrivateKey, change: impl FnOnce(&mut Input)) -> Self {
        let mut input = Input::new(key);
        change(&mut input);
        let mut base = String::new();
        for name in &input.components {
            let value = match name.as_str() {
                "@method" => self.method.clone(),
                "@authority" => self.host.clone(),
                "@path" => self.path.clone(),
                "@query" if self.query.is_empty() => "?".to_owned(),
                "@query" => self.query.clone(),
                header => self.header(header).unwrap_or_default().to_owned(),
            };
            base.push_str(&format!("\"{name}\": {value}\n"));
        }
        base.push_str(&format!("\"@signature-params\": {}", input.text()));
        let signature = STANDARD.encode(key.sign(base.as_bytes()));
        let input_line = format!("{}={}", input.label, input.text());
        let signature_line = format!("{}=:{signature}:", input.signature_label);
        self.with("signature-input", &input_line)
            .with("signature", &signature_line)
    }

    /// Its head, up to and with the empty line, for a body of this length.
    pub fn head(&self, length: Option<usize>) -> String {
        let mut head = format!("{} {}{} HTTP/1.1\r\n", self.method, self.path, self.query);
        if !self.host.is_empty() {
            head.push_str(&format!("Host: {}\r\n", self.host));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(length) = length {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        head
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head(Some(self.body.len())).into_bytes();
        bytes.extend(&self.body);
        bytes
    }

    /// Sends it on a connection of its own, and reads the answer.
    pub fn send(&self, agent: &Agent) -> Result<Answer> {
        let mut connection = Connection::open(agent.port())?;
        connection.write(&self.bytes())?;
        connection.answer()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }

    /// The problem document's code, or nothing.
    pub fn code(&self) -> String {
        let code = self
            .json()
            .ok()
            .and_then(|json| Some(json.get("code")?.as_str()?.to_owned()));
        code.unwrap_or_default()
    }

    /// The header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// A TLS connection to an agent, whatever its certificate says.
pub struct Connection {
    stream: BufReader<StreamOwned<ClientConnection, TcpStream>>,
}

impl Connection {
    /// Connects to a port of 127.0.0.1 and shakes hands.
    pub fn open(port: u16) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let tcp = TcpStream::connect_timeout(&address, DEADLINE)?;
        tcp.set_read_timeout(Some(DEADLINE))?;
        tcp.set_write_timeout(Some(DEADLINE))?;
        tcp.set_nodelay(true)?;
        let provider = Arc::new(provider::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from("127.0.0.1")?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, tcp);
        stream.flush()?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// How long to wait for bytes.
    pub fn set_deadline(&self, deadline: Duration) -> Result<()> {
        Ok(self.stream.get_ref().sock.set_read_timeout(Some(deadline))?)
    }

    /// Sends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes)?;
        Ok(self.stream.get_mut().flush()?)
    }

    /// Reads the status line and the headers.
    pub fn answer_head(&mut self) -> Result<Answer> {
        let line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.with_context(|| format!("no status in {line:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Answer {
            status,
            headers,
            body: String::new(),
        })
    }

    /// Reads a whole answer.
    pub fn answer(&mut self) -> Result<Answer> {
        let mut answer = self.answer_head()?;
        let mut body = Vec::new();
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk()? {
                body.extend(chunk);
            }
        } else {
            let length = answer.header("content-length").unwrap_or("0").parse()?;
            self.stream.by_ref().take(length).read_to_end(&mut body)?;
        }
        answer.body = String::from_utf8(body)?;
        Ok(answer)
    }

    /// The next chunk of a chunked body; none at its end.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let size = self.line()?;
        let size = usize::from_str_radix(size.trim(), 16).with_context(|| format!("{size:?} is no size"))?;
        let mut chunk = vec![0; size];
        self.stream.read_exact(&mut chunk)?;
        self.line()?;
        Ok((size > 0).then_some(chunk))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("the connection was closed");
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// A deployment's events as they come.
pub struct Events {
    connection: Connection,
    text: String,
}

impl Events {
    /// Follows a deployment from its first event, or from the one after `last`.
    pub fn follow(agent: &Agent, key: &PrivateKey, id: &str, last: Option<u64>) -> Result<Self> {
        let mut message = Message::get(agent, &format!("/v1/deployments/{id}/events")).signed(key);
        if let Some(last) = last {
            message = message.with("last-event-id", &last.to_string());
        }
        let mut connection = Connection::open(agent.port())?;
        connection.write(&message.bytes())?;
        let answer = connection.answer_head()?;
        if answer.status != 200 {
            bail!("following {id}: {answer:?}");
        }
        // A deployment may be silent for as long as its `wait`.
        connection.set_deadline(Duration::from_secs(90))?;
        Ok(Self {
            connection,
            text: String::new(),
        })
    }

    /// Follows a deployment that is being asked for, from the moment the agent has it.
    pub fn when_accepted(agent: &Agent, key: &PrivateKey, id: &str) -> Result<Self> {
        until(&format!("{id} is accepted"), DEADLINE, || {
            Ok(Self::follow(agent, key, id, None).ok())
        })
    }

    /// The next event; none at the end of the stream.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let data: Vec<&str> = block
                    .lines()
                    .filter_map(|line| line.strip_prefix("data:"))
                    .collect();
                let event = if data.is_empty() {
                    None
                } else {
                    Some(serde_json::from_str(&data.join("\n")).with_context(|| block.to_owned())?)
                };
                self.text = rest.to_owned();
                if event.is_some() {
                    return Ok(event);
                }
            }
            match self.connection.chunk()? {
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk)?),
                None => return Ok(None),
            }
        }
    }

    /// Reads on until a phase begins.
    pub fn reach(&mut self, phase: PhaseName) -> Result<()> {
        while let Some(event) = self.next_event()? {
            if event.what == (Happened::Phase { phase }) {
                return Ok(());
            }
            if let Happened::Ended { outcome } = event.what {
                bail!("it ended before {}: {outcome:?}", phase.as_str());
            }
        }
        bail!("the stream ended before {}", phase.as_str())
    }

    /// Reads on to the end.
    pub fn outcome(&mut self) -> Result<Outcome> {
        while let Some(event) = self.next_event()? {
            if let Happened::Ended { outcome } = event.what {
                return Ok(outcome);
            }
        }
        bail!("the stream ended before the deployment")
    }

    /// All events to the end.
    pub fn all(mut self) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        while let Some(event) = self.next_event()? {
            events.push(event);
        }
        Ok(events)
    }
}

/// Takes any certificate: who answers is not what these tests ask.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
