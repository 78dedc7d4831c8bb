//! Reading a backup. The file comes from outside: nothing in it is believed before its end was seen.

use aws_lc_rs::digest::{Context, SHA256};
use prost::Message as _;

use super::{Counts, Kind, MAGIC, MAX_RECORD_BYTES, Record, VERSION, rank, tally};

/// Bytes before the first frame.
const PREAMBLE: usize = MAGIC.len() + 4;

/// Why a file is no backup that can be used. The texts are for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It begins with something else.
    #[error("this is no backup made by svidctl")]
    NotABackup,
    /// A later release wrote it.
    #[error(
        "the backup has format version {0}, this program reads up to {VERSION}: use the release that made it, or a later one"
    )]
    Newer(u32),
    /// A length that no record has.
    #[error(
        "record {at} says that it has {length} bytes, and no record has more than {MAX_RECORD_BYTES}: the backup is damaged"
    )]
    Length {
        /// Which record, from 1.
        at: u64,
        /// What its frame says.
        length: u32,
    },
    /// A record that cannot be read.
    #[error("record {at} cannot be read ({why}): the backup is damaged")]
    Record {
        /// Which record, from 1.
        at: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A record stands where none of its kind can.
    #[error("record {at} is out of place: the backup is damaged")]
    Order {
        /// Which record, from 1.
        at: u64,
    },
    /// The checksum is another.
    #[error("the backup was altered or damaged after it was taken: its checksum does not match")]
    Checksum,
    /// The trailer counts other records than there are.
    #[error("the backup does not hold what its trailer says: it is damaged")]
    Counts,
    /// The end is missing.
    #[error(
        "the backup ends after {records} records and before its trailer: it was cut short, or never written to its end"
    )]
    Truncated {
        /// How many were read.
        records: u64,
    },
    /// Something follows the end.
    #[error("bytes follow the end of the backup: it was altered")]
    Trailing,
}

/// Takes a file in pieces of any size and gives its records.
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were given out already.
    taken: usize,
    digest: Option<Context>,
    begun: bool,
    last_rank: Option<u8>,
    records: u64,
    counts: Counts,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// At the beginning of a file.
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            digest: Some(Context::new(&SHA256)),
            begun: false,
            last_rank: None,
            records: 0,
            counts: Counts::default(),
        }
    }

    /// The next bytes of the file. What was not asked for with [`Decoder::next_record`] yet is kept in memory.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next record, if its bytes are all there. The trailer is checked and given as any other record.
    /// # Errors
    /// [`FormatError`]; nothing more can be read then.
    pub fn next_record(&mut self) -> Result<Option<Kind>, FormatError> {
        if !self.begun && !self.begin()? {
            return Ok(None);
        }
        let rest = &self.buffer[self.taken..];
        if self.digest.is_none() {
            return if rest.is_empty() { Ok(None) } else { Err(FormatError::Trailing) };
        }
        let at = self.records + 1;
        let Some((head, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head);
        let size = usize::try_from(length).ok().filter(|size| *size <= MAX_RECORD_BYTES);
        let size = size.ok_or(FormatError::Length { at, length })?;
        let Some(body) = rest.get(..size) else { return Ok(None) };
        let bad = |why: String| FormatError::Record { at, why };
        let record = Record::decode(body).map_err(|error| bad(error.to_string()))?;
        let kind = record.kind.ok_or_else(|| bad("it is of no known kind".into()))?;
        self.accept(&kind, at, size + 4)?;
        self.taken += size + 4;
        self.records = at;
        Ok(Some(kind))
    }

    /// What the whole file held, once all of it was fed and every record taken.
    /// # Errors
    /// [`FormatError`] if the file does not end here.
    pub fn finish(&self) -> Result<Counts, FormatError> {
        match (self.digest.is_none(), self.taken == self.buffer.len()) {
            (false, _)
                if !self.begun && !MAGIC.starts_with(&self.buffer[..self.buffer.len().min(MAGIC.len())]) =>
            {
                Err(FormatError::NotABackup)
            }
            (false, _) => Err(FormatError::Truncated { records: self.records }),
            (true, false) => Err(FormatError::Trailing),
            (true, true) => Ok(self.counts),
        }
    }

    /// False while there are not enough bytes.
    fn begin(&mut self) -> Result<bool, FormatError> {
        let Some((preamble, _)) = self.buffer.split_first_chunk::<PREAMBLE>() else {
            return Ok(false);
        };
        let Some(version) = preamble.strip_prefix(&MAGIC) else { return Err(FormatError::NotABackup) };
        let version = version.iter().fold(0, |version, byte| version << 8 | u32::from(*byte));
        match version {
            0 => return Err(FormatError::NotABackup),
            1..=VERSION => {}
            newer => return Err(FormatError::Newer(newer)),
        }
        if let Some(digest) = &mut self.digest {
            digest.update(preamble);
        }
        self.taken = PREAMBLE;
        self.begun = true;
        Ok(true)
    }

    /// Checks the record's place, and the checksum at the end. `size` is that of its frame.
    fn accept(&mut self, kind: &Kind, at: u64, size: usize) -> Result<(), FormatError> {
        let rank = rank(kind);
        let fits = match self.last_rank {
            None => rank == 0,
            Some(last) => rank > 0 && rank >= last,
        };
        if !fits {
            return Err(FormatError::Order { at });
        }
        self.last_rank = Some(rank);
        tally(&mut self.counts, kind);
        let Kind::Trailer(trailer) = kind else {
            if let Some(digest) = &mut self.digest {
                digest.update(&self.buffer[self.taken..self.taken + size]);
            }
            return Ok(());
        };
        let Some(digest) = self.digest.take() else { return Err(FormatError::Trailing) };
        if digest.finish().as_ref() != trailer.sha256 {
            return Err(FormatError::Checksum);
        }
        if trailer.counts != Some(self.counts) {
            return Err(FormatError::Counts);
        }
        Ok(())
    }
}
