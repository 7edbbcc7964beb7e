//! The commands on a folder as `/etc/deploy-agent`, with the real `docker compose`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use jiff::Timestamp;

use super::*;
use crate::config;
use crate::host::compose::{ComposeError, Surroundings};

const AGENT: &str = "state_dir = '@HERE/state'\n[server]\nnames = ['web-1.example.com']\n";
const KEYS: &str = "[[key]]\nname = 'github-clinic'\npublic = 'ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo='\n\
                    projects = ['clinic', 'gone']\nallow = ['push', 'rollback', 'status', 'logs']\nexpires = 2026-11-10\n";
const CLINIC: &str = "\
services:
  auth_service: {image: 'drassistant/auth_service:dev-1'}
  user_service: {image: 'drassistant/user_service:dev-1'}
  patient_service: {image: 'drassistant/patient_service:dev-1'}
  schedule_service: {image: 'drassistant/schedule_service:dev-1'}
  api_gateway: {image: 'drassistant/api_gateway:dev-1'}
  frontend_web: {image: 'drassistant/frontend_web:${TAG:-dev-1}'}
  auth_db: {image: 'postgres:16', volumes: ['auth:/var/lib/postgresql/data']}
  user_db: {image: 'postgres:16'}
  cache: {image: 'bitnami/redis:7'}
  proxy: {image: 'nginx:1.27'}
  worker: {build: .}
  tools: {image: 'drassistant/tools:dev-1', profiles: [debug]}
volumes: {auth: {}}
";

struct Host(tempfile::TempDir);

