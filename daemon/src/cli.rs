//! The command tree of both daemons: `entry create -flag value`.
//!
//! Texts, streams and exit codes are what SPIRE's users meet: an unknown command prints the list and ends with
//! 127, a command group alone prints its subcommands and ends with 1, `-version` prints the bare version, bad
//! flags end with 1. Help and version go to standard error, as they do there.

use std::fmt::Write as _;
use std::io::{self, Write};

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::Value;

use crate::flags::{FlagError, FlagSet, Parsed};

/// A command and `H`, whatever the binary needs to run it.
pub struct Command<H> {
    /// Words that select it: `entry create`.
    pub name: &'static str,
    /// One line for the list of commands.
    pub synopsis: &'static str,
    /// Its flags.
    pub flags: FlagSet,
    /// What runs it.
    pub handler: H,
}

/// A program with its commands.
pub struct Cli<H> {
    /// Program name for the usage line.
    pub name: &'static str,
    /// Bare version.
    pub version: &'static str,
    /// All commands.
    pub commands: Vec<Command<H>>,
}

/// What the arguments ask for.
pub enum Selected<'a, H> {
    /// Run this with these flags.
    Run(&'a H, Parsed),
    /// Everything was said already; end with this code.
    Exit(i32),
}

/// How a command ends when it does not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Printed as `Error: text`, exit code 1.
    #[error("{0}")]
    Message(String),
    /// Everything was said already; end with this code.
    #[error("exit status {0}")]
    Exit(i32),
}

impl CliError {
    /// An error that says `text`.
    pub fn new(text: impl std::fmt::Display) -> Self {
        Self::Message(text.to_string())
    }
}

impl From<io::Error> for CliError {
    fn from(error: io::Error) -> Self {
        Self::new(error)
    }
}

/// Writes the error of a command where one belongs and gives the exit code.
pub fn exit_code(result: Result<(), CliError>, err: &mut dyn Write) -> i32 {
    match result {
        Ok(()) => 0,
        Err(CliError::Exit(code)) => code,
        Err(CliError::Message(text)) => {
            // Nothing is left to do when standard error is gone.
            let _ = writeln!(err, "Error: {text}");
            1
        }
    }
}

impl<H> Cli<H> {
    /// Finds the command in `args` (without the program name) and reads its flags. Help, version and mistakes
    /// are written to `err`.
    pub fn select(&self, args: &[String], err: &mut dyn Write) -> Selected<'_, H> {
        let is_flag = |word: &String| word.starts_with('-');
        let words = args.iter().take_while(|word| !is_flag(word)).count();
        let before_command = args.iter().take_while(|word| is_flag(word));
        let wants = |names: &[&str]| before_command.clone().any(|word| names.contains(&word.as_str()));
        let mut say = |text: &str, code| {
            // Nothing is left to do when standard error is gone.
            let _ = err.write_all(text.as_bytes());
            Selected::Exit(code)
        };
        if wants(&["-v", "-version", "--version"]) {
            return say(&format!("{}\n", self.version), 0);
        }
        if wants(&["-h", "-help", "--help"]) {
            return say(&self.overview(), 0);
        }
        for taken in (1..=words).rev() {
            let name = args[..taken].join(" ");
            if let Some(command) = self.commands.iter().find(|command| command.name == name) {
                return match command.flags.parse(&args[taken..]) {
                    Ok(flags) => Selected::Run(&command.handler, flags),
                    Err(FlagError::Help) => say(&command.flags.usage(), 0),
                    Err(error) => say(&format!("{error}\n{}", command.flags.usage()), 1),
                };
            }
            if let Some(text) = self.group(&name) {
                let help =
                    args[taken..].iter().any(|word| matches!(word.as_str(), "-h" | "-help" | "--help"));
                return say(&text, if help { 0 } else { 1 });
            }
        }
        say(&self.overview(), 127)
    }

    fn overview(&self) -> String {
        let name = self.name;
        let mut text =
            format!("Usage: {name} [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n");
        self.list("", &mut text);
        text.push('\n');
        text
    }

    fn group(&self, name: &str) -> Option<String> {
        let mut text =
            "This command is accessed by using one of the subcommands below.\n\nSubcommands:\n".to_owned();
        let before = text.len();
        self.list(&format!("{name} "), &mut text);
        (text.len() > before).then_some(text)
    }

    /// The next words after `prefix`, sorted, with their synopsis where they are commands themselves.
    fn list(&self, prefix: &str, text: &mut String) {
        let mut words = std::collections::BTreeMap::new();
        for command in &self.commands {
            let Some(rest) = command.name.strip_prefix(prefix) else { continue };
            match rest.split_once(' ') {
                Some((word, _)) => words.entry(word).or_insert(""),
                None => words.entry(rest).or_insert(command.synopsis),
            };
        }
        let width = words.keys().map(|word| word.len()).max().unwrap_or_default();
        for (word, synopsis) in words {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "    {word:width$}    {synopsis}");
        }
    }
}

