//! Where `deployctl` runs, read once from the process at the start: CI variables, key, pin, folder.
//!
//! Nothing else in this crate reads the environment.

use std::path::PathBuf;

use deploy_proto::push::{Sequence, Source};

/// What the process was started with, besides its arguments.
#[derive(Clone, Default)]
pub(crate) struct Caller {
    /// `DEPLOYCTL_KEY`: the private key's text; empty when the CI secret is not set for this job.
    pub(crate) key_text: Option<String>,
    /// `DEPLOYCTL_PIN`: pins, separated by commas or white space.
    pub(crate) pins_text: Option<String>,
    /// Whether `NO_COLOR` is set to anything but nothing (no-color.org), or the terminal is dumb.
    pub(crate) no_color: bool,
    /// Whether workflow commands are understood: `GITHUB_ACTIONS` is exactly `true`.
    pub(crate) github_actions: bool,
    /// Where a push comes from, as the CI system tells.
    pub(crate) source: Source,
    /// The place of the CI run among its runs, as the CI system tells.
    pub(crate) sequence: Option<Sequence>,
    /// The folder for the caller's own configuration, `$XDG_CONFIG_HOME` or `~/.config`.
    pub(crate) config_home: Option<PathBuf>,
    /// The current folder.
    pub(crate) directory: PathBuf,
}

impl Caller {
    /// Reads the process's environment and current folder.
    pub(crate) fn from_process() -> Self {
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        Self::read(&|name| std::env::var(name).ok(), directory)
    }

    fn read(variable: &dyn Fn(&str) -> Option<String>, directory: PathBuf) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        Self {
            key_text: variable("DEPLOYCTL_KEY"),
            pins_text: set("DEPLOYCTL_PIN"),
            no_color: set("NO_COLOR").is_some() || set("TERM").as_deref() == Some("dumb"),
            github_actions: set("GITHUB_ACTIONS").as_deref() == Some("true"),
            source: source(&set),
            sequence: sequence(&set),
            config_home: set("XDG_CONFIG_HOME")
                .map(PathBuf::from)
                .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config"))),
            directory,
        }
    }

    /// The key file that is used when neither `--key-file` nor `DEPLOYCTL_KEY` is given.
    pub(crate) fn default_key_file(&self) -> Option<PathBuf> {
        Some(self.config_home.as_ref()?.join("deployctl").join("key.pem"))
    }
}

/// Reads GitHub's, else GitLab's variables; on a person's machine only the user's name.
fn source(set: &dyn Fn(&str) -> Option<String>) -> Source {
    let github_run = || {
        Some(format!(
            "{}/{}/actions/runs/{}",
            set("GITHUB_SERVER_URL")?,
            set("GITHUB_REPOSITORY")?,
            set("GITHUB_RUN_ID")?
        ))
    };
    // The agent refuses texts that are too long or hold control characters; none of these is worth a failed push.
    let fit = |text: Option<String>| {
        text.filter(|text| {
            Source {
                commit: Some(text.clone()),
                ..Source::default()
            }
            .is_well_formed()
        })
    };
    Source {
        commit: fit(set("GITHUB_SHA").or_else(|| set("CI_COMMIT_SHA"))),
        run_url: fit(github_run()
            .or_else(|| set("CI_JOB_URL"))
            .or_else(|| set("CI_PIPELINE_URL"))),
        actor: fit(set("GITHUB_ACTOR")
            .or_else(|| set("GITLAB_USER_LOGIN"))
            .or_else(|| set("USER"))),
    }
}

/// Reads GitHub's, else GitLab's variables. A pipeline of GitLab has no attempts: a retried job is of the same pipeline.
fn sequence(set: &dyn Fn(&str) -> Option<String>) -> Option<Sequence> {
    let (run, attempt, line) = match set("GITHUB_RUN_ID") {
        Some(run) => (run, set("GITHUB_RUN_ATTEMPT"), set("GITHUB_REPOSITORY")),
        None => (set("CI_PIPELINE_ID")?, None, set("CI_PROJECT_PATH")),
    };
    let number = match attempt {
        Some(attempt) => format!("{run}.{attempt}"),
        None => run,
    };
    let counted: Sequence = number.parse().ok()?;
    let sequence = Sequence { line, ..counted };
    sequence.is_well_formed().then_some(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(variables: &[(&str, &str)]) -> Caller {
        let read = |name: &str| {
            variables
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        };
        Caller::read(&read, PathBuf::from("."))
    }

    #[test]
    fn a_push_from_ci_tells_commit_run_and_actor() {
        let github = caller(&[
            ("GITHUB_ACTIONS", "true"),
            ("GITHUB_SHA", "3f9c1ab"),
            ("GITHUB_SERVER_URL", "https://github.com"),
            ("GITHUB_REPOSITORY", "acme/shop"),
            ("GITHUB_RUN_ID", "77"),
            ("GITHUB_ACTOR", "kim"),
        ]);
        assert!(github.github_actions);
        assert_eq!(
            github.source,
            Source {
                commit: Some("3f9c1ab".into()),
                run_url: Some("https://github.com/acme/shop/actions/runs/77".into()),
                actor: Some("kim".into()),
            }
        );
        let gitlab = caller(&[
            ("CI_COMMIT_SHA", "aa"),
            ("CI_JOB_URL", "https://gitlab/j/1"),
            ("GITLAB_USER_LOGIN", "lee"),
        ]);
        assert_eq!(gitlab.source.run_url.as_deref(), Some("https://gitlab/j/1"));
        assert_eq!(gitlab.source.actor.as_deref(), Some("lee"));
    }

    #[test]
    fn a_push_from_ci_tells_its_run() {
        let of = |variables: &[(&str, &str)]| caller(variables).sequence;
        let github = of(&[
            ("GITHUB_RUN_ID", "77"),
            ("GITHUB_RUN_ATTEMPT", "2"),
            ("GITHUB_REPOSITORY", "acme/shop"),
        ]);
        let github = github.unwrap();
        assert_eq!((github.run, github.attempt), (77, 2));
        assert_eq!(github.line.as_deref(), Some("acme/shop"));
        let gitlab = of(&[("CI_PIPELINE_ID", "9"), ("CI_PROJECT_PATH", "acme/shop")]).unwrap();
        assert_eq!((gitlab.run, gitlab.attempt), (9, 1));
        assert_eq!(of(&[("GITHUB_RUN_ID", "x")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn presence_is_not_enough_and_bad_texts_are_left_out() {
        assert!(!caller(&[("GITHUB_ACTIONS", "false")]).github_actions);
        assert!(!caller(&[("NO_COLOR", "")]).no_color);
        assert!(caller(&[("NO_COLOR", "1")]).no_color);
        assert_eq!(caller(&[("GITHUB_SHA", "a\nb")]).source, Source::default());
    }
}
