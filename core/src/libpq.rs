//! PostgreSQL connection strings, as libpq and Go's lib/pq read them: `key=value ...` or a URL.
//!
//! This is their grammar only. What the keys mean, and which are known, is the caller's business.

use std::fmt;

use zeroize::Zeroizing;

/// Longest accepted input in bytes: 16 KiB.
pub const MAX_INPUT: usize = 16 * 1024;

/// Why a text is no connection string. It never quotes a value, which may be a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// More than [`MAX_INPUT`] bytes.
    #[error("longer than {MAX_INPUT} bytes")]
    TooLong,
    /// A key is not followed by `=`. Holds which one it is, counted from 1: the text may be a part of a password.
    #[error("missing \"=\" after key number {0}; values with spaces need single quotes")]
    MissingEquals(usize),
    /// A quoted value does not end.
    #[error("unterminated quoted value of {0:?}")]
    UnterminatedQuote(String),
    /// A value ends with a backslash.
    #[error("missing character after the backslash in the value of {0:?}")]
    DanglingBackslash(String),
    /// `%` in a URL is not followed by two hexadecimal digits, or the bytes are no UTF-8.
    #[error(
        "a %-escape in the URL cannot be read; special characters in a user or password are written as %XX"
    )]
    BadEscape,
    /// A value holds a NUL character, which no PostgreSQL setting can.
    #[error("a NUL character")]
    Nul,
}

/// The settings of a connection string, in its order. A key may occur more than once: the last one counts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings(Vec<(String, Zeroizing<String>)>);

impl Settings {
    /// Reads either form.
    /// # Errors
    /// [`ParseError`]; an empty text is no mistake, since everything has a default.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.len() > MAX_INPUT {
            return Err(ParseError::TooLong);
        }
        if text.contains('\0') {
            return Err(ParseError::Nul);
        }
        let url = ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let settings = match url {
            Some(rest) => parse_url(rest)?,
            None => parse_words(text)?,
        };
        match settings.iter().any(|(key, value)| key.contains('\0') || value.contains('\0')) {
            true => Err(ParseError::Nul),
            false => Ok(Self(settings)),
        }
    }

    /// Takes out the value of `key`. Empty values count as absent, as in libpq.
    pub fn take(&mut self, key: &str) -> Option<Zeroizing<String>> {
        let mut found = None;
        self.0.retain_mut(|(name, value)| {
            let hit = name == key;
            if hit {
                found = Some(std::mem::take(value));
            }
            !hit
        });
        found.filter(|value| !value.is_empty())
    }

    /// What was not taken, in order.
    pub fn rest(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// Keys only: values may be secret.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.iter().map(|(key, _)| key)).finish()
    }
}

type Pairs = Vec<(String, Zeroizing<String>)>;

/// `key=value` with spaces between; a value in single quotes may hold spaces; a backslash takes the next character as
/// it is.
fn parse_words(text: &str) -> Result<Pairs, ParseError> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let value = after.trim_start().strip_prefix('=');
        let value = value.ok_or(ParseError::MissingEquals(pairs.len() + 1))?.trim_start();
        let (value, after) = match value.strip_prefix('\'') {
            Some(quoted) => quoted_value(quoted, key)?,
            None => plain_value(value, key)?,
        };
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

fn plain_value<'t>(text: &'t str, key: &str) -> Result<(Zeroizing<String>, &'t str), ParseError> {
    let mut value = Zeroizing::new(String::with_capacity(text.len()));
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => {
                let (_, escaped) =
                    chars.next().ok_or_else(|| ParseError::DanglingBackslash(key.to_owned()))?;
                value.push(escaped);
            }
            c if c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    Ok((value, ""))
}

fn quoted_value<'t>(text: &'t str, key: &str) -> Result<(Zeroizing<String>, &'t str), ParseError> {
    let mut value = Zeroizing::new(String::with_capacity(text.len()));
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\'' => return Ok((value, &text[at + 1..])),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    Err(ParseError::UnterminatedQuote(key.to_owned()))
}

