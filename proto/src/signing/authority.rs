//! Hosts and ports as `@authority` has them (RFC 9421 section 2.2.3), and the names that a host answers to.
//!
//! A signature made for one host must be worthless on every other, even when `Host` is copied along with it.

/// The port that `https` has when none is written.
const DEFAULT_PORT: u16 = 443;
/// The longest authority that is read, in bytes: a DNS name ends at 253, and a port takes six more.
const AUTHORITY_MAX_BYTES: usize = 259;

/// Why a text is not a name that a host can answer to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shown} is not a host name: write web-1.example.com, or web-1.example.com:8443 for that port alone")]
pub struct BadAuthority {
    shown: String,
}

/// The names a host answers to. Without any, it answers to none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuthorityNames(Vec<OwnName>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnName {
    host: String,
    port: Port,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Any,
    Exactly(u16),
}

impl AuthorityNames {
    /// Reads names as a person writes them: `web-1.example.com` matches any port, `web-1.example.com:8443` that one
    /// alone, `[::1]` and `10.0.0.5` work too. Case does not matter.
    ///
    /// # Errors
    /// The first text that is not a name.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, BadAuthority> {
        names
            .into_iter()
            .map(own_name)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(super) fn include(&self, authority: &Authority) -> bool {
        self.0.iter().any(|name| {
            name.host == authority.host
                && match name.port {
                    Port::Any => true,
                    Port::Exactly(port) => port == authority.port,
                }
        })
    }
}

/// A request's host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authority {
    host: String,
    port: u16,
}

impl Authority {
    /// Reads `host`, `host:port`, `[v6]` or `[v6]:port`; nothing else, so no user and no empty port.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (host, port) = split(text)?;
        Some(Self {
            host,
            port: port.unwrap_or(DEFAULT_PORT),
        })
    }

    /// The value of `@authority`: lower case, without the default port of https.
    pub(super) fn canonical(&self) -> String {
        let Self { host, port } = self;
        if *port == DEFAULT_PORT {
            host.clone()
        } else {
            format!("{host}:{port}")
        }
    }
}

fn own_name(text: &str) -> Result<OwnName, BadAuthority> {
    let (host, port) = split(text).ok_or_else(|| BadAuthority {
        shown: format!("{:?}", text.chars().take(64).collect::<String>()),
    })?;
    let port = port.map_or(Port::Any, Port::Exactly);
    Ok(OwnName { host, port })
}

fn split(text: &str) -> Option<(String, Option<u16>)> {
    if text.len() > AUTHORITY_MAX_BYTES {
        return None;
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let host = format!("[{}]", some_of(address, b":.")?);
        return match after {
            "" => Some((host, None)),
            _ => Some((host, Some(port(after.strip_prefix(':')?)?))),
        };
    }
    match text.split_once(':') {
        None => Some((some_of(text, b".-_")?, None)),
        Some((host, after)) => Some((some_of(host, b".-_")?, Some(port(after)?))),
    }
}

/// The text in lower case, if it is not empty and has only letters, digits and the given marks.
fn some_of(text: &str, marks: &[u8]) -> Option<String> {
    let good = !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || marks.contains(&b));
    good.then(|| text.to_ascii_lowercase())
}

/// A port in its one spelling: no sign, no leading zero.
fn port(text: &str) -> Option<u16> {
    let number: u16 = text.parse().ok()?;
    (number != 0 && number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_lower_cased_and_loses_the_default_port() {
        for (text, canonical) in [
            ("Web-1.Example.COM", "web-1.example.com"),
            ("web-1.example.com:443", "web-1.example.com"),
            ("web-1.example.com:8443", "web-1.example.com:8443"),
            ("10.0.0.5:80", "10.0.0.5:80"),
            ("[FE80::1]:443", "[fe80::1]"),
            ("[::1]:8443", "[::1]:8443"),
        ] {
            assert_eq!(Authority::read(text).unwrap().canonical(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_not_exactly_a_host_and_a_port_is_refused() {
        for text in [
            "",
            ":443",
            "a:",
            "a:0",
            "a:0443",
            "a:+443",
            "a:65536",
            "a:b",
            "a:1:2",
            "user@a",
            "a/b",
            "a b",
            "a\n",
            "ä",
            "a,b",
            "[::1",
            "[]",
            "[::1]x",
            "[::1]:",
            "::1",
            "*",
            &"a".repeat(300),
        ] {
            assert!(Authority::read(text).is_none(), "{text:?}");
            assert!(AuthorityNames::new([text]).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_name_without_port_is_any_port_and_with_one_that_port() {
        let names = AuthorityNames::new(["Web-1.example.com", "10.0.0.5:8443", "b:443"]).unwrap();
        for (authority, own) in [
            ("web-1.example.com", true),
            ("WEB-1.example.com:8443", true),
            ("10.0.0.5:8443", true),
            ("10.0.0.5", false),
            ("10.0.0.5:443", false),
            ("b", true),
            ("b:443", true),
            ("b:8443", false),
            ("web-2.example.com", false),
            ("web-1.example.com.", false),
            ("x.web-1.example.com", false),
        ] {
            assert_eq!(
                names.include(&Authority::read(authority).unwrap()),
                own,
                "{authority}"
            );
        }
        let none = AuthorityNames::default();
        assert!(!none.include(&Authority::read("b").unwrap()));
    }
}
