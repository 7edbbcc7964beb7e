//! Running the agent: resume what the journal holds, bind the two listeners, and stop without losing anything.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use hyper_util::rt::TokioTimer;
use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::watch::{Receiver, channel};

use crate::api;
use crate::api::listener::{BoundedListener, Caller};
use crate::app::App;
use crate::config::{self, Config};
use crate::deploy::feed::Feed;
use crate::deploy::runner::Runner;
use crate::descriptors::{self, TooFew};
use crate::history::{History, HistoryError};
use crate::host::{DockerHost, Environment};
use crate::metrics::Metrics;
use crate::queue::Queue;
use crate::retention::{self, Ended, Retention};
use crate::settings::Settings;
use crate::state_folder::{StateFolder, StateFolderError};
use crate::systemd::{Heart, ServiceManager};
use crate::tls;
use crate::watch::bake::{self, Bakes};
use crate::watch::drift;

/// How long a stopping agent waits for actions that change the host to reach a phase's boundary. Below the unit's
/// `TimeoutStopSec`; what is still not there goes on from the journal at the next start.
const STOP_DEADLINE: Duration = Duration::from_secs(80);
/// How long open connections may take to end when the agent stops.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(2);
/// How long a caller may take to send a request's headers.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a caller may take for the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// The most headers' bytes of one request; a signed one has about 1 KiB.
const HEADER_MAX_BYTES: usize = 16 * 1024;

