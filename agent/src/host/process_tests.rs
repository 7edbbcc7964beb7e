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

/// Runs a script aloud; how it ended, what was told and what is kept.
async fn aloud(script: &str, deadline: Duration) -> (How, Vec<String>, Vec<String>) {
    let told = std::sync::Mutex::new(Vec::new());
    let tell = |line: &str| told.lock().unwrap().push(line.to_owned());
    let ended = run_aloud(&shell(script, deadline), &tell).await.unwrap();
    (ended.how, told.into_inner().unwrap(), ended.last_lines)
}

#[tokio::test]
async fn both_streams_are_told_line_by_line_in_the_order_they_were_written() {
    let script =
        "echo one; echo two >&2; printf 'thr'; sleep 0.05; printf 'ee\\r\\n\\033[1m\\n\\nfour'; exit 3";
    let (how, told, kept) = aloud(script, Duration::from_secs(10)).await;
    assert!(
        matches!(how, How::Exited(status) if status.code() == Some(3)),
        "{how:?}"
    );
    assert_eq!(told, ["one", "two", "three", "\\u{1b}[1m", "four"]);
    assert_eq!(kept, told);
}

#[tokio::test]
async fn a_program_that_says_too_much_is_heard_to_its_end_in_bounded_memory() {
    use deploy_proto::event::{LOG_LINE_MAX_BYTES, LOG_LINES_MAX};
    let script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; head -c 100000 /dev/zero | tr '\\0' x";
    let (how, told, kept) = aloud(script, Duration::from_secs(60)).await;
    assert!(matches!(how, How::Exited(status) if status.success()), "{how:?}");
    assert!(told.len() < 5000, "{} lines were told", told.len());
    assert_eq!(kept.len(), LOG_LINES_MAX);
    assert_eq!(kept.last().map(String::len), Some(LOG_LINE_MAX_BYTES));
    assert_eq!(kept.get(LOG_LINES_MAX - 2).map(String::as_str), Some("line 4999"));
}

#[tokio::test]
async fn a_deadline_keeps_what_was_said_until_then() {
    let (how, _, kept) = aloud("echo begun; sleep 60", Duration::from_millis(300)).await;
    assert_eq!((how, kept), (How::Deadline, vec!["begun".to_owned()]));
}

#[tokio::test]
async fn what_carries_a_mark_is_ended_with_its_children_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pid");
    let value = folder.path().display().to_string();
    let marked = |value: &str, script: &str| {
        let mut program = shell(script, Duration::from_secs(30));
        program
            .environment
            .push(("DEPLOY_TEST_MARK".into(), value.into()));
        program
    };
    let script = format!("sh -c 'echo $$ > {}; sleep 30; true'", pid_file.display());
    let (mine, other) = (marked(&value, &script), marked("another", "sleep 1"));
    let ends = async {
        while !pid_file.exists() || std::fs::read_to_string(&pid_file).unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        end_marked("DEPLOY_TEST_MARK", &value).await.unwrap();
    };
    let (mine, other, ()) = tokio::join!(run(&mine), run(&other), ends);
    let Err(ProcessError::Failed { status, .. }) = mine else {
        panic!("{mine:?}")
    };
    assert!(!status.success());
    assert!(gone(&pid_file).await);
    other.unwrap();
}
