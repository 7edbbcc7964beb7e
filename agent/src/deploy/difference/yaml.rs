//! The lines of a Compose file as they may be shown. Pure.
//!
//! A line's place is read from the indentation, line by line, which is enough for files that people write and lets a
//! file be shown that no parser accepts any more. What is not plainly a `key: value` or a `- value` of a known place is
//! hidden, and after a line that cannot be placed, everything.

use super::dotenv::is_name;
use super::{HIDDEN, texts};

/// The longest value that is shown, in bytes.
const VALUE_MAX_BYTES: usize = 160;
/// The longest key that is shown.
const KEY_MAX_BYTES: usize = 80;

/// The keys of a service whose values say how it runs and hold no secret. Not among them, on purpose: command,
/// entrypoint, environment, labels, secrets, configs, logging, annotations, sysctls, extra_hosts, devices, and every
/// extension.
const SERVICE_KEYS: &[&str] = &[
    "cap_add",
    "cap_drop",
    "container_name",
    "cpu_shares",
    "cpus",
    "cpuset",
    "depends_on",
    "expose",
    "image",
    "init",
    "ipc",
    "mem_limit",
    "mem_reservation",
    "memswap_limit",
    "network_mode",
    "networks",
    "oom_score_adj",
    "pid",
    "pids_limit",
    "platform",
    "ports",
    "privileged",
    "profiles",
    "pull_policy",
    "read_only",
    "restart",
    "scale",
    "shm_size",
    "stdin_open",
    "stop_grace_period",
    "stop_signal",
    "tty",
    "user",
    "volumes",
];
/// What may stand deeper in one of these.
const DEEPER_KEYS: &[&str] = &[
    "app_protocol",
    "condition",
    "host_ip",
    "ipv4_address",
    "ipv6_address",
    "mode",
    "priority",
    "protocol",
    "published",
    "read_only",
    "required",
    "restart",
    "source",
    "target",
    "type",
];
/// Of the healthcheck everything but what it runs.
const HEALTHCHECK_KEYS: &[&str] = &[
    "disable",
    "interval",
    "retries",
    "start_interval",
    "start_period",
    "timeout",
];
/// Of `deploy` what is counted and limited.
const DEPLOY_KEYS: &[&str] = &["cpus", "memory", "mode", "pids", "replicas"];
/// The keys whose children are variables: `- NAME=value` or `NAME: value`.
const VARIABLE_KEYS: &[&str] = &["args", "environment"];
/// The keys of a service below which the keys (never the values) are shown.
const NAMED_KEYS: &[&str] = &[
    "args",
    "build",
    "deploy",
    "environment",
    "healthcheck",
    "labels",
    "logging",
];

/// Every line of the file, with what could be a secret hidden.
pub(super) fn shown(bytes: &[u8]) -> Vec<String> {
    let mut reader = Reader::default();
    texts(bytes).iter().map(|line| reader.line(line)).collect()
}

/// Where in the file the next line stands.
#[derive(Debug, Default)]
struct Reader {
    /// The keys around it, outermost first, each with its column.
    path: Vec<(usize, String)>,
    /// What is deeper than this column belongs to a value that began above.
    within: Option<usize>,
    /// What a quote or a bracket that began above still waits for.
    open: Open,
    /// Whether a line could not be placed: nothing is known of what follows.
    is_lost: bool,
}

/// Brackets and quotes that are open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Open {
    quote: Option<char>,
    depth: usize,
}

impl Open {
    fn is_closed(&self) -> bool {
        self.quote.is_none() && self.depth == 0
    }

    /// Reads on in a value that began with a quote or a bracket; gives what stands behind its end.
    fn read<'t>(&mut self, text: &'t str) -> &'t str {
        let mut chars = text.char_indices().peekable();
        let mut before = ' ';
        while let Some((at, c)) = chars.next() {
            match self.quote {
                Some('"') if c == '\\' => {
                    chars.next();
                }
                Some('\'') if c == '\'' && chars.peek().is_some_and(|(_, next)| *next == '\'') => {
                    chars.next();
                }
                Some(quote) if c == quote => self.quote = None,
                Some(_) => {}
                None => match c {
                    // In a bracket a quote in the middle of a plain word is a letter; taking it for a quote hides more.
                    '"' | '\'' => self.quote = Some(c),
                    '[' | '{' => self.depth += 1,
                    ']' | '}' => self.depth = self.depth.saturating_sub(1),
                    '#' if before.is_whitespace() => return "",
                    _ => {}
                },
            }
            before = c;
            if self.is_closed() {
                return text.get(at + c.len_utf8()..).unwrap_or_default();
            }
        }
        ""
    }
}

