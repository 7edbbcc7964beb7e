//! The values of the configuration that TOML has no type for: durations, sizes, dates, image patterns, addresses.
//!
//! Pure: a text goes in, a value or a refusal with a hint comes out. A refusal never repeats the text, the excerpt does.

use std::time::Duration;

use deploy_proto::image::check_repository;
use deploy_proto::signing::AuthorityNames;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use toml::value::{Datetime, Offset};

/// Why a value is not taken: what is wrong with it, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) what: String,
    pub(crate) hint: String,
}

fn refuse<T>(what: impl Into<String>, hint: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        what: what.into(),
        hint: hint.into(),
    })
}

const MILLISECONDS_OF: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Reads `500ms`, `7s`, `2m` or `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, Refusal> {
    let hint = "write a whole number and a unit: 500ms, 7s, 2m or 1h";
    match with_unit(text, &MILLISECONDS_OF) {
        Ok(milliseconds) => Ok(Duration::from_millis(milliseconds)),
        Err(what) => refuse(format!("a duration {what}"), hint),
    }
}

const BYTES_OF: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Reads `2GiB` or `500MB`.
pub(super) fn size(text: &str) -> Result<u64, Refusal> {
    let hint = "write a whole number and a unit: 500MB, 2GiB (KB, MB, GB, TB or KiB, MiB, GiB, TiB)";
    with_unit(text, &BYTES_OF).or_else(|what| refuse(format!("a size {what}"), hint))
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Result<u64, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("begins with a whole number");
    }
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    if unit.is_empty() {
        return Err("needs a unit");
    }
    let (_, factor) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or("has a unit that is not known")?;
    let number: u64 = number.parse().map_err(|_| "is too large")?;
    number.checked_mul(*factor).ok_or("is too large")
}

/// Reads a TOML date, valid to its end in UTC, or a date and time with an offset.
pub(super) fn expiry(value: &Datetime) -> Result<Timestamp, Refusal> {
    let hint = "write a date, 2027-06-30 (valid to the end of that day, UTC), or 2027-06-30T18:00:00Z";
    let no_such_day = |_| Refusal {
        what: "there is no such moment".to_owned(),
        hint: hint.to_owned(),
    };
    let Some(date) = value.date else {
        return refuse("a time needs a date", hint);
    };
    let year = i16::try_from(date.year).unwrap_or(i16::MAX);
    let (month, day) = (i8::try_from(date.month), i8::try_from(date.day));
    let (Ok(month), Ok(day)) = (month, day) else {
        return refuse("there is no such moment", hint);
    };
    let date = Date::new(year, month, day).map_err(no_such_day)?;
    let moment = match (value.time, value.offset) {
        (None, _) => date
            .tomorrow()
            .map_err(no_such_day)?
            .to_datetime(jiff::civil::Time::midnight()),
        (Some(_), None) => return refuse("a date with a time needs an offset, such as Z for UTC", hint),
        (Some(time), Some(_)) => at(date, time).ok_or_else(|| Refusal {
            what: "there is no such moment".to_owned(),
            hint: hint.to_owned(),
        })?,
    };
    let minutes = match value.offset {
        Some(Offset::Custom { minutes }) => i32::from(minutes),
        Some(Offset::Z) | None => 0,
    };
    let zone = jiff::tz::Offset::from_seconds(minutes * 60).map_err(no_such_day)?;
    Ok(moment
        .to_zoned(TimeZone::fixed(zone))
        .map_err(no_such_day)?
        .timestamp())
}

fn at(date: Date, time: toml::value::Time) -> Option<DateTime> {
    let part = |value: u8| i8::try_from(value).ok();
    // A leap second, which TOML allows, is the second before it.
    let second = part(time.second.unwrap_or(0))?.min(59);
    let nanosecond = i32::try_from(time.nanosecond.unwrap_or(0)).ok()?;
    let time = jiff::civil::Time::new(part(time.hour)?, part(time.minute)?, second, nanosecond).ok()?;
    Some(date.to_datetime(time))
}

/// Checks a pattern of the allow-list: a repository in which `*` stands for any run of characters but `/`.
pub(super) fn image_pattern(text: &str) -> Result<(), Refusal> {
    let hint =
        "write a repository such as ghcr.io/acme/shop-* or acme/api; * stands for any characters but /";
    if text.contains('@') || text.rsplit('/').next().is_some_and(|name| name.contains(':')) {
        return refuse("the list names repositories, without tag and digest", hint);
    }
    if text.contains("**") {
        return refuse("** means the same as *, it does not reach over a /", hint);
    }
    let first = text.split('/').next().unwrap_or(text);
    if first.contains('*') {
        let what = "* may not stand before the first /: it would allow images of anybody";
        return refuse(
            what,
            "name the registry or the Docker Hub account: ghcr.io/acme/* or acme/*",
        );
    }
    check_repository(&text.replace('*', "x")).or_else(|what| refuse(what, hint))
}

/// Checks the address of an HTTP probe: `http://` or `https://`, a host, no password.
pub(super) fn probe_url(text: &str) -> Result<(), Refusal> {
    let hint = "write http://127.0.0.1:8080/health";
    let Some((scheme, rest)) = text.split_once("://") else {
        return refuse("a probe needs a whole URL", hint);
    };
    if scheme != "http" && scheme != "https" {
        return refuse("a probe's URL begins with http:// or https://", hint);
    }
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    if host.contains('@') {
        return refuse(
            "a probe's URL may not hold a user or a password",
            "probe an address that needs none",
        );
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return refuse("a URL has no spaces", hint);
    }
    match AuthorityNames::new([host]) {
        Ok(_) => Ok(()),
        Err(_) => refuse("the URL's host or port is not valid", hint),
    }
}

