//! Tables, times and colours.

use std::io::Write;

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::Output;
use crate::connect::Failure;

/// Where a command prints.
pub struct Screen {
    /// Standard output, or a buffer in tests.
    pub out: Box<dyn Write>,
    /// The chosen form.
    pub output: Output,
    /// Only on a terminal.
    pub colour: bool,
}

impl Screen {
    /// Prints `value` as JSON, or as `table` writes it.
    ///
    /// # Errors
    /// What writing says.
    pub fn print<T: Serialize>(
        &mut self,
        value: &T,
        table: impl FnOnce(&T, Paint) -> String,
    ) -> Result<(), Failure> {
        let text = match self.output {
            Output::Json => serde_json::to_string(value).map_err(Failure::new)? + "\n",
            Output::Table => table(value, Paint(self.colour)),
        };
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }
}

/// Colours, if there are any.
#[derive(Clone, Copy, Debug)]
pub struct Paint(pub bool);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Something that needs attention.
    pub fn warn(self, text: &str) -> String {
        self.with("33", text)
    }

    /// Something secondary.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
}

/// Rows under a header, columns two spaces apart, no trailing spaces.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text = String::new();
    for line in table.to_string().lines() {
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// `Label:   value` lines with the values below each other, each line after `indent`.
pub fn facts(indent: &str, rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len() + 1).max().unwrap_or_default();
    let line = |(label, value): &(&str, String)| {
        let label = format!("{label}:");
        format!("{indent}{label:width$}  {value}").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

/// A length of time with its two largest units.
pub fn span(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match seconds {
        86_400.. => format!("{days}d {hours}h"),
        3_600.. => format!("{hours}h {minutes}m"),
        60.. => format!("{minutes}m {}s", seconds % 60),
        _ => format!("{seconds}s"),
    }
}

/// How long something that ends at `end` still lives.
pub fn left(end: i64, now: i64) -> String {
    match end.saturating_sub(now) {
        _ if end == 0 => "unknown".into(),
        over if over <= 0 => format!("over for {}", span(-over)),
        left => format!("{} left", span(left)),
    }
}

/// A point in time in UTC.
pub fn time(seconds: i64) -> String {
    match Timestamp::from_second(seconds) {
        Ok(at) if seconds != 0 => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        _ => "unknown".into(),
    }
}

/// `1 entry`, `2 entries`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    svid_core::clock::Clock::system().unix()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m 1s"), (3_600, "1h 0m"), (86_399, "23h 59m"), (90_000, "1d 1h")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn what_is_left() {
        for (end, now, text) in [
            (160, 100, "1m 0s left"),
            (100, 100, "over for 0s"),
            (100, 190, "over for 1m 30s"),
            (0, 5, "unknown"),
        ] {
            assert_eq!(left(end, now), text);
        }
    }

    #[test]
    fn tables_have_no_trailing_spaces() {
        let rows = [vec!["a".to_owned(), "long".to_owned()], vec!["bbb".to_owned(), String::new()]];
        assert_eq!(table(&["ID", "X"], rows), "ID   X\na    long\nbbb\n");
        assert_eq!(facts("  ", &[("One", "1".into()), ("Three", "3".into())]), "  One:    1\n  Three:  3\n");
    }
}
