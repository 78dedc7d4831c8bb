//! Command line flags as Go's `flag` package reads them, because SPIRE's users write them that way:
//! `-flag value`, `-flag=value`, `--flag`, booleans without a value, the first other word ends the flags.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use svid_core::hcl::duration;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagKind {
    /// Text.
    String,
    /// Whole number; Go's prefixes `0x`, `0o`, `0b` and `0` are understood.
    Int,
    /// `-flag` or `-flag=false`.
    Bool,
    /// `1h30m`.
    Duration,
    /// Text, may be given more than once.
    Strings,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// One declared flag.
#[derive(Clone, Debug)]
struct Spec {
    name: &'static str,
    kind: FlagKind,
    default: String,
    help: &'static str,
}

/// The flags of one command.
#[derive(Clone, Debug)]
pub struct FlagSet {
    command: String,
    specs: BTreeMap<&'static str, Spec>,
}

/// Why the arguments were refused. The texts are those of Go's `flag` package.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// `-h`, `-help`: not a mistake, but nothing can run.
    #[error("flag: help requested")]
    Help,
    /// A flag nobody declared.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag needs an argument: -{0}")]
    MissingValue(String),
    /// The value is not of the flag's kind.
    #[error("invalid value {value:?} for flag -{name}: {reason}")]
    InvalidValue {
        /// Flag without dashes.
        name: String,
        /// What was given.
        value: String,
        /// Why it does not do.
        reason: String,
    },
    /// The value of a boolean flag is not a boolean.
    #[error("invalid boolean value {value:?} for -{name}: parse error")]
    InvalidBool {
        /// Flag without dashes.
        name: String,
        /// What was given.
        value: String,
    },
    /// `---x`, `-=x`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
}

impl FlagSet {
    /// An empty set for `command`, the name shown in the usage text.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), specs: BTreeMap::new() }
    }

    /// Declares a flag; `default` is what an absent flag reads as ("" for none).
    #[must_use]
    pub fn flag(
        mut self,
        name: &'static str,
        kind: FlagKind,
        default: impl Into<String>,
        help: &'static str,
    ) -> Self {
        self.specs.insert(name, Spec { name, kind, default: default.into(), help });
        self
    }

    /// Declares a text flag.
    #[must_use]
    pub fn string(self, name: &'static str, default: impl Into<String>, help: &'static str) -> Self {
        self.flag(name, FlagKind::String, default, help)
    }

    /// Declares a text flag that may be repeated.
    #[must_use]
    pub fn strings(self, name: &'static str, help: &'static str) -> Self {
        self.flag(name, FlagKind::Strings, "", help)
    }

    /// Declares a boolean flag, false by default.
    #[must_use]
    pub fn bool(self, name: &'static str, help: &'static str) -> Self {
        self.flag(name, FlagKind::Bool, "false", help)
    }

    /// Declares a number flag.
    #[must_use]
    pub fn int(self, name: &'static str, default: i64, help: &'static str) -> Self {
        self.flag(name, FlagKind::Int, default.to_string(), help)
    }

    /// Declares a duration flag; `default` as Go writes it ("0s" for none).
    #[must_use]
    pub fn duration(self, name: &'static str, default: &'static str, help: &'static str) -> Self {
        self.flag(name, FlagKind::Duration, default, help)
    }

    /// Declares SPIRE's `-output pretty|json`.
    #[must_use]
    pub fn output(self) -> Self {
        let help = "Desired output format (pretty, json); default: pretty.";
        self.flag("output", FlagKind::Choice(&["pretty", "json"]), "pretty", help)
    }

    /// Reads `args` (without the program and command names).
    ///
    /// # Errors
    /// [`FlagError`] at the first argument that cannot be read.
    pub fn parse(&self, args: &[String]) -> Result<Parsed, FlagError> {
        let mut values: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        let mut rest = args;
        while let Some((word, after)) = rest.split_first() {
            if word.len() < 2 || !word.starts_with('-') {
                break;
            }
            rest = after;
            if word == "--" {
                break;
            }
            let (spec, value) = self.one(word, &mut rest)?;
            check_value(spec, &value)?;
            let slot = values.entry(spec.name).or_default();
            if spec.kind != FlagKind::Strings {
                slot.clear();
            }
            slot.push(value);
        }
        Ok(Parsed { set: self.clone(), values, args: rest.to_vec() })
    }

    fn one(&self, word: &str, rest: &mut &[String]) -> Result<(&Spec, String), FlagError> {
        let body = word.strip_prefix("--").unwrap_or(&word[1..]);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(FlagError::Syntax(word.into()));
        }
        let (name, inline) = match body.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (body, None),
        };
        let Some(spec) = self.specs.get(name) else {
            return Err(match name {
                "h" | "help" => FlagError::Help,
                _ => FlagError::Unknown(name.into()),
            });
        };
        if spec.kind == FlagKind::Bool {
            return Ok((spec, inline.unwrap_or_else(|| "true".into())));
        }
        if let Some(value) = inline {
            return Ok((spec, value));
        }
        let (value, after) = rest.split_first().ok_or_else(|| FlagError::MissingValue(name.into()))?;
        *rest = after;
        Ok((spec, value.clone()))
    }

    /// The usage text in the layout of Go's `PrintDefaults`, flags sorted by name.
    pub fn usage(&self) -> String {
        let mut text = format!("Usage of {}:\n", self.command);
        for spec in self.specs.values() {
            let kind = match spec.kind {
                FlagKind::String => " string",
                FlagKind::Int => " int",
                FlagKind::Bool => "",
                FlagKind::Duration => " duration",
                FlagKind::Strings | FlagKind::Choice(_) => " value",
            };
            // Writing to a String cannot fail.
            let _ = write!(text, "  -{}{kind}\n    \t{}", spec.name, spec.help.replace('\n', "\n    \t"));
            match (spec.kind, spec.default.as_str()) {
                (_, "" | "0" | "0s" | "false") | (FlagKind::Choice(_), _) => {}
                (FlagKind::String, default) => {
                    let _ = write!(text, " (default {default:?})");
                }
                (_, default) => {
                    let _ = write!(text, " (default {default})");
                }
            }
            text.push('\n');
        }
        text
    }
}

