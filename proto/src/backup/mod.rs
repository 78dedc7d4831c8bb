//! The backup file: frames of [`Record`]s with a checksum at the end. Neither half does I/O.
//!
//! The format is described in `svid/backup/v1/backup.proto`. [`Encoder`] writes it, [`Decoder`] takes the bytes of a file as
//! they come and gives the records; a file is whole only when [`Decoder::finish`] says so.

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use crate::svid::backup::v1::record::Kind;
pub use crate::svid::backup::v1::{Counts, Header, Journal, Node, Record, Trailer};
pub use decode::{Decoder, FormatError};
pub use encode::Encoder;

/// What a file begins with.
pub const MAGIC: [u8; 12] = *b"svid-backup\n";
/// The format that is written, and the newest that is read.
pub const VERSION: u32 = 2;
/// Longest record in bytes: an entry is no longer than the largest message of the admin socket.
pub const MAX_RECORD_BYTES: usize = 64 * 1024 * 1024;

/// The record's place in a file; they come in this order.
fn rank(kind: &Kind) -> u8 {
    match kind {
        Kind::Header(_) => 0,
        Kind::Bundle(_) => 1,
        Kind::Relationship(_) => 2,
        Kind::Journal(_) => 3,
        Kind::Node(_) => 4,
        Kind::Entry(_) => 5,
        Kind::Trailer(_) => 6,
    }
}

/// Counts one more record.
fn tally(counts: &mut Counts, kind: &Kind) {
    match kind {
        Kind::Bundle(_) => counts.bundles += 1,
        Kind::Relationship(_) => counts.relationships += 1,
        Kind::Journal(_) => counts.journals += 1,
        Kind::Node(_) => counts.nodes += 1,
        Kind::Entry(_) => counts.entries += 1,
        Kind::Header(_) | Kind::Trailer(_) => {}
    }
}
