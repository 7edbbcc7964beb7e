//! The shape of `agent.toml`: where the agent listens and as whom, and the callers' keys.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use deploy_proto::names::KeyName;
use deploy_proto::signing::{AuthorityNames, PublicKey};
use toml::Spanned;

use super::access;
use super::file::Document;
use super::table::{Table, one_of};
use super::values::{self, Refusal};
use super::{Action, Key, Scope, Server, TlsFiles};

/// Where the signed API listens by default: on every IPv4 address.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8443);
/// Where monitoring is served by default: on loopback, as it is not authenticated.
const MONITOR_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9618);
/// systemd's `StateDirectory=deploy-agent`.
const STATE_DIR: &str = "/var/lib/deploy-agent";
/// Where the Engine listens unless told otherwise.
pub const DEFAULT_DOCKER_SOCKET: &str = "/var/run/docker.sock";
const DOCKER_CONFIG_DIR: &str = "/root/.docker";
/// The most names of this host: each stands in the certificate.
const NAMES_MAX: usize = 64;
/// The most keys: a host of a thousand callers has something else wrong with it.
const KEYS_MAX: usize = 1000;

const ROOT: &[&str] = &["server", "monitor", "docker", "key", "state_dir"];

/// Everything of the file but the keys.
pub(super) struct Settings {
    pub(super) server: Option<Server>,
    pub(super) monitor: SocketAddr,
    pub(super) state_dir: PathBuf,
    pub(super) docker_socket: PathBuf,
    pub(super) docker_config_dir: PathBuf,
}

/// Reads everything but the keys. A setting with a mistake has its default, and the document has the mistake.
pub(super) fn settings(document: &Document<'_>, hostname: &str) -> Settings {
    let root = document.root(ROOT);
    let server = root.table("server", "[server]", &["listen", "names", "tls"]);
    let server = match &server {
        Some(server) => self::server(server, hostname),
        None => {
            if !root.has("server") {
                document.missing(
                    "`[server]` with `names` is missing",
                    names_hint("[server]\n", hostname),
                );
            }
            None
        }
    };
    let monitor = root.table("monitor", "[monitor]", &["listen"]);
    let listen = monitor.as_ref().and_then(|table| table.parsed("listen", address));
    if let (Some(server), Some(table), Some(listen)) = (&server, &monitor, &listen)
        && server.listen == *listen.get_ref()
    {
        table.wrong(
            listen,
            "monitoring needs a port of its own",
            format!("leave it out for {MONITOR_LISTEN}"),
        );
    }
    let docker = root.table("docker", "[docker]", &["socket", "config_dir"]);
    let docker_path = |key, default| {
        let path = docker.as_ref().and_then(|table| absolute_path(table, key));
        path.unwrap_or_else(|| PathBuf::from(default))
    };
    Settings {
        server,
        monitor: listen.map_or(MONITOR_LISTEN, Spanned::into_inner),
        state_dir: absolute_path(&root, "state_dir").unwrap_or_else(|| PathBuf::from(STATE_DIR)),
        docker_socket: docker_path("socket", DEFAULT_DOCKER_SOCKET),
        docker_config_dir: docker_path("config_dir", DOCKER_CONFIG_DIR),
    }
}

fn server(table: &Table<'_>, hostname: &str) -> Option<Server> {
    let listen = table
        .parsed("listen", address)
        .map_or(LISTEN, Spanned::into_inner);
    let tls = table.table("tls", "[server.tls]", &["certificate", "key"]);
    let tls = tls.as_ref().and_then(tls_files);
    if !table.has("names") {
        table.missing("names", names_hint("", hostname));
        return None;
    }
    let names = table.parsed_list("names", |text| match AuthorityNames::new([text]) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Refusal {
            what: error.to_string(),
            hint: "leave out https:// and any path".to_owned(),
        }),
    })?;
    let listed = table.texts("names").map_or(0, |texts| texts.len());
    if listed == 0 || listed > NAMES_MAX {
        let what = format!("`names` must list between 1 and {NAMES_MAX} names");
        table.wrong_value("names", what, names_hint("", hostname));
    }
    Some(Server {
        listen,
        names: values_of(names),
        tls,
    })
}

fn names_hint(before: &str, hostname: &str) -> String {
    format!(
        "add the names by which callers reach this host, as in their URLs:\n{before}names = [\"{hostname}\"]"
    )
}

fn tls_files(table: &Table<'_>) -> Option<TlsFiles> {
    for key in ["certificate", "key"] {
        if !table.has(key) {
            table.missing(
                key,
                "name both files, or leave [server.tls] out for a self-signed certificate",
            );
        }
    }
    let (certificate, key) = (absolute_path(table, "certificate"), absolute_path(table, "key"));
    for (path, setting) in [(&certificate, "certificate"), (&key, "key")] {
        let Some(path) = path else { continue };
        let check = if setting == "key" {
            access::private_file(path)
        } else {
            access::readable_file(path)
        };
        if let (Err(refusal), Some(text)) = (check, table.text(setting)) {
            table.wrong(&text, refusal.what, refusal.hint);
        }
    }
    Some(TlsFiles {
        certificate: certificate?,
        key: key?,
    })
}

