//! From a [`Body`] to typed values, all mistakes at once.
//!
//! The rules are those of the HCL 1 decoder that SPIRE uses: keys compare without case, the last of repeated
//! scalars wins, repeated lists add up, repeated blocks merge, a quoted number or boolean is taken for what it
//! says, a number where a string is wanted becomes its digits, one string stands for a list of one.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::{Body, Item, Kind, duration};

/// One mistake or warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file; 0 when something is missing from the file as a whole.
    pub line: u32,
    /// Dotted path of the key, for example `server.bind_port`.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.key, self.message),
            line => write!(f, "line {line}: {}: {}", self.key, self.message),
        }
    }
}

/// What decoding found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Mistakes: the configuration is refused when there is one.
    pub errors: Vec<Problem>,
    /// Warnings: to be logged.
    pub warnings: Vec<Problem>,
}

/// What becomes of keys that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// They are mistakes.
    Refuse,
    /// They are warnings, for the sections where SPIRE does not look.
    Warn,
}

/// Runs `read` over `body` and returns what it made together with every problem met on the way. The value is
/// only meant to be used when the report holds no errors.
pub fn decode<T>(body: &Body, read: impl FnOnce(&mut Reader) -> T) -> (T, Report) {
    let report = Rc::new(RefCell::new(Report::default()));
    let mut reader = Reader::new(vec![body.clone()], String::new(), 0, Rc::clone(&report));
    let value = read(&mut reader);
    drop(reader);
    let mut report = report.take();
    report.errors.sort_by_key(|problem| problem.line);
    report.warnings.sort_by_key(|problem| problem.line);
    (value, report)
}

/// Typed access to the keys of one block. Every method remembers the key as known.
pub struct Reader {
    items: Vec<(Item, bool)>,
    path: String,
    line: u32,
    report: Rc<RefCell<Report>>,
}

impl Reader {
    fn new(bodies: Vec<Body>, path: String, line: u32, report: Rc<RefCell<Report>>) -> Self {
        let items = bodies.into_iter().flat_map(|body| body.items).map(|item| (item, false)).collect();
        Self { items, path, line, report }
    }

    /// Line of the block itself; 0 for the file.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Line where `key` stands last, or that of the block when it is absent.
    pub fn line_of(&self, key: &str) -> u32 {
        self.items.iter().rev().find(|(item, _)| same_key(item, key)).map_or(self.line, |(item, _)| item.line)
    }

    /// Whether `key` occurs. Does not mark it as known.
    pub fn has(&self, key: &str) -> bool {
        self.items.iter().any(|(item, _)| same_key(item, key))
    }

    /// Records a mistake about `key`.
    pub fn error(&mut self, key: &str, message: impl Into<String>) {
        let problem = self.problem(self.line_of(key), key, message.into());
        self.report.borrow_mut().errors.push(problem);
    }

    /// Records a warning about `key`.
    pub fn warn(&mut self, key: &str, message: impl Into<String>) {
        let problem = self.problem(self.line_of(key), key, message.into());
        self.report.borrow_mut().warnings.push(problem);
    }

    /// A string; a whole number becomes its digits.
    pub fn string(&mut self, key: &str) -> Option<String> {
        self.scalar(key, "a string", |kind| match kind {
            Kind::String(text) => Ok(text.clone()),
            Kind::Int(value) => Ok(value.to_string()),
            _ => Err(None),
        })
    }

    /// A boolean: `true`, `false`, 1, 0 or one of these in quotes.
    pub fn bool(&mut self, key: &str) -> Option<bool> {
        self.scalar(key, "true or false", |kind| match kind {
            Kind::Bool(value) => Ok(*value),
            Kind::Int(0) => Ok(false),
            Kind::Int(1) => Ok(true),
            Kind::String(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(Some(format!("expected true or false, found {text:?}"))),
            },
            _ => Err(None),
        })
    }

