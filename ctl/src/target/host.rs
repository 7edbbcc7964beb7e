//! The address of an agent, and what a person calls the host.

use std::fmt;
use std::str::FromStr;

use reqwest::Url;
use reqwest::header::HeaderValue;

/// An agent's address: `https://HOST[:PORT]`, nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostUrl(Url);

/// Why a text is not an agent's address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHost {
    #[error("it is not an address")]
    NotUrl(String),
    #[error("http:// sends requests in the clear")]
    Plain(String),
    #[error("an agent's address has no path, query, fragment, user or password")]
    MoreThanHost(String),
}

impl BadHost {
    /// What to write instead.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::NotUrl(likely) => format!("write https://HOST:PORT, for instance {likely}"),
            Self::Plain(likely) => format!("agents speak TLS only: {likely}"),
            Self::MoreThanHost(likely) => format!("write only {likely}"),
        }
    }
}

impl HostUrl {
    /// Host and port as they stand in the request's `Host` (RFC 9421 section 2.2.3): lower case, no default port.
    pub(crate) fn authority(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        match self.0.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        }
    }

    /// The address of a path on this agent; `path` begins with `/`, `query` has no `?`.
    pub(crate) fn join(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.0.clone();
        url.set_path(path);
        url.set_query(query);
        url
    }

    /// The first label of a name (`web-1` of `web-1.example.com`); an address has none.
    fn first_label(&self) -> Option<&str> {
        let name = self.0.domain()?;
        let (first, _) = name.split_once('.')?;
        Some(first)
    }
}

impl FromStr for HostUrl {
    type Err = BadHost;

    fn from_str(text: &str) -> Result<Self, BadHost> {
        let Some((scheme, _)) = text.split_once("://") else {
            let likely = format!("https://{text}");
            return Err(BadHost::NotUrl(match Url::parse(&likely) {
                Ok(_) => likely,
                Err(_) => "https://web-1.example.com:8443".to_owned(),
            }));
        };
        let url = Url::parse(text)
            .ok()
            .filter(|url| url.has_host() && HeaderValue::from_str(text).is_ok())
            .ok_or_else(|| BadHost::NotUrl("https://web-1.example.com:8443".to_owned()))?;
        let bare = Self(url.clone()).authority();
        if scheme.eq_ignore_ascii_case("http") {
            return Err(BadHost::Plain(format!("https://{bare}")));
        }
        if url.scheme() != "https" {
            return Err(BadHost::NotUrl("https://web-1.example.com:8443".to_owned()));
        }
        let only_host = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if only_host {
            Ok(Self(url))
        } else {
            Err(BadHost::MoreThanHost(format!("https://{bare}")))
        }
    }
}

impl fmt::Display for HostUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// A host of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// What a person calls it: the first label where that tells the hosts apart, else host and port.
    pub(crate) name: String,
    /// Where its agent is.
    pub(crate) url: HostUrl,
}

impl Host {
    /// Names hosts so that each name is used once.
    pub(crate) fn name_all(urls: &[HostUrl]) -> Vec<Self> {
        let short: Vec<_> = urls.iter().map(HostUrl::first_label).collect();
        let unique = |label: Option<&str>| short.iter().filter(|other| **other == label).count() == 1;
        let use_short = short.iter().all(|label| label.is_some() && unique(*label));
        urls.iter()
            .zip(&short)
            .map(|(url, label)| Self {
                name: match label {
                    Some(label) if use_short => (*label).to_owned(),
                    Some(_) | None => url.authority(),
                },
                url: url.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_https_host_and_port_and_nothing_else() {
        for (text, authority) in [
            ("https://web-1.example.com:8443", "web-1.example.com:8443"),
            ("https://WEB-1.example.com:443/", "web-1.example.com"),
            ("https://127.0.0.1:8443", "127.0.0.1:8443"),
            ("https://[::1]:8443", "[::1]:8443"),
        ] {
            assert_eq!(text.parse::<HostUrl>().unwrap().authority(), authority);
        }
        for (text, hint) in [
            (
                "web-1:8443",
                "write https://HOST:PORT, for instance https://web-1:8443",
            ),
            ("http://web-1:8443", "agents speak TLS only: https://web-1:8443"),
            ("https://web-1/shop", "write only https://web-1"),
            ("https://user:pw@web-1", "write only https://web-1"),
            ("https://web-1/?a", "write only https://web-1"),
            (
                "ftp://web-1",
                "write https://HOST:PORT, for instance https://web-1.example.com:8443",
            ),
            (
                "https://",
                "write https://HOST:PORT, for instance https://web-1.example.com:8443",
            ),
            (
                "",
                "write https://HOST:PORT, for instance https://web-1.example.com:8443",
            ),
        ] {
            assert_eq!(text.parse::<HostUrl>().unwrap_err().hint(), hint, "{text}");
        }
    }

    #[test]
    fn hosts_are_called_by_their_first_label_unless_that_is_ambiguous() {
        let named = |texts: &[&str]| -> Vec<String> {
            let urls: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            Host::name_all(&urls).into_iter().map(|host| host.name).collect()
        };
        assert_eq!(
            named(&["https://web-1.a.com:8443", "https://web-2.a.com:8443"]),
            ["web-1", "web-2"]
        );
        assert_eq!(
            named(&["https://web.a.com", "https://web.b.com"]),
            ["web.a.com", "web.b.com"]
        );
        assert_eq!(named(&["https://10.0.0.1:8443"]), ["10.0.0.1:8443"]);
        assert_eq!(named(&["https://localhost:8443"]), ["localhost:8443"]);
    }
}
