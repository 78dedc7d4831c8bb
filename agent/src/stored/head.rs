//! The small file that says what of the log counts: whose it is, on which machine, how long, and when it was written.

use aws_lc_rs::{hkdf, hmac};
use zeroize::Zeroizing;

use super::bytes::{Fields, Malformed, Writer};
use super::machine::FactDigest;

const MAGIC: &[u8; 8] = b"SVIDAGNT";
/// Another number for every other layout of head or records.
const VERSION: u16 = 1;
const MAC_LEN: usize = 32;
/// Largest head that is read, in bytes.
pub const MAX_HEAD: usize = 64 * 1024;

/// Why a head cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// No head at all.
    #[error("it is damaged or no agent's")]
    Malformed,
    /// Another release's.
    #[error("it has format {0}, and this agent reads format {VERSION}")]
    Version(u16),
}

impl From<Malformed> for HeadError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

/// The head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The agent's trust domain.
    pub trust_domain: String,
    /// The agent's SPIFFE ID.
    pub agent_id: String,
    /// Of the facts' digests and of the keys.
    pub salt: [u8; 16],
    /// What the machine was known by.
    pub machine: Vec<FactDigest>,
    /// The data key, as the key manager wrapped it.
    pub wrapped: Vec<u8>,
    /// How many bytes of the log count.
    pub length: u64,
    /// How many frames these are.
    pub frames: u64,
    /// Unix seconds when this was written.
    pub last_seen: i64,
    /// Unix seconds of the last answer of a server; 0 for never.
    pub last_contact: i64,
}

impl Head {
    /// The file's bytes.
    pub fn encode(&self, keys: &DataKeys) -> Vec<u8> {
        let mut out = Writer::with_room(1024);
        out.fixed(MAGIC);
        out.fixed(&VERSION.to_be_bytes());
        out.text(&self.trust_domain);
        out.text(&self.agent_id);
        out.fixed(&self.salt);
        out.list(self.machine.iter(), |out, fact| {
            out.text(&fact.name);
            out.fixed(&fact.digest);
        });
        out.bytes(&self.wrapped);
        out.number(self.length);
        out.number(self.frames);
        out.signed(self.last_seen);
        out.signed(self.last_contact);
        let mut bytes = out.into_bytes().to_vec();
        let mac = hmac::sign(&keys.mac, &bytes);
        bytes.extend_from_slice(mac.as_ref());
        bytes
    }

    /// Reads a head, which is not to be believed before [`Head::is_authentic`] says so.
    /// # Errors
    /// [`HeadError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let (body, _) = split(bytes)?;
        let mut fields = Fields::new(body);
        if fields.fixed::<8>()? != *MAGIC {
            return Err(HeadError::Malformed);
        }
        let version = u16::from_be_bytes(fields.fixed()?);
        if version != VERSION {
            return Err(HeadError::Version(version));
        }
        let head = Self {
            trust_domain: fields.text()?.to_owned(),
            agent_id: fields.text()?.to_owned(),
            salt: fields.fixed()?,
            machine: fields
                .list(|fields| Ok(FactDigest { name: fields.text()?.to_owned(), digest: fields.fixed()? }))?,
            wrapped: fields.bytes()?.to_vec(),
            length: fields.number()?,
            frames: fields.number()?,
            last_seen: fields.signed()?,
            last_contact: fields.signed()?,
        };
        fields.end()?;
        Ok(head)
    }

    /// Whether `bytes`, which this head was read from, were written with these keys.
    pub fn is_authentic(bytes: &[u8], keys: &DataKeys) -> bool {
        split(bytes).is_ok_and(|(body, mac)| hmac::verify(&keys.mac, body, mac).is_ok())
    }

    /// The log's name.
    pub fn log_name(&self) -> String {
        format!("{}.log", hex::encode(self.salt))
    }
}

fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let at = bytes.len().checked_sub(MAC_LEN).ok_or(Malformed)?;
    bytes.split_at_checked(at).ok_or(Malformed)
}

/// The keys of one head and its log, from the one that is wrapped.
pub struct DataKeys {
    /// Seals the log's frames.
    pub log: Zeroizing<[u8; 32]>,
    /// Signs the head.
    pub mac: hmac::Key,
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

impl DataKeys {
    /// Derives them. Whose and where they are for goes in: with another agent's head nothing opens.
    pub fn derive(secret: &[u8], head: &Head) -> Self {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, &head.salt).extract(secret);
        let machine: Vec<u8> = head.machine.iter().flat_map(|fact| fact.digest).collect();
        let derive = |purpose: &[u8]| {
            let mut key = Zeroizing::new([0u8; 32]);
            let lengths = [head.trust_domain.len(), head.agent_id.len()];
            let lengths: Vec<u8> = lengths.iter().flat_map(|length| (*length as u64).to_be_bytes()).collect();
            let info: [&[u8]; 5] =
                [purpose, &lengths, head.trust_domain.as_bytes(), head.agent_id.as_bytes(), &machine];
            prk.expand(&info, Length(32))
                .and_then(|okm| okm.fill(key.as_mut_slice()))
                .expect("HKDF gives 32 bytes");
            key
        };
        let mac = derive(b"svid-agent head");
        Self { log: derive(b"svid-agent log"), mac: hmac::Key::new(hmac::HMAC_SHA256, mac.as_slice()) }
    }
}
