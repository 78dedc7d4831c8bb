//! Just enough DER: a writer, and a reader of the outermost element.

use std::time::SystemTime;

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
pub(super) const OCTET_STRING: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Writes DER into one growing buffer.
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Writes an element whose content `write` produces. The length moves the content only where it needs more bytes.
    pub(super) fn nest(&mut self, tag: u8, write: impl FnOnce(&mut Self)) {
        self.0.extend([tag, 0]);
        let start = self.0.len();
        write(self);
        let length = self.0.len() - start;
        if length < 128 {
            self.0[start - 1] = length as u8;
            return;
        }
        let bytes = length.to_be_bytes();
        let skip = bytes.iter().take_while(|byte| **byte == 0).count();
        let bytes = &bytes[skip..];
        self.0[start - 1] = 0x80 | bytes.len() as u8;
        self.0.splice(start..start, bytes.iter().copied());
    }

    pub(super) fn raw(&mut self, der: &[u8]) {
        self.0.extend_from_slice(der);
    }

    pub(super) fn bytes(&mut self, tag: u8, content: &[u8]) {
        self.nest(tag, |w| w.raw(content));
    }

    pub(super) fn bool_true(&mut self) {
        self.bytes(BOOLEAN, &[0xff]);
    }

    /// A non-negative integer from its big-endian magnitude.
    pub(super) fn unsigned(&mut self, magnitude: &[u8]) {
        let skip = magnitude.iter().take_while(|byte| **byte == 0).count();
        let digits = &magnitude[skip..];
        self.nest(INTEGER, |w| {
            if digits.first().is_none_or(|byte| byte & 0x80 != 0) {
                w.raw(&[0]);
            }
            w.raw(digits);
        });
    }

    pub(super) fn oid(&mut self, content: &[u8]) {
        self.bytes(OID, content);
    }

    pub(super) fn bit_string(&mut self, content: &[u8]) {
        self.nest(BIT_STRING, |w| {
            w.raw(&[0]);
            w.raw(content);
        });
    }

    /// A named bit list of at most eight bits, the first bit highest. Trailing zero bits are cut, as DER wants.
    pub(super) fn named_bits(&mut self, bits: u8) {
        self.bytes(BIT_STRING, &[bits.trailing_zeros().min(7) as u8, bits]);
    }

    /// A directory string: PrintableString where the text allows, else UTF8String, as Go chooses.
    pub(super) fn text(&mut self, text: &str) {
        let printable = |b: u8| {
            b.is_ascii_alphanumeric()
                || matches!(b, b' ' | b'\'' | b'(' | b')' | b'+'..=b'/' | b':' | b'=' | b'?')
        };
        let tag = if text.bytes().all(printable) { PRINTABLE_STRING } else { UTF8_STRING };
        self.bytes(tag, text.as_bytes());
    }

    /// UTCTime from 1950 to 2049, else GeneralizedTime (RFC 5280, 4.1.2.5).
    pub(super) fn time(&mut self, time: &Time) {
        let tag = if time.0.len() == 13 { UTC_TIME } else { GENERALIZED_TIME };
        self.bytes(tag, time.0.as_bytes());
    }
}

/// A moment as X.509 writes it, in whole seconds, rounded down.
pub(super) struct Time(String);

impl Time {
    /// `None` outside of the years 0 to 9999.
    pub(super) fn new(time: SystemTime) -> Option<Self> {
        let zoned = jiff::Timestamp::try_from(time).ok()?.to_zoned(jiff::tz::TimeZone::UTC);
        let year = zoned.year();
        let date = match year {
            1950..=2049 => format!("{:02}", year % 100),
            0..=9999 => format!("{year:04}"),
            _ => return None,
        };
        Some(Self(format!(
            "{date}{:02}{:02}{:02}{:02}{:02}Z",
            zoned.month(),
            zoned.day(),
            zoned.hour(),
            zoned.minute(),
            zoned.second()
        )))
    }
}

/// Content of the first element, and what stands behind the element. `None` unless its length is definite, minimal
/// and within the bytes.
pub(super) fn content(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (element, rest) = split_first(bytes)?;
    let header = match element[1] {
        short if short < 0x80 => 2,
        long => 2 + usize::from(long & 0x7f),
    };
    Some((&element[header..], rest))
}

/// Splits the first element off. `None` as for [`content`].
pub(super) fn split_first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = bytes.get(1..)?.split_first()?;
    let (length, header) = match first {
        0..=0x7f => (usize::from(first), 2),
        0x81..=0x83 => {
            let digits = rest.get(..usize::from(first & 0x7f))?;
            let length = digits.iter().fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
            if digits[0] == 0 || length < 128 {
                return None;
            }
            (length, 2 + digits.len())
        }
        _ => return None,
    };
    bytes.split_at_checked(header + length)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(text: &str) -> SystemTime {
        text.parse::<jiff::Timestamp>().unwrap().into()
    }

    #[test]
    fn times_around_the_century_boundary() {
        for (time, want) in [
            ("2026-01-02T03:04:05Z", "260102030405Z"),
            ("2049-12-31T23:59:59.9Z", "491231235959Z"),
            ("2050-01-01T00:00:00Z", "20500101000000Z"),
            ("1950-01-01T00:00:00Z", "500101000000Z"),
            ("1949-12-31T23:59:59Z", "19491231235959Z"),
        ] {
            assert_eq!(Time::new(at(time)).unwrap().0, want);
        }
        assert!(Time::new(at("2020-01-01T00:00:00Z") + Duration::from_secs(400_000_000_000)).is_none());
    }

    #[test]
    fn lengths_and_integers() {
        for size in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let mut w = Writer::with_capacity(0);
            w.bytes(OCTET_STRING, &vec![7; size]);
            let der = w.into_bytes();
            assert_eq!(content(&der).unwrap().0.len(), size);
            assert_eq!(split_first(&der).unwrap(), (&der[..], &[][..]));
        }
        for (magnitude, want) in [
            (&[][..], &[2u8, 1, 0][..]),
            (&[0, 0], &[2, 1, 0]),
            (&[0, 0x7f], &[2, 1, 0x7f]),
            (&[0x80], &[2, 2, 0, 0x80]),
        ] {
            let mut w = Writer::with_capacity(0);
            w.unsigned(magnitude);
            assert_eq!(w.into_bytes(), want);
        }
    }

    proptest::proptest! {
        #[test]
        fn splitting_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..20)) {
            let _ = (split_first(&bytes), content(&bytes));
        }
    }
}
