//! What `docker compose` means when it fails or warns: its text as a sentence, a code and a hint. Pure.
//!
//! The text is classified because the exit code says little (1 for everything the Engine refuses).

use std::collections::BTreeSet;

use deploy_proto::problem::{Code, Problem};

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// `config`.
    Reading,
    /// `up` or `rm`.
    Acting,
}

/// The most unset variables that are told: a person reads them one after the other.
const UNSET_MAX: usize = 50;
/// How many characters of Compose's own words are repeated.
const WORDS_MAX_CHARS: usize = 600;

/// Kinds of failure: all of these texts occur, in lower case; what it means; what to do.
const KNOWN: &[(&[&str], Code, &str, &str)] = &[
    (
        &["cannot connect to the docker daemon"],
        Code::Engine,
        "the Docker Engine does not answer",
        "start it (`systemctl start docker`) and see that the agent's user may use its socket",
    ),
    (
        &["permission denied", "docker.sock"],
        Code::Engine,
        "the agent may not use the Docker Engine's socket",
        "add the agent's user to the group docker, or run the agent as root",
    ),
    (
        &["port is already allocated"],
        Code::RestartFailed,
        "a port of the host is taken",
        "find its user with `ss -ltnp` and `docker ps`, or publish another port",
    ),
    (
        &["address already in use"],
        Code::RestartFailed,
        "a port of the host is taken",
        "find its user with `ss -ltnp` and `docker ps`, or publish another port",
    ),
    (
        &["bind source path does not exist"],
        Code::RestartFailed,
        "a folder that a container mounts does not exist",
        "create it on the host, or correct `volumes:`",
    ),
    (
        &["error while creating mount source path"],
        Code::RestartFailed,
        "a folder that a container mounts cannot be created",
        "create it on the host, or correct `volumes:`",
    ),
    (
        &["not a directory", "mount"],
        Code::RestartFailed,
        "a file is mounted where a folder is, or a folder where a file is",
        "see that what `volumes:` names exists on the host and is of the same kind",
    ),
    (
        &["conflict. the container name"],
        Code::RestartFailed,
        "a container's name is taken by another container",
        "see `docker ps -a`; remove the other container, or change `container_name:`",
    ),
    (
        &["no space left on device"],
        Code::HostUnfit,
        "the host's disk is full",
        "free some space, for instance with `docker image prune`",
    ),
    (
        &["no such image"],
        Code::ImageUnavailable,
        "an image is not on the host",
        "push again: images are pulled before a restart",
    ),
    (
        &["pull access denied"],
        Code::ImageUnavailable,
        "an image is not on the host",
        "push again: images are pulled before a restart",
    ),
    (
        &["declared as external", "could not be found"],
        Code::RestartFailed,
        "an external network or volume does not exist",
        "create it on the host (`docker network create`, `docker volume create`)",
    ),
    (
        &["executable file not found"],
        Code::RestartFailed,
        "the container's command does not exist in the image",
        "see `command:` and `entrypoint:`, and whether the image was built for this host's architecture",
    ),
    (
        &["unable to start container process", "no such file or directory"],
        Code::RestartFailed,
        "the container's command does not exist in the image",
        "see `command:` and `entrypoint:`, and whether the image was built for this host's architecture",
    ),
    (
        &["exec format error"],
        Code::RestartFailed,
        "the image is for another architecture",
        "build it for the host's architecture",
    ),
    (
        &["required variable"],
        Code::ComposeFile,
        "a variable that the Compose file requires is not set",
        "add it to the `.env` beside the Compose file; the agent does not pass its own environment on",
    ),
    (
        &["no such service"],
        Code::UnknownService,
        "the project has no such service",
        "see `docker compose config --services` on the host",
    ),
    (
        &["env file", "not found"],
        Code::ComposeFile,
        "an `env_file:` does not exist",
        "create it, or mark it `required: false`",
    ),
    (
        &["unknown flag"],
        Code::HostUnfit,
        "this Compose is too old",
        "install Docker Compose 2.20 or newer",
    ),
    (
        &["unknown shorthand flag"],
        Code::HostUnfit,
        "this Compose is too old",
        "install Docker Compose 2.20 or newer",
    ),
];

/// Turns the last lines of a failed `docker compose` into a problem.
pub(super) fn explain(doing: Doing, last_lines: &[String]) -> Problem {
    let lines: Vec<String> = last_lines
        .iter()
        .filter(|line| !is_noise(line))
        .map(|line| without_content(line))
        .collect();
    let said: String = lines.join(" | ").chars().take(WORDS_MAX_CHARS).collect();
    let searched = said.to_lowercase();
    let known = KNOWN
        .iter()
        .find(|(texts, ..)| texts.iter().all(|text| searched.contains(text)));
    match (known, doing) {
        (Some((_, code, sentence, hint)), _) => {
            Problem::new(*code, format!("{sentence}: {said}")).hint(*hint)
        }
        (None, Doing::Reading) => Problem::new(
            Code::ComposeFile,
            format!("`docker compose config` does not accept the project: {said}"),
        )
        .hint("correct it; `docker compose config -q` on the host checks it"),
        (None, Doing::Acting) => {
            Problem::new(Code::RestartFailed, format!("`docker compose` failed: {said}"))
        }
    }
}