impl Host {
    fn new(agent: &str) -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.put(
            "etc/agent.toml",
            &agent.replace("@HERE", &host.path("").to_string_lossy()),
        );
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        let mut file = std::fs::File::create(self.path(name)).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o640);
        std::fs::set_permissions(self.path(name), private).unwrap();
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    fn folder(&self) -> ConfigFolder {
        ConfigFolder {
            path: self.path("etc"),
        }
    }

    async fn add(&self, dir: &str, name: Option<&str>, files: &[&str]) -> Result<String, add::AddError> {
        let args = add::Args {
            dir: self.path(dir),
            name: name.map(|name| name.parse().unwrap()),
            files: files.iter().map(PathBuf::from).collect(),
            config: self.folder(),
        };
        let surroundings = Surroundings {
            path: std::env::var_os("PATH").unwrap(),
            home: self.path(""),
            docker_socket: "/var/run/docker.sock".into(),
            docker_config_dir: self.path("docker"),
        };
        let mut out = Vec::new();
        add::add(&args, &surroundings, &mut out).await?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn check(&self, quiet: bool) -> Result<String, check::CheckError> {
        let mut out = Vec::new();
        check::check(
            &check::Args {
                config: self.folder(),
                quiet,
            },
            now(),
            &mut out,
        )?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn pin(&self) -> Result<String, pin::PinError> {
        let mut out = Vec::new();
        pin::pin(
            &pin::Args {
                config: self.folder(),
            },
            now(),
            &mut out,
        )?;
        Ok(String::from_utf8(out).unwrap())
    }
}

fn now() -> Timestamp {
    "2026-11-05T10:00:00Z".parse().unwrap()
}

#[tokio::test]
async fn a_variable_that_only_the_operators_shell_has_is_told() {
    let host = Host::new(&format!("{AGENT}{KEYS}"));
    let text = "services:\n  web:\n    image: 'acme/web:v1'\n    environment: {DB: '${DB_HOST}', T: '${TAG}', P: '${PORT:-1}'}\n";
    host.put("shop/compose.yaml", text);
    host.put("shop/.env", "TAG=1\n");
    let report = host.add("shop", None, &[]).await.unwrap();
    let told: Vec<&str> = report
        .lines()
        .filter(|line| line.contains(" is not set "))
        .collect();
    let [told] = told.as_slice() else {
        panic!("{report}")
    };
    assert!(
        told.starts_with("  .env     DB_HOST is not set in it"),
        "{report}"
    );
}

#[tokio::test]
async fn a_project_is_registered_with_its_own_images_and_without_its_databases() {
    let host = Host::new(&format!("{AGENT}{KEYS}"));
    host.put("srv/clinic/docker-compose.yml", CLINIC);
    let report = host.add("srv/clinic", None, &[]).await.unwrap();
    let text = host.read("etc/projects.d/clinic.toml");
    let config = config::load(&host.path("etc")).unwrap();
    let project = config.projects.values().next().unwrap();
    let own = [
        "api_gateway",
        "auth_service",
        "frontend_web",
        "patient_service",
        "schedule_service",
        "tools",
        "user_service",
    ];
    assert_eq!(project.images, own.map(|name| format!("drassistant/{name}")));
    assert_eq!(
        project,
        &config::Project {
            images: project.images.clone(),
            ..config::Project::with_defaults("clinic".parse().unwrap(), host.path("srv/clinic"), Vec::new())
        }
    );
    for line in [
        "  # \"postgres\",      # auth_db, user_db",
        "  # \"bitnami/redis\", # cache",
        "  # \"nginx\",         # proxy",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for line in [
        "clinic: 12 services in @HEREsrv/clinic",
        "  SERVICE           IMAGE                               CALLERS MAY PUSH IT",
        "  auth_db           postgres:16                         no, it holds data",
        "  frontend_web      drassistant/frontend_web:dev-1      yes",
        "  proxy             nginx:1.27                          no, an official image",
        "  worker            (built here)                        no, it is built here and has no image to pull",
        "Wrote @HEREetc/projects.d/clinic.toml",
        "  systemctl reload deploy-agent   takes it",
    ] {
        let line = line.replace("@HERE", &host.path("").to_string_lossy());
        assert!(report.lines().any(|found| found == line), "{line}\n{report}");
    }
    assert!(
        report.contains("ReadWritePaths=\"-"),
        "the folder is not one of those that the unit opens: {report}"
    );
    let mode = std::fs::metadata(host.path("etc/projects.d/clinic.toml"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o640);
}

#[tokio::test]
async fn every_commented_setting_of_the_written_file_is_valid_and_shows_the_default() {
    let host = Host::new(AGENT);
    host.put("srv/clinic/docker-compose.yml", CLINIC);
    host.add("srv/clinic", None, &[]).await.unwrap();
    let text = host.read("etc/projects.d/clinic.toml");
    let path = host.path("etc/projects.d/clinic.toml");
    let written = config::read_project(&path, &text).unwrap();
    let is_setting = |line: &str| line.starts_with("# ") && line.contains(" = ") && !line.contains("files =");
    let uncommented: Vec<&str> = text
        .lines()
        .map(|line| {
            if is_setting(line) || line == "# [[probe]]" {
                line.trim_start_matches("# ")
            } else {
                line
            }
        })
        .collect();
    let all = config::read_project(&path, &uncommented.join("\n")).unwrap();
    assert_eq!(all.probes.len(), 1);
    assert_eq!(
        config::Project {
            probes: Vec::new(),
            hooks: Vec::new(),
            ..all
        },
        written
    );
}

#[tokio::test]
async fn a_file_that_exists_is_never_overwritten() {
    let host = Host::new(AGENT);
    host.put("srv/clinic/docker-compose.yml", CLINIC);
    host.put("etc/projects.d/clinic.toml", "# mine\n");
    let error = host.add("srv/clinic", None, &[]).await.unwrap_err();
    assert!(matches!(error, add::AddError::Exists { .. }), "{error:?}");
    assert_eq!(host.read("etc/projects.d/clinic.toml"), "# mine\n");
    assert_eq!(std::fs::read_dir(host.path("etc/projects.d")).unwrap().count(), 1);
}

#[tokio::test]
async fn the_name_is_composes_own_and_another_one_is_warned_of() {
    let simple = "services: {web: {image: 'acme/web:1'}}\n";
    for (folder, file, dotenv, name) in [
        ("srv/My.Shop", simple.to_owned(), "", "myshop"),
        ("srv/a", format!("name: shop\n{simple}"), "", "shop"),
        (
            "srv/b",
            simple.to_owned(),
            "COMPOSE_PROJECT_NAME=store\n",
            "store",
        ),
    ] {
        let host = Host::new(AGENT);
        host.put(&format!("{folder}/compose.yaml"), &file);
        host.put(&format!("{folder}/.env"), dotenv);
        let report = host.add(folder, None, &[]).await.unwrap();
        assert!(
            host.path(&format!("etc/projects.d/{name}.toml")).exists(),
            "{name}"
        );
        assert!(!report.contains("Careful"), "{report}");
        let report = host.add(folder, Some("other"), &["compose.yaml"]).await.unwrap();
        assert!(
            report.contains(&format!("Compose itself calls this project {name}")),
            "{report}"
        );
        assert!(
            host.read("etc/projects.d/other.toml")
                .contains("\nfiles = [\"compose.yaml\"]\n")
        );
    }
}

#[tokio::test]
async fn what_cannot_be_registered_leaves_nothing_behind() {
    type Expected = fn(&add::AddError) -> bool;
    let cases: [(&str, &str, &str, Expected); 6] = [
        (
            "a remote include",
            "include: ['oci://registry.example.com/acme/stack:1']\nservices: {web: {image: 'acme/web:1'}}\n",
            "srv/x",
            |error| {
                matches!(
                    error,
                    add::AddError::Compose {
                        source: ComposeError::Refused(_),
                        ..
                    }
                )
            },
        ),
        (
            "databases only",
            "services: {db: {image: 'postgres:16'}, w: {build: .}}\n",
            "srv/x",
            |error| matches!(error, add::AddError::NothingToDeploy { .. }),
        ),
        ("no YAML", "services: [\n", "srv/x", |error| {
            matches!(error, add::AddError::Compose { .. })
        }),
        (
            "what Compose refuses",
            "services: {web: {image: 'acme/web:1', colour: red}}\n",
            "srv/x",
            |error| matches!(error, add::AddError::Name { .. } | add::AddError::Compose { .. }),
        ),
        ("no Compose file", "", "srv", |error| {
            matches!(
                error,
                add::AddError::Compose {
                    source: ComposeError::NoComposeFile { .. },
                    ..
                }
            )
        }),
        ("no folder", "", "nowhere", |error| {
            matches!(error, add::AddError::Folder { .. })
        }),
    ];
    for (what, text, dir, expected) in cases {
        let host = Host::new(AGENT);
        host.put("srv/x/compose.yaml", text);
        let error = host.add(dir, None, &[]).await.unwrap_err();
        assert!(expected(&error), "{what}: {error:?}");
        assert!(!host.path("etc/projects.d").exists(), "{what}");
    }
}

#[tokio::test]
async fn official_images_may_be_pushed_where_there_is_no_other() {
    let host = Host::new(AGENT);
    host.put(
        "srv/x/compose.yaml",
        "services: {web: {image: 'nginx:1.27'}, db: {image: 'mariadb:11'}}\n",
    );
    let report = host.add("srv/x", None, &[]).await.unwrap();
    assert!(
        report
            .lines()
            .any(|line| line.starts_with("  web") && line.ends_with("yes")),
        "{report}"
    );
    assert!(
        host.read("etc/projects.d/x.toml")
            .contains("\n  \"nginx\", # web\n  # Left out")
    );
}

#[test]
fn the_pin_is_printed_before_there_is_a_key_and_stays() {
    let host = Host::new(AGENT);
    let pin = host.pin().unwrap();
    assert!(pin.starts_with("sha256//") && pin.ends_with("=\n"), "{pin}");
    assert_eq!(host.pin().unwrap(), pin);
    assert!(matches!(
        Host::new("[server]\n").pin(),
        Err(pin::PinError::Config(_))
    ));
}

#[tokio::test]
async fn a_good_configuration_is_summed_up_with_what_to_look_at() {
    let host = Host::new(&format!("{AGENT}{KEYS}"));
    assert!(host.check(false).unwrap().contains("pin       none yet"));
    assert!(!host.path("state").exists(), "check changes nothing");
    host.put("srv/clinic/docker-compose.yml", CLINIC);
    host.add("srv/clinic", None, &[]).await.unwrap();
    host.put("srv/x/compose.yaml", "services: {web: {image: 'acme/web:1'}}\n");
    host.add("srv/x", None, &[]).await.unwrap();
    let pin = host.pin().unwrap();
    let summary = host.check(false).unwrap();
    for line in [
        "@HEREetc is good",
        "  listens   0.0.0.0:8443 as web-1.example.com",
        &format!("  pin       {}", pin.trim()),
        "1 key in agent.toml",
        "  github-clinic: push, rollback, status, logs in clinic, gone; until 2026-11-10 (5 days)",
        "2 projects in projects.d",
        "  x: @HEREsrv/x (what Compose finds)",
        "    watches   up to 60s, well for 7s; leaves 1 GiB free",
        "look at",
        "  key github-clinic expires soon: make its successor (`deployctl keygen`)",
        "  key github-clinic names project gone, which this host does not have",
        "  no key may push to project x",
    ] {
        let line = line.replace("@HERE", &host.path("").to_string_lossy());
        assert!(summary.lines().any(|found| found == line), "{line}\n{summary}");
    }
    assert_eq!(host.check(true).unwrap(), "");
}

#[test]
fn a_bad_configuration_or_certificate_fails_the_check() {
    assert!(
        matches!(Host::new(AGENT).check(true), Err(check::CheckError::Config(_))),
        "no key"
    );
    let host = Host::new(&format!("{AGENT}{KEYS}"));
    host.pin().unwrap();
    std::fs::remove_file(host.path("state/tls/key.pem")).unwrap();
    let error = host.check(true).unwrap_err();
    assert!(matches!(error, check::CheckError::Tls(_)), "{error:?}");
    assert!(
        error.hint().is_some_and(|hint| hint.contains("not made anew")),
        "{error:?}"
    );
}

#[test]
fn the_folders_that_need_no_drop_in_are_those_of_the_unit() {
    let unit = include_str!("../../../systemd/deploy-agent.service");
    let folders: Vec<String> = add::WRITABLE.iter().map(|folder| format!("-{folder}")).collect();
    let line = format!("ReadWritePaths={}", folders.join(" "));
    assert!(unit.lines().any(|found| found == line), "{line}");
}
