//! A [`Body`] back to text, for plugins that take their configuration as text.

use std::fmt::{self, Display, Formatter, Write};

use super::{Body, Item, Kind, Value};

/// HCL 1 that reads back to an equal body (lines aside).
impl Display for Body {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write_body(self, f, 0)
    }
}

fn write_body(body: &Body, f: &mut Formatter<'_>, indent: usize) -> fmt::Result {
    body.items.iter().try_for_each(|item| write_item(item, f, indent))
}

fn write_item(item: &Item, f: &mut Formatter<'_>, indent: usize) -> fmt::Result {
    write!(f, "{:indent$}", "")?;
    write_string(&item.key, f)?;
    for label in &item.labels {
        f.write_char(' ')?;
        write_string(label, f)?;
    }
    f.write_str(if item.labels.is_empty() { " = " } else { " " })?;
    write_value(&item.value, f, indent)?;
    f.write_char('\n')
}

fn write_value(value: &Value, f: &mut Formatter<'_>, indent: usize) -> fmt::Result {
    match &value.kind {
        Kind::String(text) => write_string(text, f),
        Kind::Int(value) => write!(f, "{value}"),
        Kind::Float(value) => write!(f, "{value:?}"),
        Kind::Bool(value) => write!(f, "{value}"),
        Kind::Object(body) => {
            f.write_str("{\n")?;
            write_body(body, f, indent + 2)?;
            write!(f, "{:indent$}}}", "")
        }
        Kind::List(values) => {
            f.write_char('[')?;
            for (at, value) in values.iter().enumerate() {
                f.write_str(if at == 0 { "" } else { ", " })?;
                write_value(value, f, indent + 2)?;
            }
            f.write_char(']')
        }
    }
}

/// A quoted string. `$` is escaped before `{`, because what follows `${` is read raw.
fn write_string(text: &str, f: &mut Formatter<'_>) -> fmt::Result {
    f.write_char('"')?;
    let mut chars = text.chars().peekable();
    while let Some(next) = chars.next() {
        match next {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '$' if chars.peek() == Some(&'{') => {
                chars.next();
                f.write_str("$\\u007b")?;
            }
            other => f.write_char(other)?,
        }
    }
    f.write_char('"')
}
