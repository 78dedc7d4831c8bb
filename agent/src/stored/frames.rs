//! The log: frames of records, each sealed with AES-256-GCM under the log's own key, numbered from 0.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::bytes::{Malformed, Writer};
use super::codec::Record;

/// A frame is closed once it holds this much.
const FRAME_BYTES: usize = 256 * 1024;
/// Largest log that is read, in bytes: 10,000 SVIDs take 8 to 15 MB.
pub const MAX_LOG: u64 = 512 * 1024 * 1024;

/// Seals and opens the frames of one log. A key serves one log only, and each number one frame only, so no nonce is
/// used twice.
pub struct FrameKey(LessSafeKey);

impl FrameKey {
    /// From the log's key.
    pub fn new(key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("32 bytes")))
    }

    /// Seals `records` into as many frames as it takes, numbered from `next`, which moves on.
    /// # Errors
    /// [`Malformed`] if there is more in one record than a frame can hold.
    pub fn seal(&self, records: &[Record], next: &mut u64) -> Result<Vec<u8>, Malformed> {
        let mut frames = Vec::new();
        let mut open = Writer::with_room(FRAME_BYTES);
        for record in records {
            record.write(&mut open);
            if open.len() >= FRAME_BYTES {
                self.seal_one(
                    std::mem::replace(&mut open, Writer::with_room(FRAME_BYTES)),
                    next,
                    &mut frames,
                )?;
            }
        }
        if !open.is_empty() {
            self.seal_one(open, next, &mut frames)?;
        }
        Ok(frames)
    }

    fn seal_one(&self, plain: Writer, next: &mut u64, frames: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut bytes = plain.into_bytes();
        let tag = self.0.seal_in_place_separate_tag(nonce(*next), Aad::empty(), &mut bytes);
        let tag = tag.map_err(|_| Malformed)?;
        *next += 1;
        let length = u32::try_from(bytes.len() + tag.as_ref().len()).map_err(|_| Malformed)?;
        frames.extend_from_slice(&length.to_be_bytes());
        frames.extend_from_slice(&bytes);
        frames.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens all of `log`, which must be exactly `count` frames.
    /// # Errors
    /// [`Malformed`] if a byte of it is another than was written.
    pub fn open(&self, mut log: &[u8], count: u64) -> Result<Vec<Record>, Malformed> {
        let mut records = Vec::new();
        let mut number = 0;
        while !log.is_empty() {
            let (length, rest) = log.split_first_chunk::<4>().ok_or(Malformed)?;
            let (sealed, rest) =
                rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or(Malformed)?;
            let mut buffer = Zeroizing::new(sealed.to_vec());
            let plain =
                self.0.open_in_place(nonce(number), Aad::empty(), &mut buffer).map_err(|_| Malformed)?;
            records.extend(Record::read_all(plain)?);
            (log, number) = (rest, number + 1);
        }
        if number == count { Ok(records) } else { Err(Malformed) }
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0u8; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}