/// What follows the scheme: `[user[:password]@][host[:port][,host[:port]...]][/dbname][?key=value&...]`.
fn parse_url(rest: &str) -> Result<Pairs, ParseError> {
    let mut pairs = Pairs::new();
    let rest = rest.split('#').next().unwrap_or_default();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut add = |key: &str, value: Zeroizing<String>| {
        if !value.is_empty() {
            pairs.push((key.to_owned(), value));
        }
    };
    add("user", unescape(user, false)?);
    add("password", unescape(password, false)?);
    let (hosts, ports): (Vec<&str>, Vec<&str>) = hosts.split(',').map(host_and_port).unzip();
    add("host", unescape(&hosts.join(","), false)?);
    if ports.iter().any(|port| !port.is_empty()) {
        add("port", unescape(&ports.join(","), false)?);
    }
    add("dbname", unescape(database, false)?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        add(&unescape(key, true)?, unescape(value, true)?);
    }
    Ok(pairs)
}

/// An IPv6 address stands in brackets, so that its colons are no port's.
fn host_and_port(text: &str) -> (&str, &str) {
    if let Some((address, after)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (address, after.strip_prefix(':').unwrap_or_default());
    }
    text.rsplit_once(':').unwrap_or((text, ""))
}

fn unescape(text: &str, plus_is_space: bool) -> Result<Zeroizing<String>, ParseError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2).ok_or(ParseError::BadEscape)?;
                let mut decoded = [0];
                hex::decode_to_slice(digits, &mut decoded).map_err(|_| ParseError::BadEscape)?;
                bytes.push(decoded[0]);
                rest = after;
            }
            b'+' if plus_is_space => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) => Err(ParseError::BadEscape),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn check(text: &str, want: Result<&[(&str, &str)], ParseError>) {
        let got = Settings::parse(text);
        match want {
            Ok(want) => assert_eq!(got.unwrap().rest().collect::<Vec<_>>(), want, "{text}"),
            Err(want) => assert_eq!(got, Err(want), "{text}"),
        }
    }

    #[test]
    fn words() {
        check("", Ok(&[]));
        check(
            " dbname=postgres  user = 'a b'\nport= 5",
            Ok(&[("dbname", "postgres"), ("user", "a b"), ("port", "5")]),
        );
        check(r"password=a\ b\'c\\ user='it\'s \\'", Ok(&[("password", r"a b'c\"), ("user", r"it's \")]));
        check("password='' host=x", Ok(&[("password", ""), ("host", "x")]));
        check("password= ", Ok(&[("password", "")]));
        check("dbname", Err(ParseError::MissingEquals(1)));
        check("user=a secret word", Err(ParseError::MissingEquals(2)));
        check("user='a", Err(ParseError::UnterminatedQuote("user".into())));
        check(r"user=a\", Err(ParseError::DanglingBackslash("user".into())));
        check("user=\0", Err(ParseError::Nul));
        check(&"a".repeat(MAX_INPUT + 1), Err(ParseError::TooLong));
    }

    #[test]
    fn urls() {
        check("postgres://", Ok(&[]));
        check(
            "postgresql://u%40x:p%3Aw@db.example:5433/name?sslmode=verify-full&application_name=a+b%2B",
            Ok(&[
                ("user", "u@x"),
                ("password", "p:w"),
                ("host", "db.example"),
                ("port", "5433"),
                ("dbname", "name"),
                ("sslmode", "verify-full"),
                ("application_name", "a b+"),
            ]),
        );
        check("postgres://[::1]:5/x", Ok(&[("host", "::1"), ("port", "5"), ("dbname", "x")]));
        check(
            "postgres://a:1,b/x?host=%2Frun",
            Ok(&[("host", "a,b"), ("port", "1,"), ("dbname", "x"), ("host", "/run")]),
        );
        check("postgres://%zz/", Err(ParseError::BadEscape));
        check("postgres://u:%ff@h/", Err(ParseError::BadEscape));
        check("postgres://u:%00@h/", Err(ParseError::Nul));
    }

    #[test]
    fn the_last_one_counts_and_nothing_is_shown() {
        let mut settings = Settings::parse("host=a host=b password=hush").unwrap();
        assert_eq!(settings.take("host").unwrap().as_str(), "b");
        assert_eq!(settings.take("host"), None);
        assert_eq!(format!("{settings:?}"), r#"{"password"}"#);
    }
}
