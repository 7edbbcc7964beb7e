//! HTTP probes: one GET, no redirects, a deadline, the status decides.

use std::error::Error as StdError;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use reqwest::redirect::Policy;
use reqwest::{Client, StatusCode, Url};
use rustls::crypto::{CryptoProvider, ring};

use super::probe::in_words;
use crate::deploy::verdict::seconds;

/// The clients, each made when it is first needed: the one that checks certificates reads all of the host's roots.
#[derive(Clone, Default)]
pub(super) struct Http {
    clients: Arc<Clients>,
}

#[derive(Default)]
struct Clients {
    checking: OnceLock<Client>,
    trusting: OnceLock<Client>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

/// Whose word a server's certificate is taken on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Certificates {
    /// The host's roots.
    Checked,
    /// Any: nobody stands between us and this machine itself.
    Any,
}

impl Http {
    /// Asks once. `Ok` when the answer has the wanted status, any 2xx by default; both in words.
    pub(super) async fn check(
        &self,
        url: &str,
        wanted: Option<u16>,
        limit: Duration,
    ) -> Result<String, String> {
        let parsed = Url::parse(url).map_err(|error| format!("{url} is no URL: {error}"))?;
        let client = self.client(&parsed)?;
        let begun = Instant::now();
        let asked = client.get(parsed).timeout(limit).send().await;
        let status = match asked {
            Ok(answer) => answer.status(),
            Err(error) if error.is_timeout() => {
                return Err(format!("GET {url} gave no answer within {}", seconds(limit)));
            }
            Err(error) => return Err(format!("GET {url}: {}", innermost(&error))),
        };
        let said = format!("GET {url} gave {}", status.as_u16());
        if is_wanted(status, wanted) {
            Ok(format!("{said} in {} ms", begun.elapsed().as_millis()))
        } else {
            Err(said)
        }
    }

    fn client(&self, url: &Url) -> Result<&Client, String> {
        let certificates = if url.scheme() != "https" || is_loopback(url) {
            Certificates::Any
        } else {
            Certificates::Checked
        };
        let made = match certificates {
            Certificates::Any => &self.clients.trusting,
            Certificates::Checked => &self.clients.checking,
        };
        if let Some(client) = made.get() {
            return Ok(client);
        }
        let client = build(certificates).map_err(|error| format!("no HTTP client: {}", innermost(&error)))?;
        Ok(made.get_or_init(|| client))
    }
}

fn build(certificates: Certificates) -> reqwest::Result<Client> {
    if CryptoProvider::get_default().is_none() {
        // Only fails when another thread was first, with the same one.
        ring::default_provider().install_default().unwrap_or(());
    }
    Client::builder()
        .user_agent(concat!("deploy-agent/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .no_proxy()
        // A kept connection leads to the container that was replaced, and proves nothing about the new one.
        .pool_max_idle_per_host(0)
        .tls_danger_accept_invalid_certs(certificates == Certificates::Any)
        .build()
}

fn is_wanted(status: StatusCode, wanted: Option<u16>) -> bool {
    wanted.map_or(status.is_success(), |wanted| status.as_u16() == wanted)
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// The last cause, which says what happened; those before it say that something did.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(deeper) = last.source() {
        last = deeper;
    }
    last.downcast_ref().map_or_else(|| last.to_string(), in_words)
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_millis(300);

    /// A server that answers each connection with these bytes, or never when there are none.
    async fn server(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/health", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut kept = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                if answer.is_empty() {
                    kept.push(stream);
                    continue;
                }
                let mut request = [0; 1024];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[tokio::test]
    async fn the_status_decides_and_redirects_are_not_followed() {
        const OK: &str = "HTTP/1.1 204 No Content\r\n\r\n";
        const SICK: &str = "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
        const MOVED: &str =
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
        let http = Http::default();
        for (answer, wanted, end) in [
            (OK, None, Ok("gave 204 in")),
            (OK, Some(200), Err("gave 204")),
            (SICK, None, Err("gave 500")),
            (SICK, Some(500), Ok("gave 500 in")),
            (MOVED, None, Err("gave 302")),
        ] {
            let url = server(answer).await;
            let got = http.check(&url, wanted, LIMIT).await;
            match end {
                Ok(words) => assert!(got.unwrap().starts_with(&format!("GET {url} {words}"))),
                Err(words) => assert_eq!(got.unwrap_err(), format!("GET {url} {words}")),
            }
        }
    }

    #[tokio::test]
    async fn no_answer_and_no_server_are_said_in_words() {
        let http = Http::default();
        let silent = server("").await;
        assert_eq!(
            http.check(&silent, None, LIMIT).await.unwrap_err(),
            format!("GET {silent} gave no answer within 0.3s")
        );
        assert_eq!(
            http.check("http://127.0.0.1:1/", None, LIMIT).await.unwrap_err(),
            "GET http://127.0.0.1:1/: connection refused"
        );
    }

    #[test]
    fn only_this_machine_is_taken_at_its_word() {
        for (url, loopback) in [
            ("https://localhost/", true),
            ("https://127.8.0.1:8443/", true),
            ("https://[::1]:1/", true),
            ("https://localhost.example/", false),
            ("https://10.0.0.1/", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), loopback, "{url}");
        }
    }
}
