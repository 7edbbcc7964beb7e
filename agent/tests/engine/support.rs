//! What the tests stand on: a Compose project made by hand, a registry, and images published into it.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use deploy_agent::config::{Order, Pin, Project};
use deploy_agent::host::engine::{Container, Engine, Logins};
use deploy_proto::image::ImageRef;
use deploy_proto::names::ServiceName;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use tempfile::TempDir;

pub(crate) const SOCKET: &str = "/var/run/docker.sock";

/// A name that no other test, process or run uses.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("engine-test-{}-{count}", std::process::id())
}

/// Runs a command to its end; its standard output, trimmed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.env("DOCKER_BUILDKIT", "0").output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn docker(arguments: &[&str]) -> String {
    run(Command::new("docker").args(arguments))
}

/// Polls until there is something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(20) {
        if let Some(found) = look().await {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within 20 s");
}

/// An Engine that finds registry logins in this folder, and credential helpers in it.
pub(crate) fn engine_with(config_dir: &Path) -> Engine {
    let path = format!("{}:/usr/bin:/bin", config_dir.display());
    let logins = Logins {
        config_dir: config_dir.to_owned(),
        environment: vec![("PATH".into(), path.into())],
    };
    Engine::connect(Path::new(SOCKET), logins).unwrap()
}

pub(crate) fn engine() -> Engine {
    engine_with(Path::new("/nonexistent"))
}

/// A Compose project without Compose: containers with its labels, of an image with nothing but busybox.
pub(crate) struct Fixture {
    pub(crate) engine: Engine,
    pub(crate) project: Project,
    pub(crate) image: String,
    pub(crate) since: Timestamp,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let name = unique();
        let image = format!("{name}:busybox");
        let tree = tempfile::tempdir().unwrap();
        let bin = tree.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for program in ["busybox", "sh"] {
            fs::copy("/bin/busybox", bin.join(program)).unwrap();
        }
        let tar = tree.path().join("image.tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(tree.path())
            .arg("-cf")
            .arg(&tar)
            .arg("bin"));
        docker(&["import", tar.to_str().unwrap(), &image]);
        Self {
            engine: engine(),
            project: Project {
                name: name.parse().unwrap(),
                dir: "/nonexistent".into(),
                files: Vec::new(),
                images: Vec::new(),
                allow_latest: false,
                pin: Pin::Digest,
                order: Order::Together,
                wait: Duration::from_secs(60),
                settle: Duration::ZERO,
                bake: Duration::ZERO,
                keep: 1,
                remove_images: true,
                min_free_bytes: 0,
                probes: Vec::new(),
                hooks: Vec::new(),
            },
            image,
            since: Timestamp::now(),
        }
    }

    /// `docker VERB` of a container of a service, with more options, that runs a shell script. Answers its id.
    pub(crate) fn make(&self, verb: &[&str], service: &str, options: &[&str], script: &str) -> String {
        let project = format!("com.docker.compose.project={}", self.project.name);
        let service = format!("com.docker.compose.service={service}");
        let mut arguments = verb.to_vec();
        arguments.extend(["--label", &project, "--label", &service]);
        arguments.extend(["--stop-timeout", "0"]);
        arguments.extend(options);
        arguments.extend([self.image.as_str(), "/bin/sh", "-c", script]);
        docker(&arguments)
    }

    pub(crate) fn start(&self, service: &str, options: &[&str], script: &str) -> String {
        self.make(&["run", "-d"], service, options, script)
    }

    pub(crate) async fn container(&self, id: &str) -> Container {
        self.engine.container(id).await.unwrap().unwrap()
    }

    /// Waits until a container looks like that.
    pub(crate) async fn until(&self, id: &str, what: &str, wanted: impl Fn(&Container) -> bool) -> Container {
        eventually(what, || async { Some(self.container(id).await).filter(&wanted) }).await
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.project.name);
        let ids = output_of(&["ps", "-aq", "--filter", &label]);
        for id in ids.split_whitespace() {
            output_of(&["rm", "-f", id]);
        }
        output_of(&["rmi", "-f", &self.image]);
    }
}

