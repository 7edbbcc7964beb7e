//! Looking images up and pulling them: good registries, bad ones, and every kind of login.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use deploy_agent::deploy::platform::Platform;
use deploy_agent::host::engine::{Error, PullEnd, RegistryTrouble};
use deploy_proto::image::Digest;
use deploy_proto::problem::{Code, Problem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::{PASSWORD, Registry, USER, docker, engine, engine_with};

const AMD64: &str = "amd64";

fn trouble(error: Error) -> RegistryTrouble {
    let Error::Registry { trouble, .. } = error else {
        panic!("{error:?}")
    };
    trouble
}

#[tokio::test]
async fn an_image_is_pulled_by_its_digest_with_progress_and_the_second_time_without_network() {
    let mut registry = Registry::open().await;
    let engine = engine();
    let image = registry.image("v1");
    registry.publish(&image, AMD64, 30_000_000).await;

    engine.remote_image(&image).await.unwrap();
    let begun = Instant::now();
    let digest = engine.remote_image(&image).await.unwrap().digest;
    eprintln!("remote_image: {:?}", begun.elapsed());
    let pinned = image.with_digest(digest.clone());

    let seen = Mutex::new(Vec::new());
    let begun = Instant::now();
    let end = engine
        .pull(&pinned, None, |done, total| {
            seen.lock().unwrap().push((done, total))
        })
        .await
        .unwrap();
    eprintln!("pull of 30 MB: {:?}", begun.elapsed());
    let seen = seen.into_inner().unwrap();
    let PullEnd::Pulled { bytes } = end else {
        panic!("{end:?}")
    };
    assert!(bytes >= 30_000_000, "{bytes}");
    assert_eq!(seen.last(), Some(&(bytes, bytes)), "{seen:?}");
    assert!(
        seen.iter().any(|(done, _)| *done > 0 && *done < bytes),
        "{seen:?}"
    );

    let by_digest = format!("{}@{digest}", image.repository());
    let here = engine.image(&by_digest).await.unwrap().expect("it is here");
    assert_eq!(here.digests_in(image.repository()).collect::<Vec<_>>(), [&digest]);
    let by_tag = engine.image(&image.to_string()).await.unwrap();
    assert!(by_tag.is_none(), "a pull gives no tag: {by_tag:?}");

    registry.stop();
    let begun = Instant::now();
    let again = engine
        .pull(&pinned, None, |_, _| panic!("no progress without network"))
        .await;
    eprintln!("pull of what is here: {:?}", begun.elapsed());
    assert_eq!(again.unwrap(), PullEnd::AlreadyHere);
    assert_eq!(
        trouble(engine.remote_image(&image).await.unwrap_err()),
        RegistryTrouble::Unreachable
    );
}

#[tokio::test]
async fn a_tag_that_moves_after_it_was_resolved_changes_nothing() {
    let registry = Registry::open().await;
    let engine = engine();
    let image = registry.image("v1");
    registry.publish(&image, AMD64, 1000).await;
    let first = engine.remote_image(&image).await.unwrap().digest;
    registry.publish(&image, AMD64, 1000).await;
    let second = engine.remote_image(&image).await.unwrap().digest;
    assert_ne!(first, second);

    engine
        .pull(&image.with_digest(first.clone()), None, |_, _| {})
        .await
        .unwrap();
    let pinned = |digest: &Digest| format!("{}@{digest}", image.repository());
    let here = engine.image(&pinned(&first)).await.unwrap().unwrap();
    engine.retag(&here.id, &image).await.unwrap();

    // The tag here is not moved by the pull of the newer one, and both are found by their digests.
    engine
        .pull(&image.with_digest(second.clone()), None, |_, _| {})
        .await
        .unwrap();
    let tagged = engine.image(&image.to_string()).await.unwrap().unwrap();
    assert_eq!(tagged.id, here.id);
    let newer = engine.image(&pinned(&second)).await.unwrap().unwrap();
    engine.retag(&newer.id, &image).await.unwrap();
    let older = format!("{}@{first}", image.repository());
    let older = engine
        .image(&older)
        .await
        .unwrap()
        .expect("the older image stays");
    engine.retag(&older.id, &image).await.unwrap();
    let back = engine.image(&image.to_string()).await.unwrap().unwrap();
    assert_eq!(back.id, older.id);
    docker(&["rmi", "-f", &older.id]);
}

#[tokio::test]
async fn what_the_registry_does_not_have_is_named() {
    let registry = Registry::open().await;
    let engine = engine();
    let image = registry.image("v1");
    let error = engine.remote_image(&image).await.unwrap_err();
    assert_eq!(trouble(error), RegistryTrouble::NoSuchTag);
    registry.publish(&image, AMD64, 1000).await;
    let absent = image.to_string().replace(":v1", ":v2").parse().unwrap();
    let error = engine.remote_image(&absent).await.unwrap_err();
    let problem = Problem::from(error);
    assert_eq!(problem.code, Code::ImageUnavailable);
    assert!(
        problem.detail.contains(":v2: the registry has no such tag"),
        "{}",
        problem.detail
    );
    let digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let error = engine
        .pull(&image.with_digest(digest), None, |_, _| {})
        .await
        .unwrap_err();
    assert_eq!(trouble(error), RegistryTrouble::NoSuchTag);
    let error = engine.pull(&image, None, |_, _| {}).await.unwrap_err();
    assert!(matches!(error, Error::NoDigest { .. }), "{error:?}");
}

fn write_config(dir: &Path, json: &str) {
    fs::write(dir.join("config.json"), json).unwrap();
}

#[tokio::test]
async fn a_registry_with_a_login_takes_the_right_one_only() {
    let registry = Registry::with_login().await;
    let dir = tempfile::tempdir().unwrap();
    let engine = engine_with(dir.path());
    let image = registry.image("v1");
    registry.publish(&image, AMD64, 1000).await;

    let error = engine.remote_image(&image).await.unwrap_err();
    assert_eq!(trouble(error), RegistryTrouble::NoCredentials);

    let auth = |login: &str| {
        let auth = STANDARD.encode(login);
        format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, registry.host)
    };
    write_config(dir.path(), &auth("ann:wrong"));
    let error = engine.remote_image(&image).await.unwrap_err();
    assert_eq!(trouble(error), RegistryTrouble::Denied);

    // base64 of the whole login has the characters that only the URL-safe alphabet may send.
    write_config(dir.path(), &auth(&format!("{USER}:{PASSWORD}")));
    let digest = engine.remote_image(&image).await.unwrap().digest;
    let end = engine
        .pull(&image.with_digest(digest), None, |_, _| {})
        .await
        .unwrap();
    assert!(matches!(end, PullEnd::Pulled { .. }));

    write_config(dir.path(), "{");
    let error = engine.remote_image(&image).await.unwrap_err();
    assert!(matches!(error, Error::Credentials { .. }), "{error:?}");
}

