//! Requests: `/healthz` as monitoring asks for it, and signed ones.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use deploy_tests::command::Run;
use deploy_tests::wire::{Connection, Message};

use crate::stage::{Stage, Way, timed};
use crate::table::{Aim, Table, median, percentile};

const PATIENCE: Duration = Duration::from_secs(5);
/// Monitoring that asks every agent from several places.
const CONNECTIONS: usize = 4;
const POLLS: usize = 10_000;
const SIGNED: usize = 100;
const PROCESSES: usize = 9;

/// A connection that many requests go over.
pub(crate) struct KeptAlive {
    stream: BufReader<TcpStream>,
}

impl KeptAlive {
    /// Connects to a port of 127.0.0.1.
    pub(crate) fn open(port: u16, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// GETs a path; anything but 200 is an error.
    pub(crate) fn get(&mut self, path: &str) -> Result<()> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length, mut status) = (String::new(), 0, None);
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            match line.trim_end().split_once(' ') {
                None => break,
                Some((_, rest)) if status.is_none() => status = Some(rest.starts_with("200")),
                Some((name, value)) if name.eq_ignore_ascii_case("content-length:") => {
                    length = value.parse()?;
                }
                Some(_) => {}
            }
        }
        ensure!(status == Some(true), "{path} did not answer 200");
        let read = self.stream.by_ref().take(length).read_to_end(&mut Vec::new())?;
        ensure!(u64::try_from(read)? == length, "{path} answered half");
        Ok(())
    }
}

/// Polls `/healthz` ten thousand times over four connections, and adds the row.
pub(crate) fn healthz(table: &mut Table, stage: &Stage) -> Result<()> {
    let port = stage.agent.monitor_port();
    let begun = Instant::now();
    let mut took: Vec<Duration> = thread::scope(|scope| {
        let asking: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(move || polls(port, POLLS / CONNECTIONS)))
            .collect();
        asking
            .into_iter()
            .map(|one| one.join().map_err(|_| anyhow!("a client panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?
    .concat();
    let seconds = begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let each_second = f64::from(u32::try_from(took.len())?) / seconds;
    table.figure(
        "/healthz on 4 connections",
        &format!("{each_second:.0} a second"),
        Aim::None,
    );
    table.figure(
        "/healthz, p99",
        &format!("{:.2} ms", millis(percentile(&took, 99))),
        Aim::None,
    );
    Ok(())
}

fn polls(port: u16, times: usize) -> Result<Vec<Duration>> {
    let mut connection = KeptAlive::open(port, PATIENCE)?;
    (0..times)
        .map(|_| {
            let begun = Instant::now();
            connection.get("/healthz")?;
            Ok(begun.elapsed())
        })
        .collect()
}

/// Adds the rows of signed requests: on an open connection, and as whole processes beside `ssh docker compose ps`.
pub(crate) fn signed(table: &mut Table, stage: &Stage) -> Result<()> {
    let project = stage.clinic(Way::Together).project();
    for what in ["history", "status"] {
        let took = on_one_connection(stage, &format!("/v1/projects/{project}/{what}"))?;
        let words = format!(
            "{:.1} ms (p99 {:.1})",
            millis(median(&took)),
            millis(percentile(&took, 99))
        );
        table.figure(
            &format!("a signed GET of {what}, open connection"),
            &words,
            Aim::None,
        );
    }
    let (mut ssh, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..PROCESSES {
        let dir = stage.clinic(Way::Ssh).dir().display().to_string();
        ssh.push(timed(
            stage
                .sshd
                .run(&format!("cd {dir} && docker compose ps --format json")),
        )?);
        let begun = Instant::now();
        stage.ctl.json(0, &["status"])?;
        ours.push(begun.elapsed());
    }
    table.race(
        "`deployctl status --json`; ssh: `docker compose ps`",
        median(&ssh),
        None,
        median(&ours),
        Aim::None,
    );
    Ok(())
}

fn on_one_connection(stage: &Stage, path: &str) -> Result<Vec<Duration>> {
    let key = stage.ctl.private_key()?;
    let mut connection = Connection::open(stage.agent.port())?;
    let mut took = Vec::new();
    for _ in 0..SIGNED {
        let begun = Instant::now();
        connection.write(&Message::get(&stage.agent, path).signed(&key).bytes())?;
        let answer = connection.answer().context(path.to_owned())?;
        took.push(begun.elapsed());
        ensure!(answer.status == 200, "{path}: {answer:?}");
    }
    took.sort_unstable();
    Ok(took)
}

/// What starting a process through the harness costs, which every figure of a whole process contains.
pub(crate) fn process_start() -> Result<Duration> {
    let took: Result<Vec<_>> = (0..PROCESSES).map(|_| timed(Run::new("true"))).collect();
    Ok(median(&took?))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
