//! What an image is built for and what a host is, compared in Go's words. Pure.

use std::fmt;

/// What an image is built for, or a host is: `linux/amd64`.
///
/// Variants (`arm/v6`, `arm/v7`) are left to the Engine, which does not tell its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// The operating system in Go's words: `linux`.
    pub os: String,
    /// The architecture in Go's words: `amd64`, `arm64`.
    pub architecture: String,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl Platform {
    /// A platform as an Engine, a registry or an image's configuration tells it: `linux`, `x86_64`.
    pub fn new(os: &str, architecture: &str) -> Self {
        Self {
            os: os.to_lowercase(),
            architecture: in_gos_words(architecture),
        }
    }

    /// Reads the text of a Compose file's `platform:`: `linux/arm64`, `linux/arm/v7`, or `arm64` alone. None for what
    /// names no architecture.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('/');
        let (first, second) = (parts.next()?, parts.next());
        match second {
            Some(architecture) if !architecture.is_empty() => Some(Self::new(first, architecture)),
            Some(_) => None,
            None if matches!(first, "" | "linux" | "windows" | "darwin" | "freebsd") => None,
            None => Some(Self::new("linux", first)),
        }
    }

    /// Whether it says what it is for; the attestations beside images (`unknown/unknown`) do not.
    pub fn is_known(&self) -> bool {
        !matches!(self.architecture.as_str(), "" | "unknown")
    }

    /// Whether a host of this platform runs an image of that one: the same, or its 32-bit forerunner.
    pub fn runs(&self, image: &Self) -> bool {
        let forerunner = matches!(
            (self.architecture.as_str(), image.architecture.as_str()),
            ("amd64", "386") | ("arm64", "arm")
        );
        self.os == image.os && (self.architecture == image.architecture || forerunner)
    }
}

/// The names that the kernel and older tools use, as containerd's `platforms` package reads them.
fn in_gos_words(architecture: &str) -> String {
    let lower = architecture.to_lowercase();
    match lower.as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "i386" | "i486" | "i586" | "i686" => "386".to_owned(),
        "aarch64" => "arm64".to_owned(),
        "armhf" | "armel" | "armv6l" | "armv7l" => "arm".to_owned(),
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_runs_its_own_platform_and_the_32_bit_one_before_it() {
        for (host, image, runs) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "linux/amd64", true),
            ("linux/aarch64", "linux/arm64/v8", true),
            ("linux/amd64", "linux/386", true),
            ("linux/amd64", "linux/arm64", false),
            ("linux/arm64", "linux/arm/v7", true),
            ("linux/arm64", "linux/amd64", false),
            ("linux/amd64", "windows/amd64", false),
        ] {
            let [host_platform, image_platform] = [host, image].map(|text| Platform::parse(text).unwrap());
            assert_eq!(host_platform.runs(&image_platform), runs, "{image} on {host}");
        }
    }

    #[test]
    fn a_platform_is_read_as_compose_writes_it() {
        for (text, read) in [
            ("linux/arm64", Some("linux/arm64")),
            ("linux/arm64/v8", Some("linux/arm64")),
            ("Linux/AArch64", Some("linux/arm64")),
            ("arm64", Some("linux/arm64")),
            ("linux", None),
            ("linux/", None),
            ("", None),
        ] {
            let platform = Platform::parse(text).map(|platform| platform.to_string());
            assert_eq!(platform.as_deref(), read, "{text}");
        }
        assert!(!Platform::new("unknown", "unknown").is_known());
        assert!(!Platform::new("", "").is_known());
    }
}
