//! Images that are good, sick, slow or dying, and a registry of our own to pull them from: nothing comes from outside.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tempfile::TempDir;

use crate::command::Run;
use crate::engine::Engine;
use crate::http;
use crate::liar::Liar;
use crate::until::until;

/// Returns a name that no other test on this machine has, now or later.
pub fn unique(prefix: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let random = RandomState::new().hash_one(0) & 0xff_ffff;
    format!(
        "{prefix}-{}-{}-{random:06x}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Makes a folder that is removed on drop; its name tells `tests/sweep.sh` which process it belongs to.
pub fn temporary_dir(what: &str) -> Result<TempDir> {
    Ok(TempDir::with_prefix(format!("deploy-tests-{}-", unique(what)))?)
}

/// Returns a port of 127.0.0.1 that is free now, below the range that the kernel gives to outgoing connections.
pub fn free_port() -> Result<u16> {
    let mut random = RandomState::new().hash_one(0);
    for _ in 0..200 {
        let port = 20_000 + u16::try_from(random % 12_000)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) >> 1;
    }
    bail!("no free port among 200 tried")
}

/// Returns the static release build of the test service, built when it is not fresh.
pub fn service_binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| build_service().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn build_service() -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let target = target_dir().join("test-service");
    Run::within(Duration::from_secs(600), option_env!("CARGO").unwrap_or("cargo"))
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "test-service",
            "--target",
            &triple,
            "--target-dir",
        ])
        .args([&target])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .dir(workspace())
        .text()?;
    Ok(target.join(triple).join("release/test-service"))
}

/// The folder of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The folder of its builds.
pub(crate) fn target_dir() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The image that all others start from: the service and nothing else. It stays on the Engine like a build's output,
/// under a name made from its content, so that every other image takes a fraction of a second.
fn base_image(engine: &Engine) -> Result<String> {
    engine.base_image(|| build_base(engine))
}

fn build_base(engine: &Engine) -> Result<String> {
    let binary = service_binary()?;
    let mut hasher = DefaultHasher::new();
    fs::read(&binary)?.hash(&mut hasher);
    let name = format!("deploy-tests-base:{:016x}", hasher.finish());
    // Two test programs at once would build it twice.
    let lock = File::create(target_dir().join("test-service/base.lock"))?;
    lock.lock()?;
    if !engine
        .docker(["image", "inspect", &name])
        .output()?
        .status
        .success()
    {
        let context = temporary_dir("base")?;
        fs::copy(&binary, context.path().join("service"))?;
        let dockerfile = "FROM scratch\nCOPY service /service\nEXPOSE 8080\nENTRYPOINT [\"/service\"]\n";
        fs::write(context.path().join("Dockerfile"), dockerfile)?;
        build(engine, context.path(), &name)?;
    }
    Ok(name)
}

fn build(engine: &Engine, context: &Path, name: &str) -> Result<()> {
    let run = engine
        .docker(["build", "--quiet", "--force-rm", "--tag", name, "."])
        .dir(context);
    run.env("DOCKER_BUILDKIT", "0").text().map(drop)
}

/// How an image behaves once it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Serves, and is well.
    Good,
    /// Serves, but `/health` answers 500 and the log says `ERROR: relation "orders_v2" does not exist`.
    Sick,
    /// Exits 3 at once, after an error line.
    Crash,
    /// Well for this long, then exits 3.
    CrashLater(Duration),
    /// `/health` answers 503 for this long, then is well.
    SlowStart(Duration),
    /// Well and sick by turns of this length.
    Flapping(Duration),
    /// Prints a line and exits 0.
    Oneshot,
    /// Well, but takes no notice of SIGTERM: a stop takes its whole grace period.
    Deaf,
    /// Accepts connections and never answers.
    Hang,
    /// Well; counts its starts on the volume at `/data` and tells them at `/` as `boots`.
    Database,
    /// Well, until a GET of `/become/sick`, `/become/well`, `/become/sick-once` (for one check) or `/become/dead` (exits 3).
    Moody,
}

