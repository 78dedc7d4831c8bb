//! `agent_path_template`: the part of Go's templates that paths need. Fields, strings, numbers, pipelines,
//! parentheses, and the usual functions. Anything else is a mistake in the configuration, said at start.
//!
//! Whoever issues a certificate chooses its names, so what comes from one may fill a path segment and never make
//! one: a result with a slash from the certificate is refused, and the path as a whole has no dot segments.

use std::collections::BTreeMap;

use x509_parser::certificate::X509Certificate;

use crate::{NAME, chain};

/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 16;

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Action(Expr),
}

#[derive(Clone, Debug, PartialEq)]
enum Expr {
    Field(Vec<String>),
    Text(String),
    Number(i64),
    Call(&'static str, Vec<Expr>),
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Number(i64),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
}

/// What templates see of a certificate.
pub(crate) struct Data {
    fields: BTreeMap<&'static str, Value>,
}

/// Fields that the certificate's holder does not choose freely: an SVID's path was checked by its issuer, us.
const OURS: &[&str] = &["PluginName", "TrustDomain", "SVIDPathTrimmed"];
const FIELDS: &[&str] = &[
    "PluginName",
    "TrustDomain",
    "SVIDPathTrimmed",
    "SerialNumberHex",
    "SerialNumber",
    "Fingerprint",
    "DNSNames",
    "URISanSelectors",
    "Subject.CommonName",
    "Subject.SerialNumber",
    "Subject.Organization",
    "Subject.OrganizationalUnit",
    "Subject.Country",
    "Issuer.CommonName",
];

impl Data {
    pub(crate) fn new(
        leaf: &X509Certificate<'_>,
        der: &[u8],
        trust_domain: &str,
        svid_path: &str,
        sans: &BTreeMap<String, String>,
    ) -> Self {
        let text = |text: &str| Value::Text(text.to_owned());
        let first = |attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
            Value::Text(attribute.and_then(|value| value.as_str().ok()).unwrap_or_default().to_owned())
        };
        let subject = leaf.subject();
        let list = |values: Vec<&str>| Value::List(values.into_iter().map(str::to_owned).collect());
        let serial_oid = x509_parser::oid_registry::OID_X509_SERIALNUMBER;
        let fields = BTreeMap::from([
            ("PluginName", text(NAME)),
            ("TrustDomain", text(trust_domain)),
            ("SVIDPathTrimmed", text(svid_path)),
            ("SerialNumberHex", Value::Text(chain::serial_hex(leaf))),
            ("SerialNumber", Value::Text(leaf.tbs_certificate.serial.to_string())),
            ("Fingerprint", Value::Text(chain::fingerprint(der))),
            ("DNSNames", Value::List(chain::dns_names(leaf))),
            ("URISanSelectors", Value::Map(sans.clone())),
            ("Subject.CommonName", Value::Text(chain::common_name(leaf))),
            ("Subject.SerialNumber", first(subject.iter_by_oid(&serial_oid).next())),
            (
                "Subject.Organization",
                list(subject.iter_organization().filter_map(|v| v.as_str().ok()).collect()),
            ),
            (
                "Subject.OrganizationalUnit",
                list(subject.iter_organizational_unit().filter_map(|v| v.as_str().ok()).collect()),
            ),
            ("Subject.Country", list(subject.iter_country().filter_map(|v| v.as_str().ok()).collect())),
            ("Issuer.CommonName", first(leaf.issuer().iter_common_name().next())),
        ]);
        Self { fields }
    }

    fn get(&self, path: &[String]) -> Result<Value, String> {
        let name = path.join(".");
        if let Some(value) = self.fields.get(name.as_str()) {
            return Ok(value.clone());
        }
        match (path, self.fields.get("URISanSelectors")) {
            ([map, key], Some(Value::Map(values))) if map == "URISanSelectors" => {
                let value = values.get(key).cloned();
                value.map(Value::Text).ok_or_else(|| format!("map has no entry for key {key:?}"))
            }
            _ => Err(format!("can't evaluate field .{name}")),
        }
    }
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find("{{") {
            let (before, after) = rest.split_at(start);
            let end = after.find("}}").ok_or("unclosed action")?;
            let mut inner = &after[2..end];
            rest = &after[end + 2..];
            let mut before = before;
            if let Some(trimmed) = inner.strip_prefix("- ") {
                inner = trimmed;
                before = before.trim_end();
            }
            if let Some(trimmed) = inner.strip_suffix(" -") {
                inner = trimmed;
                rest = rest.trim_start();
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            if !inner.trim_start().starts_with("/*") {
                parts.push(Part::Action(parse_action(inner)?));
            }
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// The path, which begins with a slash. SPIFFE's rules for paths are for the caller to check.
    pub(crate) fn render(&self, data: &Data) -> Result<String, String> {
        let mut path = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => path.push_str(text),
                Part::Action(expr) => {
                    let text = eval(expr, data)?.print();
                    if text.contains('/') && expr.is_foreign() {
                        return Err(format!("a value of the certificate contains a slash: {text:?}"));
                    }
                    path.push_str(&text);
                }
            }
        }
        if !path.starts_with('/') {
            return Err(format!("agent path {path:?} does not begin with a slash"));
        }
        Ok(path)
    }
}

