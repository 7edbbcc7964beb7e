//! `up` and `rm` on a real Engine: only the named services are touched, and failures are told in sentences.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a failed test panics; a test makes its own files, and prints what it measured"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deploy_agent::config::{Order, Pin, Project};
use deploy_agent::host::compose::{Compose, ComposeError, ComposeProject, Surroundings};
use deploy_agent::host::process::{Program, run};
use deploy_proto::names::ServiceName;
use deploy_proto::problem::{Code, Problem};

const DEADLINE: Duration = Duration::from_secs(60);
const IMAGE: &str = "compose-up-test/box";

/// Runs a tool and returns what it printed.
async fn tool(line: &str) -> String {
    let program = Program {
        binary: "sh".into(),
        arguments: vec!["-c".into(), line.into()],
        environment: vec![(
            "PATH".into(),
            "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into(),
        )],
        dir: "/".into(),
        deadline: DEADLINE,
        input: Vec::new(),
    };
    let output = run(&program)
        .await
        .expect("the Engine and busybox are needed: run tests/setup.sh");
    String::from_utf8(output.stdout.whole().unwrap().to_vec()).unwrap()
}

/// The containers of the project: name, image and id.
async fn containers(name: &str) -> BTreeMap<String, String> {
    let filter = format!("docker ps -a --filter label=com.docker.compose.project={name}");
    let printed = tool(&format!(
        "{filter} --format '{{{{.Names}}}} {{{{.Image}}}} {{{{.ID}}}}'"
    ))
    .await;
    printed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(container, rest)| (container.to_owned(), rest.to_owned()))
        .collect()
}

async fn make_images() {
    let binary = tool("command -v busybox").await;
    let copy = format!(
        "d=$(mktemp -d); mkdir $d/bin; cp {} $d/bin/busybox",
        binary.trim()
    );
    let import = |tag: &str| format!("tar -C $d -c . | docker import -m {tag} - {IMAGE}:{tag} >/dev/null");
    tool(&format!("{copy}; {}; {}; rm -r $d", import("v1"), import("v2"))).await;
}

async fn project(name: &str, dir: &Path) -> ComposeProject {
    let surroundings = Surroundings {
        path: "/usr/local/bin:/usr/bin:/bin".into(),
        home: dir.to_owned(),
        docker_socket: "/var/run/docker.sock".into(),
        docker_config_dir: dir.join("none"),
    };
    let compose = Compose::find(&surroundings)
        .await
        .expect("Compose v2 is needed: run tests/setup.sh");
    compose.project(&Project {
        name: name.parse().unwrap(),
        dir: dir.to_owned(),
        files: vec![PathBuf::from("compose.yaml")],
        images: Vec::new(),
        allow_latest: false,
        pin: Pin::Digest,
        order: Order::Together,
        wait: DEADLINE,
        settle: DEADLINE,
        bake: Duration::ZERO,
        keep: 10,
        remove_images: true,
        min_free_bytes: 0,
        probes: Vec::new(),
        hooks: Vec::new(),
    })
}

fn write(dir: &Path, services: &str) {
    std::fs::write(dir.join("compose.yaml"), format!("services:\n{services}")).unwrap();
}

fn service(name: &str, tag: &str, more: &str) -> String {
    format!("  {name}: {{image: '{IMAGE}:{tag}', command: [/bin/busybox, sleep, '600'], init: true{more}}}\n")
}

fn named(names: &[&str]) -> Vec<ServiceName> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

async fn refusal(compose: &ComposeProject, names: &[&str]) -> Problem {
    let error = compose.up(&named(names), DEADLINE).await.unwrap_err();
    assert!(matches!(error, ComposeError::Failed { .. }), "{error}");
    Problem::from(&error)
}