fn check_value(spec: &Spec, value: &str) -> Result<(), FlagError> {
    let invalid =
        |reason: String| FlagError::InvalidValue { name: spec.name.into(), value: value.into(), reason };
    match spec.kind {
        FlagKind::String | FlagKind::Strings => Ok(()),
        FlagKind::Int => parse_int(value).map(|_| ()).ok_or_else(|| invalid("parse error".into())),
        FlagKind::Duration => {
            duration::parse_go(value).map(|_| ()).map_err(|_| invalid("parse error".into()))
        }
        FlagKind::Bool => parse_bool(value)
            .map(|_| ())
            .ok_or_else(|| FlagError::InvalidBool { name: spec.name.into(), value: value.into() }),
        FlagKind::Choice(words) if words.contains(&value) => Ok(()),
        FlagKind::Choice(_) => Err(invalid(format!("bad formatter flag: unknown format option: {value:?}"))),
    }
}

/// Go's `strconv.ParseInt(text, 0, 64)` without digit separators.
fn parse_int(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let sign = if text.starts_with('-') { "-" } else { "" };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        _ if lower.len() > 1 && lower.starts_with('0') => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['-', '+']) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Flags as given. Asking for a flag that was not declared gives the zero value of the type.
#[derive(Clone, Debug)]
pub struct Parsed {
    set: FlagSet,
    values: BTreeMap<&'static str, Vec<String>>,
    args: Vec<String>,
}

impl Parsed {
    /// Whether the flag was given.
    pub fn is_set(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    /// Text of the flag: the last one given, or its default.
    pub fn str(&self, name: &str) -> &str {
        debug_assert!(self.set.specs.contains_key(name), "flag {name} was not declared");
        let given = self.values.get(name).and_then(|values| values.last());
        given.or_else(|| self.set.specs.get(name).map(|spec| &spec.default)).map_or("", String::as_str)
    }

    /// The text if the flag was given.
    pub fn opt(&self, name: &str) -> Option<&str> {
        self.is_set(name).then(|| self.str(name))
    }

    /// Every value of a repeatable flag.
    pub fn strings(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// A number flag.
    pub fn int(&self, name: &str) -> i64 {
        parse_int(self.str(name)).unwrap_or_default()
    }

    /// A boolean flag.
    pub fn bool(&self, name: &str) -> bool {
        parse_bool(self.str(name)).unwrap_or_default()
    }

    /// A duration flag.
    pub fn duration(&self, name: &str) -> Duration {
        duration::parse_go(self.str(name)).unwrap_or_default()
    }

    /// Words after the flags.
    pub fn args(&self) -> &[String] {
        &self.args
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn set() -> FlagSet {
        FlagSet::new("entry create")
            .string("name", "x", "a name")
            .strings("dns", "names")
            .bool("admin", "admin")
            .int("ttl", 0, "seconds")
            .duration("timeout", "5s", "how long")
            .output()
    }

    fn parse(line: &str) -> Result<Parsed, FlagError> {
        let words: Vec<_> = line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        set().parse(&words)
    }

    #[test]
    fn reads_as_go() {
        let parsed =
            parse("-name a --name=b=c -dns 1 -dns=2 -admin -ttl 0x10 --timeout 1m -output json rest -x")
                .unwrap();
        assert_eq!(parsed.str("name"), "b=c");
        assert_eq!(parsed.strings("dns"), ["1", "2"]);
        assert!(parsed.bool("admin"));
        assert_eq!(parsed.int("ttl"), 16);
        assert_eq!(parsed.duration("timeout"), Duration::from_secs(60));
        assert_eq!(parsed.str("output"), "json");
        assert_eq!(parsed.args(), ["rest", "-x"]);
        let parsed = parse("-admin=false -- -name").unwrap();
        assert_eq!((parsed.bool("admin"), parsed.str("name")), (false, "x"));
        assert_eq!(parsed.args(), ["-name"]);
        assert_eq!(parsed.duration("timeout"), Duration::from_secs(5));
        assert_eq!(parsed.opt("name"), None);
    }

    #[test]
    fn refuses_as_go() {
        for (line, want) in [
            ("-foo", "flag provided but not defined: -foo"),
            ("--foo=1", "flag provided but not defined: -foo"),
            ("-name", "flag needs an argument: -name"),
            ("-ttl 1h", "invalid value \"1h\" for flag -ttl: parse error"),
            ("-timeout 1", "invalid value \"1\" for flag -timeout: parse error"),
            ("-admin=maybe", "invalid boolean value \"maybe\" for -admin: parse error"),
            ("---x", "bad flag syntax: ---x"),
            ("-=x", "bad flag syntax: -=x"),
            ("-h", "flag: help requested"),
            ("--help", "flag: help requested"),
            (
                "-output xml",
                "invalid value \"xml\" for flag -output: bad formatter flag: unknown format option: \"xml\"",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), want, "{line}");
        }
    }

    #[test]
    fn usage_layout() {
        let usage = set().usage();
        assert!(
            usage.starts_with("Usage of entry create:\n  -admin\n    \tadmin\n  -dns value\n    \tnames\n")
        );
        assert!(usage.contains("  -name string\n    \ta name (default \"x\")\n"));
        assert!(usage.contains("  -timeout duration\n    \thow long (default 5s)\n"));
    }
}
