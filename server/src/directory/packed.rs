//! An entry as the directory keeps it: 80 bytes and one boxed slice for what look-ups do not need.

use std::sync::Arc;

use svid_core::entry::{Entry, EntryId, EntrySpec};
use uuid::Uuid;

use super::intern::{Domains, Ids, Selectors};

/// An entry's ID. Almost all are UUIDs in their usual form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Uuid([u8; 16]),
    Text(Arc<str>),
}

impl Key {
    pub(super) fn new(id: &str) -> Self {
        if id.len() == 36
            && let Ok(uuid) = Uuid::try_parse(id)
            && *uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()) == *id
        {
            return Self::Uuid(*uuid.as_bytes());
        }
        Self::Text(id.into())
    }

    pub(super) fn id(&self) -> EntryId {
        let parsed = match self {
            Self::Uuid(bytes) => {
                Uuid::from_bytes(*bytes).hyphenated().encode_lower(&mut Uuid::encode_buffer()).parse()
            }
            Self::Text(text) => text.parse(),
        };
        parsed.expect("keys are made of entry IDs")
    }
}

pub(super) struct Packed {
    pub(super) row: u64,
    pub(super) key: Key,
    pub(super) spiffe: u32,
    pub(super) parent: u32,
    pub(super) expires_at: i64,
    pub(super) revision: i64,
    pub(super) created_at: i64,
    rest: Box<[u8]>,
}

const ADMIN: u8 = 1;
const DOWNSTREAM: u8 = 2;
const STORE_SVID: u8 = 4;
const NO_PREFETCH: u8 = 8;
const JTI: u8 = 16;

/// The fields of the boxed slice.
struct Rest<'a> {
    flags: u8,
    x509_svid_ttl: u32,
    jwt_svid_ttl: u32,
    selectors: Vec<u32>,
    domains: Vec<u32>,
    dns_names: Vec<&'a str>,
    hint: &'a str,
}

impl Packed {
    pub(super) fn new(
        row: u64,
        entry: &Entry,
        ids: &mut Ids,
        selectors: &mut Selectors,
        domains: &mut Domains,
    ) -> Self {
        let spec = &entry.spec;
        let rest = Rest {
            flags: flags(spec),
            x509_svid_ttl: spec.x509_svid_ttl.unsigned_abs(),
            jwt_svid_ttl: spec.jwt_svid_ttl.unsigned_abs(),
            selectors: selectors.acquire(&spec.selectors).into_vec(),
            domains: spec.federates_with.iter().map(|domain| domains.intern(domain)).collect(),
            dns_names: spec.dns_names.iter().map(String::as_str).collect(),
            hint: &spec.hint,
        };
        Self {
            row,
            key: Key::new(entry.id.as_str()),
            spiffe: ids.intern(&spec.spiffe_id),
            parent: ids.intern(&spec.parent_id),
            expires_at: spec.expires_at,
            revision: entry.revision,
            created_at: entry.created_at,
            rest: rest.write(),
        }
    }

    pub(super) fn is_expired(&self, now: i64) -> bool {
        self.expires_at != 0 && self.expires_at <= now
    }

    pub(super) fn is_downstream(&self) -> bool {
        self.rest[0] & DOWNSTREAM != 0
    }

    /// The selectors' numbers, sorted.
    pub(super) fn selectors(&self) -> Vec<u32> {
        Rest::read(&self.rest).selectors
    }

    pub(super) fn domains(&self) -> Vec<u32> {
        Rest::read(&self.rest).domains
    }

    pub(super) fn hint(&self) -> &str {
        Rest::read(&self.rest).hint
    }

    pub(super) fn unpack(&self, ids: &Ids, selectors: &Selectors, domains: &Domains) -> Entry {
        let rest = Rest::read(&self.rest);
        let has = |flag: u8| rest.flags & flag != 0;
        let spec = EntrySpec {
            spiffe_id: ids.get(self.spiffe).id.clone(),
            parent_id: ids.get(self.parent).id.clone(),
            selectors: selectors.set(rest.selectors.iter().copied()),
            x509_svid_ttl: rest.x509_svid_ttl.cast_signed(),
            jwt_svid_ttl: rest.jwt_svid_ttl.cast_signed(),
            federates_with: rest.domains.iter().map(|number| domains.get(*number).clone()).collect(),
            admin: has(ADMIN),
            downstream: has(DOWNSTREAM),
            expires_at: self.expires_at,
            dns_names: rest.dns_names.iter().map(|name| (*name).to_owned()).collect(),
            store_svid: has(STORE_SVID),
            hint: rest.hint.to_owned(),
            disable_x509_svid_prefetch: has(NO_PREFETCH),
            jwt_svid_include_jti: has(JTI),
        };
        Entry { id: self.key.id(), spec, revision: self.revision, created_at: self.created_at }
    }
}

fn flags(spec: &EntrySpec) -> u8 {
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    flag(spec.admin, ADMIN)
        | flag(spec.downstream, DOWNSTREAM)
        | flag(spec.store_svid, STORE_SVID)
        | flag(spec.disable_x509_svid_prefetch, NO_PREFETCH)
        | flag(spec.jwt_svid_include_jti, JTI)
}

impl<'a> Rest<'a> {
    fn write(&self) -> Box<[u8]> {
        let mut out = vec![self.flags];
        put(&mut out, self.x509_svid_ttl);
        put(&mut out, self.jwt_svid_ttl);
        for list in [&self.selectors, &self.domains] {
            put(&mut out, list.len() as u32);
            list.iter().for_each(|number| put(&mut out, *number));
        }
        put(&mut out, self.dns_names.len() as u32);
        for text in self.dns_names.iter().chain([&self.hint]) {
            put(&mut out, text.len() as u32);
            out.extend_from_slice(text.as_bytes());
        }
        out.into_boxed_slice()
    }

    fn read(bytes: &'a [u8]) -> Self {
        let (flags, mut rest) = bytes.split_first().expect("written by Rest::write");
        let from = &mut rest;
        Self {
            flags: *flags,
            x509_svid_ttl: take(from),
            jwt_svid_ttl: take(from),
            selectors: take_list(from),
            domains: take_list(from),
            dns_names: (0..take(from)).map(|_| take_text(from)).collect(),
            hint: take_text(from),
        }
    }
}

/// LEB128, as in protobuf.
fn put(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take(from: &mut &[u8]) -> u32 {
    let (mut value, mut shift) = (0, 0);
    while let Some((byte, rest)) = from.split_first() {
        *from = rest;
        value |= u32::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn take_list(from: &mut &[u8]) -> Vec<u32> {
    (0..take(from)).map(|_| take(from)).collect()
}

fn take_text<'a>(from: &mut &'a [u8]) -> &'a str {
    let length = take(from) as usize; // before `from` is read: it moves on
    let (text, rest) = from.split_at(length);
    *from = rest;
    std::str::from_utf8(text).expect("written from a str")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_text() {
        for id in [
            "2b5f8a5e-7d3c-4f0a-9b1e-0123456789ab",
            "2B5F8A5E-7D3C-4F0A-9B1E-0123456789AB",
            "2b5f8a5e7d3c4f0a9b1e0123456789ab",
            "web",
        ] {
            assert_eq!(Key::new(id).id().as_str(), id);
        }
        assert!(matches!(Key::new("2b5f8a5e-7d3c-4f0a-9b1e-0123456789ab"), Key::Uuid(_)));
    }

    #[test]
    fn numbers_round_trip() {
        for value in [0, 1, 127, 128, 300, u32::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            let mut from = &out[..];
            assert_eq!((take(&mut from), from.len()), (value, 0));
        }
    }
}
