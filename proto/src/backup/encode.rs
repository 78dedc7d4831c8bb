//! Writing a backup.

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message as _;

use super::{Counts, Header, Kind, MAGIC, Record, Trailer, VERSION, tally};

/// Turns records into the bytes of a file. The caller keeps to the order of the format.
pub struct Encoder {
    digest: Context,
    counts: Counts,
}

impl Encoder {
    /// Begins a file; its first bytes are appended to `out`.
    pub fn begin(header: Header, out: &mut Vec<u8>) -> Self {
        let mut encoder = Self { digest: Context::new(&SHA256), counts: Counts::default() };
        let from = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        encoder.digest.update(&out[from..]);
        encoder.push(Kind::Header(header), out);
        encoder
    }

    /// Appends a record to `out`.
    pub fn push(&mut self, kind: Kind, out: &mut Vec<u8>) {
        tally(&mut self.counts, &kind);
        let from = out.len();
        frame(kind, out);
        self.digest.update(&out[from..]);
    }

    /// Appends the end of the file to `out`.
    pub fn finish(self, out: &mut Vec<u8>) {
        let sha256 = self.digest.finish().as_ref().to_vec();
        frame(Kind::Trailer(Trailer { counts: Some(self.counts), sha256 }), out);
    }
}

fn frame(kind: Kind, out: &mut Vec<u8>) {
    let record = Record { kind: Some(kind) };
    // A record that outgrows 32 bits outgrows what every reader takes as well.
    let length = u32::try_from(record.encoded_len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&record.encode_to_vec());
}
