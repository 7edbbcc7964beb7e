//! YAML as a tree of nodes that know where their bytes are. Pure.
//!
//! It is made for finding, not for loading: aliases stay aliases, merge keys stay keys, and nothing is expanded, so
//! that a small file cannot become a large tree. Duplicate keys are an error here, as they are for Compose.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use granit_parser::{Event, Parser, ScalarStyle, Span};

/// How many aliases and merge keys are followed from one node: no file written by people comes near it.
const FOLLOW_MAX: usize = 32;

/// Where in the text the parser stopped, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct YamlError {
    /// Counted from 1.
    pub(super) line: usize,
    /// Counted from 1, in characters.
    pub(super) column: usize,
    /// In the parser's words; holds nothing of the text but keys.
    pub(super) reason: String,
}

/// A node's place in [`Document`].
pub(super) type NodeId = usize;

/// How a scalar is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Without quotes.
    Plain,
    /// In single or double quotes.
    Quoted,
    /// As a block (`|` or `>`).
    Block,
}

/// What a node is.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// A scalar with its value, the bytes between its quotes, and its style.
    Scalar(String, Range<usize>, Style),
    /// A mapping's keys and values in their order.
    Map(Vec<(NodeId, NodeId)>),
    /// A sequence's items.
    Seq(Vec<NodeId>),
    /// An alias of an earlier node.
    Alias(NodeId),
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// What it is.
    pub(super) kind: Kind,
    /// Its local tag, such as `reset` or `override`, without the `!`.
    pub(super) tag: Option<String>,
    /// The line it begins on, counted from 1.
    pub(super) line: usize,
}

/// One document of a YAML stream.
#[derive(Debug, Clone)]
pub(super) struct Document {
    nodes: Vec<Node>,
    root: NodeId,
}

impl Document {
    /// The value of a key of the root mapping.
    pub(super) fn top(&self, key: &str) -> Option<&Node> {
        self.value(self.nodes.get(self.root)?, key)
    }

    /// The node itself, or what it is an alias of.
    pub(super) fn target<'d>(&'d self, node: &'d Node) -> &'d Node {
        match node.kind {
            Kind::Alias(id) => self.nodes.get(id).unwrap_or(node),
            Kind::Scalar(..) | Kind::Map(_) | Kind::Seq(_) => node,
        }
    }

    /// The value of a key of a mapping: its own key first, then what `<<` merges in, the first of several winning.
    /// Aliases are resolved; the tag of the key's own node is lost then, as it is in Compose.
    pub(super) fn value<'d>(&'d self, node: &'d Node, key: &str) -> Option<&'d Node> {
        self.entries(node)
            .into_iter()
            .find_map(|(name, value)| (name == key).then_some(value))
    }

    /// The keys and resolved values of a mapping with those that `<<` merges in; each key once.
    pub(super) fn entries<'d>(&'d self, node: &'d Node) -> Vec<(&'d str, &'d Node)> {
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        self.collect(node, FOLLOW_MAX, &mut seen, &mut found);
        found
    }

    /// The items of a sequence, resolved; a node that is none is its only item.
    pub(super) fn items<'d>(&'d self, node: &'d Node) -> Vec<&'d Node> {
        let node = self.target(node);
        match &node.kind {
            Kind::Seq(items) => items
                .iter()
                .filter_map(|id| self.nodes.get(*id))
                .map(|item| self.target(item))
                .collect(),
            Kind::Scalar(..) | Kind::Map(_) | Kind::Alias(_) => vec![node],
        }
    }

    fn collect<'d>(
        &'d self,
        node: &'d Node,
        depth: usize,
        seen: &mut BTreeSet<&'d str>,
        found: &mut Vec<(&'d str, &'d Node)>,
    ) {
        let Kind::Map(pairs) = &self.target(node).kind else {
            return;
        };
        let pairs: Vec<(&str, &Node)> = pairs
            .iter()
            .filter_map(|(key, value)| match &self.target(self.nodes.get(*key)?).kind {
                Kind::Scalar(name, ..) => Some((name.as_str(), self.target(self.nodes.get(*value)?))),
                Kind::Map(_) | Kind::Seq(_) | Kind::Alias(_) => None,
            })
            .collect();
        for (name, value) in pairs.iter().filter(|(name, _)| *name != "<<") {
            if seen.insert(name) {
                found.push((name, value));
            }
        }
        for (_, merged) in pairs.iter().filter(|(name, _)| *name == "<<" && depth > 0) {
            for item in self.items(merged) {
                self.collect(item, depth - 1, seen, found);
            }
        }
    }
}

impl Node {
    /// Whether this is YAML's null, or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        match &self.kind {
            Kind::Scalar(value, _, Style::Plain) => {
                matches!(value.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            Kind::Scalar(..) | Kind::Map(_) | Kind::Seq(_) | Kind::Alias(_) => false,
        }
    }

    /// Whether it carries this local tag.
    pub(super) fn tagged(&self, tag: &str) -> bool {
        self.tag.as_deref() == Some(tag)
    }
}

/// Parses every document of a stream.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, YamlError> {
    let options = granit_parser::options! { emit_comments: false };
    let mut builder = Builder::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| YamlError {
            line: error.marker().line(),
            column: error.marker().col() + 1,
            reason: error.info(),
        })?;
        builder.take(event, span)?;
    }
    Ok(builder.documents)
}

