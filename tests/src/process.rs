//! What a running process holds: memory, file descriptors, threads, children.

use std::fs;

use anyhow::{Context, Result};

use crate::agent::descendants;

/// Proportional set size, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pss {
    /// All of it.
    pub all_kib: u64,
    /// What is not a part of a file: the process's own.
    pub anonymous_kib: u64,
}

impl Pss {
    /// The process's, now.
    pub fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("no {name} in {text}"))
        };
        Ok(Self {
            all_kib: field("Pss:")?,
            anonymous_kib: field("Pss_Anon:")?,
        })
    }
}

/// What a process holds besides memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Processes that it started, and theirs.
    pub children: usize,
}

impl Held {
    /// The process's, now.
    pub fn by(pid: u32) -> Result<Self> {
        let count =
            |folder: &str| Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{pid}/{folder}"))?.count());
        Ok(Self {
            descriptors: count("fd")?,
            threads: count("task")?,
            children: descendants(pid)?.len(),
        })
    }
}
