//! What is wrong with an image or its registry, read from the Engine's text: its status codes do not tell. Pure.
//!
//! Texts: moby v20.10 to v28 `distribution/errors.go`, `distribution/registry.go`, docker/distribution
//! `registry/api/errcode`, and Go's `net`, `net/http`, `crypto/x509`.

use deploy_proto::problem::Code;

/// Why an image could not be looked up or pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegistryTrouble {
    /// The repository has no such tag or digest.
    NoSuchTag,
    /// The registry wants credentials, and the host has none for it.
    NoCredentials,
    /// The registry does not take the host's credentials, or they may not read this repository; registries give the same
    /// answer for a repository that does not exist.
    Denied,
    /// Too many requests (429).
    RateLimited,
    /// The registry answered with a server error (5xx).
    ServerError,
    /// The registry cannot be reached, or broke off.
    Unreachable,
    /// The registry's certificate is not trusted by the Engine, or it does not speak TLS.
    Tls,
    /// The image has nothing for the host's platform.
    NoPlatform,
    /// What came does not match its digest.
    Corrupt,
    /// The host's disk is full.
    DiskFull,
    /// Something else.
    Other,
}

/// What the texts contain, in lower case, from the unmistakable to the vague: a pull's text can contain several.
const SIGNS: [(RegistryTrouble, &[&str]); 10] = [
    (
        RegistryTrouble::DiskFull,
        &["no space left on device", "disk quota exceeded"],
    ),
    (
        RegistryTrouble::RateLimited,
        &["toomanyrequests", "too many requests", "rate limit"],
    ),
    (RegistryTrouble::NoCredentials, &["no basic auth credentials"]),
    (
        RegistryTrouble::NoPlatform,
        &[
            "no matching manifest for",
            "no match for platform",
            "does not match the specified platform",
        ],
    ),
    (
        RegistryTrouble::Corrupt,
        &[
            "verification failed for digest",
            "failed to verify",
            "digest mismatch",
            "unexpected commit digest",
        ],
    ),
    (
        RegistryTrouble::Denied,
        &[
            "unauthorized",
            "access denied",
            "denied:",
            "forbidden",
            "authentication required",
            "incorrect username",
        ],
    ),
    (
        RegistryTrouble::NoSuchTag,
        &[
            "manifest unknown",
            "not found",
            "name unknown",
            "repository name not known",
        ],
    ),
    (
        RegistryTrouble::ServerError,
        &[
            "internal server error",
            "bad gateway",
            "service unavailable",
            "gateway timeout",
            "http status: 5",
        ],
    ),
    (
        RegistryTrouble::Tls,
        &["x509:", "certificate", "http response to https client", "tls: "],
    ),
    (
        RegistryTrouble::Unreachable,
        &[
            "connection refused",
            "no such host",
            "timeout",
            "deadline exceeded",
            "eof",
            "no route to host",
            "network is unreachable",
            "connection reset",
            "request canceled",
            "broken pipe",
            "malformed http response",
        ],
    ),
];

impl RegistryTrouble {
    /// Reads the Engine's text.
    pub fn of(text: &str) -> Self {
        let text = text.to_lowercase();
        SIGNS
            .iter()
            .find(|(_, signs)| signs.iter().any(|sign| text.contains(sign)))
            .map_or(Self::Other, |(trouble, _)| *trouble)
    }

    /// Whether it may be over in some seconds.
    pub fn passes(self) -> bool {
        match self {
            Self::RateLimited | Self::ServerError => true,
            Self::NoSuchTag
            | Self::NoCredentials
            | Self::Denied
            | Self::Unreachable
            | Self::Tls
            | Self::NoPlatform
            | Self::Corrupt
            | Self::DiskFull
            | Self::Other => false,
        }
    }

    /// The stable code of a problem that this is the cause of.
    pub fn code(self) -> Code {
        match self {
            Self::DiskFull => Code::HostUnfit,
            Self::NoSuchTag
            | Self::NoCredentials
            | Self::Denied
            | Self::RateLimited
            | Self::ServerError
            | Self::Unreachable
            | Self::Tls
            | Self::NoPlatform
            | Self::Corrupt
            | Self::Other => Code::ImageUnavailable,
        }
    }

