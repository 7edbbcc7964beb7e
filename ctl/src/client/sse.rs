//! Server-sent events (WHATWG HTML, section 9.2.6), as bytes arrive. Pure.

/// The largest message that is put together, in bytes. The largest event has 50 log lines of 2,000 bytes, escaped.
pub(crate) const MESSAGE_MAX_BYTES: usize = 2 * 1024 * 1024;

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The `id:` of this message, when it has one of its own.
    pub(crate) id: Option<String>,
    /// Its `data:` lines, joined by line feeds.
    pub(crate) data: String,
}

/// A message grew beyond [`MESSAGE_MAX_BYTES`]: this is not the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event stream has a message of more than {MESSAGE_MAX_BYTES} bytes")]
pub(crate) struct Overlong;

/// Puts messages together from chunks, wherever these were cut.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    after_cr: bool,
    begun: bool,
    id: Option<String>,
    data: Option<String>,
}

impl Parser {
    /// Takes the next bytes and gives the messages that they complete.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Message>, Overlong> {
        let mut messages = Vec::new();
        for byte in chunk {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => messages.extend(self.end_line()),
                _ => self.line.push(*byte),
            }
            if self.line.len() + self.data.as_ref().map_or(0, String::len) > MESSAGE_MAX_BYTES {
                return Err(Overlong);
            }
        }
        Ok(messages)
    }

    fn end_line(&mut self) -> Option<Message> {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let mut line = text.as_ref();
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix('\u{feff}').unwrap_or(line);
        }
        if line.is_empty() {
            let id = self.id.take();
            return self.data.take().map(|data| Message { id, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.id = Some(value.to_owned()),
            "data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.data = Some(value.to_owned()),
            },
            // Comments (an empty field), `event` and `retry` carry nothing for us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(stream: &str) -> Vec<(Option<String>, String)> {
        let messages = Parser::default().push(stream.as_bytes()).unwrap();
        messages.into_iter().map(|m| (m.id, m.data)).collect()
    }

    fn message(id: Option<&str>, data: &str) -> (Option<String>, String) {
        (id.map(str::to_owned), data.to_owned())
    }

    #[test]
    fn messages_end_at_an_empty_line_and_comments_are_nothing() {
        assert_eq!(
            whole(": hello\n\nid: 1\ndata: {\"a\":1}\n\n:\n\ndata:x\ndata: y\n\nid: 3\n\ndata: cut"),
            [message(Some("1"), "{\"a\":1}"), message(None, "x\ny")]
        );
    }

    #[test]
    fn line_ends_may_be_lf_cr_or_both_and_a_mark_may_begin_the_stream() {
        for end in ["\n", "\r", "\r\n"] {
            let stream =
                format!("\u{feff}id: 7{end}event: x{end}retry: 5{end}data: a{end}{end}data: b{end}{end}");
            assert_eq!(
                whole(&stream),
                [message(Some("7"), "a"), message(None, "b")],
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_message_without_end_is_given_up() {
        let mut parser = Parser::default();
        let chunk = [b'x'; 64 * 1024];
        let failed = (0..64).any(|_| parser.push(&chunk).is_err());
        assert!(failed);
    }

    proptest! {
        #[test]
        fn where_the_chunks_are_cut_does_not_matter(
            lines in prop::collection::vec("(id|data|event|)(: ?[a-zé:]{0,5})?(\r|\n|\r\n){1,2}", 0..20),
            cuts in prop::collection::vec(0usize..200, 0..10),
        ) {
            let stream = lines.concat();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let mut messages = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                messages.extend(parser.push(&stream.as_bytes()[from..cut]).unwrap());
                from = cut;
            }
            prop_assert_eq!(messages, Parser::default().push(stream.as_bytes()).unwrap());
        }
    }
}
