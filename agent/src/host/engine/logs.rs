//! What containers wrote: the last lines, bounded, or everything from now on.

use std::collections::VecDeque;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptionsBuilder;
use deploy_proto::event::{LOG_LINE_MAX_BYTES, LOG_LINES_MAX};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::{Engine, Error, Result};

/// How long the last lines may take: the Engine reads them from the end of a file.
const TAIL_LIMIT: Duration = Duration::from_secs(10);
/// The most past lines that `follow` begins with.
const FOLLOW_TAIL_MAX: usize = 10_000;

impl Engine {
    /// The last lines a container wrote to both its streams, oldest first: at most [`LOG_LINES_MAX`], each cut at
    /// [`LOG_LINE_MAX_BYTES`], invalid UTF-8 replaced.
    ///
    /// # Errors
    /// Some logging drivers cannot be read; the Engine then says so.
    pub async fn tail(&self, container_id: &str, lines: usize) -> Result<Vec<String>> {
        const DOING: &str = "read a container's log";
        let lines = lines.min(LOG_LINES_MAX);
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        let mut pieces = self.negotiated().await?.logs(container_id, Some(options));
        let mut tail = Tail::new(lines);
        let read = async {
            while let Some(piece) = pieces.next().await {
                tail.take(&piece.map_err(|source| self.explained(DOING, source))?);
            }
            Ok(())
        };
        match tokio::time::timeout(TAIL_LIMIT, read).await {
            Ok(end) => end.map(|()| tail.lines()),
            Err(_) => Err(Error::NoAnswer {
                doing: DOING,
                limit: TAIL_LIMIT,
            }),
        }
    }

    /// The last lines and, with `follow`, everything both streams write from then on, as the bytes come. The stream ends
    /// with the container; dropping it ends the reading.
    ///
    /// It has no deadline: a quiet service is no error. The caller bounds how long it follows.
    pub async fn logs(
        &self,
        container_id: &str,
        tail: usize,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Vec<u8>>>> {
        let options = LogsOptionsBuilder::new()
            .stdout(true)
            .stderr(true)
            .follow(follow)
            .tail(&tail.min(FOLLOW_TAIL_MAX).to_string())
            .build();
        let pieces = self.negotiated().await?.logs(container_id, Some(options));
        let engine = self.clone();
        Ok(pieces
            .map(move |piece| {
                piece
                    .map(|piece| piece.into_bytes().to_vec())
                    .map_err(|source| engine.explained("follow a container's log", source))
            })
            .boxed())
    }
}

/// The last lines of two streams that come in pieces.
struct Tail {
    most: usize,
    done: VecDeque<String>,
    /// The unfinished lines of stdout and stderr.
    begun: [Vec<u8>; 2],
}

impl Tail {
    fn new(most: usize) -> Self {
        Self {
            most,
            done: VecDeque::new(),
            begun: [Vec::new(), Vec::new()],
        }
    }

    fn take(&mut self, piece: &LogOutput) {
        let [stdout, stderr] = &mut self.begun;
        let begun = match piece {
            LogOutput::StdErr { .. } => stderr,
            LogOutput::StdOut { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. } => stdout,
        };
        for part in piece.as_ref().split_inclusive(|byte| *byte == b'\n') {
            // The rest of a line that is too long is dropped as it comes.
            let room = (LOG_LINE_MAX_BYTES + 1).saturating_sub(begun.len());
            let (text, ends) = match part {
                [text @ .., b'\n'] => (text, true),
                text => (text, false),
            };
            begun.extend(text.iter().take(room));
            if ends {
                push(&mut self.done, self.most, &std::mem::take(begun));
            }
        }
    }

    fn lines(mut self) -> Vec<String> {
        for begun in &self.begun {
            if !begun.is_empty() {
                push(&mut self.done, self.most, begun);
            }
        }
        self.done.into()
    }
}

fn push(lines: &mut VecDeque<String>, most: usize, line: &[u8]) {
    let mut text = String::from_utf8_lossy(line).into_owned();
    while text.ends_with('\r') {
        text.pop();
    }
    let mut cut = LOG_LINE_MAX_BYTES.min(text.len());
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text.truncate(cut);
    lines.push_back(text);
    while lines.len() > most {
        lines.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail_of(most: usize, pieces: &[(bool, &[u8])]) -> Vec<String> {
        let mut tail = Tail::new(most);
        for (error, bytes) in pieces {
            let message = bytes.to_vec().into();
            tail.take(&if *error {
                LogOutput::StdErr { message }
            } else {
                LogOutput::StdOut { message }
            });
        }
        tail.lines()
    }

    #[test]
    fn lines_that_come_in_pieces_are_put_together_per_stream() {
        assert_eq!(
            tail_of(
                9,
                &[(false, b"one\r\ntw"), (true, b"err\n"), (false, b"o\nthree")]
            ),
            ["one", "err", "two", "three"]
        );
    }

    #[test]
    fn only_the_last_lines_stay_and_long_ones_are_cut_at_a_character() {
        let long = "é".repeat(LOG_LINE_MAX_BYTES);
        let lines = tail_of(2, &[(false, b"a\nb\n"), (false, long.as_bytes())]);
        assert_eq!(lines[0], "b");
        assert_eq!(lines[1].len(), LOG_LINE_MAX_BYTES);
        assert_eq!(tail_of(1, &[(false, b"\xff\xfe\n")]), ["\u{fffd}\u{fffd}"]);
    }
}
