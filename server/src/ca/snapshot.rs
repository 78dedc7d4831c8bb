//! What readers of the CA see: whole states, published one after the other.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use svid_core::jwt::JwtSigner;
use svid_core::x509::Authority;

use super::CaError;
use super::slots::{AuthorityInfo, AuthorityKind, Held, Slots};

/// The state of the CA at one moment.
#[derive(Clone, Debug, Default)]
pub struct CaSnapshot {
    /// X.509 authorities.
    pub x509: Slots<Authority>,
    /// JWT authorities. Empty when JWT-SVIDs are disabled.
    pub jwt: Slots<JwtSigner>,
    /// The upstream authority's name, if there is one.
    pub upstream: Option<Arc<str>>,
    /// How the rotation fares.
    pub rotation: RotationHealth,
    /// Tainted X.509 authorities of the trust domain, as subject key IDs in lower-case hex.
    pub tainted: Vec<Arc<str>>,
}

/// How the rotation fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationHealth {
    /// Passes that failed since the last one that succeeded.
    pub failures: u32,
    /// Why the last one failed; none after a success.
    pub last_error: Option<Arc<str>>,
}

/// Failed passes in a row after which the server counts as unhealthy.
pub const UNHEALTHY_FAILURES: u32 = 10;

impl RotationHealth {
    /// False after more than [`UNHEALTHY_FAILURES`] failures in a row.
    pub fn is_healthy(&self) -> bool {
        self.failures <= UNHEALTHY_FAILURES
    }
}

impl CaSnapshot {
    /// The authority that signs X.509-SVIDs at `now`.
    /// # Errors
    /// [`CaError::NoX509Authority`] if there is none, or it has ended.
    pub fn x509_authority(&self, now: SystemTime) -> Result<&Arc<Authority>, CaError> {
        live(&self.x509, now).ok_or(CaError::NoX509Authority)
    }

    /// The key that signs JWT-SVIDs at `now`.
    /// # Errors
    /// [`CaError::NoJwtAuthority`] if there is none, or it has ended.
    pub fn jwt_authority(&self, now: SystemTime) -> Result<&Arc<JwtSigner>, CaError> {
        live(&self.jwt, now).ok_or(CaError::NoJwtAuthority)
    }

    /// True if an X.509 authority is tainted: what it signed is to be replaced.
    pub fn is_tainted(&self, authority_id: &str) -> bool {
        self.tainted.iter().any(|tainted| **tainted == *authority_id)
    }

    /// The authorities of a kind.
    pub fn state(&self, kind: AuthorityKind) -> AuthorityState {
        match kind {
            AuthorityKind::X509 => AuthorityState::of(&self.x509),
            AuthorityKind::Jwt => AuthorityState::of(&self.jwt),
        }
    }
}

fn live<K>(slots: &Slots<K>, now: SystemTime) -> Option<&Arc<K>> {
    slots.active().filter(|held| now < held.info.not_after)?.key.as_ref()
}

/// The authorities of one kind, for LocalAuthority and `svidctl status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorityState {
    /// The one that signs.
    pub active: Option<AuthorityInfo>,
    /// The one that stands ready.
    pub prepared: Option<AuthorityInfo>,
    /// The one that was replaced last.
    pub old: Option<AuthorityInfo>,
}

impl AuthorityState {
    fn of<K>(slots: &Slots<K>) -> Self {
        let info = |held: Option<&Held<K>>| held.map(|held| held.info.clone());
        Self { active: info(slots.active()), prepared: info(slots.prepared()), old: info(slots.old()) }
    }
}

impl fmt::Display for AuthorityKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X509 => "X.509",
            Self::Jwt => "JWT",
        })
    }
}