/// A line taken apart.
struct Parts<'l> {
    /// The column of the last `- `, when there is one.
    dash: Option<usize>,
    /// Indentation and dashes.
    lead: &'l str,
    /// The column where the rest begins.
    column: usize,
    rest: &'l str,
}

impl Reader {
    fn line(&mut self, line: &str) -> String {
        let text = line.trim_start_matches('\u{feff}');
        if text.trim().is_empty() {
            return String::new();
        }
        if self.is_lost {
            return HIDDEN.to_owned();
        }
        if !self.open.is_closed() {
            let behind = self.open.read(text);
            self.is_lost = self.open.is_closed() && !is_end(behind);
            return HIDDEN.to_owned();
        }
        let parts = take_apart(text);
        let outer = parts.lead.len() - parts.lead.trim_start_matches(' ').len();
        if self.within.is_some_and(|column| outer > column) {
            return format!("{}{HIDDEN}", " ".repeat(outer));
        }
        self.within = None;
        if parts.rest.starts_with('#') {
            return format!("{}# {HIDDEN}", parts.lead);
        }
        if text.contains(['\t', '\r']) {
            return self.lose();
        }
        match key_and_value(parts.rest) {
            Some((key, value)) => self.entry(&parts, key, value),
            None if parts.dash.is_some() => self.item(&parts),
            None => self.lose(),
        }
    }

    fn lose(&mut self) -> String {
        self.is_lost = true;
        HIDDEN.to_owned()
    }

    /// `key: value`, or `key:` with its value below.
    fn entry(&mut self, parts: &Parts<'_>, key: &str, value: &str) -> String {
        let above = parts.dash.map_or(parts.column, |dash| dash + 1);
        self.path.retain(|(column, _)| *column < above);
        self.path.push((parts.column, key.to_owned()));
        let Some(scalar) = self.value(value, parts.column) else {
            return self.lose();
        };
        let path: Vec<&str> = self.path.iter().map(|(_, key)| key.as_str()).collect();
        let key = if shows_key(&path) && is_plain_key(key) {
            key
        } else {
            return format!("{}{HIDDEN}", parts.lead);
        };
        let value = match scalar {
            Scalar::Below => String::new(),
            Scalar::Whole(text) if shows_value(&path) && is_harmless(text, &path) => format!(" {text}"),
            Scalar::Whole(_) | Scalar::Begun => format!(" {HIDDEN}"),
        };
        format!("{}{key}:{value}{}", parts.lead, comment(&scalar, parts.rest))
    }

    /// `- value`.
    fn item(&mut self, parts: &Parts<'_>) -> String {
        let dash = parts.dash.unwrap_or(parts.column);
        self.path.retain(|(column, _)| *column <= dash);
        let Some(scalar) = self.value(parts.rest, dash) else {
            return self.lose();
        };
        let path: Vec<&str> = self.path.iter().map(|(_, key)| key.as_str()).collect();
        let text = match scalar {
            Scalar::Whole(text) if shows_value(&path) && is_harmless(text, &path) => text.to_owned(),
            Scalar::Whole(text) if path.last().is_some_and(|key| VARIABLE_KEYS.contains(key)) => {
                match unquoted(text).split_once('=') {
                    Some((name, _)) if is_name(name) && shows_key(&path) => format!("{name}={HIDDEN}"),
                    Some(_) | None => HIDDEN.to_owned(),
                }
            }
            Scalar::Whole(_) | Scalar::Begun => HIDDEN.to_owned(),
            Scalar::Below => String::new(),
        };
        format!("{}{text}{}", parts.lead, comment(&scalar, parts.rest))
    }

