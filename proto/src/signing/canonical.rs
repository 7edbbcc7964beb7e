//! The signature base of RFC 9421 section 2.5: what is signed, byte for byte, for any list of components.
//!
//! This is the primitive. It knows no policy: which components and parameters a request must have is in `signature`.

use sfv::{BareItem, Dictionary, FieldType, InnerList, Item, Key, ListEntry, Parameters, Parser};

/// Why there is no signature base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBase {
    /// A name or a parameter cannot be written as RFC 9651 has it.
    #[error("{name:?} cannot be written in a signature's input")]
    Unwritable {
        /// The name.
        name: String,
    },
    /// A component is listed twice (RFC 9421 section 2.5 step 2.3).
    #[error("component {name:?} is listed twice")]
    Repeated {
        /// The component.
        name: String,
    },
    /// The message has no such component.
    #[error("component {name:?} is not in the message")]
    Missing {
        /// The component.
        name: String,
    },
    /// A component's value has a line break, a control character or bytes above ASCII.
    #[error("the value of component {name:?} is not one line of printable ASCII")]
    Value {
        /// The component.
        name: String,
    },
}

/// A parameter's value; signatures have no other kinds (RFC 9421 section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Param<'a> {
    /// `created` and `expires`.
    Integer(i64),
    /// `nonce`, `keyid`, `alg` and `tag`.
    Text(&'a str),
}

/// What a signature covers and how: the value of `@signature-params`, and of a label in `Signature-Input`.
#[derive(Debug, Clone, PartialEq)]
pub struct SignatureParams(pub(super) InnerList);