#[tokio::test]
async fn a_credential_helper_is_asked_and_its_failure_is_told() {
    let registry = Registry::with_login().await;
    let dir = tempfile::tempdir().unwrap();
    let engine = engine_with(dir.path());
    let image = registry.image("v1");
    registry.publish(&image, AMD64, 1000).await;
    write_config(
        dir.path(),
        &format!(r#"{{"credHelpers": {{"{}": "test"}}}}"#, registry.host),
    );
    let helper = |script: &str| {
        let path = dir.path().join("docker-credential-test");
        let written = dir.path().join("new");
        fs::write(&written, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&written, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(written, path).unwrap();
    };

    let error = engine.remote_image(&image).await.unwrap_err();
    assert!(
        matches!(&error, Error::Helper { .. }),
        "no helper there: {error:?}"
    );

    let answer = format!(r#"{{"ServerURL": "x", "Username": "{USER}", "Secret": "{PASSWORD}"}}"#);
    helper(&format!(
        r#"read -r server; test "$1 $server" = "get {}" || exit 9; printf '%s' '{answer}'"#,
        registry.host
    ));
    engine.remote_image(&image).await.unwrap();

    helper("echo 'credentials not found in native keychain'; exit 1");
    let error = engine.remote_image(&image).await.unwrap_err();
    assert_eq!(trouble(error), RegistryTrouble::NoCredentials);

    helper("echo 'the vault is sealed'; exit 1");
    let error = Problem::from(engine.remote_image(&image).await.unwrap_err());
    assert!(
        error
            .detail
            .ends_with("from docker-credential-test: the vault is sealed"),
        "{}",
        error.detail
    );
}

#[tokio::test]
async fn what_an_image_is_built_for_is_told_before_and_after_the_pull() {
    let registry = Registry::open().await;
    let engine = engine();
    let image = registry.image("v1");
    for architecture in [AMD64, "arm64"] {
        registry.publish(&image, architecture, 1000).await;
        let platform = Platform::new("linux", architecture);
        let remote = engine.remote_image(&image).await.unwrap();
        assert_eq!(remote.platforms, std::slice::from_ref(&platform));
        let pinned = image.with_digest(remote.digest);
        engine.pull(&pinned, None, |_, _| {}).await.unwrap();
        let here = engine.image(&pinned.to_string()).await.unwrap().unwrap();
        assert_eq!(here.platform, platform);
    }
}

#[tokio::test]
async fn what_was_damaged_on_its_way_is_not_taken() {
    for cut in [false, true] {
        let registry = Registry::open().await;
        let engine = engine();
        let image = registry.image("v1");
        registry.publish(&image, AMD64, 100_000).await;
        let pinned = image.with_digest(engine.remote_image(&image).await.unwrap().digest);
        registry.damage(cut);
        let begun = Instant::now();
        let error = engine.pull(&pinned, None, |_, _| {}).await.unwrap_err();
        eprintln!("damaged, cut {cut}, after {:?}: {error}", begun.elapsed());
        assert_eq!(Problem::from(error).code, Code::ImageUnavailable);
        assert_eq!(engine.image(&image.to_string()).await.unwrap(), None);
    }
}

/// A registry that gives every request this answer.
async fn registry_that_answers(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                stream.write_all(answer.as_bytes()).await.ok();
            }
        }
    });
    host
}

#[tokio::test]
async fn a_registry_that_is_broken_or_busy_is_told_apart() {
    const BROKEN: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: 67\r\n\
        Connection: close\r\n\r\n{\"errors\":[{\"code\":\"TOOMANYREQUESTS\",\"message\":\"slow down please\"}]}";
    const GARBAGE: &str = "SSH-2.0-OpenSSH_9.2\r\n";
    let engine = engine();
    for (answer, expected) in [
        (BROKEN, RegistryTrouble::ServerError),
        (BUSY, RegistryTrouble::RateLimited),
        (GARBAGE, RegistryTrouble::Unreachable),
    ] {
        let image = format!("{}/x:v1", registry_that_answers(answer).await)
            .parse()
            .unwrap();
        let error = engine.remote_image(&image).await.unwrap_err();
        let shown = error.to_string();
        assert_eq!(trouble(error), expected, "{shown}");
    }
}