/// For cleaning up: whatever comes of it.
fn output_of(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

pub(crate) fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

/// The one user of a registry with a login. In base64 the password has the characters in which the two alphabets differ.
pub(crate) const USER: &str = "ann";
pub(crate) const PASSWORD: &str = "??????~~>>";
/// bcrypt of it.
const HTPASSWD: &str = "ann:$2b$04$abcdefghijklmnopqrstuuMr8pdRQoeDh5gO7G0WnoeFLrRtj/GA.\n";

/// A `docker-registry` of its own on a free port.
pub(crate) struct Registry {
    child: Child,
    pub(crate) host: String,
    login: bool,
    dir: TempDir,
}

impl Registry {
    pub(crate) async fn open() -> Self {
        Self::start(false).await
    }

    pub(crate) async fn with_login() -> Self {
        Self::start(true).await
    }

    async fn start(login: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = format!("127.0.0.1:{port}");
        let root = dir.path().display();
        let auth = if login {
            fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
            format!("auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}\n")
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}}}}}\n\
             http: {{addr: '{host}'}}\n{auth}"
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self {
            child,
            host,
            login,
            dir,
        };
        eventually("the registry answers", || async {
            tokio::net::TcpStream::connect(&registry.host).await.ok()
        })
        .await;
        registry
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// An image reference of this registry under a repository that no other test has.
    pub(crate) fn image(&self, tag: &str) -> ImageRef {
        format!("{}/{}:{tag}", self.host, unique()).parse().unwrap()
    }

    /// Publishes an image with one layer of so many bytes that do not compress, without the Engine.
    pub(crate) async fn publish(&self, image: &ImageRef, architecture: &str, layer_bytes: usize) {
        let dir = tempfile::tempdir().unwrap();
        run(Command::new("sh").current_dir(dir.path()).args([
            "-c",
            &format!("head -c {layer_bytes} /dev/urandom > content && tar -cf layer.tar content"),
        ]));
        let layer = fs::read(dir.path().join("layer.tar")).unwrap();
        let layer_digest = sha256(&layer);
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer_digest}"]}}}}"#
        );
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}",
                "config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":{},"digest":"{}"}},
                "layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":{},"digest":"{layer_digest}"}}]}}"#,
            config.len(),
            sha256(config.as_bytes()),
            layer.len()
        );
        let path = image.repository().split_once('/').unwrap().1.to_owned();
        self.upload(&path, layer).await;
        self.upload(&path, config.into_bytes()).await;
        let url = format!(
            "http://{}/v2/{path}/manifests/{}",
            self.host,
            image.tag().unwrap()
        );
        let put = self.put(&url).header("content-type", MANIFEST).body(manifest);
        put.send().await.unwrap().error_for_status().unwrap();
    }

    /// Spoils the largest blob of the registry on its disk: its first byte, or everything behind the first half.
    pub(crate) fn damage(&self, cut: bool) {
        let script = "find . -name data -printf '%s %p\\n' | sort -n | tail -n 1 | cut -d' ' -f2-";
        let blob = run(Command::new("sh")
            .current_dir(self.dir.path())
            .args(["-c", script]));
        let blob = self.dir.path().join(blob);
        let mut bytes = fs::read(&blob).unwrap();
        if cut {
            bytes.truncate(bytes.len() / 2);
        } else {
            bytes[0] ^= 1;
        }
        fs::write(&blob, bytes).unwrap();
    }

    async fn upload(&self, path: &str, blob: Vec<u8>) {
        let url = format!("http://{}/v2/{path}/blobs/uploads/", self.host);
        let begun = self.signed(client().post(url)).send().await.unwrap();
        let begun = begun.error_for_status().unwrap();
        let place = begun.headers()["location"].to_str().unwrap();
        let url = format!("{place}&digest={}", sha256(&blob));
        let put = self
            .put(&url)
            .header("content-type", "application/octet-stream")
            .body(blob);
        put.send().await.unwrap().error_for_status().unwrap();
    }

    fn put(&self, url: &str) -> reqwest::RequestBuilder {
        self.signed(client().put(url))
    }

    fn signed(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        if self.login {
            request.basic_auth(USER, Some(PASSWORD))
        } else {
            request
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        for image in
            output_of(&["images", "-q", "--filter", &format!("reference={}/*", self.host)]).split_whitespace()
        {
            output_of(&["rmi", "-f", image]);
        }
    }
}

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn client() -> reqwest::Client {
    rustls::crypto::ring::default_provider().install_default().ok();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
