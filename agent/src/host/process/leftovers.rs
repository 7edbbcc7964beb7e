//! Ending programs that an earlier run of the agent started and did not live to see the end of. They are known by a
//! variable that they were started with, and that their children inherited.

use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often it is looked again, until none is found: what is killed may be forking just then, and takes a moment to go.
const ROUNDS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// Kills every process whose environment has this variable with this value, and returns when none is left. What cannot
/// be looked at belongs to somebody else.
///
/// # Errors
/// One does not go within two seconds.
pub async fn end_marked(name: &str, value: &str) -> std::io::Result<()> {
    let marker = format!("{name}={value}").into_bytes();
    for _ in 0..ROUNDS {
        let marker = marker.clone();
        let killed = tokio::task::spawn_blocking(move || kill_marked(&marker)).await??;
        if killed == 0 {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        "a process does not go, though it was killed",
    ))
}

fn kill_marked(marker: &[u8]) -> std::io::Result<usize> {
    let mut killed = 0;
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else {
            continue;
        };
        // Opened before it is looked at, so that the signal reaches what was looked at and nothing that came after it.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let environment = std::fs::read(format!("/proc/{}/environ", pid.as_raw_pid())).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == marker)
        {
            // It can only fail because the process is gone.
            pidfd_send_signal(process, Signal::KILL).unwrap_or(());
            killed += 1;
        }
    }
    Ok(killed)
}