impl Expr {
    /// True if something of the certificate goes into the result.
    fn is_foreign(&self) -> bool {
        match self {
            Self::Field(path) => !OURS.contains(&path.join(".").as_str()),
            Self::Call(_, arguments) => arguments.iter().any(Self::is_foreign),
            Self::Text(_) | Self::Number(_) => false,
        }
    }
}

impl Value {
    /// As Go prints it.
    fn print(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::List(values) => format!("[{}]", values.join(" ")),
            Self::Map(values) => {
                let pairs: Vec<String> = values.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("map[{}]", pairs.join(" "))
            }
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Text(text) => text.is_empty(),
            Self::Number(number) => *number == 0,
            Self::List(values) => values.is_empty(),
            Self::Map(values) => values.is_empty(),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Field(Vec<String>),
    Text(String),
    Number(i64),
    Word(String),
    Pipe,
    Open,
    Close,
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, used) = match first {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' => quoted(rest)?,
            '`' => {
                let end = rest[1..].find('`').ok_or("unterminated raw quoted string")?;
                (Token::Text(rest[1..=end].to_owned()), end + 2)
            }
            _ => word(rest)?,
        };
        tokens.push(token);
        rest = rest[used..].trim_start();
    }
    Ok(tokens)
}

fn quoted(text: &str) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Ok((Token::Text(value), at + 1)),
            '\\' => match chars.next() {
                Some((_, '"')) => value.push('"'),
                Some((_, '\\')) => value.push('\\'),
                _ => return Err("unsupported escape in a string".to_owned()),
            },
            char => value.push(char),
        }
    }
    Err("unterminated quoted string".to_owned())
}

fn word(text: &str) -> Result<(Token, usize), String> {
    let end = text.find(|char: char| !(char.is_alphanumeric() || matches!(char, '.' | '_' | '-')));
    let word = &text[..end.unwrap_or(text.len())];
    if word.is_empty() {
        return Err(format!("unexpected {:?}", text.chars().next().unwrap_or_default()));
    }
    let token = match word.strip_prefix('.') {
        Some(path) => Token::Field(path.split('.').map(str::to_owned).collect()),
        None => word.parse().map_or_else(|_| Token::Word(word.to_owned()), Token::Number),
    };
    Ok((token, word.len()))
}

fn parse_action(text: &str) -> Result<Expr, String> {
    let tokens = tokens(text)?;
    let mut at = 0;
    let expr = pipeline(&tokens, &mut at, 0)?;
    match tokens.get(at) {
        None => Ok(expr),
        Some(token) => Err(format!("unexpected {token:?}")),
    }
}

fn pipeline(tokens: &[Token], at: &mut usize, depth: usize) -> Result<Expr, String> {
    if depth > MAX_DEPTH {
        return Err("too deeply nested".to_owned());
    }
    let mut value = command(tokens, at, depth, None)?;
    while tokens.get(*at) == Some(&Token::Pipe) {
        *at += 1;
        value = command(tokens, at, depth, Some(value))?;
    }
    Ok(value)
}

/// One operand, or a function and its operands; `piped` becomes the last of them.
fn command(tokens: &[Token], at: &mut usize, depth: usize, piped: Option<Expr>) -> Result<Expr, String> {
    let Some(Token::Word(name)) = tokens.get(*at) else {
        let value = operand(tokens, at, depth)?;
        return match piped {
            None => Ok(value),
            Some(_) => Err("only a function can stand behind '|'".to_owned()),
        };
    };
    let Some((name, counts)) = FUNCTIONS.iter().find(|(known, _)| known == name) else {
        return Err(format!("function {name:?} not defined"));
    };
    *at += 1;
    let mut arguments = Vec::new();
    while !matches!(tokens.get(*at), None | Some(Token::Pipe | Token::Close)) {
        arguments.push(operand(tokens, at, depth)?);
    }
    arguments.extend(piped);
    if !counts.contains(&arguments.len()) {
        return Err(format!("wrong number of arguments for {name}: {}", arguments.len()));
    }
    Ok(Expr::Call(name, arguments))
}

fn operand(tokens: &[Token], at: &mut usize, depth: usize) -> Result<Expr, String> {
    let token = tokens.get(*at).ok_or("missing value for command")?;
    *at += 1;
    match token {
        Token::Field(path) => check_field(path).map(|()| Expr::Field(path.clone())),
        Token::Text(text) => Ok(Expr::Text(text.clone())),
        Token::Number(number) => Ok(Expr::Number(*number)),
        Token::Open => {
            let inner = pipeline(tokens, at, depth + 1)?;
            if tokens.get(*at) != Some(&Token::Close) {
                return Err("unclosed left paren".to_owned());
            }
            *at += 1;
            Ok(inner)
        }
        Token::Word(word) => Err(format!("{word:?} cannot stand here")),
        Token::Pipe | Token::Close => Err("missing value".to_owned()),
    }
}

