//! Images that say they are for another platform, and lists of images: what a registry with several architectures has.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ring::digest::{SHA256, digest};
use serde_json::json;

use crate::command::{Run, docker};
use crate::http;
use crate::images::{Registry, service_binary, temporary_dir, unique};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Pushes the good test service as `HOST/REPO:TAG` in an image that says it is for this platform (`linux/arm64`), and
/// forgets it on the Engine; returns its manifest's digest. What is in it is this machine's own: it runs all the same.
pub fn push_for(registry: &Registry, repo: &str, tag: &str, platform: &str) -> Result<String> {
    let folder = temporary_dir("image")?;
    let path = |name: &str| folder.path().join(name);
    fs::copy(service_binary()?, path("service"))?;
    archive(folder.path(), "layer.tar", &["service"])?;
    let (os, architecture) = platform.split_once('/').context("no platform")?;
    let config = json!({
        "os": os, "architecture": architecture,
        "config": {
            "Entrypoint": ["/service"],
            "Env": ["MODE=good", "SERVICE_NAME=foreign", format!("SERVICE_VERSION={tag}")],
            // Every one is another image.
            "Labels": { "deploy-tests.build": unique("build") },
        },
        "rootfs": { "type": "layers", "diff_ids": [sha256(&fs::read(path("layer.tar"))?)] },
    });
    let image = format!("localhost:{}/{repo}:{tag}", registry.port());
    let manifest = json!([{ "Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"] }]);
    fs::write(path("config.json"), config.to_string())?;
    fs::write(path("manifest.json"), manifest.to_string())?;
    archive(
        folder.path(),
        "image.tar",
        &["manifest.json", "config.json", "layer.tar"],
    )?;
    docker(["load", "--quiet", "--input"])
        .args([path("image.tar")])
        .text()?;
    let pushed = docker(["push", &image]).text();
    docker(["rmi", "--force", &image]).text()?;
    let pushed = pushed?;
    let digest = pushed.split_whitespace().find(|word| word.starts_with("sha256:"));
    Ok(digest.with_context(|| pushed.clone())?.to_owned())
}

fn archive(folder: &Path, name: &str, files: &[&str]) -> Result<()> {
    let tar = Run::new("tar").args(["--create", "--file", name]);
    tar.args(files).dir(folder).text().map(drop)
}

fn sha256(bytes: &[u8]) -> String {
    let hash = digest(&SHA256, bytes);
    let hex = hash.as_ref().iter().map(|byte| format!("{byte:02x}"));
    format!("sha256:{}", hex.collect::<String>())
}

/// Puts a list of manifests under `HOST/REPO:TAG` that says this of each; returns the list's digest. Nobody checks what
/// a list says.
pub fn push_list(registry: &Registry, repo: &str, tag: &str, entries: &[(&str, &str)]) -> Result<String> {
    let mut manifests = Vec::new();
    for (platform, digest) in entries {
        let path = format!("/v2/{repo}/manifests/{digest}");
        let accept = format!("Accept: {MANIFEST}\r\n");
        let (status, manifest) = http::request(registry.port(), "GET", &path, &accept, "")?;
        ensure!(status == 200, "{status}: {manifest}");
        let (os, architecture) = platform.split_once('/').context("no platform")?;
        manifests.push(json!({
            "mediaType": MANIFEST, "size": manifest.len(), "digest": digest,
            "platform": { "os": os, "architecture": architecture },
        }));
    }
    let list = json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": manifests }).to_string();
    let path = format!("/v2/{repo}/manifests/{tag}");
    let kind = format!("Content-Type: {LIST}\r\n");
    let (status, said) = http::request(registry.port(), "PUT", &path, &kind, &list)?;
    ensure!(status == 201, "{status}: {said}");
    Ok(sha256(list.as_bytes()))
}
