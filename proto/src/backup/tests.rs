#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::spire::api::types;

fn file(kinds: &[Kind]) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header { trust_domain: "example.org".into(), taken_at: 7, ..Default::default() };
    let mut encoder = Encoder::begin(header, &mut out);
    for kind in kinds {
        encoder.push(kind.clone(), &mut out);
    }
    encoder.finish(&mut out);
    out
}

/// The records between header and trailer, fed in pieces of `piece` bytes.
fn read(bytes: &[u8], piece: usize) -> Result<(Vec<Kind>, Counts), FormatError> {
    let mut decoder = Decoder::new();
    let mut kinds = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        while let Some(kind) = decoder.next_record()? {
            kinds.push(kind);
        }
    }
    let counts = decoder.finish()?;
    assert!(matches!(kinds.first(), Some(Kind::Header(_))), "the header comes first");
    assert!(matches!(kinds.pop(), Some(Kind::Trailer(_))), "the trailer comes last");
    kinds.remove(0);
    Ok((kinds, counts))
}

fn sample() -> Vec<Kind> {
    vec![
        Kind::Bundle(types::Bundle { trust_domain: "example.org".into(), ..Default::default() }),
        Kind::Relationship(types::FederationRelationship {
            trust_domain: "other.org".into(),
            ..Default::default()
        }),
        Kind::Journal(Journal { server_id: "s".into(), data: vec![1, 2, 3] }),
        Kind::Node(Node { spiffe_id: "spiffe://example.org/spire/agent/a".into(), ..Default::default() }),
        Kind::Entry(types::Entry { id: "one".into(), ..Default::default() }),
        Kind::Entry(types::Entry { id: "two".into(), ..Default::default() }),
    ]
}

#[test]
fn what_was_written_is_read() {
    let bytes = file(&sample());
    for piece in [1, 3, 64, bytes.len()] {
        let (kinds, counts) = read(&bytes, piece).unwrap();
        assert_eq!(kinds, sample());
        assert_eq!(counts, Counts { bundles: 1, journals: 1, nodes: 1, entries: 2, relationships: 1 });
    }
    assert_eq!(read(&file(&[]), 5).unwrap(), (vec![], Counts::default()));
}

#[test]
fn every_cut_is_noticed() {
    let bytes = file(&sample());
    for end in 0..bytes.len() {
        let error = read(&bytes[..end], 16).unwrap_err();
        assert!(matches!(error, FormatError::Truncated { .. }), "cut at {end}: {error}");
    }
}

#[test]
fn every_changed_byte_is_noticed() {
    let bytes = file(&sample());
    for at in 0..bytes.len() {
        for bit in [0x01, 0x80] {
            let mut altered = bytes.clone();
            altered[at] ^= bit;
            assert!(read(&altered, 64).is_err(), "byte {at}");
        }
    }
}

#[test]
fn what_is_no_backup_says_so() {
    let check = |bytes: &[u8], want: FormatError| assert_eq!(read(bytes, 64).unwrap_err(), want);
    check(b"SQLite format 3\0 and more", FormatError::NotABackup);
    check(b"no", FormatError::NotABackup);
    check(b"svid-backup\n\0\0\0\0", FormatError::NotABackup);
    check(b"svid-backup\n\0\0\0\x03", FormatError::Newer(3));
    check(b"svid-backup\n\0\0\0\x01\xff\0\0\0", FormatError::Length { at: 1, length: 0xff00_0000 });
    check(b"", FormatError::Truncated { records: 0 });
    let [bundle, .., entry] = &sample()[..] else { panic!("five records") };
    check(&file(&[entry.clone(), bundle.clone()]), FormatError::Order { at: 3 });
    check(&file(&[Kind::Header(Header::default())]), FormatError::Order { at: 2 });
    check(&[file(&sample()), vec![0]].concat(), FormatError::Trailing);
    check(&[file(&sample()), file(&sample())].concat(), FormatError::Trailing);
    // No header, and a record of a kind that this release does not know.
    check(b"svid-backup\n\0\0\0\x01\0\0\0\x02\x2a\0", FormatError::Order { at: 1 });
    let unknown = read(b"svid-backup\n\0\0\0\x01\0\0\0\x02\x7a\0", 64).unwrap_err();
    assert!(matches!(unknown, FormatError::Record { at: 1, .. }), "{unknown}");
}

#[test]
fn a_trailer_that_counts_wrong_is_refused() {
    let mut out = Vec::new();
    let mut encoder = Encoder::begin(Header::default(), &mut out);
    encoder.push(sample()[5].clone(), &mut out);
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    digest.update(&out);
    let trailer = Trailer {
        counts: Some(Counts { entries: 2, ..Default::default() }),
        sha256: digest.finish().as_ref().to_vec(),
    };
    let record = prost::Message::encode_to_vec(&Record { kind: Some(Kind::Trailer(trailer)) });
    out.extend_from_slice(&u32::try_from(record.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&record);
    assert_eq!(read(&out, 64).unwrap_err(), FormatError::Counts);
}

proptest! {
    #[test]
    fn any_entries_survive(
        ids in proptest::collection::vec("[a-z0-9]{1,40}", 0..20),
        hint in "\\PC{0,200}",
        piece in 1_usize..600,
    ) {
        let entry = |id: &String| types::Entry { id: id.clone(), hint: hint.clone(), ..Default::default() };
        let kinds: Vec<_> = ids.iter().map(entry).map(Kind::Entry).collect();
        let (read, counts) = read(&file(&kinds), piece).unwrap();
        prop_assert_eq!(counts.entries, ids.len() as u64);
        prop_assert_eq!(read, kinds);
    }

    #[test]
    fn any_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read(&[&b"svid-backup\n\0\0\0\x01"[..], &bytes].concat(), 64).is_err());
    }
}
