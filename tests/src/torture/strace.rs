//! Breaking system calls of a running agent with `strace`: an error or a kill in place of the Nth call.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::agent::{Agent, signal_process};
use crate::images::unique;
use crate::until::until;

const ATTACH_DEADLINE: Duration = Duration::from_secs(20);

/// Which calls are looked at, where, and what becomes of them.
#[derive(Debug, Clone)]
pub struct Tracing {
    /// Names of system calls.
    pub calls: Vec<&'static str>,
    /// Only calls that have to do with one of these paths.
    pub paths: Vec<PathBuf>,
    /// What strace's `inject` takes behind the name of the call: `error=EIO:when=3`. Nothing is only counted.
    pub inject: Option<(&'static str, String)>,
}

/// Which threads of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All.
    All,
    /// One of those that wait for disks, by its number.
    Only(usize),
}

impl Tracing {
    fn arguments(&self, log: &Path) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["-o".into(), log.into()];
        for path in &self.paths {
            words.extend(["-P".into(), path.into()]);
        }
        words.extend(["-e".into(), format!("trace={}", self.calls.join(",")).into()]);
        if let Some((call, what)) = &self.inject {
            words.extend(["-e".into(), format!("inject={call}:{what}").into()]);
        }
        words
    }

    /// The start of a command line that runs a program so, and its log.
    pub fn wrapper(&self, dir: &Path) -> (Vec<OsString>, Log) {
        let log = dir.join(unique("strace"));
        let mut words: Vec<OsString> = ["strace", "-f"].map(OsString::from).to_vec();
        // The filter in the kernel makes everything else as fast as ever; it needs `-f`, and cannot be attached. With it
        // strace 6.1 sends a signal at the first call only, whatever `when` says.
        let signals = |(_, what): &(&str, String)| what.starts_with("signal");
        if !self.inject.as_ref().is_some_and(signals) {
            words.push("--seccomp-bpf".into());
        }
        words.extend(self.arguments(&log));
        (words, Log(log))
    }

    /// Attaches to threads that the agent has; returns when every call of theirs from now on is counted. What it
    /// starts is not looked at, or `docker compose` would take several times as long.
    pub fn attach(&self, agent: &Agent, which: Threads) -> Result<Strace> {
        let mut threads = fs::read_dir(format!("/proc/{}/task", agent.pid()?))?
            .map(|thread| Ok(thread?.file_name().to_string_lossy().parse::<u32>()?))
            .collect::<Result<Vec<_>>>()?;
        threads.sort_unstable();
        // The main one is the first, and never waits for a disk.
        let numbered = threads.get(1..).unwrap_or_default().to_vec();
        let attached = match which {
            Threads::All => threads,
            Threads::Only(thread) => numbered.iter().copied().cycle().skip(thread).take(1).collect(),
        };
        let arguments: Vec<String> = attached
            .iter()
            .flat_map(|id| ["-p".to_owned(), id.to_string()])
            .collect();
        let log = agent.folder().join(unique("strace"));
        let said = log.with_extension("said");
        let child = Command::new("strace")
            .args(self.arguments(&log))
            .args(&arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&said)?)
            .spawn()
            .context("failed to start strace")?;
        let strace = Strace {
            child,
            log: Log(log),
            threads: numbered,
        };
        until("strace is attached", ATTACH_DEADLINE, || {
            let count = fs::read_to_string(&said)?.matches(" attached").count();
            Ok((count == attached.len()).then_some(()))
        })
        .with_context(|| fs::read_to_string(&said).unwrap_or_default())?;
        Ok(strace)
    }
}

/// A running strace; it lets go on drop.
#[derive(Debug)]
pub struct Strace {
    child: Child,
    /// What it saw.
    pub log: Log,
    threads: Vec<u32>,
}

impl Strace {
    /// The agent's threads that wait for disks, in the order in which [`Threads::Only`] numbers them.
    pub fn threads(&self) -> &[u32] {
        &self.threads
    }

    /// Lets go of the agent; returns what was seen.
    pub fn detach(mut self) -> Result<Vec<Seen>> {
        self.end();
        self.log.read()
    }

    fn end(&mut self) {
        // It ended by itself if the agent did.
        drop(signal_process(self.child.id(), Signal::INT));
        let ended = until("strace lets go", ATTACH_DEADLINE, || Ok(self.child.try_wait()?));
        if ended.is_err() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        self.end();
    }
}

/// What strace writes.
#[derive(Debug, Clone)]
pub struct Log(PathBuf);

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The thread's id; 0 when only one was looked at.
    pub thread: u32,
    /// Its name.
    pub call: String,
    /// The whole line.
    pub line: String,
    /// Whether it was broken.
    pub is_injected: bool,
}

impl Log {
    /// Every call that was begun.
    pub fn read(&self) -> Result<Vec<Seen>> {
        let text = fs::read_to_string(&self.0)?;
        let mut seen: Vec<Seen> = Vec::new();
        for line in text.lines() {
            let is_injected = line.contains("(INJECTED)");
            let (word, behind) = line.split_once(' ').unwrap_or_default();
            let (thread, rest) = word
                .parse()
                .map_or((0, line), |thread: u32| (thread, behind.trim_start()));
            // `<... fsync resumed>` ends the thread's call that was begun earlier.
            if rest.starts_with("<...") {
                let begun = seen.iter_mut().rev().find(|one| one.thread == thread);
                if let Some(begun) = begun {
                    begun.is_injected |= is_injected;
                }
                continue;
            }
            let Some((call, _)) = rest.split_once('(') else {
                continue;
            };
            seen.push(Seen {
                thread,
                call: call.to_owned(),
                line: line.to_owned(),
                is_injected,
            });
        }
        Ok(seen)
    }
}

/// How often a call was made by a thread, by its number.
pub type Counts = BTreeMap<(String, usize), usize>;

/// Counts the calls of each thread by itself, as strace does for `when`. A thread's number is its place in the list: the
/// same when calls are counted and when they are broken, whether or not the threads before it call anything.
pub fn counts_by_thread(seen: &[Seen], threads: &[u32]) -> Result<Counts> {
    let mut counts = Counts::new();
    for one in seen {
        let thread = threads
            .binary_search(&one.thread)
            .ok()
            .with_context(|| format!("a thread without a number: {}", one.line))?;
        *counts.entry((one.call.clone(), thread)).or_default() += 1;
    }
    Ok(counts)
}