    /// Reads a value. What of it stands on the next lines is deeper than `column`, or within its quotes or brackets.
    /// None: the line cannot be placed.
    fn value<'l>(&mut self, value: &'l str, column: usize) -> Option<Scalar<'l>> {
        let value = without_marks(value);
        if value.is_empty() || value.starts_with('#') {
            return Some(Scalar::Below);
        }
        self.within = Some(column);
        if value.starts_with(['"', '\'', '[', '{']) {
            let behind = self.open.read(value);
            if !self.open.is_closed() {
                return Some(Scalar::Begun);
            }
            let whole = value.get(..value.len() - behind.len()).unwrap_or_default();
            return is_end(behind).then_some(Scalar::Whole(whole));
        }
        if value.starts_with(['|', '>']) {
            return Some(Scalar::Begun);
        }
        Some(Scalar::Whole(without_comment(value)))
    }
}

/// What stands behind a key.
enum Scalar<'l> {
    /// Nothing: the value is below, or there is none.
    Below,
    /// All of it.
    Whole(&'l str),
    /// Its beginning.
    Begun,
}

fn take_apart(text: &str) -> Parts<'_> {
    let mut column = text.len() - text.trim_start_matches(' ').len();
    let mut dash = None;
    while let Some(rest) = text.get(column..).and_then(|rest| rest.strip_prefix('-')) {
        if !rest.is_empty() && !rest.starts_with(' ') {
            break;
        }
        dash = Some(column);
        column += 1 + rest.len() - rest.trim_start_matches(' ').len();
    }
    Parts {
        dash,
        lead: text.get(..column).unwrap_or_default(),
        column,
        rest: text.get(column..).unwrap_or_default().trim_end(),
    }
}

