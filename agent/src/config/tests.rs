//! The configuration as people write it: every default, every kind of mistake with its line and hint, and who may write.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;

mod mistakes;

use mistakes::{AGENT_MISTAKES, PROJECT_MISTAKES};

const PUBLIC: &str = "ed25519:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
const OTHER_PUBLIC: &str = "ed25519:PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw=";

/// A folder as `/etc/deploy-agent`, with a Compose project beside it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(agent: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(folder.path("shop")).unwrap();
        std::fs::create_dir(folder.path("projects.d")).unwrap();
        folder.put("shop/compose.yaml", "services: {}\n");
        folder.put("agent.toml", agent);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let text = text.replace("@SHOP", &self.path("shop").to_string_lossy());
        let text = text.replace("@HERE", &self.path("").to_string_lossy());
        let text = text.replace("@PUBLIC", PUBLIC).replace("@OTHER", OTHER_PUBLIC);
        let mut file = std::fs::File::create(self.path(name)).unwrap();
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        self.mode(name, 0o640);
    }

    fn mode(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The mistakes as `FILE:LINE: WHAT | HINT`, without the folder's path.
    fn mistakes(&self) -> Vec<String> {
        let here = self.path("").to_string_lossy().into_owned();
        let Err(mistakes) = load(&self.path("")) else {
            return Vec::new();
        };
        let line = |mistake: &Mistake| {
            let line = mistake.line.map_or(String::new(), |line| format!("{line}:"));
            let hint = mistake
                .hint
                .as_ref()
                .map_or(String::new(), |hint| format!(" | {hint}"));
            format!("{}:{line} {}{hint}", mistake.file.display(), mistake.what).replace(&here, "")
        };
        mistakes.as_slice().iter().map(line).collect()
    }
}

const MINIMAL: &str = r#"
[server]
names = ["web-1.example.com"]
[[key]]
name = "ci"
public = "@PUBLIC"
projects = ["*"]
allow = ["push"]
"#;