impl Mode {
    fn variables(self) -> Vec<(&'static str, String)> {
        let (name, after) = match self {
            Self::Good => ("good", None),
            Self::Sick => ("sick", None),
            Self::Crash => ("crash", None),
            Self::CrashLater(after) => ("crash-later", Some(after)),
            Self::SlowStart(after) => ("slow-start", Some(after)),
            Self::Flapping(after) => ("flapping", Some(after)),
            Self::Oneshot => ("oneshot", None),
            Self::Deaf => ("deaf", None),
            Self::Hang => ("hang", None),
            Self::Database => ("database", None),
            Self::Moody => ("moody", None),
        };
        let mut variables = vec![("MODE", name.to_owned())];
        variables.extend(after.map(|after| ("AFTER_MS", after.as_millis().to_string())));
        variables
    }
}

/// A healthcheck baked into an image.
#[derive(Debug, Clone)]
pub struct Healthcheck {
    /// Argv inside the container.
    pub command: Vec<String>,
    /// Between two runs; the first comes after one interval too.
    pub interval: Duration,
    /// For one run.
    pub timeout: Duration,
    /// Failures in a row until the container is unhealthy.
    pub retries: u32,
}

impl Healthcheck {
    /// The service's own check, every so often, unhealthy after two failures.
    pub fn every(interval: Duration) -> Self {
        let command = ["/service", "healthcheck"].map(str::to_owned).to_vec();
        Self {
            command,
            interval,
            timeout: Duration::from_secs(3),
            retries: 2,
        }
    }

    /// A check that never ends by itself.
    pub fn endless(interval: Duration) -> Self {
        let command = ["/service", "sleep", "3600"].map(str::to_owned).to_vec();
        Self {
            command,
            ..Self::every(interval)
        }
    }

    fn line(&self) -> String {
        let command: Vec<String> = self.command.iter().map(|word| quoted(word)).collect();
        let Self {
            interval,
            timeout,
            retries,
            ..
        } = self;
        let (interval, timeout) = (interval.as_millis(), timeout.as_millis());
        let command = command.join(", ");
        format!(
            "HEALTHCHECK --interval={interval}ms --timeout={timeout}ms --retries={retries} CMD [{command}]\n"
        )
    }
}

/// An image to be built: the test service, told how to behave.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the service calls itself.
    pub name: String,
    /// The version it tells at `/`.
    pub version: String,
    /// How it behaves.
    pub mode: Mode,
    /// Its own healthcheck, if any.
    pub healthcheck: Option<Healthcheck>,
    /// Size of a layer of random bytes, so that a pull has something to pull; 0 for no such layer.
    pub extra_bytes: u64,
    /// More variables; `PORT` moves the service from 8080.
    pub env: BTreeMap<String, String>,
}