/// A plain key with its colon. A quoted or a complex one is none.
fn key_and_value(text: &str) -> Option<(&str, &str)> {
    let (key, value) = match text.split_once(": ") {
        Some((key, value)) => (key, value),
        None => (text.strip_suffix(':')?, ""),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/' | b'<');
    (!key.is_empty() && key.bytes().all(plain)).then_some((key, value.trim()))
}

/// Leaves out anchors and tags: `&base`, `!reset`.
fn without_marks(value: &str) -> &str {
    let mut value = value.trim();
    while value.starts_with(['&', '!']) {
        value = value.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
    }
    value
}

fn without_comment(value: &str) -> &str {
    value
        .split_once(" #")
        .map_or(value, |(value, _)| value)
        .trim_end()
}

/// Whether nothing follows but a comment.
fn is_end(behind: &str) -> bool {
    let text = behind.trim_start();
    text.is_empty() || (text.starts_with('#') && text.len() < behind.len())
}

fn comment(scalar: &Scalar<'_>, rest: &str) -> String {
    let behind = match scalar {
        Scalar::Whole(text) => rest.rsplit_once(text).map_or("", |(_, behind)| behind),
        Scalar::Below => rest,
        Scalar::Begun => "",
    };
    if behind.contains('#') {
        format!(" # {HIDDEN}")
    } else {
        String::new()
    }
}

fn unquoted(text: &str) -> &str {
    text.trim_matches(['"', '\''])
}

fn is_plain_key(key: &str) -> bool {
    key.len() <= KEY_MAX_BYTES
}

/// Whether the last key of a path may be shown.
fn shows_key(path: &[&str]) -> bool {
    match path {
        [] => false,
        [_] | ["services" | "networks" | "volumes" | "configs" | "secrets", _] | ["services", _, _] => true,
        ["services", _, key, ..] => SERVICE_KEYS.contains(key) || NAMED_KEYS.contains(key),
        _ => false,
    }
}

/// Whether the value of the last key of a path may be shown.
fn shows_value(path: &[&str]) -> bool {
    match path {
        ["name" | "version"] => true,
        ["services", _, key] => SERVICE_KEYS.contains(key),
        ["services", _, "healthcheck", key] => HEALTHCHECK_KEYS.contains(key),
        ["services", _, "deploy", .., key] => DEPLOY_KEYS.contains(key),
        ["services", _, key, .., deeper] => SERVICE_KEYS.contains(key) && DEEPER_KEYS.contains(deeper),
        _ => false,
    }
}

/// Whether a value looks like what such a key has: short, of few characters, no address with a password, and no
/// variable's default (of an image its tag may stand there).
fn is_harmless(value: &str, path: &[&str]) -> bool {
    let is_image = path.last() == Some(&"image");
    let without_digest = value.replace("@sha256:", "");
    let plain = |c: char| c.is_ascii_alphanumeric() || "._/:-${}?*,[]\"' +".contains(c);
    let has_default = value.contains("${")
        && [":-", ":+", ":?", "-", "+", "?"].iter().any(|sign| {
            let mut variables = value.split("${").skip(1);
            variables.any(|text| text.split('}').next().is_some_and(|name| name.contains(sign)))
        });
    value.len() <= VALUE_MAX_BYTES
        && without_digest.chars().all(plain)
        && !value.contains("://")
        && (is_image || !has_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> Vec<String> {
        shown(text.as_bytes())
    }

    #[test]
    fn what_says_how_a_service_runs_is_shown() {
        let file = "\
name: shop
services:
  web:
    image: \"ghcr.io/acme/web:${TAG:-v1}@sha256:0123\"
    restart: unless-stopped
    ports:
    - \"127.0.0.1:8080:80\"
    - target: 80
      published: 8081
    expose: [ \"80\", 81 ]
    depends_on:
      db:
        condition: service_healthy
    networks: [front]
    volumes:
      - ./data:/data
    mem_limit: 256m
    deploy:
      replicas: 2
      resources:
        limits:
          cpus: '0.5'
    healthcheck:
      interval: 5s
volumes:
  data:
";
        let lines: Vec<String> = file.lines().map(str::to_owned).collect();
        assert_eq!(show(file), lines);
    }

    #[test]
    fn no_canary_is_shown_wherever_it_stands() {
        let file = "\
x-base: &base
  image: CANARY
  deeper:
    ports: [CANARY]
services:
  web:
    <<: *base # CANARY
    image: https://user:CANARY@host/web
    container_name: ${NAME:-CANARY}
    hostname: CANARY
    command: run --password CANARY
    entrypoint: [\"CANARY\",
      CANARY: x,
    image: CANARY]
    restart: always # CANARY
    # CANARY
    environment:
      DB_PASSWORD: CANARY
      image: CANARY
      restart: CANARY
    env_file: CANARY
    labels:
      - CANARY=CANARY
      - a: CANARY
    healthcheck:
      test: CANARY
      interval: CANARY!
    logging:
      options:
        token: CANARY
    build:
      args:
        - TOKEN=CANARY
        - CANARY
        - \"QUOTED=CANARY\"
    user: \"CANARY
      image: CANARY
    restart: CANARY\"
    secrets:
      - CANARY
    x-note:
      restart: CANARY
  api: {image: CANARY, restart: CANARY}
  job:
    command: |
      image: CANARY
    restart: CANARY CANARY=
    stop_signal: >-
      CANARY
    working_dir: CANARY
    platform:
      CANARY CANARY
secrets:
  key:
    environment: CANARY
";
        let shown = show(file);
        let leaks: Vec<&String> = shown.iter().filter(|line| line.contains("CANARY")).collect();
        assert!(leaks.is_empty(), "{leaks:?}\n{}", shown.join("\n"));
        for said in [
            "    restart: always # [hidden]",
            "      DB_PASSWORD: [hidden]",
            "        - TOKEN=[hidden]",
            "  api: [hidden]",
            "    command: [hidden]",
        ] {
            assert!(
                shown.iter().any(|line| line == said),
                "{said}\n{}",
                shown.join("\n")
            );
        }
    }

    #[test]
    fn after_a_line_that_cannot_be_placed_everything_is_hidden() {
        for strange in [
            "    \"restart\": CANARY",
            "    ? CANARY",
            "\trestart: CANARY",
            "    CANARY",
            "    restart: \"a\" CANARY",
            "    restart: always\rimage: CANARY",
        ] {
            let file = format!("services:\n  web:\n    image: acme/web:v1\n{strange}\n    restart: CANARY\n");
            let shown = show(&file);
            assert!(
                shown.iter().all(|line| !line.contains("CANARY")),
                "{strange}: {shown:?}"
            );
            assert_eq!(shown.last().unwrap(), HIDDEN, "{strange}");
        }
    }
}
