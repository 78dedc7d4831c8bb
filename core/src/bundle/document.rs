//! The SPIFFE bundle document: JWKS with two members more (SPIFFE Trust Domain and Bundle, 4).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Bundle, JwtAuthority, X509Authority};
use crate::id::TrustDomain;
use crate::jwt::{Jwk, JwkError, spki_to_jwk, to_indented_json};
use crate::x509::cert::CertError;

/// Largest document we read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// A longer hint says no more than this one, a century, and would not fit where bundles are kept.
const MAX_HINT_SECONDS: u64 = 100 * 365 * 24 * 3600;
/// Reasons may quote the document, which somebody else wrote.
const MAX_REASON_BYTES: usize = 300;
const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
const WIT_SVID: &str = "wit-svid";

/// Why a document was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// More bytes than [`MAX_DOCUMENT_BYTES`].
    #[error("bundle document is too large: {0} bytes")]
    TooLarge(usize),
    /// Not JSON of the document's shape.
    #[error("unable to parse bundle document: {0}")]
    Json(String),
    /// `keys` is missing or null.
    #[error("no authorities found")]
    KeysMissing,
    /// A key entry is broken: keeping the rest would leave half a bundle without anyone noticing.
    #[error("error adding authority {at} of JWKS: {reason}")]
    Key {
        /// Which entry, from 0.
        at: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// A document's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleDocument {
    /// The authorities, with the sequence number (0 where absent) and refresh hint (zero where absent).
    pub bundle: Bundle,
    /// Whether the document states a sequence number.
    pub has_sequence: bool,
    /// Whether the document states a refresh hint.
    pub has_refresh_hint: bool,
    /// The `kid`s of WIT-SVID keys, which we read and do not use.
    pub wit_key_ids: Vec<String>,
    /// Entries that were left out: of an unknown use or kind, without a `kid`, or without a certificate.
    pub skipped: usize,
}

#[derive(Deserialize)]
struct Wire {
    keys: Option<Vec<Value>>,
    #[serde(default)]
    spiffe_sequence: Option<u64>,
    #[serde(default)]
    spiffe_refresh_hint: Option<u64>,
}

impl BundleDocument {
    /// Reads the document of a trust domain. Entries of unknown use or kind are left out, as the standard asks;
    /// entries that are broken refuse the whole.
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(trust_domain: &TrustDomain, bytes: &[u8]) -> Result<Self, DocumentError> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            return Err(DocumentError::TooLarge(bytes.len()));
        }
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| DocumentError::Json(cut(error.to_string())))?;
        let keys = wire.keys.ok_or(DocumentError::KeysMissing)?;
        let mut bundle = Bundle::empty(trust_domain.clone());
        bundle.sequence_number = wire.spiffe_sequence.unwrap_or(0);
        bundle.refresh_hint =
            Duration::from_secs(wire.spiffe_refresh_hint.unwrap_or(0).min(MAX_HINT_SECONDS));
        let mut document = Self {
            bundle,
            has_sequence: wire.spiffe_sequence.is_some(),
            has_refresh_hint: wire.spiffe_refresh_hint.is_some(),
            wit_key_ids: Vec::new(),
            skipped: 0,
        };
        let mut key_ids = HashSet::new();
        for (at, key) in keys.into_iter().enumerate() {
            document
                .add(key, &mut key_ids)
                .map_err(|reason| DocumentError::Key { at, reason: cut(reason) })?;
        }
        Ok(document)
    }

    fn add(&mut self, key: Value, key_ids: &mut HashSet<String>) -> Result<(), String> {
        let usage = key.as_object().ok_or("entry is not an object")?.get("use").and_then(Value::as_str);
        let usage = match usage {
            Some(known @ (X509_SVID | JWT_SVID | WIT_SVID)) => known.to_owned(),
            _ => return self.skip(),
        };
        let jwk: Jwk = serde_json::from_value(key).map_err(|error| error.to_string())?;
        let spki = match jwk.to_spki() {
            // A root counts by its certificate; the bare key next to it may be of any kind.
            Err(JwkError::Unknown) if usage == X509_SVID && jwk.kty.is_some() => None,
            Err(JwkError::Unknown) => return self.skip(),
            Err(error) => return Err(error.to_string()),
            Ok(spki) => Some(spki),
        };
        if usage == X509_SVID {
            return self.add_root(&jwk, spki.as_deref());
        }
        let Some(key_id) = jwk.kid.filter(|key_id| !key_id.is_empty()) else { return self.skip() };
        if !key_ids.insert(key_id.clone()) {
            return Err(format!("key id {key_id:?} is used twice"));
        }
        match spki {
            Some(spki) if usage == JWT_SVID => self.bundle.jwt_authorities.push(JwtAuthority {
                key_id,
                public_key: Arc::from(spki),
                expires_at: 0,
                tainted: false,
            }),
            _ => self.wit_key_ids.push(key_id),
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<(), String> {
        self.skipped += 1;
        Ok(())
    }

    fn add_root(&mut self, jwk: &Jwk, spki: Option<&[u8]>) -> Result<(), String> {
        // The root is the first value; an entry without one says nothing (X509-SVID, 6.1 and 6.2).
        let Some(cert) = jwk.x5c.as_deref().unwrap_or_default().first() else { return self.skip() };
        let der = STANDARD.decode(cert).map_err(|_| "x5c is not base64")?;
        let root = X509Authority::from_der(&der).map_err(|error: CertError| error.to_string())?;
        if spki.is_some_and(|spki| spki != root.parsed().public_key_der()) {
            return Err("key differs from that of its certificate".into());
        }
        // Also where the entry calls its key of an unknown kind: else we could not read what we write of it.
        let own = spki_to_jwk(root.parsed().public_key_der()).and_then(|own| own.to_spki());
        if own == Err(JwkError::Malformed) {
            return Err("key of its certificate is malformed".into());
        }
        if !self.bundle.x509_authorities.contains(&root) {
            self.bundle.x509_authorities.push(root);
        }
        Ok(())
    }
}

fn cut(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(MAX_REASON_BYTES));
        reason.push_str("...");
    }
    reason
}

#[derive(Serialize)]
struct Out {
    keys: Vec<Jwk>,
    // Zero says nothing, and SPIRE leaves it out.
    #[serde(skip_serializing_if = "is_zero")]
    spiffe_sequence: u64,
    #[serde(skip_serializing_if = "is_zero")]
    spiffe_refresh_hint: u64,
}

impl Bundle {
    /// The bundle as a document, as bundle endpoints and `bundle show -format spiffe` give it: indented by four
    /// spaces, members in SPIRE's order. A JWT key of a kind that JWK cannot say is left out.
    pub fn to_document(&self) -> String {
        let root = |root: &X509Authority| Jwk {
            usage: Some(X509_SVID.into()),
            x5c: Some(vec![STANDARD.encode(root.der())]),
            ..spki_to_jwk(root.parsed().public_key_der()).unwrap_or_default()
        };
        let key = |key: &JwtAuthority| {
            let jwk = spki_to_jwk(&key.public_key).ok()?;
            Some(Jwk { usage: Some(JWT_SVID.into()), kid: Some(key.key_id.clone()), ..jwk })
        };
        let roots = self.x509_authorities.iter().map(root);
        to_indented_json(&Out {
            keys: roots.chain(self.jwt_authorities.iter().filter_map(key)).collect(),
            spiffe_sequence: self.sequence_number,
            spiffe_refresh_hint: self.refresh_hint.as_secs(),
        })
    }
}
fn is_zero(number: &u64) -> bool {
    *number == 0
}
