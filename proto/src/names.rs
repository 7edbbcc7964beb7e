//! Names that are parsed once, at the edge, and never re-checked: project, service, key, deployment, release.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest project, service or key name, in bytes. Docker truncates nothing, but a container's name is
/// `project-service-1` and a DNS label ends at 63.
pub const NAME_MAX_BYTES: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {shown} is not valid: {reason}")]
pub struct BadName {
    kind: &'static str,
    shown: String,
    reason: &'static str,
}

impl BadName {
    fn new(kind: &'static str, text: &str, reason: &'static str) -> Self {
        // The text may be hostile or a secret pasted into the wrong field: show little of it, escaped.
        let head: String = text.chars().take(24).collect();
        let more = if head.len() < text.len() { "..." } else { "" };
        Self {
            kind,
            shown: format!("{head:?}{more}"),
            reason,
        }
    }
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                let check: fn(&str) -> Result<(), &'static str> = $check;
                match check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(reason) => Err(BadName::new($kind, text, reason)),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(text: String) -> Result<Self, BadName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_name!(
    /// A Compose project's name: lower-case letters, digits, `-` and `_`, beginning with a letter or digit, at most
    /// 63 bytes (the rule of Compose v2's `-p`).
    ProjectName, "project name", |text| {
        sized(text)?;
        starts_with(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit(), "it must begin with a-z or 0-9")?;
        only(text, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b), "only a-z, 0-9, - and _ may stand in it")
    }
);

text_name!(
    /// A Compose service's name: letters, digits, `.`, `-` and `_`, beginning with a letter, digit or `_`, at most
    /// 63 bytes (the Compose specification's `^[a-zA-Z0-9._-]+$`, less a leading `-` or `.`, which read as an option or a path).
    ServiceName, "service name", |text| {
        sized(text)?;
        starts_with(text, |b| b.is_ascii_alphanumeric() || b == b'_', "it must begin with a letter, a digit or _")?;
        only(text, |b| b.is_ascii_alphanumeric() || b"._-".contains(&b), "only letters, digits, ., - and _ may stand in it")
    }
);

text_name!(
    /// The name a host gives to a caller's key: letters, digits, `.`, `-`, `_`, `@`.
    KeyName, "key name", |text| {
        sized(text)?;
        starts_with(text, |b| b.is_ascii_alphanumeric(), "it must begin with a letter or a digit")?;
        only(text, |b| b.is_ascii_alphanumeric() || b"._-@".contains(&b), "only letters, digits, ., -, _ and @ may stand in it")
    }
);

text_name!(
    /// A version label a caller gives to a release, such as `v1.4.2`: the grammar of an image tag.
    Version, "version", |text| crate::image::check_tag(text)
);

text_name!(
    /// One deployment, named by the caller: 16 lower-case hexadecimal digits (64 random bits). The caller makes it, so
    /// that a request whose answer was lost can be sent again, or watched, under the same name.
    DeploymentId, "deployment id", |text| {
        if text.len() != 16 {
            return Err("it must be 16 hexadecimal digits");
        }
        only(text, |b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b), "it must be 16 lower-case hexadecimal digits")
    }
);

impl DeploymentId {
    /// Makes an id of 64 bits that the caller drew at random.
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }
}

/// The number of a release within its project, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReleaseNumber(pub u32);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn sized(text: &str) -> Result<(), &'static str> {
    match text.len() {
        0 => Err("it is empty"),
        1..=NAME_MAX_BYTES => Ok(()),
        _ => Err("it is longer than 63 bytes"),
    }
}

fn starts_with(text: &str, good: impl Fn(u8) -> bool, reason: &'static str) -> Result<(), &'static str> {
    if text.bytes().next().is_some_and(good) {
        Ok(())
    } else {
        Err(reason)
    }
}

fn only(text: &str, good: impl Fn(u8) -> bool, reason: &'static str) -> Result<(), &'static str> {
    if text.bytes().all(good) {
        Ok(())
    } else {
        Err(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_shell_a_path_or_an_option_parser_would_misread_are_refused() {
        for text in [
            "",
            "-rf",
            "; rm -rf /",
            "$(id)",
            "`id`",
            "a b",
            "a\nb",
            "a\0b",
            "../etc",
            ".",
            "..",
            "a/b",
            "ä",
            &"a".repeat(NAME_MAX_BYTES + 1),
        ] {
            assert!(text.parse::<ProjectName>().is_err(), "project {text:?}");
            assert!(text.parse::<ServiceName>().is_err(), "service {text:?}");
            assert!(text.parse::<KeyName>().is_err(), "key {text:?}");
        }
    }

    #[test]
    fn the_names_people_use_are_accepted() {
        for text in ["shop", "shop-2", "0_a", &"a".repeat(NAME_MAX_BYTES)] {
            assert!(text.parse::<ProjectName>().is_ok(), "{text}");
        }
        for text in ["auth_service", "web.1", "Web", "_x"] {
            assert!(text.parse::<ServiceName>().is_ok(), "{text}");
        }
        assert!("Shop".parse::<ProjectName>().is_err());
    }

    #[test]
    fn an_error_shows_only_the_head_of_a_long_text() {
        let shown = "x/".repeat(5000).parse::<ServiceName>().unwrap_err().to_string();
        assert!(shown.len() < 150, "{shown}");
    }

    #[test]
    fn a_deployment_id_is_sixteen_hexadecimal_digits() {
        assert_eq!(DeploymentId::from_bits(0xabc).as_str(), "0000000000000abc");
        for bad in [
            "",
            "abc",
            "0000000000000ABC",
            "0000000000000abg",
            "0000000000000abc0",
        ] {
            assert!(bad.parse::<DeploymentId>().is_err(), "{bad}");
        }
    }
}