    /// A whole number, quoted or not.
    pub fn int(&mut self, key: &str) -> Option<i64> {
        self.scalar(key, "a whole number", |kind| match kind {
            Kind::Int(value) => Ok(*value),
            Kind::String(text) => {
                text.parse().map_err(|_| Some(format!("expected a whole number, found {text:?}")))
            }
            _ => Err(None),
        })
    }

    /// A number with or without a fraction, quoted or not.
    pub fn float(&mut self, key: &str) -> Option<f64> {
        self.scalar(key, "a number", |kind| match kind {
            Kind::Float(value) => Ok(*value),
            #[allow(clippy::cast_precision_loss)]
            Kind::Int(value) => Ok(*value as f64),
            Kind::String(text) => {
                text.parse().map_err(|_| Some(format!("expected a number, found {text:?}")))
            }
            _ => Err(None),
        })
    }

    /// A TCP port, quoted or not.
    pub fn port(&mut self, key: &str) -> Option<u16> {
        let value = self.int(key)?;
        let port = u16::try_from(value).ok();
        if port.is_none() {
            self.error(key, format!("expected a port from 0 to 65535, found {value}"));
        }
        port
    }

    /// A duration as Go writes it, not negative.
    pub fn duration(&mut self, key: &str) -> Option<Duration> {
        let text = self.string(key)?;
        match duration::parse_go(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(key, error.to_string());
                None
            }
        }
    }

    /// A list of strings; a single string is a list of one, repeated attributes add up. `None` when absent.
    pub fn strings(&mut self, key: &str) -> Option<Vec<String>> {
        let items = self.take(key);
        if items.is_empty() {
            return None;
        }
        let mut strings = Vec::new();
        for item in items {
            let values = match item.value.kind {
                Kind::List(values) => values,
                _ => vec![item.value],
            };
            for value in values {
                match value.kind {
                    Kind::String(text) => strings.push(text),
                    Kind::Int(number) => strings.push(number.to_string()),
                    other => {
                        self.mistake(value.line, key, format!("expected a string, found {}", other.name()))
                    }
                }
            }
        }
        Some(strings)
    }

    /// The block `key`, repeated ones merged. `None` when absent.
    pub fn block<T>(&mut self, key: &str, read: impl FnOnce(&mut Reader) -> T) -> Option<T> {
        let (bodies, line) = self.bodies(key)?;
        let mut inner = self.inner(key, bodies, line);
        Some(read(&mut inner))
    }

    /// Every block `key` by itself, for sections that may be repeated (`Statsd { } Statsd { }`).
    pub fn blocks<T>(&mut self, key: &str, mut read: impl FnMut(&mut Reader) -> T) -> Vec<T> {
        let items = self.take(key);
        let mut values = Vec::new();
        for item in items {
            let bodies = item.unlabelled();
            self.check_object(key, &item, &bodies);
            for body in bodies {
                values.push(read(&mut self.inner(key, vec![body], item.line)));
            }
        }
        values
    }

    /// Every block `key "label" { }`, also when written as `key { label { } }`, in order.
    pub fn blocks_labelled<T>(&mut self, key: &str, mut read: impl FnMut(&str, &mut Reader) -> T) -> Vec<T> {
        let Some((bodies, _)) = self.bodies(key) else { return Vec::new() };
        let mut values = Vec::new();
        for body in &bodies {
            let (found, short) = body.flatten(1);
            self.refuse_short(key, &short);
            for (path, body, line) in found {
                let label = path.into_iter().next().unwrap_or_default();
                let name = format!("{key}.{label}");
                values.push(read(&label, &mut self.inner(&name, vec![body], line)));
            }
        }
        values
    }

    /// Every block with two keys inside `key`: the `Type "name" { }` of a `plugins` section, however nested.
    pub fn blocks_labelled_twice<T>(
        &mut self,
        key: &str,
        mut read: impl FnMut(&str, &str, &mut Reader) -> T,
    ) -> Vec<T> {
        let Some((bodies, _)) = self.bodies(key) else { return Vec::new() };
        let mut values = Vec::new();
        for body in &bodies {
            let (found, short) = body.flatten(2);
            self.refuse_short(key, &short);
            for (path, body, line) in found {
                let [first, second] = path.as_slice() else { continue };
                let name = format!("{key}.{first}.{second}");
                values.push(read(first, second, &mut self.inner(&name, vec![body], line)));
            }
        }
        values
    }

    /// The block `key` as it stands, for sections that someone else reads (`plugin_data`).
    pub fn raw(&mut self, key: &str) -> Option<Body> {
        let (bodies, _) = self.bodies(key)?;
        Some(Body { items: bodies.into_iter().flat_map(|body| body.items).collect() })
    }

    /// Accepts `keys` whatever their value, for keys that do nothing here; each one present is a warning.
    pub fn ignored(&mut self, keys: &[&str], why: &str) {
        for key in keys {
            if !self.take(key).is_empty() {
                self.warn(key, why);
            }
        }
    }

    /// Reports the keys nobody asked for. To be called last.
    pub fn finish(&mut self, unknown: Unknown) {
        let left: Vec<_> = self.items.iter().filter(|(_, known)| !known).map(|(item, _)| item).collect();
        let mut report = self.report.borrow_mut();
        for item in left {
            let problem = self.problem(item.line, &item.key, "unknown configuration key".into());
            match unknown {
                Unknown::Refuse => report.errors.push(problem),
                Unknown::Warn => report.warnings.push(problem),
            }
        }
    }

    fn problem(&self, line: u32, key: &str, message: String) -> Problem {
        Problem { line, key: self.path_of(key), message }
    }

    fn mistake(&mut self, line: u32, key: &str, message: String) {
        let problem = self.problem(line, key, message);
        self.report.borrow_mut().errors.push(problem);
    }

    fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn inner(&self, key: &str, bodies: Vec<Body>, line: u32) -> Reader {
        Reader::new(bodies, self.path_of(key), line, Rc::clone(&self.report))
    }

    /// All items of `key`, marked as known.
    fn take(&mut self, key: &str) -> Vec<Item> {
        let matching = self.items.iter_mut().filter(|(item, _)| same_key(item, key));
        matching
            .map(|(item, known)| {
                *known = true;
                item.clone()
            })
            .collect()
    }

    fn bodies(&mut self, key: &str) -> Option<(Vec<Body>, u32)> {
        let items = self.take(key);
        let line = items.first()?.line;
        let mut bodies = Vec::new();
        for item in &items {
            let found = item.unlabelled();
            self.check_object(key, item, &found);
            bodies.extend(found);
        }
        Some((bodies, line))
    }

    fn check_object(&mut self, key: &str, item: &Item, bodies: &[Body]) {
        let empty_list = matches!(&item.value.kind, Kind::List(values) if values.is_empty());
        if bodies.is_empty() && !empty_list {
            self.mistake(item.line, key, format!("expected a block, found {}", item.value.kind.name()));
        }
    }

    fn refuse_short(&mut self, key: &str, short: &[&Item]) {
        for item in short {
            let name = format!("{key}.{}", item.key);
            self.mistake(
                item.line,
                &name,
                format!("expected a named block, found {}", item.value.kind.name()),
            );
        }
    }

    fn scalar<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl Fn(&Kind) -> Result<T, Option<String>>,
    ) -> Option<T> {
        let mut value = None;
        for item in self.take(key) {
            let found = &item.value;
            match read(&found.kind) {
                Ok(read) => value = Some(read),
                Err(message) => {
                    let message =
                        message.unwrap_or_else(|| format!("expected {wanted}, found {}", found.kind.name()));
                    self.mistake(found.line, key, message);
                }
            }
        }
        value
    }
}

fn same_key(item: &Item, key: &str) -> bool {
    item.key.eq_ignore_ascii_case(key)
}