/// How a command prints its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text for people.
    Pretty,
    /// JSON for programs.
    Json,
}

/// Prints results in the format that `-output` asked for.
pub struct Printer<'a> {
    format: Format,
    out: &'a mut dyn Write,
}

impl<'a> Printer<'a> {
    /// A printer for the `-output` flag of `flags`; `pretty` where it was not given.
    pub fn new(flags: &Parsed, out: &'a mut dyn Write) -> Self {
        let format = if flags.str("output") == "json" { Format::Json } else { Format::Pretty };
        Self { format, out }
    }

    /// The chosen format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints with `pretty`, or `values` as JSON: one value by itself, several as a list, none not at all.
    ///
    /// # Errors
    /// What writing says.
    pub fn print(
        &mut self,
        values: &[Value],
        pretty: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        match (self.format, values) {
            (Format::Pretty, _) => pretty(self.out),
            (Format::Json, []) => Ok(()),
            (Format::Json, [value]) => writeln!(self.out, "{}", go_json(value)),
            (Format::Json, values) => {
                let list = Value::Array(values.to_vec());
                writeln!(self.out, "{}", go_json(&list))
            }
        }
    }
}

/// A message as protojson with the field names of the proto file and unset fields shown, as SPIRE's CLI does.
///
/// # Errors
/// What serialising says.
pub fn message_json(message: &DynamicMessage) -> Result<Value, CliError> {
    let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(CliError::new)
}

/// Compact JSON as Go prints a map: nulls left out, keys sorted, `<`, `>` and `&` escaped.
pub fn go_json(value: &Value) -> String {
    let text = sorted(value).to_string();
    let mut escaped = String::with_capacity(text.len());
    for next in text.chars() {
        match next {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().filter(|(_, value)| !value.is_null()).collect();
            fields.sort_by_key(|(key, _)| *key);
            Value::Object(fields.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
        }
        Value::Array(values) => {
            Value::Array(values.iter().filter(|value| !value.is_null()).map(sorted).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run(line: &str) -> (String, String) {
        let command =
            |name, synopsis, handler| Command { name, synopsis, flags: FlagSet::new(name).output(), handler };
        let cli = Cli {
            name: "svid-server",
            version: "1.15.0",
            commands: vec![
                command("run", "Runs it", 1),
                command("entry create", "Creates", 2),
                command("entry show", "Shows", 3),
            ],
        };
        let args: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let mut err = Vec::new();
        let outcome = match cli.select(&args, &mut err) {
            Selected::Run(handler, flags) => format!("run {handler} {}", flags.str("output")),
            Selected::Exit(code) => format!("exit {code}"),
        };
        (outcome, String::from_utf8(err).unwrap())
    }

    #[test]
    fn selects_as_spire() {
        let overview = "Usage: svid-server [--version] [--help] <command> [<args>]\n\nAvailable commands are:\n    \
                        entry    \n    run      Runs it\n\n";
        for (line, outcome, err) in [
            ("run", "run 1 pretty", ""),
            ("entry create -output json", "run 2 json", ""),
            ("--version", "exit 0", "1.15.0\n"),
            ("-version", "exit 0", "1.15.0\n"),
            ("--help", "exit 0", overview),
            ("", "exit 127", overview),
            ("nope", "exit 127", overview),
        ] {
            assert_eq!(run(line), (outcome.to_owned(), err.to_owned()), "{line}");
        }
        for (line, outcome, words) in [
            ("entry", "exit 1", "    create    Creates\n    show      Shows\n"),
            ("entry nope", "exit 1", "one of the subcommands below"),
            ("entry -h", "exit 0", "Subcommands:"),
            ("run -h", "exit 0", "Usage of run:\n  -output value\n"),
            ("run -nope", "exit 1", "flag provided but not defined: -nope\nUsage of run:"),
        ] {
            let (got, err) = run(line);
            assert_eq!(got, outcome, "{line}");
            assert!(err.contains(words), "{line}: {err}");
        }
    }

    #[test]
    fn json_as_go() {
        let value = serde_json::json!({"b": null, "a": [null, {"z": 1, "y": "<&>"}], "c": {"d": null}});
        assert_eq!(go_json(&value), r#"{"a":[{"y":"\u003c\u0026\u003e","z":1}],"c":{}}"#);
    }
}