fn check_field(path: &[String]) -> Result<(), String> {
    let name = path.join(".");
    let san = matches!(path, [map, key] if map == "URISanSelectors" && !key.is_empty());
    if san || FIELDS.contains(&name.as_str()) {
        return Ok(());
    }
    Err(format!("can't evaluate field .{name}"))
}

/// Functions and how many arguments they take. Names and meaning are those of sprig, as far as SPIRE lets them in.
const FUNCTIONS: &[(&str, std::ops::RangeInclusive<usize>)] = &[
    ("lower", 1..=1),
    ("upper", 1..=1),
    ("trim", 1..=1),
    ("nospace", 1..=1),
    ("trimAll", 2..=2),
    ("trimPrefix", 2..=2),
    ("trimSuffix", 2..=2),
    ("replace", 3..=3),
    ("trunc", 2..=2),
    ("substr", 3..=3),
    ("default", 2..=2),
    ("join", 2..=2),
    ("splitList", 2..=2),
    ("first", 1..=1),
    ("last", 1..=1),
    ("sha1sum", 1..=1),
    ("sha256sum", 1..=1),
    ("toString", 1..=1),
    ("index", 2..=2),
];

fn eval(expr: &Expr, data: &Data) -> Result<Value, String> {
    match expr {
        Expr::Field(path) => data.get(path),
        Expr::Text(text) => Ok(Value::Text(text.clone())),
        Expr::Number(number) => Ok(Value::Number(*number)),
        Expr::Call(name, arguments) => {
            let values =
                arguments.iter().map(|argument| eval(argument, data)).collect::<Result<Vec<_>, _>>()?;
            call(name, &values)
        }
    }
}

fn call(name: &str, values: &[Value]) -> Result<Value, String> {
    if let Some(value) = call_on_any(name, values)? {
        return Ok(value);
    }
    let texts: Vec<&str> = values
        .iter()
        .filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let hash = |algorithm, text: &str| hex::encode(aws_lc_rs::digest::digest(algorithm, text.as_bytes()));
    let text = match (name, texts.as_slice()) {
        ("lower", [text]) => text.to_lowercase(),
        ("upper", [text]) => text.to_uppercase(),
        ("trim", [text]) => text.trim().to_owned(),
        ("nospace", [text]) => text.split_whitespace().collect(),
        ("trimAll", [cut, text]) => text.trim_matches(|char| cut.contains(char)).to_owned(),
        ("trimPrefix", [prefix, text]) => text.strip_prefix(prefix).unwrap_or(text).to_owned(),
        ("trimSuffix", [suffix, text]) => text.strip_suffix(suffix).unwrap_or(text).to_owned(),
        ("replace", [from, to, text]) => text.replace(from, to),
        ("sha1sum", [text]) => hash(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text),
        ("sha256sum", [text]) => hash(&aws_lc_rs::digest::SHA256, text),
        ("splitList", [separator, text]) if !separator.is_empty() => {
            return Ok(Value::List(text.split(separator).map(str::to_owned).collect()));
        }
        _ => return Err(format!("{name}: wrong type of argument")),
    };
    Ok(Value::Text(text))
}

/// Functions of numbers, lists and maps; `None` for those of texts alone.
fn call_on_any(name: &str, values: &[Value]) -> Result<Option<Value>, String> {
    let empty = || format!("{name}: the list is empty");
    let value = match (name, values) {
        ("toString", [value]) => Value::Text(value.print()),
        ("default", [default, value]) => {
            if value.is_empty() {
                default.clone()
            } else {
                value.clone()
            }
        }
        ("join", [Value::Text(separator), Value::List(values)]) => Value::Text(values.join(separator)),
        ("first", [Value::List(values)]) => Value::Text(values.first().cloned().ok_or_else(empty)?),
        ("last", [Value::List(values)]) => Value::Text(values.last().cloned().ok_or_else(empty)?),
        ("index", [Value::Map(values), Value::Text(key)]) => {
            Value::Text(values.get(key).cloned().ok_or_else(|| format!("map has no entry for key {key:?}"))?)
        }
        ("index", [Value::List(values), Value::Number(at)]) => {
            let value = usize::try_from(*at).ok().and_then(|at| values.get(at));
            Value::Text(value.cloned().ok_or_else(|| format!("index out of range: {at}"))?)
        }
        ("trunc", [Value::Number(count), Value::Text(text)]) => Value::Text(trunc(*count, text)),
        ("substr", [Value::Number(start), Value::Number(end), Value::Text(text)]) => {
            Value::Text(substr(*start, *end, text))
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// The first `count` characters, or the last ones for a negative count.
fn trunc(count: i64, text: &str) -> String {
    let length = text.chars().count();
    let keep = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX).min(length);
    match count < 0 {
        true => text.chars().skip(length - keep).collect(),
        false => text.chars().take(keep).collect(),
    }
}

fn substr(start: i64, end: i64, text: &str) -> String {
    let start = usize::try_from(start).unwrap_or(0);
    let end = usize::try_from(end).unwrap_or(usize::MAX);
    text.chars().take(end).skip(start).collect()
}