/// Reads the keys. Those with a mistake are left out, and the document has the mistake.
pub(super) fn keys(document: &Document<'_>) -> Vec<Key> {
    let root = document.root(ROOT);
    let tables = root.tables(
        "key",
        &["name", "public", "projects", "services", "allow", "expires"],
    );
    if !root.has("key") {
        document.missing(
            "no caller's key is configured, so nobody could deploy",
            "run `deployctl keygen` where you deploy from, and add what it prints here:\n\
             [[key]]\nname = \"ci\"\npublic = \"ed25519:...\"\nprojects = [\"*\"]\n\
             allow = [\"push\", \"rollback\", \"status\", \"logs\"]",
        );
    }
    if let Some(table) = tables.get(KEYS_MAX) {
        table.wrong_table(
            format!("more than {KEYS_MAX} keys"),
            "remove keys that nobody uses",
        );
    }
    let mut keys: Vec<Key> = Vec::new();
    for table in &tables {
        keys.extend(key(table, &keys));
    }
    keys
}

fn key(table: &Table<'_>, earlier: &[Key]) -> Option<Key> {
    for (key, hint) in [
        ("name", "name it after its holder, such as \"github-shop\""),
        ("public", "paste the ed25519:... that `deployctl keygen` printed"),
        ("projects", "list its projects, or [\"*\"] for all of this host"),
        (
            "allow",
            "list what it may do: [\"push\", \"rollback\", \"status\", \"logs\"]",
        ),
    ] {
        if !table.has(key) {
            table.missing(key, hint);
        }
    }
    let name = table.parsed(
        "name",
        named::<KeyName>("name it after its holder, such as \"github-shop\""),
    );
    if let Some(name) = &name
        && earlier.iter().any(|key| key.name == *name.get_ref())
    {
        table.wrong(
            name,
            "another key has this name",
            "to replace a key, give the new one a name of its own for the time of the change",
        );
    }
    let public: Option<PublicKey> = table.parsed_hidden("public", str::parse);
    if let (Some(public), Some(text)) = (&public, table.text("public"))
        && let Some(same) = earlier.iter().find(|key| key.public == *public)
    {
        table.wrong(
            &text,
            format!("key {} has the same public key", same.name),
            "a key has one name and one set of rights: merge the two",
        );
    }
    let words: Vec<(&str, Action)> = Action::ALL
        .into_iter()
        .map(|action| (action.as_str(), action))
        .collect();
    let allow = table.parsed_list("allow", |text| one_of("allow", text, &words));
    not_empty(table, "allow", "list what it may do, or remove the key");
    let projects = scope(
        table,
        "projects",
        "write a project as its file is called: projects.d/NAME.toml",
    );
    let services = if table.has("services") {
        scope(table, "services", "write a service as the Compose file calls it")
    } else {
        Some(Scope::All)
    };
    let expires = table.date("expires").and_then(|date| {
        values::expiry(date.get_ref())
            .map_err(|refusal| table.wrong(&date, refusal.what, refusal.hint))
            .ok()
    });
    Some(Key {
        name: name?.into_inner(),
        public: public?,
        projects: projects?,
        services: services?,
        allow: values_of(allow?),
        expires,
    })
}

/// A list of names, or `["*"]`.
fn scope<T: FromStr<Err: Display>>(table: &Table<'_>, key: &str, hint: &str) -> Option<Scope<T>> {
    not_empty(table, key, "list names, or write [\"*\"] for all");
    let texts = table.texts(key)?;
    let all = texts.iter().find(|text| *text.get_ref() == "*");
    match (all, texts.len()) {
        (Some(_), 1) => Some(Scope::All),
        (Some(all), _) => {
            table.wrong(
                all,
                format!("`{key}` has * and names"),
                "write [\"*\"] for all, or names only",
            );
            None
        }
        (None, _) => table
            .parsed_list(key, named(hint))
            .map(|names| Scope::Only(values_of(names))),
    }
}

fn not_empty(table: &Table<'_>, key: &str, hint: &str) {
    if table.texts(key).is_some_and(|texts| texts.is_empty()) {
        table.wrong_value(key, format!("`{key}` is empty"), hint);
    }
}

/// Reads a name, with this hint when it is none.
pub(super) fn named<T: FromStr<Err: Display>>(hint: &str) -> impl Fn(&str) -> Result<T, Refusal> {
    move |text| {
        text.parse().map_err(|error: T::Err| Refusal {
            what: error.to_string(),
            hint: hint.to_owned(),
        })
    }
}

pub(super) fn values_of<T>(list: Vec<Spanned<T>>) -> Vec<T> {
    list.into_iter().map(Spanned::into_inner).collect()
}

fn address(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_| Refusal {
        what: "an address to listen on is an IP address and a port".to_owned(),
        hint: format!("write \"{LISTEN}\", \"[::]:8443\" for IPv6 and IPv4, or one address of this host"),
    })
}

fn absolute_path(table: &Table<'_>, key: &str) -> Option<PathBuf> {
    let path = table.parsed(key, |text| match PathBuf::from(text) {
        path if path.is_absolute() => Ok(path),
        _ => Err(Refusal {
            what: format!("`{key}` must be an absolute path"),
            hint: "begin it with /".to_owned(),
        }),
    })?;
    Some(path.into_inner())
}
