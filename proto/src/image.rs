//! Image references by the grammar of the distribution project, kept as they were written.
//!
//! Unlike what parsers for pulling do, nothing is added: a reference without a tag has no tag, `acme/api` stays
//! `acme/api`, and `repository()` gives back the very bytes that were read. `canonical()` is for comparing.
//! Source: <https://github.com/distribution/reference> `regexp.go`, read as of v0.6.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest tag, in bytes (distribution: `[\w][\w.-]{0,127}`).
pub const TAG_MAX_BYTES: usize = 128;
/// The longest repository name, in bytes (distribution: `RepositoryNameTotalLengthMax`).
pub const REPOSITORY_MAX_BYTES: usize = 255;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference {shown} is not valid: {reason}")]
pub struct BadImage {
    shown: String,
    reason: &'static str,
}

/// A content digest, `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// The digest with its algorithm, `sha256:...`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve hexadecimal digits, as `docker images` shows them.
    pub fn short(&self) -> &str {
        self.0.get(7..19).unwrap_or(&self.0)
    }
}

impl FromStr for Digest {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<Self, BadImage> {
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(|| bad(text, "a digest begins with sha256:"))?;
        let good = hex.len() == 64
            && hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(bad(text, "a sha256 digest has 64 lower-case hexadecimal digits"))
        }
    }
}

impl TryFrom<String> for Digest {
    type Error = BadImage;

    fn try_from(text: String) -> Result<Self, BadImage> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image reference as written: repository with optional registry, optional tag, optional digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Registry and path as written, without tag and digest: `ghcr.io/acme/api`, `acme/api`, `localhost:5000/x`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The repository with the defaults that Docker adds, for comparing: `nginx` is `docker.io/library/nginx`.
    pub fn canonical_repository(&self) -> String {
        canonical_repository(&self.repository)
    }

    /// The same repository and tag with this digest.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same repository and tag without a digest.
    pub fn without_digest(&self) -> Self {
        Self {
            digest: None,
            ..self.clone()
        }
    }

    /// What a person calls this version of the image: the tag, or else the short digest, or else `(no tag)`.
    pub fn version(&self) -> &str {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => tag,
            (None, Some(digest)) => digest.short(),
            (None, None) => "(no tag)",
        }
    }
}

/// Adds the registry and the `library/` that Docker adds to a repository as people write it.
pub fn canonical_repository(repository: &str) -> String {
    let (registry, path) = split_registry(repository);
    match registry {
        Some("docker.io" | "index.docker.io") | None if !path.contains('/') => {
            format!("docker.io/library/{path}")
        }
        Some("docker.io" | "index.docker.io") | None => format!("docker.io/{path}"),
        Some(registry) => format!("{registry}/{path}"),
    }
}

/// The registry's host (and port) that an image of this repository is pulled from, `docker.io` when none is written.
pub fn registry_host(repository: &str) -> &str {
    split_registry(repository).0.unwrap_or("docker.io")
}

/// Checks a repository without tag and digest, as it stands in an allow-list.
pub fn check_repository(text: &str) -> Result<(), &'static str> {
    let (registry, path) = split_registry(text);
    if text.len() > REPOSITORY_MAX_BYTES {
        return Err("the repository is longer than 255 bytes");
    }
    if let Some(registry) = registry {
        check_registry(registry)?;
    }
    if path.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("a repository is lower-case letters and digits, separated by /, ., _, __ or -")
    }
}

/// Checks a tag: `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
pub fn check_tag(text: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match text.as_bytes() {
        [] => Err("the tag is empty"),
        bytes if bytes.len() > TAG_MAX_BYTES => Err("the tag is longer than 128 bytes"),
        [first, rest @ ..] if word(*first) && rest.iter().all(|b| word(*b) || b".-".contains(b)) => Ok(()),
        _ => Err("a tag is letters, digits, _, . and -, and does not begin with . or -"),
    }
}

impl FromStr for ImageRef {
    type Err = BadImage;

