//! `deploy.toml`: its shape, and the walk over it that finds every mistake.
//!
//! Serde would stop at the first mistake, so the parsed document is walked by hand. No secret stands in this file.

use std::collections::BTreeMap;
use std::ops::Range;

use deploy_proto::image::{ImageRef, check_repository};
use deploy_proto::names::{ProjectName, ServiceName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::host::HostUrl;
use super::mistake::{Mistake, did_you_mean};
use crate::pin::Pin;

const TOP: &[&str] = &["project", "pin", "images", "environment"];
const ENVIRONMENT: &[&str] = &["hosts", "project", "pin", "rollout", "confirm"];

/// What `deploy.toml` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DeployFile {
    /// The Compose project.
    pub(crate) project: Option<ProjectName>,
    /// The agents' pins, for environments that name none.
    pub(crate) pins: Vec<Pin>,
    /// The image repository of each service; the tag comes from `-v`.
    pub(crate) images: BTreeMap<ServiceName, String>,
    /// The named groups of hosts.
    pub(crate) environments: BTreeMap<String, Environment>,
}

/// One environment.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// Its hosts, in the order of the rollout: one after the other, stopping at the first failure.
    pub(crate) hosts: Vec<HostUrl>,
    /// The project's name there, when it is another one.
    pub(crate) project: Option<ProjectName>,
    /// Its agents' pins.
    pub(crate) pins: Vec<Pin>,
    /// Whether a person must say yes.
    pub(crate) confirm: bool,
}

impl DeployFile {
    /// Reads the file's text, or tells all its mistakes.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let mut walk = Walk {
            text,
            mistakes: Vec::new(),
        };
        for error in errors {
            walk.mistake(error.span().unwrap_or_default(), error.message(), None);
        }
        // After a syntax error the rest may be read wrongly: only what is certain is told.
        if !walk.mistakes.is_empty() {
            return Err(walk.mistakes);
        }
        let file = walk.document(document.get_ref());
        if walk.mistakes.is_empty() {
            Ok(file)
        } else {
            Err(walk.mistakes)
        }
    }
}

