//! Fields in bytes: numbers big-endian, everything else behind its length.

use std::str::FromStr;

use zeroize::Zeroizing;

/// The bytes are not what the agent writes. There is nothing more to say: they were authentic, so another program
/// wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not read as what an agent writes")]
pub struct Malformed;

/// Writes fields. What is written may hold secrets and is wiped.
#[derive(Default)]
pub struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// With room for `bytes`, so that growing leaves few copies behind.
    pub fn with_room(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// How much is written.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is written.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    /// A kind and, behind its length, what `body` writes.
    pub fn record(&mut self, kind: u8, body: impl FnOnce(&mut Self)) {
        self.push(&[kind]);
        let at = self.0.len();
        self.push(&[0; 4]);
        body(self);
        let length = u32::try_from(self.0.len() - at - 4).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }

    fn push(&mut self, bytes: &[u8]) {
        let wanted = self.0.len() + bytes.len();
        if wanted > self.0.capacity() {
            // By hand, since growing in place would free the old bytes unwiped.
            let mut bigger = Zeroizing::new(Vec::with_capacity(wanted.max(self.0.capacity() * 2)));
            bigger.extend_from_slice(&self.0);
            self.0 = bigger;
        }
        self.0.extend_from_slice(bytes);
    }

    /// Bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        // Nothing here comes near 4 GiB: messages of the server are capped far below.
        self.push(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.push(bytes);
    }

    /// Text.
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Bytes whose length the reader knows.
    pub fn fixed(&mut self, bytes: &[u8]) {
        self.push(bytes);
    }

    /// A number.
    pub fn number(&mut self, number: u64) {
        self.push(&number.to_be_bytes());
    }

    /// A number with a sign.
    pub fn signed(&mut self, number: i64) {
        self.push(&number.to_be_bytes());
    }

    /// Yes or no.
    pub fn flag(&mut self, flag: bool) {
        self.push(&[u8::from(flag)]);
    }

    /// A number of items and the items.
    pub fn list<T>(&mut self, items: impl ExactSizeIterator<Item = T>, mut item: impl FnMut(&mut Self, T)) {
        self.push(&u32::try_from(items.len()).unwrap_or(u32::MAX).to_be_bytes());
        items.for_each(|one| item(self, one));
    }
}

/// Reads fields.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all is read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Refuses what is left over.
    /// # Errors
    /// [`Malformed`].
    pub fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    /// As many bytes as `N` says.
    /// # Errors
    /// [`Malformed`], as from all below.
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// One byte.
    /// # Errors
    /// [`Malformed`].
    pub fn byte(&mut self) -> Result<u8, Malformed> {
        self.fixed::<1>().map(|[byte]| byte)
    }

    /// Yes or no.
    /// # Errors
    /// [`Malformed`], also for any other number than 0 and 1.
    pub fn flag(&mut self) -> Result<bool, Malformed> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }

    /// A number.
    /// # Errors
    /// [`Malformed`].
    pub fn number(&mut self) -> Result<u64, Malformed> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// A number with a sign.
    /// # Errors
    /// [`Malformed`].
    pub fn signed(&mut self) -> Result<i64, Malformed> {
        self.fixed().map(i64::from_be_bytes)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        self.fixed().map(|bytes| u32::from_be_bytes(bytes) as usize)
    }

    /// Bytes.
    /// # Errors
    /// [`Malformed`].
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.length()?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Text.
    /// # Errors
    /// [`Malformed`].
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    /// Text that stands for something.
    /// # Errors
    /// [`Malformed`].
    pub fn parsed<T: FromStr>(&mut self) -> Result<T, Malformed> {
        self.text()?.parse().map_err(|_| Malformed)
    }

    /// A list. Every item takes at least a byte, so that a number alone makes nothing grow.
    /// # Errors
    /// [`Malformed`].
    pub fn list<T>(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.length()?;
        if count > self.0.len() {
            return Err(Malformed);
        }
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }
}
