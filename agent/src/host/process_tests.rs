//! Programs: their environment, their output, and their end.

use super::*;
use std::time::Instant;

fn shell(script: &str, deadline: Duration) -> Program {
    Program {
        binary: "sh".into(),
        arguments: vec!["-c".into(), script.into()],
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        dir: "/".into(),
        deadline,
        input: Vec::new(),
    }
}

async fn gone(marker: &std::path::Path) -> bool {
    let pid = std::fs::read_to_string(marker).unwrap();
    for _ in 0..200 {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_failure_carries_the_status_and_the_last_lines() {
    let error = run(&shell(
        "echo out; echo one >&2; printf 'two\\033[31m\\n' >&2; exit 18",
        Duration::from_secs(5),
    ))
    .await
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "sh ended with exit status: 18: one | two\\u{1b}[31m"
    );
}

#[tokio::test]
async fn nothing_of_the_agents_environment_is_passed_on() {
    let output = run(&shell("env", Duration::from_secs(5))).await.unwrap();
    let text = String::from_utf8(output.stdout.whole().unwrap().to_vec()).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    assert!(
        names
            .iter()
            .all(|name| ["PATH", "PWD", "_", "OLDPWD", "SHLVL"].contains(name)),
        "{names:?}"
    );
}

#[tokio::test]
async fn what_exceeds_the_cap_keeps_head_and_tail() {
    let script = "head -c 9000000 /dev/zero | tr '\\0' a; printf 'the end' ; echo last >&2";
    let output = run(&shell(script, Duration::from_secs(20))).await.unwrap();
    assert!(output.stdout.whole().is_none());
    assert_eq!(output.stdout.head.len(), HEAD_MAX_BYTES);
    assert!(output.stdout.tail.ends_with(b"the end"));
    assert!(output.stdout.tail.len() <= 2 * TAIL_MAX_BYTES);
    assert_eq!(output.stderr.last_lines(), ["last"]);
}

#[tokio::test]
async fn a_program_that_passes_its_deadline_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("pid");
    let script = format!("sleep 60 & echo $! > {}; wait", marker.display());
    let begun = Instant::now();
    let error = run(&shell(&script, Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert!(matches!(error, ProcessError::Deadline { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(gone(&marker).await, "the child survived");
}

#[tokio::test]
async fn a_dropped_future_ends_the_program_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let marker = dir.path().join("pid");
    let script = format!("sleep 60 & echo $! > {}; wait", marker.display());
    let program = shell(&script, Duration::from_secs(60));
    let task = tokio::spawn(async move { run(&program).await.map(drop) });
    while std::fs::read(&marker).unwrap_or_default().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(gone(&marker).await, "the child survived");
}

#[tokio::test]
async fn a_child_that_keeps_the_pipe_does_not_hold_up_the_answer() {
    let begun = Instant::now();
    let output = run(&shell("sleep 4 & echo done", Duration::from_secs(30)))
        .await
        .unwrap();
    assert_eq!(output.stdout.whole().unwrap(), b"done\n");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_clear_error() {
    let mut program = shell("", Duration::from_secs(1));
    program.binary = "/nonexistent/tool".into();
    let problem = Problem::from(&run(&program).await.unwrap_err());
    assert_eq!(problem.code, Code::HostUnfit);
    assert!(
        problem.detail.starts_with("failed to start tool: No such file"),
        "{}",
        problem.detail
    );
}
