//! Distinguished names: building the few we need, printing any as Go's `pkix.Name` does.

use x509_parser::prelude::FromDer;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::der::{self, SEQUENCE, SET, Writer};

pub(super) const COMMON_NAME: u8 = 3;
pub(super) const SERIAL_NUMBER: u8 = 5;
pub(super) const COUNTRY: u8 = 6;
pub(super) const ORGANIZATION: u8 = 10;
pub(super) const ORGANIZATIONAL_UNIT: u8 = 11;

/// A name of attributes `2.5.4.<number>`, one to each RDN.
pub(super) fn build(attributes: &[(u8, &str)]) -> Vec<u8> {
    let mut w = Writer::with_capacity(64);
    w.nest(SEQUENCE, |w| attributes.iter().for_each(|(kind, value)| rdn(w, *kind, value)));
    w.into_bytes()
}

fn rdn(w: &mut Writer, kind: u8, value: &str) {
    w.nest(SET, |w| {
        w.nest(SEQUENCE, |w| {
            w.oid(&[0x55, 0x04, kind]);
            w.text(value);
        });
    });
}

/// The name with its attributes of this kind replaced by one, at the end. RDNs of several attributes stay.
/// `None` if the bytes are no name.
pub(super) fn with_attribute(name: &[u8], kind: u8, value: &str) -> Option<Vec<u8>> {
    let (mut rest, behind) = der::content(name)?;
    if name[0] != SEQUENCE || !behind.is_empty() {
        return None;
    }
    let mut kept = Vec::new();
    while !rest.is_empty() {
        let (element, tail) = der::split_first(rest)?;
        if !is_only(element, kind) {
            kept.extend_from_slice(element);
        }
        rest = tail;
    }
    let mut w = Writer::with_capacity(name.len() + value.len() + 16);
    w.nest(SEQUENCE, |w| {
        w.raw(&kept);
        rdn(w, kind, value);
    });
    Some(w.into_bytes())
}

/// Whether an RDN consists of one attribute of this kind.
fn is_only(rdn: &[u8], kind: u8) -> bool {
    let only = || {
        let (attribute, behind) = der::content(der::content(rdn)?.0)?;
        Some(behind.is_empty() && attribute.starts_with(&[0x06, 0x03, 0x55, 0x04, kind]))
    };
    only().unwrap_or(false)
}

/// Whether an attribute of this kind stands in the name.
pub(super) fn has_attribute(name: &[u8], kind: u8) -> bool {
    let Ok((_, name)) = X509Name::from_der(name) else { return false };
    name.iter_attributes().any(|attribute| attribute.attr_type().as_bytes() == [0x55, 0x04, kind])
}

/// True for a name without attributes.
pub(super) fn is_empty(name: &[u8]) -> bool {
    name == [SEQUENCE, 0]
}

/// Whether the bytes are one well-formed name.
pub(super) fn is_name(name: &[u8]) -> bool {
    matches!(X509Name::from_der(name), Ok((rest, _)) if rest.is_empty())
}

/// Attributes that Go keeps in fields of their own, in the order in which it writes them.
const FIELDS: [(u8, &str); 9] = [
    (COUNTRY, "C"),
    (ORGANIZATION, "O"),
    (ORGANIZATIONAL_UNIT, "OU"),
    (7, "L"),
    (8, "ST"),
    (9, "STREET"),
    (17, "POSTALCODE"),
    (COMMON_NAME, "CN"),
    (SERIAL_NUMBER, "SERIALNUMBER"),
];

/// The name as SPIRE's tools print it: Go's field order, reversed, joined by commas. Empty for bytes that are no name.
pub(super) fn to_text(name: &[u8]) -> String {
    let Ok((_, name)) = X509Name::from_der(name) else { return String::new() };
    let attributes: Vec<_> = name.iter_attributes().collect();
    let kind = |attribute: &AttributeTypeAndValue<'_>| match attribute.attr_type().as_bytes() {
        [0x55, 0x04, kind] => Some(*kind),
        _ => None,
    };
    let mut parts = Vec::new();
    for attribute in &attributes {
        if !FIELDS.iter().any(|(field, _)| kind(attribute) == Some(*field)) {
            parts.push(format!("{}={}", attribute.attr_type(), other_value(attribute)));
        }
    }
    for (field, label) in FIELDS {
        let values = attributes.iter().filter(|attribute| kind(attribute) == Some(field));
        let values: Vec<_> = values.map(|value| format!("{label}={}", escape(&text_of(value)))).collect();
        match field {
            // Single-valued in Go: the last one wins.
            COMMON_NAME | SERIAL_NUMBER => parts.extend(values.last().cloned()),
            _ if values.is_empty() => {}
            _ => parts.push(values.join("+")),
        }
    }
    parts.reverse();
    parts.join(",")
}

fn text_of(attribute: &AttributeTypeAndValue<'_>) -> String {
    String::from_utf8_lossy(attribute.as_slice()).into_owned()
}

/// The value of an attribute without a label: `#` and the hex of its DER.
fn other_value(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    let mut w = Writer::with_capacity(value.data.len() + 4);
    w.bytes(value.header.tag().0 as u8, value.data);
    format!("#{}", hex::encode(w.into_bytes()))
}

fn escape(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::with_capacity(value.len());
    for (at, c) in value.chars().enumerate() {
        let special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
        if special || (c == ' ' && (at == 0 || at == last)) || (c == '#' && at == 0) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        let check = |attributes: &[(u8, &str)], want: &str| assert_eq!(to_text(&build(attributes)), want);
        check(&[(COUNTRY, "US"), (ORGANIZATION, "SPIRE")], "O=SPIRE,C=US");
        check(&[(COMMON_NAME, "a"), (COUNTRY, "US")], "CN=a,C=US");
        check(&[(ORGANIZATION, "a"), (ORGANIZATION, "b")], "O=a+O=b");
        check(&[(COMMON_NAME, "a, b#"), (ORGANIZATION, "#x ")], "CN=a\\, b#,O=\\#x\\ ");
        check(&[(COUNTRY, "US"), (65, "x")], "C=US,2.5.4.65=#130178");
        check(&[], "");
        assert_eq!(to_text(&[1, 2, 3]), "");
    }

    #[test]
    fn replaces_an_attribute() {
        let name = build(&[(COMMON_NAME, "old"), (ORGANIZATION, "o")]);
        let name = with_attribute(&name, COMMON_NAME, "new").unwrap();
        assert!(is_name(&name));
        assert_eq!(to_text(&name), "CN=new,O=o");
        assert_eq!(with_attribute(&[4, 0], COMMON_NAME, "x"), None);
        assert!(is_empty(&build(&[])));
    }
}
