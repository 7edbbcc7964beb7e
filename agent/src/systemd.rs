//! What systemd is told: ready, reloading, stopping, a status line, and that the loops which work still do.
//!
//! Without systemd (no `NOTIFY_SOCKET`) nothing is sent, and nothing wakes up for it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::watch;
use tokio::time::Instant;

/// The longest status line that is sent, in characters: `systemctl status` shows one line.
const STATUS_MAX_CHARS: usize = 200;

/// The way to the service manager: `sd_notify(3)`.
#[derive(Debug)]
pub struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// Connects to what the variables `NOTIFY_SOCKET` and `WATCHDOG_USEC` of the environment name.
    ///
    /// # Errors
    /// When there is a socket and it does not take the connection.
    pub fn new(notify_socket: Option<&OsStr>, watchdog_usec: Option<&OsStr>) -> io::Result<Self> {
        let socket = notify_socket
            .filter(|name| !name.is_empty())
            .map(connect)
            .transpose()?;
        let watchdog = watchdog_usec
            .and_then(OsStr::to_str)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_micros);
        Ok(Self {
            watchdog: watchdog.filter(|time| socket.is_some() && !time.is_zero()),
            socket,
        })
    }

    /// Says that the agent serves, at first and after a reload.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Says that the configuration is read again; [`Self::ready`] ends it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "the monotonic clock cannot be read"),
        }
    }

    /// Says that the agent ends.
    pub fn stopping(&self, status: &str) {
        self.send(&[NotifyState::Stopping, NotifyState::Status(&one_line(status))]);
    }

    /// Sets the line that `systemctl status` shows.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// Asks systemd for this much more time, for a start or a stop that takes longer than the unit says.
    pub fn extend(&self, by: Duration) {
        let microseconds = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(socket) = &self.socket else { return };
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        // The agent works without systemd's knowing it; only the watchdog would tell, and that is its task.
        if let Err(error) = socket.send(message.as_bytes()) {
            tracing::warn!(%error, "systemd does not take a notification");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match name.as_bytes().strip_prefix(b"@") {
        Some(abstract_name) => socket.connect_addr(&SocketAddr::from_abstract_name(abstract_name)?)?,
        None => socket.connect(Path::new(name))?,
    }
    // A manager that does not read must not stop a deployment.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.chars()
        .take(STATUS_MAX_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Feeds systemd's watchdog as long as every loop that registered shows that it works.
///
/// Twice in the watchdog's interval it asks all loops for a beat, and feeds if every one has beaten since. Between two
/// questions nobody has to wake up, and without a watchdog nobody is ever asked.
#[derive(Debug, Clone)]
pub struct Heart {
    loops: Arc<Mutex<Loops>>,
    questions: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Loops {
    next: u64,
    beating: Vec<Beating>,
}

#[derive(Debug)]
struct Beating {
    number: u64,
    name: &'static str,
    last: Instant,
}

/// One loop's proof that it works. When it is dropped, the loop has ended and is not waited for any more.
#[derive(Debug)]
pub struct Pulse {
    heart: Heart,
    number: u64,
    questions: watch::Receiver<u64>,
}

impl Default for Heart {
    fn default() -> Self {
        Self::new()
    }
}

impl Heart {
    /// A heart without loops.
    pub fn new() -> Self {
        Self {
            loops: Arc::default(),
            questions: watch::Sender::new(0),
        }
    }

    /// Adds a loop; `name` is for the log.
    pub fn register(&self, name: &'static str) -> Pulse {
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let number = loops.next;
        loops.next += 1;
        loops.beating.push(Beating {
            number,
            name,
            last: Instant::now(),
        });
        Pulse {
            heart: self.clone(),
            number,
            questions: self.questions.subscribe(),
        }
    }

    /// The loops that have not beaten for longer than `within`.
    pub fn silent(&self, within: Duration) -> Vec<&'static str> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops
            .beating
            .iter()
            .filter(|beating| beating.last.elapsed() > within)
            .map(|beating| beating.name)
            .collect()
    }

    /// Feeds the watchdog for ever; ends at once when there is none.
    pub async fn run(&self, manager: &ServiceManager) {
        let Some(watchdog) = manager.watchdog else { return };
        let half = watchdog / 2;
        loop {
            self.questions.send_modify(|question| *question += 1);
            // The loops need a moment to answer; what did not answer by the next question is silent.
            tokio::time::sleep(half).await;
            let silent = self.silent(half + half / 2);
            if silent.is_empty() {
                manager.send(&[NotifyState::Watchdog]);
            } else {
                let silent = silent.join(", ");
                tracing::error!(
                    loops = silent,
                    "a loop does not answer, systemd will restart the agent"
                );
                manager.status(&format!("does not answer: {silent}"));
            }
        }
    }

    fn beat(&self, number: u64) {
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(beating) = loops.beating.iter_mut().find(|beating| beating.number == number) {
            beating.last = Instant::now();
        }
    }
}

impl Pulse {
    /// Shows that the loop works.
    pub fn beat(&self) {
        self.heart.beat(self.number);
    }

    /// Waits until a beat is wanted: an idle loop selects on this beside its work, and beats.
    pub async fn wanted(&mut self) {
        // An error means that the heart is gone: nobody will want a beat any more.
        if self.questions.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Does one piece of work that may take long, and beats whenever it is wanted meanwhile. That shows that the task is
    /// polled; that the work itself ends is its own deadline's business.
    pub async fn while_doing<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            self.beat();
            tokio::select! {
                done = &mut work => return done,
                () = self.wanted() => {}
            }
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let mut loops = self.heart.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.beating.retain(|beating| beating.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Listener {
        _folder: tempfile::TempDir,
        socket: UnixDatagram,
        manager: ServiceManager,
    }

    fn listener(watchdog_usec: Option<&str>) -> Listener {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = ServiceManager::new(Some(path.as_os_str()), watchdog_usec.map(OsStr::new)).unwrap();
        Listener {
            _folder: folder,
            socket,
            manager,
        }
    }

    impl Listener {
        fn heard(&self) -> Vec<String> {
            let mut heard = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            heard
        }
    }

    #[test]
    fn systemd_hears_what_the_agent_does() {
        let listener = listener(None);
        listener.manager.ready("serves 2 projects");
        listener.manager.reloading();
        listener.manager.status("evil\nREADY=1");
        listener.manager.stopping("finishes shop");
        let heard = listener.heard();
        assert_eq!(heard[0], "READY=1\nSTATUS=serves 2 projects\n");
        assert!(heard[1].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{heard:?}");
        assert_eq!(heard[2], "STATUS=evil READY=1\n");
        assert_eq!(heard[3], "STOPPING=1\nSTATUS=finishes shop\n");
    }

    #[test]
    fn an_abstract_socket_is_found_and_a_missing_one_is_an_error() {
        let name = format!("deploy-agent-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let manager = ServiceManager::new(Some(OsStr::new(&format!("@{name}"))), None).unwrap();
        manager.status("x");
        let mut buffer = [0; 64];
        assert_eq!(socket.recv(&mut buffer).unwrap(), "STATUS=x\n".len());
        assert!(ServiceManager::new(Some(OsStr::new("/nowhere/notify")), None).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn without_systemd_nothing_is_sent_and_nobody_wakes_up() {
        let manager = ServiceManager::new(None, Some(OsStr::new("1000000"))).unwrap();
        manager.ready("x");
        let heart = Heart::new();
        let mut pulse = heart.register("queue");
        heart.run(&manager).await;
        let woken = tokio::time::timeout(Duration::from_secs(3600), pulse.wanted()).await;
        assert!(woken.is_err(), "nobody wants a beat");
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_while_every_loop_beats() {
        let listener = listener(Some("10000000"));
        let heart = Heart::new();
        let mut idle = heart.register("queue");
        let mut busy = heart.register("runner");
        let loops = async {
            tokio::join!(
                async {
                    loop {
                        idle.wanted().await;
                        idle.beat();
                    }
                },
                busy.while_doing(std::future::pending::<()>()),
            )
        };
        tokio::select! {
            () = heart.run(&listener.manager) => {}
            _ = loops => {}
            () = tokio::time::sleep(Duration::from_secs(41)) => {}
        }
        assert_eq!(listener.heard(), vec!["WATCHDOG=1\n"; 8]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_starves_when_one_loop_is_stuck_and_is_fed_again_when_it_has_ended() {
        let listener = listener(Some("10000000"));
        let heart = Heart::new();
        let mut good = heart.register("queue");
        let stuck = heart.register("runner");
        let beats = async {
            loop {
                good.wanted().await;
                good.beat();
            }
        };
        let story = async {
            tokio::time::sleep(Duration::from_secs(31)).await;
            let heard = listener.heard();
            drop(stuck);
            tokio::time::sleep(Duration::from_secs(5)).await;
            (heard, listener.heard())
        };
        let (starving, after) = tokio::select! {
            () = heart.run(&listener.manager) => panic!("there is a watchdog"),
            () = beats => panic!("it never ends"),
            story = story => story,
        };
        // The first question finds it fresh.
        assert_eq!(starving[0], "WATCHDOG=1\n");
        assert!(
            starving[1..]
                .iter()
                .all(|message| message == "STATUS=does not answer: runner\n"),
            "{starving:?}"
        );
        assert_eq!(after, ["WATCHDOG=1\n"]);
    }
}
