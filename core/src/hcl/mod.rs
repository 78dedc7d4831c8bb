//! A reader of HCL 1, the configuration language of SPIRE, in its native and its JSON form.
//!
//! HCL 2 readers refuse much of what is legal here: one-line blocks with several attributes, commas between
//! attributes, quoted keys, octal numbers, nested objects without `=`. This one reads what the decoder behind
//! SPIRE reads, keeps the line of every value, and never recurses deeper than [`MAX_DEPTH`].

mod decode;
pub mod duration;
mod expand;
mod lex;
mod parse;
mod print;

pub use decode::{Problem, Reader, Report, Unknown, decode};
pub use expand::{expand, expand_env};
pub use parse::parse;

/// Longest accepted input in bytes: 1 MiB.
pub const MAX_INPUT: usize = 1024 * 1024;
/// Deepest accepted nesting of objects and lists.
pub const MAX_DEPTH: usize = 64;

/// Where and why an input is not HCL 1. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct HclError {
    /// Line of the mistake.
    pub line: u32,
    /// Column of the mistake.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

/// The content of a file or of `{ ... }`: items in the order they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    /// Attributes and blocks; a key may occur more than once.
    pub items: Vec<Item>,
}

/// One attribute (`key = value`) or block (`key "label" { ... }`).
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// First key.
    pub key: String,
    /// Further keys before the value. HCL 1 reads `a "b" { }` as `a { b { } }`; see [`Item::unlabelled`].
    pub labels: Vec<String>,
    /// The value; an object for blocks.
    pub value: Value,
    /// Line of the first key.
    pub line: u32,
}

/// A value and the line it starts on.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Line of the first character.
    pub line: u32,
    /// The value itself.
    pub kind: Kind,
}

/// What a value can be.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Quoted string or heredoc, escapes resolved.
    String(String),
    /// Decimal, `0x` hexadecimal or `0` octal number.
    Int(i64),
    /// Number with a point or an exponent.
    Float(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `[a, b]`.
    List(Vec<Value>),
    /// `{ ... }`.
    Object(Body),
}

/// An object with the keys that lead to it and the line of the first key.
pub type Flat = (Vec<String>, Body, u32);

impl Kind {
    /// The word an error message uses for this kind of value.
    pub fn name(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Int(_) => "a number",
            Self::Float(_) => "a fraction",
            Self::Bool(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Item {
    /// The bodies this item stands for once its labels became nesting: `a "b" { c = 1 }` gives the body
    /// `b { c = 1 }`, a list of objects gives one body per element. Empty when the value holds no object.
    pub fn unlabelled(&self) -> Vec<Body> {
        match self.labels.split_first() {
            Some((key, labels)) => vec![Body {
                items: vec![Item {
                    key: key.clone(),
                    labels: labels.to_vec(),
                    value: self.value.clone(),
                    line: self.line,
                }],
            }],
            None => self.value.bodies(),
        }
    }
}

impl Value {
    fn bodies(&self) -> Vec<Body> {
        match &self.kind {
            Kind::Object(body) => vec![body.clone()],
            Kind::List(values) => values.iter().flat_map(Self::bodies).collect(),
            _ => Vec::new(),
        }
    }
}

impl Body {
    /// Every object found under `depth` keys, however the nesting is written: with `depth` 2, each of
    /// `T "n" { }`, `T { n { } }` and `T = { "n" = { } }` gives (`["T", "n"]`, body, line). Items that end
    /// before that depth are left out and returned as the second value.
    pub fn flatten(&self, depth: usize) -> (Vec<Flat>, Vec<&Item>) {
        let mut found = Vec::new();
        let mut short = Vec::new();
        for item in &self.items {
            let before = found.len();
            flatten_into(item, &mut Vec::new(), depth, &mut found);
            let empty_object = matches!(&item.value.kind, Kind::Object(body) if body.items.is_empty());
            if found.len() == before && !empty_object {
                short.push(item);
            }
        }
        (found, short)
    }
}

fn flatten_into(item: &Item, path: &mut Vec<String>, depth: usize, found: &mut Vec<Flat>) {
    path.push(item.key.clone());
    for body in item.unlabelled() {
        if path.len() == depth {
            found.push((path.clone(), body, item.line));
        } else {
            body.items.iter().for_each(|inner| flatten_into(inner, path, depth, found));
        }
    }
    path.pop();
}

#[cfg(test)]
mod tests;