    fn from_str(text: &str) -> Result<Self, BadImage> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon after the last slash begins the tag; one before it belongs to the registry's port.
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (repository, tag) = match rest.get(name_start..).and_then(|name| name.find(':')) {
            Some(colon) => (
                rest.get(..name_start + colon).unwrap_or(""),
                rest.get(name_start + colon + 1..),
            ),
            None => (rest, None),
        };
        if repository.is_empty() {
            return Err(bad(text, "the repository is missing"));
        }
        check_repository(repository).map_err(|reason| bad(text, reason))?;
        if let Some(tag) = tag {
            check_tag(tag).map_err(|reason| bad(text, reason))?;
        }
        Ok(Self {
            repository: repository.to_owned(),
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

impl TryFrom<String> for ImageRef {
    type Error = BadImage;

    fn try_from(text: String) -> Result<Self, BadImage> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn bad(text: &str, reason: &'static str) -> BadImage {
    let head: String = text.chars().take(80).collect();
    let more = if head.len() < text.len() { "..." } else { "" };
    BadImage {
        shown: format!("{head:?}{more}"),
        reason,
    }
}

/// Splits off the registry: the first component is one when it has a dot or a colon, or is `localhost`.
fn split_registry(repository: &str) -> (Option<&str>, &str) {
    match repository.split_once('/') {
        Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), path),
        Some(_) | None => (None, repository),
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const REASON: &str = "the registry must be a host name or address, optionally with a port";
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => {
            let good = !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            return if good && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
                Ok(())
            } else {
                Err(REASON)
            };
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.split('.').all(label) && port.is_none_or(is_port) {
        Ok(())
    } else {
        Err(REASON)
    }
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}

/// `[a-z0-9]+` runs joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends_well = bytes.first().is_some_and(|b| alnum(*b)) && bytes.last().is_some_and(|b| alnum(*b));
    ends_well
        && bytes.split(|b| alnum(*b)).all(|gap| match gap {
            [] | [b'.'] | [b'_'] | [b'_', b'_'] => true,
            dashes => dashes.iter().all(|b| *b == b'-'),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:4b1c07aeb1a4ec1a3b3e7f0a9d1c2b3a4b1c07aeb1a4ec1a3b3e7f0a9d1c2b3a";

    #[test]
    fn a_reference_is_kept_as_it_was_written() {
        for (text, repository, tag) in [
            ("nginx", "nginx", None),
            ("nginx:1.27", "nginx", Some("1.27")),
            (
                "drassistant/auth_service:dev-3f9c1ab",
                "drassistant/auth_service",
                Some("dev-3f9c1ab"),
            ),
            ("localhost:5000/x", "localhost:5000/x", None),
            ("localhost:5000/x:y", "localhost:5000/x", Some("y")),
            (
                "127.0.0.1:5000/a/b:V_1.0-x",
                "127.0.0.1:5000/a/b",
                Some("V_1.0-x"),
            ),
            ("[::1]:5000/a:b", "[::1]:5000/a", Some("b")),
            ("ghcr.io/acme/a--b__c.d:1", "ghcr.io/acme/a--b__c.d", Some("1")),
        ] {
            let image: ImageRef = text.parse().unwrap();
            assert_eq!((image.repository(), image.tag()), (repository, tag), "{text}");
            assert_eq!(image.to_string(), text);
            let pinned: ImageRef = format!("{text}@{DIGEST}").parse().unwrap();
            assert_eq!(pinned.digest().unwrap().short(), "4b1c07aeb1a4");
            assert_eq!(pinned.without_digest(), image);
        }
    }

    #[test]
    fn what_the_grammar_forbids_is_refused_with_a_reason() {
        for text in [
            "",
            ":tag",
            "@sha256:00",
            "BAD IMAGE",
            "Nginx",
            "nginx:",
            "nginx:-x",
            "nginx:.x",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a-",
            "a___b",
            "a..b",
            "a._b",
            "nginx:a b",
            "nginx:$(id)",
            "nginx:`id`",
            "nginx:a\n",
            "nginx:a\0",
            "a:1:2",
            "ghcr.io:port/a",
            "-x.io/a",
            "../a",
            "nginx@md5:00",
            "nginx@sha256:ABC",
            "--privileged",
            &format!("nginx:{}", "x".repeat(TAG_MAX_BYTES + 1)),
            &format!("nginx:{}", "x".repeat(10_000)),
            &"a".repeat(REPOSITORY_MAX_BYTES + 1),
        ] {
            let error = text.parse::<ImageRef>().expect_err(text).to_string();
            assert!(error.len() < 300, "{error}");
        }
    }

    #[test]
    fn repositories_compare_with_the_defaults_that_docker_adds() {
        for (text, canonical, registry) in [
            ("nginx", "docker.io/library/nginx", "docker.io"),
            ("acme/api", "docker.io/acme/api", "docker.io"),
            ("docker.io/acme/api", "docker.io/acme/api", "docker.io"),
            (
                "index.docker.io/nginx",
                "docker.io/library/nginx",
                "index.docker.io",
            ),
            ("localhost/x", "localhost/x", "localhost"),
            ("ghcr.io/acme/api", "ghcr.io/acme/api", "ghcr.io"),
        ] {
            assert_eq!(
                (canonical_repository(text).as_str(), registry_host(text)),
                (canonical, registry)
            );
        }
    }

    #[test]
    fn a_version_is_the_tag_or_else_the_digest() {
        let version = |text: &str| text.parse::<ImageRef>().unwrap().version().to_owned();
        assert_eq!(version("a:v1"), "v1");
        assert_eq!(version(&format!("a:v1@{DIGEST}")), "v1");
        assert_eq!(version(&format!("a@{DIGEST}")), "4b1c07aeb1a4");
        assert_eq!(version("a"), "(no tag)");
    }
}