/// Checks the address of a TCP probe: `HOST:PORT`.
pub(super) fn probe_address(text: &str) -> Result<(), Refusal> {
    let hint = "write HOST:PORT, such as 127.0.0.1:5432";
    let has_port = text
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    match AuthorityNames::new([text]) {
        Ok(_) if has_port => Ok(()),
        Ok(_) => refuse("the port is missing", hint),
        Err(_) => refuse("the host or port is not valid", hint),
    }
}

/// The one of the known words that is close to a mistyped one, if any is.
pub(super) fn did_you_mean<'a>(text: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_lowercase().replace('-', "_");
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(&lower, word), word))
        // A third of the letters may differ: `lisen`, `publik_key`, `timeuot`, but not `port` for `pin`.
        .filter(|(distance, word)| {
            *distance <= 1 + word.len() / 4 || word.starts_with(&lower) && lower.len() > 2
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("7s", 7000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("5 s", 5000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for (text, bytes) in [
            ("2GiB", 2 << 30),
            ("500MB", 500_000_000),
            ("0MB", 0),
            ("1 TiB", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "60",
            "s",
            "-1s",
            "1.5s",
            "1m30s",
            "60 seconds",
            "7S",
            "99999999999999999999s",
            "9999999999999999h",
            "٣s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        for text in ["", "2", "2G", "2gb", "GiB", "99999999TiB", "1e9B"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_date_is_valid_to_its_end_in_utc() {
        for (text, moment) in [
            ("2027-06-30", "2027-07-01T00:00:00Z"),
            ("2027-12-31", "2028-01-01T00:00:00Z"),
            ("2027-06-30T18:00:00Z", "2027-06-30T18:00:00Z"),
            ("2027-06-30T18:00:00+02:00", "2027-06-30T16:00:00Z"),
            ("2027-06-30 18:00:00-00:30", "2027-06-30T18:30:00Z"),
        ] {
            let expected: Timestamp = moment.parse().unwrap();
            assert_eq!(expiry(&text.parse().unwrap()), Ok(expected), "{text}");
        }
        for text in ["2027-06-30T18:00:00", "18:00:00", "9999-12-31"] {
            assert!(expiry(&text.parse().unwrap()).is_err(), "{text}");
        }
    }

    #[test]
    fn an_image_pattern_names_repositories_of_a_known_registry_or_account() {
        for text in [
            "ghcr.io/acme/shop-*",
            "acme/*",
            "nginx",
            "localhost:5000/x",
            "ghcr.io/acme/*/api",
            "[::1]:5000/x",
        ] {
            assert_eq!(image_pattern(text), Ok(()), "{text}");
        }
        for text in [
            "",
            "*",
            "*/api",
            "*.example.com/api",
            "shop-*",
            "acme/**",
            "acme/api:v1",
            "acme/api@sha256:00",
            "Acme/api",
            "a b",
            "a/../b",
            "a//b",
        ] {
            assert!(image_pattern(text).is_err(), "{text}");
        }
    }

    #[test]
    fn probes_have_an_address_and_no_password() {
        for text in [
            "http://127.0.0.1:8080/health",
            "https://localhost",
            "http://[::1]:80/x?y=z",
            "http://web/",
        ] {
            assert_eq!(probe_url(text), Ok(()), "{text}");
        }
        for text in [
            "",
            "127.0.0.1:8080",
            "ftp://a/",
            "http://",
            "http:///x",
            "http://a:b@c/",
            "http://a b/",
            "http://a:/",
            "http://a:99999/",
        ] {
            assert!(probe_url(text).is_err(), "{text}");
        }
        for (text, good) in [
            ("127.0.0.1:5432", true),
            ("db:1", true),
            ("[::1]:80", true),
            ("[::1]", false),
            ("db", false),
            ("db:", false),
            ("db:0", false),
            (":80", false),
        ] {
            assert_eq!(probe_address(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn a_mistyped_word_is_guessed_and_a_foreign_one_is_not() {
        let known = ["listen", "names", "tls", "public", "projects", "min_free", "pin"];
        for (text, guess) in [
            ("lisen", Some("listen")),
            ("Names", Some("names")),
            ("name", Some("names")),
            ("min-free", Some("min_free")),
            ("project", Some("projects")),
            ("publik", Some("public")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(did_you_mean(text, known), guess, "{text}");
        }
    }
}