impl SignatureParams {
    /// Lists components and parameters, in the order in which they are to be written.
    ///
    /// # Errors
    /// When one of them cannot be written: a key with capitals, a text beyond ASCII, an integer of 16 digits.
    pub fn new(components: &[&str], params: &[(&str, Param<'_>)]) -> Result<Self, BadBase> {
        let items = components
            .iter()
            .map(|name| Ok(Item::new(text(name, name)?)))
            .collect::<Result<_, _>>()?;
        let mut written = Parameters::new();
        for (name, value) in params {
            let key = Key::from_string((*name).to_owned()).map_err(|_| unwritable(name))?;
            let value = match value {
                Param::Integer(number) => {
                    BareItem::Integer(sfv::Integer::try_from(*number).map_err(|_| unwritable(name))?)
                }
                Param::Text(value) => text(name, value)?,
            };
            written.insert(key, value);
        }
        Ok(Self(InnerList::with_params(items, written)))
    }

    /// The value as it stands in `Signature-Input` after `label=`, in the one spelling of RFC 9651 section 4.1.
    pub fn text(&self) -> String {
        // Serializing a list fails only when it is empty, and this one has a member.
        vec![ListEntry::InnerList(self.0.clone())]
            .serialize()
            .unwrap_or_default()
    }
}

/// Builds the signature base: a line for each component, in the order of `params`, then `@signature-params`; joined by
/// LF, none at the end. `value_of` gives a component's value by its name.
///
/// # Errors
/// A component that is repeated, missing, has parameters (they are not supported), or a value that could forge a line.
pub fn signature_base<'v>(
    params: &SignatureParams,
    value_of: impl Fn(&str) -> Option<&'v str>,
) -> Result<String, BadBase> {
    let mut base = String::new();
    let mut seen: Vec<&str> = Vec::new();
    for item in &params.0.items {
        let name = component_name(item).ok_or_else(|| unwritable("a component with parameters"))?;
        if seen.contains(&name) {
            return Err(BadBase::Repeated {
                name: name.to_owned(),
            });
        }
        seen.push(name);
        let value = value_of(name).ok_or_else(|| BadBase::Missing {
            name: name.to_owned(),
        })?;
        if !value.bytes().all(|b| matches!(b, b'\t' | b' '..=b'~')) {
            return Err(BadBase::Value {
                name: name.to_owned(),
            });
        }
        // A name that needs no escape: it was found in the message by its literal spelling.
        if name.contains(['"', '\\']) {
            return Err(unwritable(name));
        }
        base.push_str(&format!("\"{name}\": {value}\n"));
    }
    base.push_str(&format!("\"@signature-params\": {}", params.text()));
    Ok(base)
}

/// A component's name, if it is a plain string without parameters.
pub(super) fn component_name(item: &Item) -> Option<&str> {
    if item.params.is_empty() {
        item.bare_item.as_string().map(|name| name.as_str())
    } else {
        None
    }
}

/// Reads a dictionary in the one spelling that RFC 9651 section 4.1 gives it.
///
/// A parser must be lenient (of two equal keys the last wins, base64 may lack its padding or have stray bits, spaces
/// may be doubled), so that two readers can see two things in the same bytes. What would not be written back byte for
/// byte is therefore not read.
pub(super) fn read_dictionary(raw: &[u8]) -> Option<Dictionary> {
    let dictionary: Dictionary = Parser::new(raw).parse().ok()?;
    (dictionary.serialize()?.as_bytes() == raw).then_some(dictionary)
}

fn text(name: &str, value: &str) -> Result<BareItem, BadBase> {
    match sfv::String::from_string(value.to_owned()) {
        Ok(value) => Ok(BareItem::String(value)),
        Err(_) => Err(unwritable(name)),
    }
}

fn unwritable(name: &str) -> BadBase {
    BadBase::Unwritable {
        name: name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dictionary_is_read_only_in_its_one_spelling() {
        for good in [
            "a=1",
            "a=:AAAA:",
            "a=1, b=2",
            "a=(\"x\" \"y\");n=1;t=\"u\"",
            "a=:AAA=:",
        ] {
            assert!(read_dictionary(good.as_bytes()).is_some(), "{good}");
        }
        for bad in [
            "",
            "a=1,",
            "a=1,b=2",
            "a=1 ",
            " a=1",
            "a=1, a=2",
            "a=1, a=1",
            "a=1;b=1;b=2",
            "a=:AAA:",
            "a=:AAB=:",
            "a=:AA==AA:",
            "a=( \"x\")",
            "a=(\"x\"  \"y\")",
            "a=01",
            "a=-0",
            "a=1.10",
            "a=1;  b=1",
            "a=?1",
            "a=\u{e4}",
        ] {
            assert!(read_dictionary(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_value_cannot_forge_a_line_of_the_base() {
        let params = SignatureParams::new(&["@path"], &[]).unwrap();
        for bad in ["/a\n\"@method\": POST", "/a\r", "/\0", "/\u{e4}", "/\u{7f}"] {
            assert!(
                matches!(signature_base(&params, |_| Some(bad)), Err(BadBase::Value { .. })),
                "{bad:?}"
            );
        }
        assert!(matches!(
            signature_base(&params, |_| None),
            Err(BadBase::Missing { .. })
        ));
    }

    #[test]
    fn what_cannot_be_written_or_is_listed_twice_is_an_error() {
        let twice = SignatureParams::new(&["a", "a"], &[]).unwrap();
        assert!(matches!(
            signature_base(&twice, |_| Some("")),
            Err(BadBase::Repeated { .. })
        ));
        for (components, params) in [
            (vec!["a\n"], vec![]),
            (vec!["ä"], vec![]),
            (vec![], vec![("Created", Param::Integer(1))]),
            (vec![], vec![("created", Param::Integer(i64::MAX))]),
            (vec![], vec![("nonce", Param::Text("ü"))]),
        ] {
            assert!(
                SignatureParams::new(&components, &params).is_err(),
                "{components:?} {params:?}"
            );
        }
        let quoted = SignatureParams::new(&["a\"b"], &[]).unwrap();
        assert!(matches!(
            signature_base(&quoted, |_| Some("")),
            Err(BadBase::Unwritable { .. })
        ));
    }
}