#[derive(Default)]
struct Builder {
    documents: Vec<Document>,
    nodes: Vec<Node>,
    root: Option<NodeId>,
    anchors: BTreeMap<usize, NodeId>,
    open: Vec<Open>,
}

/// A collection whose end has not been seen.
struct Open {
    id: NodeId,
    key: Option<NodeId>,
    lines: BTreeMap<String, usize>,
}

impl Builder {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser's event type is open-ended"
    )]
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), YamlError> {
        match event {
            Event::Scalar(value, style, anchor, tag) => {
                let tag = tag.as_deref().and_then(local_tag);
                let bytes = span.byte_range().unwrap_or_default();
                let kind = scalar(value.into_owned(), style, bytes);
                self.add(kind, tag, anchor, span).map(drop)
            }
            Event::Alias(anchor) => {
                let target = self.anchors.get(&anchor).copied().unwrap_or_default();
                self.add(Kind::Alias(target), None, 0, span).map(drop)
            }
            Event::MappingStart(_, anchor, tag) => self.begin(
                Kind::Map(Vec::new()),
                tag.as_deref().and_then(local_tag),
                anchor,
                span,
            ),
            Event::SequenceStart(_, anchor, tag) => self.begin(
                Kind::Seq(Vec::new()),
                tag.as_deref().and_then(local_tag),
                anchor,
                span,
            ),
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
                Ok(())
            }
            Event::DocumentEnd => {
                let nodes = std::mem::take(&mut self.nodes);
                self.anchors.clear();
                if let Some(root) = self.root.take() {
                    self.documents.push(Document { nodes, root });
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, kind: Kind, tag: Option<String>, anchor: usize, span: Span) -> Result<(), YamlError> {
        let id = self.add(kind, tag, anchor, span)?;
        self.open.push(Open {
            id,
            key: None,
            lines: BTreeMap::new(),
        });
        Ok(())
    }

    fn add(
        &mut self,
        kind: Kind,
        tag: Option<String>,
        anchor: usize,
        span: Span,
    ) -> Result<NodeId, YamlError> {
        let id = self.nodes.len();
        let line = span.start.line();
        let Some(open) = self.open.last_mut() else {
            self.root = Some(id);
            self.push(kind, tag, anchor, line);
            return Ok(id);
        };
        let within = self.nodes.get_mut(open.id).map(|node| &mut node.kind);
        match (within, open.key.take()) {
            (Some(Kind::Seq(items)), _) => items.push(id),
            (Some(Kind::Map(pairs)), Some(key)) => pairs.push((key, id)),
            (_, _) => {
                open.key = Some(id);
                if let Kind::Scalar(name, ..) = &kind
                    && let Some(first) = open.lines.insert(name.clone(), line)
                {
                    return Err(YamlError {
                        line,
                        column: span.start.col() + 1,
                        reason: format!(
                            "the key {name:?} stands twice in this mapping, first on line {first}"
                        ),
                    });
                }
            }
        }
        self.push(kind, tag, anchor, line);
        Ok(id)
    }

    fn push(&mut self, kind: Kind, tag: Option<String>, anchor: usize, line: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, self.nodes.len());
        }
        self.nodes.push(Node { kind, tag, line });
    }
}

fn scalar(value: String, style: ScalarStyle, bytes: Range<usize>) -> Kind {
    match style {
        // The parser gives `~` for a value that is not written at all.
        ScalarStyle::Plain if bytes.is_empty() => Kind::Scalar(String::new(), bytes, Style::Plain),
        ScalarStyle::Plain => Kind::Scalar(value, bytes, Style::Plain),
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
            let inner = bytes.start + 1..bytes.end.saturating_sub(1).max(bytes.start + 1);
            Kind::Scalar(value, inner, Style::Quoted)
        }
        ScalarStyle::Literal | ScalarStyle::Folded => Kind::Scalar(value, bytes, Style::Block),
    }
}

fn local_tag(tag: &granit_parser::Tag) -> Option<String> {
    (tag.handle() == "!").then(|| tag.suffix().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_line_and_column_and_duplicates_are_errors() {
        for (text, line, column, reason) in [
            ("services:\n  web: [\n", 2, 8, "bracket"),
            ("a: b\n c: d\n", 2, 3, "mapping values"),
            ("a: *none\n", 1, 4, "unknown anchor"),
            ("web:\n  image: a\n  image: b\n", 3, 3, "\"image\" stands twice"),
            ("{a: 1, a: 2}", 1, 8, "\"a\" stands twice"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(
                (error.line, error.column),
                (line, column),
                "{text:?}: {}",
                error.reason
            );
            assert!(error.reason.contains(reason), "{}", error.reason);
        }
    }

    #[test]
    fn merge_keys_are_followed_in_the_order_of_precedence_and_loops_end() {
        let documents =
            parse("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 0}\nd: &d {<<: *d, q: 1}\n")
                .unwrap();
        let document = documents.first().unwrap();
        let shown = |name: &str| {
            let node = document.top(name).unwrap();
            let mut all: Vec<String> = document
                .entries(node)
                .into_iter()
                .map(|(key, value)| match &value.kind {
                    Kind::Scalar(text, ..) => format!("{key}={text}"),
                    other @ (Kind::Map(_) | Kind::Seq(_) | Kind::Alias(_)) => format!("{key}={other:?}"),
                })
                .collect();
            all.sort();
            all.join(" ")
        };
        assert_eq!(shown("c"), "x=0 y=1 z=2");
        assert_eq!(shown("d"), "q=1");
    }
}
