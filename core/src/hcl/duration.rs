//! Durations as Go writes them: `1h30m`, `500ms`, `-1.5h`.

use std::time::Duration;

/// Why a text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of Go's form, or beyond 290 years.
    #[error("invalid duration {0:?}, write it like 1h30m, 10s or 500ms")]
    Invalid(String),
    /// No unit behind a number.
    #[error("missing unit in duration {0:?}, write it like 1h30m, 10s or 500ms")]
    MissingUnit(String),
    /// A negative value where only positive ones make sense.
    #[error("duration {0:?} is negative")]
    Negative(String),
}

const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Reads a duration that is not negative.
///
/// # Errors
/// [`DurationError`], naming the text.
pub fn parse_go(text: &str) -> Result<Duration, DurationError> {
    let nanos = parse_go_nanos(text)?;
    u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| DurationError::Negative(text.into()))
}

/// Reads a duration in nanoseconds, negative ones too.
///
/// # Errors
/// [`DurationError::Invalid`] and [`DurationError::MissingUnit`].
pub fn parse_go_nanos(text: &str) -> Result<i64, DurationError> {
    let invalid = || DurationError::Invalid(text.into());
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        if unit.is_empty() && !number.is_empty() {
            return Err(DurationError::MissingUnit(text.into()));
        }
        let scale = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(invalid)?.1;
        total = total.checked_add(scaled(number, scale).ok_or_else(invalid)?).ok_or_else(invalid)?;
        rest = after;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// `number` ("1", "1.5", ".5", "1.") times `scale`.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 || fraction.contains('.') {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Digits below a nanosecond of an hour cannot count.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = match fraction.parse::<i128>() {
        Ok(value) => value * scale / 10_i128.pow(u32::try_from(fraction.len()).ok()?),
        Err(_) => 0,
    };
    Some(whole * scale + part)
}

/// Writes a duration as Go prints it: `1h0m0s`, `1m30s`, `1.5s`, `500ms`, `0s`.
pub fn format_go(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < 1_000_000_000 {
        let (unit, name) = match nanos {
            0..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            _ => (1_000_000, "ms"),
        };
        return format!("{}{name}", fraction(nanos, unit));
    }
    let (hours, minutes) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60);
    let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn fraction(nanos: u128, unit: u128) -> String {
    let rest = nanos % unit;
    if rest == 0 {
        return (nanos / unit).to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{rest:0width$}");
    format!("{}.{}", nanos / unit, digits.trim_end_matches('0'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        for (text, nanos) in [
            ("0", 0),
            ("1h30m", 5_400_000_000_000),
            ("500ms", 500_000_000),
            ("1.5h", 5_400_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("+5s", 5_000_000_000),
            ("1h1s", 3_601_000_000_000),
            ("3us", 3_000),
            ("3µs", 3_000),
            ("-2s", -2_000_000_000),
        ] {
            assert_eq!(parse_go_nanos(text).unwrap(), nanos, "{text}");
        }
        for text in
            ["", "-", "5", "1d", "s", ".s", "1..5s", "h1", "9999999h", "1h ", "99999999999999999999999s"]
        {
            assert!(parse_go(text).is_err(), "{text}");
        }
        assert_eq!(parse_go("-1s"), Err(DurationError::Negative("-1s".into())));
    }

    #[test]
    fn prints_as_go() {
        for (text, want) in [
            ("0", "0s"),
            ("1h", "1h0m0s"),
            ("90s", "1m30s"),
            ("1500ms", "1.5s"),
            ("500ms", "500ms"),
            ("1500us", "1.5ms"),
            ("1500ns", "1.5µs"),
            ("7ns", "7ns"),
        ] {
            assert_eq!(format_go(parse_go(text).unwrap()), want);
        }
    }
}