#[tokio::test]
async fn only_named_services_are_touched_and_failures_are_sentences() {
    let name = format!("up{}", std::process::id());
    let folder = tempfile::tempdir().unwrap();
    let dir = std::fs::canonicalize(folder.path()).unwrap();
    let checked = tokio::spawn(story(name.clone(), dir)).await;
    let all = format!("docker ps -aq --filter label=com.docker.compose.project={name}");
    tool(&format!(
        "docker rm -f $({all}) >/dev/null 2>&1; docker network rm {name}_default >/dev/null; docker rmi {IMAGE}:v1 {IMAGE}:v2 >/dev/null"
    ))
    .await;
    checked.unwrap();
}

async fn story(name: String, dir: PathBuf) {
    make_images().await;
    // It would remove `old`, which was not named, once it is gone from the file.
    std::fs::write(dir.join(".env"), "COMPOSE_REMOVE_ORPHANS=1\n").unwrap();
    write(
        &dir,
        &[
            service("web", "v1", ""),
            service("db", "v1", ""),
            service("old", "v1", ""),
        ]
        .concat(),
    );
    let compose = project(&name, &dir).await;
    compose.up(&named(&["web", "db", "old"]), DEADLINE).await.unwrap();
    let before = containers(&name).await;
    assert_eq!(before.len(), 3, "{before:?}");

    write(
        &dir,
        &[service("web", "v2", ""), service("db", "v2", "")].concat(),
    );
    compose.up(&named(&["web"]), DEADLINE).await.unwrap();
    compose.up(&[], DEADLINE).await.unwrap();
    let after = containers(&name).await;
    for container in ["db", "old"].map(|service| format!("{name}-{service}-1")) {
        assert_eq!(before.get(&container), after.get(&container));
    }
    assert!(
        after
            .get(&format!("{name}-web-1"))
            .unwrap()
            .starts_with(&format!("{IMAGE}:v2 "))
    );

    compose.remove(&named(&["web"]), DEADLINE).await.unwrap();
    assert_eq!(containers(&name).await.len(), 2);
    failures(&name, &dir, &compose).await;
    timings(&compose).await;
}

async fn failures(name: &str, dir: &Path, compose: &ComposeProject) {
    let port = ", ports: ['127.0.0.1:39127:80']";
    let mount = ", volumes: [{type: bind, source: /nonexistent/x, target: /x}]";
    let services = [
        service("db", "v1", ""),
        service("p", "v1", port),
        service("q", "v1", port),
        service("m", "v1", mount),
        service("n", "v1", &format!(", container_name: {name}-db-1")),
        service("i", "none", ", build: ."),
        service("x", "v1", ", entrypoint: [/none]").replace("init: true", "init: false"),
    ];
    write(dir, &services.concat());
    for (names, code, sentence) in [
        (
            &["p", "q"][..],
            Code::RestartFailed,
            "a port of the host is taken: ",
        ),
        (
            &["m"],
            Code::RestartFailed,
            "a folder that a container mounts does not exist: ",
        ),
        (
            &["n"],
            Code::RestartFailed,
            "a container's name is taken by another container: ",
        ),
        (&["i"], Code::ImageUnavailable, "an image is not on the host: "),
        (
            &["x"],
            Code::RestartFailed,
            "the container's command does not exist in the image: ",
        ),
        (&["zz"], Code::UnknownService, "the project has no such service: "),
    ] {
        let problem = refusal(compose, names).await;
        assert_eq!(problem.code, code, "{problem:?}");
        assert!(problem.detail.starts_with(sentence), "{problem:?}");
        assert!(problem.hint.is_some());
    }
    let error = compose
        .up(&named(&["db"]), Duration::from_millis(1))
        .await
        .unwrap_err();
    assert_eq!(Problem::from(&error).code, Code::DeadlinePassed);
}

/// Prints what the calls cost on this machine.
async fn timings(compose: &ComposeProject) {
    for what in ["config", "up, nothing changed"] {
        let mut took = Vec::new();
        for _ in 0..9 {
            let begun = Instant::now();
            if what == "config" {
                compose.config().await.map(drop).unwrap();
            } else {
                compose.up(&named(&["db"]), DEADLINE).await.unwrap();
            }
            took.push(begun.elapsed());
        }
        took.sort();
        eprintln!("{what}: median of 9 {:?}", took.get(4));
    }
}