fn check(folder: &Folder, text: &str, expected: &[&str]) {
    let mistakes = folder.mistakes();
    let as_expected = mistakes.len() == expected.len()
        && mistakes
            .iter()
            .zip(expected)
            .all(|(mistake, expected)| mistake.starts_with(expected));
    assert!(as_expected, "{text}\ngave {mistakes:#?}\nexpected {expected:#?}");
    let shown = load(&folder.path("")).map_or_else(|mistakes| mistakes.to_string(), |_| String::new());
    assert!(!shown.contains("CANARY"), "{shown}");
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line_and_a_hint() {
    for (text, expected) in AGENT_MISTAKES {
        check(&Folder::new(text), text, expected);
    }
    for (text, expected) in PROJECT_MISTAKES {
        let folder = Folder::new(MINIMAL);
        folder.put("projects.d/shop.toml", text);
        check(&folder, text, expected);
    }
}

#[test]
fn mistakes_of_several_files_are_reported_together() {
    let folder = Folder::new("[server]\nnames = ['a']\ncolour = 1\n[[key]]\n");
    folder.put("projects.d/Shop!.toml", "");
    folder.put(
        "projects.d/api.toml",
        "dir = '/'\nimages = ['acme/*']\nwait = '1d'\n",
    );
    folder.put("projects.d/a.toml", "dir = '@SHOP'\nimages = ['acme/*']\n");
    folder.put("projects.d/b.toml", "dir = '@SHOP'\nimages = ['acme/*']\n");
    folder.put("projects.d/.hidden.toml", "x");
    folder.put("projects.d/shop.toml.bak", "x");
    let found = folder.mistakes();
    for expected in [
        "agent.toml:3: unknown key `colour` in [server]",
        "agent.toml:4: `name` is missing in [[key]]",
        "projects.d/Shop!.toml: the file's name is no project's",
        "projects.d/api.toml:3: a duration has a unit that is not known",
        "projects.d/b.toml: project a is the same folder with the same files",
    ] {
        assert!(
            found.iter().any(|mistake| mistake.starts_with(expected)),
            "{expected}\n{found:#?}"
        );
    }
    assert!(
        !found
            .iter()
            .any(|mistake| mistake.contains("hidden") || mistake.contains("bak")),
        "{found:#?}"
    );
}

#[test]
fn a_mistake_is_shown_with_its_source_line_and_a_caret() {
    let folder = Folder::new(&MINIMAL.replace("[[key]]", "lisen = \"0.0.0.0:8443\"\n[[key]]"));
    let shown = load(&folder.path(""))
        .unwrap_err()
        .to_string()
        .replace(&*folder.path("").to_string_lossy(), "/etc/deploy-agent/");
    let expected = "/etc/deploy-agent/agent.toml:4: unknown key `lisen` in [server]\n    lisen = \"0.0.0.0:8443\"\n    ^^^^^\n  \
                    hint: did you mean `listen`?\n1 mistake in the configuration";
    assert_eq!(shown, expected);
}

#[test]
fn what_is_left_out_has_its_default() {
    let folder = Folder::new(MINIMAL);
    folder.put(
        "projects.d/shop.toml",
        "dir = '@SHOP'\nimages = ['acme/*']\n[[probe]]\nservice = 'web'\ntcp = '127.0.0.1:80'\n",
    );
    let config = load(&folder.path("")).unwrap();
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:8443");
    assert!(config.server.tls.is_none());
    assert_eq!(config.monitor.to_string(), "127.0.0.1:9618");
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/deploy-agent"));
    assert_eq!(config.docker_socket, PathBuf::from("/var/run/docker.sock"));
    assert_eq!(config.docker_config_dir, PathBuf::from("/root/.docker"));
    let [key] = config.keys.as_slice() else {
        panic!("{:?}", config.keys)
    };
    assert_eq!((&key.services, key.expires), (&Scope::All, None));
    let expected = Project {
        name: "shop".parse().unwrap(),
        dir: folder.path("shop"),
        files: Vec::new(),
        images: vec!["acme/*".to_owned()],
        allow_latest: false,
        pin: Pin::Digest,
        order: Order::OneByOne,
        wait: Duration::from_secs(60),
        settle: Duration::from_secs(7),
        bake: Duration::ZERO,
        keep: 10,
        remove_images: true,
        min_free_bytes: 1 << 30,
        probes: vec![Probe {
            service: "web".parse().unwrap(),
            check: ProbeCheck::Tcp {
                address: "127.0.0.1:80".to_owned(),
            },
            timeout: Duration::from_secs(5),
        }],
        hooks: Vec::new(),
    };
    assert_eq!(config.projects.values().collect::<Vec<_>>(), [&expected]);
}

#[test]
fn what_is_written_is_taken() {
    let folder = Folder::new(
        "state_dir = '/var/lib/x'\n[server]\nlisten = '[::]:443'\nnames = ['a', 'b:8443', '10.0.0.1', '[::1]']\n\
         [server.tls]\ncertificate = '@HERE/tls.crt'\nkey = '@HERE/tls.key'\n[monitor]\nlisten = '10.0.0.1:1'\n\
         [docker]\nsocket = '/run/d.sock'\nconfig_dir = '/etc/d'\n\
         [[key]]\nname = 'ci'\npublic = '@PUBLIC'\nprojects = ['shop', 'blog']\nservices = ['web']\n\
         allow = ['push', 'rollback', 'status', 'logs']\nexpires = 2027-06-30\n\
         [[key]]\nname = 'ci-2'\npublic = '@OTHER'\nprojects = ['*']\nservices = ['*']\nallow = ['status']\n",
    );
    folder.put("tls.crt", "");
    folder.put("tls.key", "");
    folder.mode("tls.key", 0o600);
    folder.put("shop/b.yml", "");
    folder.put(
        "projects.d/shop.toml",
        "dir = '@SHOP'\nfiles = ['compose.yaml', '@SHOP/b.yml']\nimages = ['ghcr.io/acme/*', 'nginx']\nallow_latest = true\n\
         pin = 'tag'\norder = 'together'\nwait = '2m'\nsettle = '0s'\nbake = '10m'\nkeep = 3\nremove_images = false\nmin_free = '500MB'\n\
         [[probe]]\nservice = 'web'\nhttp = 'http://127.0.0.1/h'\nstatus = 204\ntimeout = '500ms'\n",
    );
    let config = load(&folder.path("agent.toml")).unwrap();
    assert_eq!(config.server.names, ["a", "b:8443", "10.0.0.1", "[::1]"]);
    assert_eq!(config.server.tls.unwrap().key, folder.path("tls.key"));
    let [ci, second] = config.keys.as_slice() else {
        panic!("{:?}", config.keys)
    };
    assert_eq!(
        ci.projects,
        Scope::Only(vec!["shop".parse().unwrap(), "blog".parse().unwrap()])
    );
    assert_eq!(ci.services, Scope::Only(vec!["web".parse().unwrap()]));
    assert_eq!(ci.allow, Action::ALL);
    assert_eq!(ci.expires, Some("2027-07-01T00:00:00Z".parse().unwrap()));
    assert_eq!((&second.projects, &second.services), (&Scope::All, &Scope::All));
    let shop = config.projects.values().next().unwrap();
    assert_eq!(
        shop.files,
        [PathBuf::from("compose.yaml"), folder.path("shop/b.yml")]
    );
    assert_eq!(
        (shop.pin, shop.order, shop.allow_latest),
        (Pin::Tag, Order::Together, true)
    );
    assert_eq!(
        (
            shop.wait.as_secs(),
            shop.settle.as_secs(),
            shop.bake.as_secs(),
            shop.keep
        ),
        (120, 0, 600, 3)
    );
    assert!(!shop.remove_images);
    assert_eq!(shop.min_free_bytes, 500_000_000);
    let http = ProbeCheck::Http {
        url: "http://127.0.0.1/h".to_owned(),
        status: Some(204),
    };
    assert_eq!(
        shop.probes.first().map(|probe| (&probe.check, probe.timeout)),
        Some((&http, Duration::from_millis(500)))
    );
}

#[test]
fn hooks_are_taken_in_the_order_of_the_file_and_named_after_their_programs() {
    let folder = Folder::new(MINIMAL);
    folder.put(
        "projects.d/shop.toml",
        "dir = '@SHOP'\nimages = ['acme/*']\n\
         [[hook]]\nbefore = 'everything'\ncommand = ['/bin/sh', '-x', '-x']\ndeadline = '10m'\n\
         [[hook]]\nbefore = 'restart'\nservice = 'api'\ncommand = ['npm', 'run']\nirreversible = true\n\
         [[hook]]\nbefore = 'restart'\nservice = 'api'\ncommand = ['npm', 'run', 'seed']\n\
         [[hook]]\nafter = 'live'\nname = 'smoke'\ncommand = ['curl', '-f', 'http://127.0.0.1/']\n\
         [[hook]]\nafter = 'live'\nservice = 'api'\ncommand = ['/opt/My Tests']\n",
    );
    let config = load(&folder.path("")).unwrap();
    let shop = config.projects.values().next().unwrap();
    let told: Vec<_> = shop
        .hooks
        .iter()
        .map(|hook| {
            let service = hook.service.as_ref().map(ServiceName::as_str);
            (hook.name.as_str(), hook.moment, service, hook.deadline.as_secs())
        })
        .collect();
    let migration = |is_irreversible| HookMoment::BeforeRestart { is_irreversible };
    assert_eq!(
        told,
        [
            ("sh", HookMoment::BeforeEverything, None, 600),
            ("npm", migration(true), Some("api"), 300),
            ("npm-2", migration(false), Some("api"), 300),
            ("smoke", HookMoment::AfterLive, None, 300),
            ("smoke-test", HookMoment::AfterLive, Some("api"), 300),
        ]
    );
    assert_eq!(
        shop.hooks.first().map(|hook| hook.command.len()),
        Some(3),
        "a word may stand there twice"
    );
}

#[test]
fn a_project_has_twenty_hooks_at_most() {
    let hooks = |count: usize| {
        let folder = Folder::new(MINIMAL);
        let hook = "[[hook]]\nafter = 'live'\ncommand = ['true']\n".repeat(count);
        folder.put(
            "projects.d/shop.toml",
            &format!("dir = '@SHOP'\nimages = ['acme/*']\n{hook}"),
        );
        folder.mistakes()
    };
    assert_eq!(hooks(20), Vec::<String>::new());
    assert_eq!(
        hooks(21),
        ["projects.d/shop.toml:63: more than 20 hooks | put what belongs together into one script"]
    );
}

#[test]
fn a_folder_behind_a_symbolic_link_is_resolved() {
    let folder = Folder::new(MINIMAL);
    std::os::unix::fs::symlink(folder.path("shop"), folder.path("current")).unwrap();
    folder.put(
        "projects.d/shop.toml",
        "dir = '@HERE/current'\nimages = ['acme/*']\n",
    );
    let config = load(&folder.path("")).unwrap();
    assert_eq!(config.projects.values().next().unwrap().dir, folder.path("shop"));
}

#[test]
fn files_that_others_can_write_and_keys_that_others_can_read_are_refused_with_the_command_to_type() {
    for (name, mode, expected) in [
        (
            "agent.toml",
            0o664,
            Some("agent.toml: mode 0664 lets others write it"),
        ),
        (
            "agent.toml",
            0o666,
            Some("agent.toml: mode 0666 lets others write it"),
        ),
        (
            "agent.toml",
            0o644,
            Some("agent.toml: mode 0644 lets everybody read who may deploy what"),
        ),
        ("agent.toml", 0o640, None),
        ("agent.toml", 0o400, None),
        (
            "projects.d/shop.toml",
            0o620,
            Some("projects.d/shop.toml: mode 0620 lets others write it"),
        ),
        (
            "projects.d",
            0o777,
            Some("projects.d: mode 0777 lets others write it"),
        ),
        ("projects.d", 0o755, None),
        ("", 0o775, Some(": mode 0775 lets others write it")),
        (
            "tls.key",
            0o640,
            Some("agent.toml:6: mode 0640 lets others read this private key"),
        ),
        (
            "tls.key",
            0o604,
            Some("agent.toml:6: mode 0604 lets others read this private key"),
        ),
        ("tls.key", 0o400, None),
    ] {
        let tls = "[server.tls]\ncertificate = '@HERE/tls.crt'\nkey = '@HERE/tls.key'\n[[key]]";
        let folder = Folder::new(&MINIMAL.replace("[[key]]", tls));
        folder.put("projects.d/shop.toml", "dir = '@SHOP'\nimages = ['acme/*']\n");
        folder.put("tls.crt", "");
        folder.put("tls.key", "");
        folder.mode("tls.key", 0o600);
        folder.mode(name, mode);
        let mistakes = folder.mistakes();
        match expected {
            None => assert!(mistakes.is_empty(), "{name} {mode:o}: {mistakes:?}"),
            Some(expected) => {
                let [mistake] = mistakes.as_slice() else {
                    panic!("{name} {mode:o}: {mistakes:?}")
                };
                let shown = mistake.replace(folder.path("").to_string_lossy().trim_end_matches('/'), "");
                assert!(
                    shown.starts_with(expected) && shown.contains(" | chmod "),
                    "{shown}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_readable_text_is_a_mistake_too() {
    let folder = Folder::new(MINIMAL);
    std::fs::remove_file(folder.path("agent.toml")).unwrap();
    assert_eq!(
        folder.mistakes(),
        ["agent.toml: the file cannot be read: it does not exist"]
    );
    let mut file = std::fs::File::create(folder.path("agent.toml")).unwrap();
    std::io::Write::write_all(&mut file, b"[server]\nx = '\xff'\n").unwrap();
    folder.mode("agent.toml", 0o640);
    assert_eq!(
        folder.mistakes(),
        ["agent.toml:2: the file is not UTF-8 | save it as UTF-8"]
    );
    folder.put("agent.toml", &"#".repeat(1 << 21));
    assert_eq!(folder.mistakes(), ["agent.toml: the file is larger than 1 MiB"]);
    folder.put(
        "agent.toml",
        &format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n")),
    );
    assert_eq!(folder.mistakes(), Vec::<String>::new());
}

#[test]
fn a_project_that_is_not_there_is_a_mistake_but_keeps_no_agent_from_starting() {
    let folder = Folder::new(MINIMAL);
    folder.put(
        "projects.d/gone.toml",
        "dir = '@HERE/gone'\nimages = ['acme/*']\nfiles = ['c.yaml']\n",
    );
    folder.put(
        "projects.d/part.toml",
        "dir = '@SHOP'\nimages = ['acme/*']\nfiles = ['none.yaml']\n",
    );
    folder.put("projects.d/shop.toml", "dir = '@SHOP'\nimages = ['acme/*']\n");
    let [dir, file] = &folder.mistakes()[..] else {
        panic!("{:?}", folder.mistakes())
    };
    assert!(
        dir.starts_with("projects.d/gone.toml:1: `dir` cannot be used"),
        "{dir}"
    );
    assert!(
        file.starts_with("projects.d/part.toml:3: the Compose file cannot"),
        "{file}"
    );
    let (config, absent) = load_at_start(&folder.path("")).unwrap();
    assert_eq!(absent.map(|absent| absent.as_slice().len()), Some(2));
    let dirs: Vec<_> = config
        .projects
        .values()
        .map(|project| project.dir.clone())
        .collect();
    assert_eq!(
        dirs,
        [folder.path("gone"), folder.path("shop"), folder.path("shop")]
    );

    // Any other mistake is one at start too, and all are told.
    folder.put("projects.d/shop.toml", "dir = '@SHOP'\nimages = []\n");
    let mistakes = load_at_start(&folder.path("")).unwrap_err();
    assert_eq!(mistakes.as_slice().len(), 3, "{mistakes}");
}

#[test]
fn a_project_that_is_not_there_answers_for_itself() {
    for files in [Vec::new(), vec!["compose.yaml".into()]] {
        let dir = PathBuf::from("/nonexistent/gone");
        let project = Project::with_defaults("gone".parse().unwrap(), dir, files);
        let error = crate::host::compose::Sources::load(&project).unwrap_err();
        let problem = deploy_proto::problem::Problem::from(&error);
        assert_eq!(
            problem.code,
            deploy_proto::problem::Code::ComposeFile,
            "{problem:?}"
        );
        assert!(problem.detail.contains("/nonexistent/gone"), "{problem:?}");
    }
}

#[test]
fn the_server_part_is_read_without_a_key_and_whatever_the_projects_are() {
    let folder = Folder::new("[server]\nnames = ['a']\n");
    folder.put("projects.d/shop.toml", "x");
    assert_eq!(load_server(&folder.path("")).unwrap().server.names, ["a"]);
    assert!(load(&folder.path("")).is_err());
    assert!(load_server(&Folder::new("[server]\n").path("")).is_err());
}

/// The file as it is shipped is refused for what only the operator knows; what it shows as defaults are the defaults.
#[test]
fn the_shipped_example_is_valid_once_it_is_filled_in() {
    let shipped = include_str!("../../../packaging/agent.toml");
    let found = Folder::new(shipped).mistakes();
    let [key, names] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert!(
        names.contains(": `names` is missing in [server]") && key.contains("no caller's key is configured"),
        "{found:?}"
    );
    let is_setting =
        |line: &str| line.starts_with("# ") && line.contains(" = ") && !line.contains("/etc/ssl");
    let filled: Vec<&str> = shipped
        .lines()
        .map(|line| {
            if is_setting(line) || line == "# [[key]]" {
                line.trim_start_matches("# ")
            } else {
                line
            }
        })
        .collect();
    let filled =
        load(&Folder::new(&filled.join("\n")).path("")).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let minimal = load(&Folder::new(MINIMAL).path("")).unwrap();
    assert_eq!(
        (filled.server.listen, filled.monitor),
        (minimal.server.listen, minimal.monitor)
    );
    assert_eq!(filled.state_dir, minimal.state_dir);
    assert_eq!(filled.docker_socket, minimal.docker_socket);
    assert_eq!(filled.docker_config_dir, minimal.docker_config_dir);
    assert_eq!(
        filled.keys.first().map(|key| key.allow.as_slice()),
        Some(Action::ALL.as_slice())
    );
}
