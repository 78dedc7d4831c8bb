//! One log line, as logrus writes it.

use std::fmt::Write;

use jiff::Zoned;
use serde_json::{Map, Value};

use super::{LogFormat, LogLevel};
use crate::cli::go_json;

/// What a line says.
pub(super) struct Line<'a> {
    pub time: Zoned,
    pub level: LogLevel,
    pub message: &'a str,
    /// Module and `file:line`.
    pub source: Option<(String, String)>,
    pub fields: Vec<(&'static str, Value)>,
}

impl Line<'_> {
    /// The whole line with its newline.
    pub(super) fn render(mut self, format: LogFormat) -> String {
        // A field must not pass for one of the line's own.
        let names: Vec<String> = self.fields.iter().map(|(name, _)| self.unclashed(name)).collect();
        let values = std::mem::take(&mut self.fields).into_iter().map(|(_, value)| value);
        let mut fields: Vec<(String, Value)> = names.into_iter().zip(values).collect();
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        match format {
            LogFormat::Plain => self.text(&fields, "%Y-%m-%dT%H:%M:%S"),
            LogFormat::Text => self.text(&fields, NANOSECONDS),
            LogFormat::Json => self.json(fields),
        }
    }

    fn unclashed(&self, name: &str) -> String {
        let own = matches!(name, "time" | "level" | "msg" | "logrus_error");
        let own = own || (self.source.is_some() && matches!(name, "func" | "file"));
        if own { format!("fields.{name}") } else { name.to_owned() }
    }

    fn text(&self, fields: &[(String, Value)], time: &str) -> String {
        let mut line = String::with_capacity(160);
        pair(&mut line, "time", &rfc3339(&self.time, time));
        pair(&mut line, "level", self.level.as_str());
        // logrus leaves the message out when there is none.
        if !self.message.is_empty() {
            pair(&mut line, "msg", self.message);
        }
        if let Some((function, file)) = &self.source {
            pair(&mut line, "func", function);
            pair(&mut line, "file", file);
        }
        for (name, value) in fields {
            match value {
                Value::String(text) => pair(&mut line, name, text),
                other => pair(&mut line, name, &other.to_string()),
            }
        }
        line.push('\n');
        line
    }

    fn json(self, fields: Vec<(String, Value)>) -> String {
        let mut map: Map<String, Value> = fields.into_iter().collect();
        map.insert("time".into(), rfc3339(&self.time, NANOSECONDS).into());
        map.insert("level".into(), self.level.as_str().into());
        map.insert("msg".into(), self.message.into());
        if let Some((function, file)) = self.source {
            map.insert("func".into(), function.into());
            map.insert("file".into(), file.into());
        }
        let mut line = go_json(&Value::Object(map));
        line.push('\n');
        line
    }
}

/// Go's RFC3339Nano: trailing zeros of the fraction left out.
const NANOSECONDS: &str = "%Y-%m-%dT%H:%M:%S%.f";

/// The time in this form, with `Z` for UTC.
fn rfc3339(time: &Zoned, form: &str) -> String {
    let text = time.strftime(form).to_string();
    match time.offset().seconds() {
        0 => text + "Z",
        _ => format!("{text}{}", time.strftime("%:z")),
    }
}

fn pair(line: &mut String, key: &str, value: &str) {
    if !line.is_empty() {
        line.push(' ');
    }
    line.push_str(key);
    line.push('=');
    if value.bytes().all(is_plain) {
        line.push_str(value);
    } else {
        quote(line, value);
    }
}

/// Bytes that logrus prints without quotes; an empty value has none either.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte)
}

/// Go's `%q`.
fn quote(line: &mut String, text: &str) {
    line.push('"');
    for next in text.chars() {
        match next {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\u{7}' => line.push_str("\\a"),
            '\u{8}' => line.push_str("\\b"),
            '\u{c}' => line.push_str("\\f"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '\u{b}' => line.push_str("\\v"),
            ' '..='~' => line.push(next),
            // Writing to a String cannot fail.
            control if control.is_ascii() => {
                let _ = write!(line, "\\x{:02x}", u32::from(control));
            }
            other if other.escape_debug().count() == 1 => line.push(other),
            other if u32::from(other) < 0x10000 => {
                let _ = write!(line, "\\u{:04x}", u32::from(other));
            }
            other => {
                let _ = write!(line, "\\U{:08x}", u32::from(other));
            }
        }
    }
    line.push('"');
}