/// Why the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener could not be bound.
    #[error("listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The database cannot be used.
    #[error("use the database")]
    History(#[source] HistoryError),
    /// The configuration has names that are no host names.
    #[error("read server.names")]
    Names(#[source] deploy_proto::signing::BadAuthority),
    /// The certificate or its key cannot be used.
    #[error("set TLS up")]
    Tls(#[source] tls::TlsError),
    /// Docker cannot be set up: the socket's path is unusable.
    #[error("set the host up")]
    Host(#[source] crate::host::HostError),
    /// A listener failed.
    #[error("serve")]
    Serve(#[source] io::Error),
    /// Signals cannot be received.
    #[error("listen for signals")]
    Signals(#[source] io::Error),
    /// The state folder cannot be used, or another agent uses it.
    #[error(transparent)]
    StateFolder(#[from] StateFolderError),
    /// There are too few file descriptors.
    #[error(transparent)]
    Descriptors(#[from] TooFew),
}

impl ServeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tls(error) => error.hint(),
            Self::Bind { .. } => {
                Some("is another agent running, or is the address not this host's?".to_owned())
            }
            Self::History(error) => error.hint(),
            Self::StateFolder(error) => error.hint(),
            Self::Descriptors(error) => Some(error.hint()),
            Self::Names(_) | Self::Host(_) | Self::Serve(_) | Self::Signals(_) => None,
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Something that the agent cannot do without is missing, or the journal can no longer be written.
pub async fn run(
    config: Config,
    config_dir: &Path,
    environment: Environment,
    manager: ServiceManager,
) -> Result<(), ServeError> {
    let manager = Arc::new(manager);
    let connections = descriptors::share_out()?;
    // Held to the end: a second agent by mistake ends here, and never acts beside the first.
    let state = StateFolder::take(&config.state_dir)?;
    let history = History::open(&state.database()).map_err(ServeError::History)?;
    let tls = tls::load(&config.server, state.path(), Timestamp::now()).map_err(ServeError::Tls)?;
    let api_listener = bind(config.server.listen)?;
    let monitor_listener = bind(config.monitor)?;

    let (stop, stopping) = channel(false);
    let (fatal, mut fatally) = mpsc::channel(1);
    let heart = Heart::new();
    let (ended, endings) = mpsc::channel(retention::WAITING_MAX);
    let told = Told { fatal, ended };
    let app = assemble(config, environment, history, stopping, told, heart.clone())?;
    stand(&app).await.map_err(ServeError::History)?;
    app.queue.resume().await.map_err(ServeError::History)?;
    drop(tokio::spawn(bake::run(Arc::clone(&app), heart.clone())));

    let api_handle = Handle::new();
    let monitor_handle = Handle::new();
    let rustls = RustlsConfig::from_config(tls.config);
    let api_listener = bounded_listener(api_listener, connections.api)?;
    let monitor_listener = bounded_listener(monitor_listener, connections.monitor)?;
    let api = serve_api(api_listener, rustls.clone(), api_handle.clone(), &app);
    let monitor = serve_monitor(monitor_listener, monitor_handle.clone(), &app);
    let mut signals = Signals::new()?;
    let mut pulse = heart.register("main");
    let watchdog = Arc::clone(&manager);
    let fed = tokio::spawn(async move { heart.run(&watchdog).await });
    drop(tokio::spawn(retention(&app).run(endings, app.shutdown.clone())));
    let watching = tokio::spawn(drift::run(Arc::clone(&app)));
    manager.ready(&serving(&app));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pin = tls.pin, "serving");

    let failed = loop {
        tokio::select! {
            () = pulse.wanted() => pulse.beat(),
            _ = signals.hangup.recv() => reload(&app, config_dir, &rustls, &manager).await,
            _ = signals.terminate.recv() => break None,
            _ = signals.interrupt.recv() => break None,
            error = fatally.recv() => break error,
        }
    };
    manager.stopping("stops at the next phase's boundary");
    tracing::info!("stopping: deployments stop at the next phase's boundary and go on from the journal");
    stop.send_replace(true);
    if tokio::time::timeout(STOP_DEADLINE, app.queue.drained())
        .await
        .is_err()
    {
        tracing::warn!("an action is still under way; it is begun anew at the next start");
    }
    api_handle.graceful_shutdown(Some(CONNECTION_DEADLINE));
    monitor_handle.graceful_shutdown(Some(CONNECTION_DEADLINE));
    for server in [api, monitor] {
        if let Ok(Err(source)) = server.await {
            return Err(ServeError::Serve(source));
        }
    }
    watching.abort();
    fed.abort();
    failed.map_or(Ok(()), |error| Err(ServeError::History(error)))
}

/// Whom the queue tells of what happened.
struct Told {
    fatal: mpsc::Sender<HistoryError>,
    ended: mpsc::Sender<Ended>,
}

/// What cleans up after deployments.
fn retention(app: &App) -> Retention {
    Retention::new(
        app.history.clone(),
        Arc::clone(&app.host),
        Arc::clone(&app.settings),
        Arc::clone(&app.metrics),
    )
}

/// Puts the agent together; nothing runs yet.
fn assemble(
    config: Config,
    environment: Environment,
    history: History,
    stopping: Receiver<bool>,
    told: Told,
    heart: Heart,
) -> Result<Arc<App>, ServeError> {
    let host = Arc::new(DockerHost::new(&config, environment).map_err(ServeError::Host)?);
    let settings = Arc::new(Settings::new(config).map_err(ServeError::Names)?);
    let feed = Arc::new(Feed::default());
    let metrics = Arc::new(Metrics::default());
    let now = Timestamp::now as fn() -> Timestamp;
    let runner = Runner::new(
        Arc::clone(&host),
        history.patient(),
        Arc::clone(&feed),
        stopping.clone(),
        now,
    );
    let queue = Arc::new(Queue::new(
        runner,
        history.clone(),
        Arc::clone(&settings),
        Arc::clone(&metrics),
        told.fatal,
        told.ended,
        heart,
    ));
    Ok(Arc::new(App {
        settings,
        history,
        queue,
        host,
        feed,
        metrics,
        bakes: Bakes::default(),
        shutdown: stopping,
        now,
    }))
}

/// Tells the metrics, and the log where a person is needed, how every project stands by the journal.
async fn stand(app: &App) -> Result<(), HistoryError> {
    for project in app.settings.config().projects.keys() {
        app.metrics.know_project(project);
        let stuck = app.history.stuck(project.clone()).await?;
        if let Some(outcome) = stuck.as_ref().and_then(|deployment| deployment.outcome.as_ref()) {
            let trouble = outcome.trouble.as_ref().map_or("", |problem| &problem.detail);
            tracing::error!(
                project = project.as_str(),
                trouble,
                "the project is stuck: a person is needed"
            );
        }
        let live = app.history.live_release(project.clone()).await?;
        // Stuck, no release runs whole.
        let release = live.filter(|_| stuck.is_none()).map(|release| release.number.0);
        app.metrics.project_stands(project, release, stuck.is_some());
    }
    Ok(())
}

/// The line that `systemctl status` shows.
fn serving(app: &App) -> String {
    let config = app.settings.config();
    let plural = if config.projects.len() == 1 { "" } else { "s" };
    format!(
        "serves {} project{plural} on {}",
        config.projects.len(),
        config.server.listen
    )
}

fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    listener.map_err(|source| ServeError::Bind { address, source })
}

fn bounded_listener(listener: TcpListener, connections: usize) -> Result<BoundedListener, ServeError> {
    BoundedListener::new(listener, connections).map_err(ServeError::Serve)
}

type Serving = tokio::task::JoinHandle<io::Result<()>>;

fn serve_api(
    listener: BoundedListener,
    tls: RustlsConfig,
    handle: Handle<Caller>,
    app: &Arc<App>,
) -> Serving {
    let server = Server::from_listener(listener)
        .acceptor(RustlsAcceptor::new(tls).handshake_timeout(HANDSHAKE_DEADLINE));
    let service = api::router(Arc::clone(app)).into_make_service();
    tokio::spawn(async move { bounded(server).handle(handle).serve(service).await })
}

fn serve_monitor(listener: BoundedListener, handle: Handle<Caller>, app: &Arc<App>) -> Serving {
    let server = Server::from_listener(listener);
    let service = api::monitor::router(Arc::clone(app)).into_make_service();
    tokio::spawn(async move { bounded(server).handle(handle).serve(service).await })
}

/// Bounds what a caller can hold without saying anything: HTTP/1.1 only, headers within a deadline and a size.
fn bounded<A>(server: Server<Caller, A>) -> Server<Caller, A> {
    let mut server = server.http1_only();
    server
        .http_builder()
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_MAX_BYTES);
    server
}

/// Reads the configuration and the certificate again; on any mistake the old ones stay, and the log says why.
async fn reload(app: &App, config_dir: &Path, rustls: &RustlsConfig, manager: &ServiceManager) {
    manager.reloading();
    let loaded = config::load(config_dir).map_err(|mistakes| mistakes.to_string());
    let loaded = loaded.and_then(|config| {
        let tls =
            tls::load_existing(&config.server, &config.state_dir).map_err(|error| error_chain(&error))?;
        // Never made anew here: callers have pinned the key that is in use.
        let tls = tls.ok_or("the TLS key and certificate are gone from the state folder")?;
        app.settings
            .replace(config)
            .map_err(|error| error_chain(&error))?;
        Ok(tls)
    });
    match loaded {
        Ok(tls) => {
            rustls.reload_from_config(tls.config);
            app.queue.announce();
            if let Err(error) = stand(app).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "project gauges not refreshed"
                );
            }
            tracing::info!("configuration reloaded");
        }
        Err(mistakes) => {
            app.metrics.reload_failed();
            tracing::error!(
                mistakes,
                "the configuration was not reloaded: the old one stays in force"
            );
        }
    }
    manager.ready(&serving(app));
}

/// An error and its causes on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string())
        .chain(causes.map(ToString::to_string))
        .collect::<Vec<_>>()
        .join(": ")
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, ServeError> {
        let listen = |kind| signal(kind).map_err(ServeError::Signals);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}
