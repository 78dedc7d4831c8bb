//! Trust bundles: the authorities of one trust domain.

pub mod document;

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::id::TrustDomain;
use crate::x509::cert::{CertError, ParsedCert};

/// An X.509 root of a trust domain. Invariant: parses as a certificate.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct X509Authority {
    der: Arc<[u8]>,
    /// Marked by an operator or an upstream as no longer to be used; still trusted until revoked.
    pub tainted: bool,
}

impl X509Authority {
    /// Takes a certificate in DER.
    /// # Errors
    /// [`CertError`] if it does not parse as exactly one certificate.
    pub fn from_der(der: &[u8]) -> Result<Self, CertError> {
        ParsedCert::from_der(der)?;
        Ok(Self { der: der.into(), tainted: false })
    }

    /// The certificate.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate's facts.
    pub fn parsed(&self) -> ParsedCert {
        ParsedCert::from_der(&self.der).expect("checked by from_der")
    }
}

impl fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Authority")
            .field("subject_key_id", &self.parsed().subject_key_id_hex())
            .field("tainted", &self.tainted)
            .finish()
    }
}

/// A JWT signing key of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JwtAuthority {
    /// The `kid` of tokens. Never empty.
    pub key_id: String,
    /// The public key as SubjectPublicKeyInfo DER.
    pub public_key: Arc<[u8]>,
    /// Unix seconds, 0 when not known.
    pub expires_at: i64,
    /// As for X.509 authorities.
    pub tainted: bool,
}

/// What a trust domain's identities are verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Whose authorities these are.
    pub trust_domain: TrustDomain,
    /// X.509 roots, oldest first.
    pub x509_authorities: Vec<X509Authority>,
    /// JWT keys, oldest first.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// How often to look for a new one; zero when not stated.
    pub refresh_hint: Duration,
    /// Grows with every change.
    pub sequence_number: u64,
}

impl Bundle {
    /// A bundle without authorities.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            refresh_hint: Duration::ZERO,
            sequence_number: 0,
        }
    }

    /// The X.509 roots concatenated, as the Workload API carries them.
    pub fn x509_der(&self) -> Vec<u8> {
        self.x509_authorities.iter().flat_map(|authority| authority.der().iter().copied()).collect()
    }

    /// The JWT key with this id.
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities.iter().find(|authority| authority.key_id == key_id)
    }

    /// Whether both say the same, whatever the order. What a bundle document does not say (taints, and when JWT keys end)
    /// counts as well.
    pub fn has_same_content(&self, other: &Self) -> bool {
        fn same<T: Eq + Hash>(a: &[T], b: &[T]) -> bool {
            a.len() == b.len() && a.iter().collect::<HashSet<_>>() == b.iter().collect::<HashSet<_>>()
        }
        self.trust_domain == other.trust_domain
            && self.refresh_hint == other.refresh_hint
            && self.sequence_number == other.sequence_number
            && same(&self.x509_authorities, &other.x509_authorities)
            && same(&self.jwt_authorities, &other.jwt_authorities)
    }

    /// Drops authorities that ended before `now`; a JWT key whose end is not known (0) stays.
    pub fn without_expired(mut self, now: SystemTime) -> Self {
        let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        self.x509_authorities.retain(|authority| !authority.parsed().life().is_over(now));
        self.jwt_authorities.retain(|authority| authority.expires_at == 0 || authority.expires_at > unix);
        self
    }
}
