//! A small Compose project whose files a test writes itself, for what the clinic's one file does not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::clinic::{container_of, remove_project};
use crate::command::Run;
use crate::images::{Image, Mode, Registry, temporary_dir, unique};

/// A project in a folder of its own. On drop its containers and files go; its images go with the registry.
#[derive(Debug)]
pub struct Project {
    name: String,
    dir: PathBuf,
    registry: Registry,
    _home: TempDir,
}

impl Project {
    /// Writes the files; `REGISTRY` in them stands for the registry's address. Nothing is started.
    pub fn write(registry: &Registry, files: &[(&str, &str)]) -> Result<Self> {
        let home = temporary_dir("clinic")?;
        let name = unique("clinic");
        let project = Self {
            dir: home.path().join(&name),
            name,
            registry: registry.clone(),
            _home: home,
        };
        fs::create_dir(&project.dir)?;
        for (file, text) in files {
            project.write_file(file, &text.replace("REGISTRY", &registry.host()))?;
        }
        Ok(project)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> Result<String> {
        let path = self.dir.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Writes one of its files.
    pub fn write_file(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(name), text)?)
    }

    /// Starts a `docker compose` command in its folder.
    pub fn compose(&self, arguments: &[&str]) -> Run {
        self.registry
            .engine()
            .docker(["compose"])
            .args(arguments)
            .dir(&self.dir)
            .env("DOCKER_CONFIG", self.registry.docker_config())
    }

    /// Pushes `acme/REPOSITORY:TAG` that behaves so; returns its digest.
    pub fn push_image(&self, repository: &str, tag: &str, mode: Mode) -> Result<String> {
        Image::new(repository, tag, mode).build_and_push(&self.registry, &format!("acme/{repository}"), tag)
    }

    /// `REGISTRY/acme/REPOSITORY:TAG`.
    pub fn image(&self, repository: &str, tag: &str) -> String {
        format!("{}/acme/{repository}:{tag}", self.registry.host())
    }

    /// The container of a service.
    pub fn container_id(&self, service: &str) -> Result<String> {
        container_of(self.registry.engine(), &self.name, service)
    }

    /// The image that a service's container was started from, as its configuration names it.
    pub fn runs(&self, service: &str) -> Result<String> {
        let id = self.container_id(service)?;
        let text = self
            .registry
            .engine()
            .docker(["inspect", "--type", "container", &id])
            .text()?;
        let all: Value = serde_json::from_str(&text)?;
        let image = all.pointer("/0/Config/Image").and_then(Value::as_str);
        Ok(image.context("a container without an image")?.to_owned())
    }

    /// The version that a service's image has in its environment: what really runs.
    pub fn version(&self, service: &str) -> Result<String> {
        let id = self.container_id(service)?;
        let format = "{{range .Config.Env}}{{println .}}{{end}}";
        let variables = self
            .registry
            .engine()
            .docker(["inspect", "--format", format, &id])
            .text()?;
        let version = variables
            .lines()
            .find_map(|line| line.strip_prefix("SERVICE_VERSION="));
        Ok(version.context("an image without a version")?.to_owned())
    }
}

impl Drop for Project {
    #[allow(
        clippy::print_stderr,
        reason = "a drop cannot fail, but what it left behind must be known"
    )]
    fn drop(&mut self) {
        if thread::panicking() {
            let said = self.compose(&["ps", "--all"]).text();
            eprintln!("project {}\n{}", self.name, said.unwrap_or_default());
        }
        if let Err(error) = remove_project(self.registry.engine(), &self.name) {
            eprintln!("failed to remove the project {}: {error:#}", self.name);
        }
    }
}