    /// In words, to stand before the Engine's own.
    pub fn words(self) -> &'static str {
        match self {
            Self::NoSuchTag => "the registry has no such tag",
            Self::NoCredentials => "the registry wants a login, and this host has none for it",
            Self::Denied => "the registry denies access, or has no such repository",
            Self::RateLimited => "the registry's rate limit is reached",
            Self::ServerError => "the registry has an error of its own",
            Self::Unreachable => "the registry cannot be reached from this host",
            Self::Tls => "the Engine does not trust the registry's certificate",
            Self::NoPlatform => "the image has nothing for this host's platform",
            Self::Corrupt => "what the registry sent does not match its digest",
            Self::DiskFull => "the host's disk is full",
            Self::Other => "the Engine could not get it",
        }
    }

    /// What to do about it.
    pub fn hint(self, registry: &str) -> String {
        match self {
            Self::NoSuchTag => {
                "check that the build pushed this tag before the deployment started".to_owned()
            }
            Self::NoCredentials => {
                format!("the agent reads the login for {registry} where `docker login` leaves it")
            }
            Self::Denied => format!(
                "check the repository's name, and that the host's login for {registry} may read it and has not expired"
            ),
            Self::RateLimited => {
                format!("wait, or log the host in to {registry} for a higher limit, or use a mirror")
            }
            Self::ServerError | Self::Corrupt => format!("try again; if it stays so, look at {registry}"),
            Self::Unreachable => {
                format!("check the name, DNS, firewall and proxy between the host and {registry}")
            }
            Self::Tls => {
                format!("put the registry's CA into /etc/docker/certs.d/{registry}/ca.crt on the host")
            }
            Self::NoPlatform => {
                "build the image for the host's platform (docker buildx build --platform)".to_owned()
            }
            Self::DiskFull => "free space on the host, for instance with `docker image prune`".to_owned(),
            Self::Other => "look at the Engine's own log on the host".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_tell_the_kinds_apart() {
        use RegistryTrouble as T;
        for (text, trouble) in [
            (
                "manifest for r.example/x:nope not found: manifest unknown: manifest unknown",
                T::NoSuchTag,
            ),
            (
                "errors:\nname unknown: repository name not known to registry\n",
                T::NoSuchTag,
            ),
            (
                "Get \"http://r.example/v2/x/manifests/v1\": no basic auth credentials",
                T::NoCredentials,
            ),
            (
                "Head \"https://r.example/v2/x/manifests/v1\": unauthorized: incorrect username or password",
                T::Denied,
            ),
            (
                "pull access denied for acme/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                T::Denied,
            ),
            (
                "toomanyrequests: You have reached your pull rate limit.",
                T::RateLimited,
            ),
            (
                "received unexpected HTTP status: 503 Service Unavailable",
                T::ServerError,
            ),
            (
                "received unexpected HTTP status: 500 Internal Server Error",
                T::ServerError,
            ),
            (
                "Get \"https://r.example/v2/\": dial tcp 192.0.2.1:443: connect: connection refused",
                T::Unreachable,
            ),
            (
                "Get \"https://r.example/v2/\": dial tcp: lookup r.example on 192.0.2.53:53: no such host",
                T::Unreachable,
            ),
            (
                "Get \"https://r.example/v2/\": net/http: TLS handshake timeout",
                T::Unreachable,
            ),
            (
                "Get \"https://r.example/v2/\": context deadline exceeded",
                T::Unreachable,
            ),
            ("unexpected EOF", T::Unreachable),
            (
                "Get \"https://r.example/v2/\": x509: certificate signed by unknown authority",
                T::Tls,
            ),
            (
                "Get \"https://r.example/v2/\": http: server gave HTTP response to HTTPS client",
                T::Tls,
            ),
            (
                "no matching manifest for linux/amd64 in the manifest list entries",
                T::NoPlatform,
            ),
            (
                "filesystem layer verification failed for digest sha256:00",
                T::Corrupt,
            ),
            (
                "failed to register layer: write /x: no space left on device",
                T::DiskFull,
            ),
            ("something new", T::Other),
        ] {
            assert_eq!(T::of(text), trouble, "{text}");
        }
    }
}