/// The variables that `config` found nowhere and took as blank, from its standard error: it warns and exits with 0.
/// (`The "TAG" variable is not set. Defaulting to a blank string.`, in a logger's quotes; Compose 2.20 to 5.)
pub(super) fn unset_variables(stderr: &str) -> BTreeSet<String> {
    stderr
        .lines()
        .map(|line| line.replace('\\', ""))
        .filter_map(|line| {
            let (before, _) = line.split_once("\" variable is not set")?;
            let (_, name) = before.rsplit_once("The \"")?;
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            is_name.then(|| name.to_owned())
        })
        .take(UNSET_MAX)
        .collect()
}

/// Progress lines (` Container shop-web-1  Starting`) and warnings say nothing about the failure.
fn is_noise(line: &str) -> bool {
    let line = line.trim();
    let progress = ["Container ", "Network ", "Volume ", "Image "]
        .iter()
        .any(|kind| line.starts_with(kind))
        && !line.contains("Error");
    progress || line.contains("level=warning")
}

/// Some messages quote the value they cannot read, which may be a secret: they end before it here.
fn without_content(line: &str) -> String {
    const QUOTING: &[&str] = &[
        "invalid interpolation format for ",
        "in variable name",
        "unterminated quoted value",
        "invalid template",
    ];
    let Some(at) = QUOTING
        .iter()
        .find_map(|text| line.find(text).map(|at| at + text.len()))
    else {
        return line.to_owned();
    };
    let rest = line.get(at..).unwrap_or_default();
    // The path behind it (`services.web.environment.KEY`) is no secret.
    let path: String = rest
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || "._-[]".contains(*c))
        .collect();
    format!(
        "{}{path} [the value is hidden]",
        line.get(..at).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_failures_are_told_in_sentences() {
        for (lines, code, sentence) in [
            (
                " Container shop-web-1  Starting\nError response from daemon: driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:8080 failed: port is already allocated",
                Code::RestartFailed,
                "a port of the host is taken: Error response",
            ),
            (
                "Error response from daemon: invalid mount config for type \"bind\": bind source path does not exist: /srv/none",
                Code::RestartFailed,
                "a folder that a container mounts does not exist",
            ),
            (
                "Error response from daemon: Conflict. The container name \"/x\" is already in use by container \"ab\".",
                Code::RestartFailed,
                "a container's name is taken",
            ),
            (
                "Cannot connect to the Docker daemon at unix:///run/docker.sock.",
                Code::Engine,
                "the Docker Engine does not",
            ),
            (
                "something new",
                Code::RestartFailed,
                "`docker compose` failed: something new",
            ),
        ] {
            let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
            let problem = explain(Doing::Acting, &lines);
            assert_eq!(problem.code, code, "{problem:?}");
            assert!(problem.detail.starts_with(sentence), "{}", problem.detail);
            assert!(!problem.detail.contains("Starting"), "{}", problem.detail);
        }
        let problem = explain(
            Doing::Reading,
            &["services.web Additional property imge is not allowed".to_owned()],
        );
        assert_eq!(problem.code, Code::ComposeFile);
        assert!(problem.hint.is_some());
    }

    #[test]
    fn variables_that_are_set_nowhere_are_read_from_the_warnings() {
        let stderr = "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"The \\\"TAG\\\" variable is not set. Defaulting to a blank string.\"\n\
            time=\"2026-01-01T00:00:00Z\" level=warning msg=\"The \\\"TAG\\\" variable is not set. Defaulting to a blank string.\"\n\
            WARN[0000] The \"DB_HOST\" variable is not set. Defaulting to a blank string.\n\
            time=\"2026-01-01T00:00:00Z\" level=warning msg=\"/srv/shop/compose.yaml: `version` is obsolete\"\n";
        let unset: Vec<String> = unset_variables(stderr).into_iter().collect();
        assert_eq!(unset, ["DB_HOST", "TAG"]);
    }

    #[test]
    fn a_message_that_quotes_a_value_ends_before_it() {
        for line in [
            "invalid interpolation format for services.web.environment.[]: \"canary${\". You may need to escape any $",
            "failed to read /srv/shop/.env: line 2: unexpected character \"@\" in variable name \"p canary\"",
            "failed to read /srv/shop/.env: line 1: unterminated quoted value \"canary",
        ] {
            let problem = explain(Doing::Reading, &[line.to_owned()]);
            assert!(!problem.detail.contains("canary"), "{}", problem.detail);
            assert!(problem.detail.contains("hidden"));
        }
    }
}