impl Image {
    /// An image with a small layer of its own and no healthcheck.
    pub fn new(name: &str, version: &str, mode: Mode) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            mode,
            healthcheck: None,
            extra_bytes: 64 * 1024,
            env: BTreeMap::new(),
        }
    }

    /// Adds a healthcheck.
    #[must_use]
    pub fn healthcheck(mut self, healthcheck: Healthcheck) -> Self {
        self.healthcheck = Some(healthcheck);
        self
    }

    /// Sets the size of the layer of random bytes.
    #[must_use]
    pub fn extra_bytes(mut self, bytes: u64) -> Self {
        self.extra_bytes = bytes;
        self
    }

    /// Builds it, pushes it as `HOST/REPO:TAG`, forgets it on the Engine (so that it must be pulled) and returns its
    /// manifest's digest (`sha256:...`). Every build is another image with another digest. What the Engine already
    /// knows as `HOST/REPO:TAG` stays as it is: the image goes there by the registry's other name, `localhost`.
    pub fn build_and_push(&self, registry: &Registry, repo: &str, tag: &str) -> Result<String> {
        let engine = registry.engine();
        let context = temporary_dir("image")?;
        fs::write(
            context.path().join("Dockerfile"),
            self.dockerfile(&base_image(engine)?),
        )?;
        if self.extra_bytes > 0 {
            let mut layer = File::create(context.path().join("layer"))?;
            std::io::copy(
                &mut File::open("/dev/urandom")?.take(self.extra_bytes),
                &mut layer,
            )?;
        }
        let name = format!("localhost:{}/{repo}:{tag}", registry.port());
        build(engine, context.path(), &name)?;
        let pushed = engine
            .docker(["push", &name])
            .env("DOCKER_CONFIG", registry.docker_config())
            .text();
        engine.docker(["rmi", "--force", &name]).text()?;
        let pushed = pushed?;
        let digest = pushed.split_whitespace().find(|word| word.starts_with("sha256:"));
        Ok(digest
            .with_context(|| format!("no digest in {pushed:?}"))?
            .to_owned())
    }

    fn dockerfile(&self, base: &str) -> String {
        // The label comes first and makes every later layer this build's own: the builder's cache is shared by all
        // tests on the machine, and another test's `rmi` must not take a layer from under this one.
        let mut text = format!("FROM {base}\nLABEL deploy-tests.build={}\n", unique("build"));
        let mut variables: BTreeMap<&str, &str> = BTreeMap::from([
            ("SERVICE_NAME", self.name.as_str()),
            ("SERVICE_VERSION", self.version.as_str()),
        ]);
        let mode = self.mode.variables();
        variables.extend(mode.iter().map(|(name, value)| (*name, value.as_str())));
        variables.extend(
            self.env
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str())),
        );
        text.push_str("ENV");
        for (name, value) in variables {
            text.push_str(&format!(" {name}={}", quoted(value).replace('$', "\\$")));
        }
        text.push('\n');
        text.push_str(
            &self
                .healthcheck
                .as_ref()
                .map(Healthcheck::line)
                .unwrap_or_default(),
        );
        if self.extra_bytes > 0 {
            text.push_str("COPY layer /layer\n");
        }
        text
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Who may use a registry.
#[derive(Debug, Clone)]
pub struct Login {
    /// The one user.
    pub user: String,
    /// Their password.
    pub password: String,
}

/// A `docker-registry` of this test's own on a free port. A handle: the process ends with the last clone. Keep it in a
/// local or a field, never in a `static`, which is not dropped.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    /// The one in its images' names.
    port: u16,
    own_port: u16,
    dir: TempDir,
    process: Mutex<Option<Child>>,
}

impl Registry {
    /// Starts one that everybody may use.
    pub fn start() -> Result<Self> {
        Self::start_for(&Engine::shared(), None, None)
    }

    /// Starts one that everybody may use, for images that are made on this Engine.
    pub fn start_on(engine: &Engine) -> Result<Self> {
        Self::start_for(engine, None, None)
    }

    /// Starts one that is known by the port of a liar, who gives its answers.
    pub fn start_behind(engine: &Engine, liar: &Liar) -> Result<Self> {
        Self::start_for(engine, None, Some(liar))
    }

    /// Starts one that wants this login.
    pub fn start_with_login(login: &Login) -> Result<Self> {
        Self::start_for(&Engine::shared(), Some(login), None)
    }

    fn start_for(engine: &Engine, login: Option<&Login>, liar: Option<&Liar>) -> Result<Self> {
        let mut tried = 0;
        loop {
            let registry = Self::prepare(engine, login, liar)?;
            tried += 1;
            match registry.resume() {
                Ok(()) => return Ok(registry),
                // Somebody took the port between our look and the registry's.
                Err(error) if tried < 5 && error.to_string().contains("in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn prepare(engine: &Engine, login: Option<&Login>, liar: Option<&Liar>) -> Result<Self> {
        let own_port = free_port()?;
        let port = liar.map_or(own_port, Liar::port);
        if let Some(liar) = liar {
            liar.speak_for(own_port);
        }
        let dir = temporary_dir("registry")?;
        let path = dir.path();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info, formatter: text}}\nstorage:\n  filesystem: {{rootdirectory: {0}/storage}}\n  \
             delete: {{enabled: true}}\n  maintenance: {{uploadpurging: {{enabled: false}}}}\nhttp: {{addr: '127.0.0.1:{own_port}'}}\n",
            path.display()
        );
        fs::create_dir(path.join("docker"))?;
        let mut auths = serde_json::Map::new();
        if let Some(login) = login {
            write!(
                config,
                "auth:\n  htpasswd: {{realm: tests, path: {}/htpasswd}}\n",
                path.display()
            )?;
            fs::write(
                path.join("htpasswd"),
                format!("{}:{}\n", login.user, bcrypt(&login.password)?),
            )?;
            let auth = serde_json::json!({ "username": login.user, "password": login.password });
            auths.insert(format!("127.0.0.1:{port}"), auth.clone());
            auths.insert(format!("localhost:{port}"), auth);
        }
        fs::write(
            path.join("docker/config.json"),
            serde_json::json!({ "auths": auths }).to_string(),
        )?;
        fs::write(path.join("config.yml"), config)?;
        Ok(Self {
            inner: Arc::new(Inner {
                engine: engine.clone(),
                port,
                own_port,
                dir,
                process: Mutex::new(None),
            }),
        })
    }