struct Walk<'t> {
    text: &'t str,
    mistakes: Vec<Mistake>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl Walk<'_> {
    fn document(&mut self, table: &DeTable<'_>) -> DeployFile {
        let mut file = DeployFile::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "project" => file.project = self.parsed("project", value),
                "pin" => file.pins = self.pins(value),
                "images" => file.images = self.images(value),
                "environment" => file.environments = self.environments(value),
                unknown => self.unknown_key(key.span(), unknown, "deploy.toml", TOP),
            }
        }
        file
    }

    fn images(&mut self, value: &Value<'_>) -> BTreeMap<ServiceName, String> {
        let mut images = BTreeMap::new();
        let shape = "write [images] and under it SERVICE = \"REPOSITORY\"";
        for (key, value) in self.table("images", value, shape) {
            let service = self.name::<ServiceName>(key);
            let repository = self.text("the repository", value);
            if let (Some(service), Some(repository)) = (service, repository) {
                match check_repository(&repository) {
                    Ok(()) => {
                        images.insert(service, repository);
                    }
                    Err(reason) => self.bad_repository(value.span(), &repository, reason),
                }
            }
        }
        images
    }

    fn bad_repository(&mut self, span: Range<usize>, text: &str, reason: &str) {
        let bare = text
            .parse::<ImageRef>()
            .ok()
            .map(|image| image.repository().to_owned());
        let what = match &bare {
            Some(_) => format!("image {text:?} has a tag or a digest"),
            None => format!("image {text:?} is not a repository: {reason}"),
        };
        let hint = bare.map(|bare| format!("write {bare:?}: the tag comes from `push -v`"));
        self.mistake(span, &what, hint);
    }

    fn environments(&mut self, value: &Value<'_>) -> BTreeMap<String, Environment> {
        let mut environments = BTreeMap::new();
        let shape = "write [environment.NAME] and under it hosts = [...]";
        for (key, value) in self.table("environment", value, shape) {
            let name = key.get_ref().as_ref();
            let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if name.is_empty() || name.starts_with('-') || !name.chars().all(fit) {
                let what = format!("environment name {name:?} is not valid");
                self.mistake(
                    key.span(),
                    &what,
                    Some("use letters, digits, -, _ and .".to_owned()),
                );
            }
            let environment = self.environment(name, key.span(), value);
            environments.insert(name.to_owned(), environment);
        }
        environments
    }

    fn environment(&mut self, name: &str, name_span: Range<usize>, value: &Value<'_>) -> Environment {
        let mut environment = Environment::default();
        let place = format!("[environment.{name}]");
        let mut has_hosts = false;
        let before = self.mistakes.len();
        for (key, value) in self.table(
            &place,
            value,
            "write [environment.NAME] and under it hosts = [...]",
        ) {
            match key.get_ref().as_ref() {
                "hosts" => {
                    has_hosts = true;
                    environment.hosts = self.hosts(value);
                }
                "project" => environment.project = self.parsed("project", value),
                "pin" => environment.pins = self.pins(value),
                "rollout" => self.rollout(value),
                "confirm" => environment.confirm = self.boolean("confirm", value),
                unknown => self.unknown_key(key.span(), unknown, &place, ENVIRONMENT),
            }
        }
        if !has_hosts && self.mistakes.len() == before {
            let hint = "add hosts = [\"https://HOST:8443\"]".to_owned();
            self.mistake(name_span, &format!("{place} has no hosts"), Some(hint));
        }
        environment
    }

    fn hosts(&mut self, value: &Value<'_>) -> Vec<HostUrl> {
        let mut hosts = Vec::new();
        for value in self.texts("hosts", value) {
            match value.1.parse::<HostUrl>() {
                Ok(url) if hosts.contains(&url) => {
                    self.mistake(value.0, &format!("host {url} is listed twice"), None);
                }
                Ok(url) => hosts.push(url),
                Err(error) => {
                    let what = format!("host {:?} is not valid: {error}", value.1);
                    self.mistake(value.0, &what, Some(error.hint()));
                }
            }
        }
        hosts
    }

    fn pins(&mut self, value: &Value<'_>) -> Vec<Pin> {
        let mut pins = Vec::new();
        for (span, text) in self.texts("pin", value) {
            match text.parse() {
                Ok(pin) => pins.push(pin),
                Err(error) => {
                    let hint = "print it on the host with: deploy-agent pin".to_owned();
                    let what = format!("pin is not valid: {error}");
                    self.mistake(span, &what, Some(hint));
                }
            }
        }
        pins
    }

    fn rollout(&mut self, value: &Value<'_>) {
        const ONLY: &str = "one-by-one";
        if let Some(text) = self.text("rollout", value)
            && text != ONLY
        {
            let hint = format!("write {ONLY:?}: each host after the other, stopping at the first failure");
            self.mistake(
                value.span(),
                &format!("rollout {text:?} is not supported"),
                Some(hint),
            );
        }
    }

    fn boolean(&mut self, name: &str, value: &Value<'_>) -> bool {
        value.get_ref().as_bool().unwrap_or_else(|| {
            let what = format!("{name} must be true or false, not {}", kind(value));
            self.mistake(value.span(), &what, None);
            false
        })
    }

    fn text(&mut self, name: &str, value: &Value<'_>) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            let what = format!("{name} must be a text in quotes, not {}", kind(value));
            self.mistake(value.span(), &what, None);
        }
        text
    }

    /// One text or a list of texts, each with its place.
    fn texts(&mut self, name: &str, value: &Value<'_>) -> Vec<(Range<usize>, String)> {
        match value.get_ref().as_array() {
            Some(items) if items.is_empty() => {
                self.mistake(value.span(), &format!("{name} is empty"), None);
                Vec::new()
            }
            Some(items) => items
                .iter()
                .filter_map(|item| Some((item.span(), self.text(name, item)?)))
                .collect(),
            None => self
                .text(name, value)
                .map(|text| (value.span(), text))
                .into_iter()
                .collect(),
        }
    }

    fn parsed<T>(&mut self, name: &str, value: &Value<'_>) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(name, value)?;
        text.parse()
            .map_err(|error: T::Err| self.mistake(value.span(), &error.to_string(), None))
            .ok()
    }

    fn name<T>(&mut self, key: &Spanned<impl AsRef<str>>) -> Option<T>
    where
        T: std::str::FromStr,
        T::Err: std::fmt::Display,
    {
        key.get_ref()
            .as_ref()
            .parse()
            .map_err(|error: T::Err| self.mistake(key.span(), &error.to_string(), None))
            .ok()
    }

    /// The table's entries; a mistake and nothing when it is not a table.
    fn table<'v, 't>(
        &mut self,
        name: &str,
        value: &'v Value<'t>,
        hint: &str,
    ) -> impl Iterator<Item = (&'v Spanned<std::borrow::Cow<'t, str>>, &'v Value<'t>)> + use<'v, 't> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            let what = format!("{name} must be a table, not {}", kind(value));
            self.mistake(value.span(), &what, Some(hint.to_owned()));
        }
        table.into_iter().flatten()
    }

    fn unknown_key(&mut self, span: Range<usize>, name: &str, place: &str, known: &[&str]) {
        let hint = did_you_mean(name, known.iter().copied())
            .unwrap_or_else(|| format!("known here: {}", known.join(", ")));
        self.mistake(span, &format!("unknown key {name:?} in {place}"), Some(hint));
    }

    fn mistake(&mut self, span: Range<usize>, what: &str, hint: Option<String>) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        self.mistakes.push(Mistake {
            line: 1 + before.matches('\n').count(),
            what: what.to_owned(),
            hint,
        });
    }
}

fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::mistake::Mistakes;
    use super::*;

    fn mistakes(text: &str) -> String {
        let mistakes = DeployFile::parse(text).expect_err("the file has mistakes");
        Mistakes::new(Path::new("deploy.toml"), mistakes).to_string()
    }

    #[test]
    fn the_documented_shape_is_read() {
        let file = DeployFile::parse(
            r#"
project = "shop"
[images]
web = "ghcr.io/acme/shop-web"
api = "localhost:5000/shop-api"
[environment.production]
hosts = ["https://web-1.example.com:8443", "https://web-2.example.com:8443"]
rollout = "one-by-one"
confirm = true
pin = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
[environment.staging]
hosts = "https://stage"
"#,
        )
        .unwrap();
        assert_eq!(file.project.unwrap().as_str(), "shop");
        assert_eq!(file.images.len(), 2);
        let production = file.environments.get("production").unwrap();
        assert_eq!(
            (production.hosts.len(), production.pins.len(), production.confirm),
            (2, 1, true)
        );
        assert_eq!(file.environments.get("staging").unwrap().hosts.len(), 1);
        assert_eq!(DeployFile::parse(""), Ok(DeployFile::default()));
    }

    #[test]
    fn every_mistake_is_told_at_once_with_line_and_hint() {
        let shown = mistakes(
            r#"projct = "shop"
pin = "sha256/abc"
[images]
web = "ghcr.io/acme/web:v1"
"a b" = "x"
api = 3
[environment.production]
host = ["https://a"]
rollout = "canary"
confirm = "yes"
[environment.staging]
hosts = ["http://a", "b:1"]
[environment.empty]
"#,
        );
        assert_eq!(
            shown,
            r#"deploy.toml has 11 mistakes
  deploy.toml:1: unknown key "projct" in deploy.toml
      did you mean "project"?
  deploy.toml:2: pin is not valid: a pin begins with sha256// and not with "sha256/a"
      print it on the host with: deploy-agent pin
  deploy.toml:4: image "ghcr.io/acme/web:v1" has a tag or a digest
      write "ghcr.io/acme/web": the tag comes from `push -v`
  deploy.toml:5: service name "a b" is not valid: only letters, digits, ., - and _ may stand in it
  deploy.toml:6: the repository must be a text in quotes, not a number
  deploy.toml:8: unknown key "host" in [environment.production]
      did you mean "hosts"?
  deploy.toml:9: rollout "canary" is not supported
      write "one-by-one": each host after the other, stopping at the first failure
  deploy.toml:10: confirm must be true or false, not a text
  deploy.toml:12: host "http://a" is not valid: http:// sends requests in the clear
      agents speak TLS only: https://a
  deploy.toml:12: host "b:1" is not valid: it is not an address
      write https://HOST:PORT, for instance https://b:1
  deploy.toml:13: [environment.empty] has no hosts
      add hosts = ["https://HOST:8443"]"#
        );
    }

    #[test]
    fn a_syntax_error_is_told_with_its_line() {
        let shown = mistakes("project = \"shop\"\n[images\nweb = 1\n");
        assert!(shown.contains("deploy.toml:2: "), "{shown}");
    }
}
