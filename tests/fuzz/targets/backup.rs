//! Backup files, in pieces: what is read must be what a writer would write again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use svid_proto::backup::{Decoder, Encoder, FormatError, Kind};

fn read(bytes: &[u8], piece: usize) -> Result<Vec<Kind>, FormatError> {
    let mut decoder = Decoder::new();
    let mut kinds = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.feed(piece);
        while let Some(kind) = decoder.next_record()? {
            kinds.push(kind);
        }
    }
    decoder.finish().map(|_| kinds)
}

/// The same records with a trailer that fits, which no mutation would hit upon.
fn written(bytes: &[u8]) -> Vec<u8> {
    let mut decoder = Decoder::new();
    decoder.feed(bytes);
    let mut out = Vec::new();
    let mut encoder = None;
    while let Ok(Some(kind)) = decoder.next_record() {
        match (kind, &mut encoder) {
            (Kind::Header(header), None) => encoder = Some(Encoder::begin(header, &mut out)),
            (Kind::Trailer(_), _) | (_, None) => break,
            (kind, Some(encoder)) => encoder.push(kind, &mut out),
        }
    }
    if let Some(encoder) = encoder {
        encoder.finish(&mut out);
    }
    out
}

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, 7), "the pieces make no difference");
    let out = written(bytes);
    if !out.is_empty() {
        let kinds = read(&out, 64).expect("what was written is whole");
        assert!(
            matches!(kinds.first(), Some(Kind::Header(_))) && matches!(kinds.last(), Some(Kind::Trailer(_)))
        );
    }
});

svid_fuzz::seeds!("backup": "small", "cut");