    /// The Engine that its images are made on and pulled to.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// `127.0.0.1:PORT`, as it stands in image references.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.inner.port)
    }

    /// The port of 127.0.0.1 that its images are named by.
    pub fn port(&self) -> u16 {
        self.inner.port
    }

    /// A folder for `DOCKER_CONFIG` whose `config.json` has this registry's login, if it wants one.
    pub fn docker_config(&self) -> PathBuf {
        self.inner.dir.path().join("docker")
    }

    /// What it logged so far, a line for each request.
    pub fn log(&self) -> String {
        fs::read_to_string(self.inner.dir.path().join("log")).unwrap_or_default()
    }

    /// Ends the process; the images stay. Does nothing when it is not running.
    pub fn stop(&self) {
        self.inner.stop();
    }

    /// Starts the process again, on the same port with the same images.
    pub fn resume(&self) -> Result<()> {
        self.stop();
        let dir = self.inner.dir.path();
        let log = File::options().create(true).append(true).open(dir.join("log"))?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(dir.join("config.yml")).env_clear();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command
            .spawn()
            .context("failed to start docker-registry; tests/setup.sh installs it")?;
        fs::write(dir.join("pid"), child.id().to_string())?;
        *self.inner.process.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
        until("the registry answers", Duration::from_secs(20), || {
            if self.has_ended()? {
                return Ok(Some(Err(anyhow!("the registry ended: {}", self.log()))));
            }
            // 401 is an answer too.
            Ok(http::get(self.inner.own_port, "/v2/").ok().map(|_| Ok(())))
        })?
    }

    fn has_ended(&self) -> Result<bool> {
        let mut process = self.inner.process.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(match process.as_mut() {
            Some(child) => child.try_wait()?.is_some(),
            None => true,
        })
    }
}

impl Inner {
    fn stop(&self) {
        if let Some(mut child) = self.process.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
        for name in ["127.0.0.1", "localhost"] {
            drop(forget_images(&self.engine, &format!("{name}:{}/", self.port)));
        }
    }
}

/// Removes all images from the Engine whose name starts like this, tagged or pulled by digest.
pub fn forget_images(engine: &Engine, prefix: &str) -> Result<()> {
    let listed = engine
        .docker(["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}"])
        .text()?;
    let mut ids: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, repository)| repository.starts_with(prefix))
        .map(|(id, _)| id)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    if !ids.is_empty() {
        engine.docker(["rmi", "--force"]).args(ids).text()?;
    }
    Ok(())
}

/// docker-registry takes bcrypt only. Perl is on every Debian, and its crypt is the C library's.
fn bcrypt(password: &str) -> Result<String> {
    let program = r#"print crypt($ENV{PASSWORD}, '$2b$05$abcdefghijklmnopqrstuu')"#;
    let hash = Run::new("perl")
        .args(["-e", program])
        .env("PASSWORD", password)
        .text()?;
    if !hash.starts_with("$2b$") {
        bail!("this machine's crypt knows no bcrypt: {hash:?}");
    }
    Ok(hash)
}
