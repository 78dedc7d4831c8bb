//! One certificate for people and for programs.

use serde::Serialize;
use svid_core::clock::unix_seconds;
use svid_core::x509::csr::PublicKeyKind;
use svid_core::x509::{ParsedCert, PublicKey};

use crate::connect::Failure;
use crate::render::{self, facts, left};

/// Facts of a certificate. They are read, not verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertFacts {
    pub subject: String,
    pub issuer: String,
    /// Decimal, as the server's lists have it.
    pub serial: String,
    pub not_before: i64,
    pub not_after: i64,
    pub remaining_s: i64,
    pub uri_sans: Vec<String>,
    pub dns_sans: Vec<String>,
    pub is_ca: bool,
    pub key: String,
    /// Hex; empty when absent.
    pub subject_key_id: String,
    /// Hex; empty when absent.
    pub authority_key_id: String,
}

impl CertFacts {
    /// Reads one certificate in DER.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_der(der: &[u8], now: i64) -> Result<Self, Failure> {
        let cert = ParsedCert::from_der(der).map_err(Failure::new)?;
        let life = cert.life();
        let not_after = unix_seconds(life.not_after);
        Ok(Self {
            subject: cert.subject().into(),
            issuer: cert.issuer().into(),
            serial: cert.serial_decimal(),
            not_before: unix_seconds(life.not_before),
            not_after,
            remaining_s: not_after.saturating_sub(now).max(0),
            uri_sans: cert.uri_sans().to_vec(),
            dns_sans: cert.dns_sans().to_vec(),
            is_ca: cert.is_ca(),
            key: key_words(cert.public_key_der()),
            subject_key_id: cert.subject_key_id_hex().unwrap_or_default(),
            authority_key_id: cert.authority_key_id_hex().unwrap_or_default(),
        })
    }

    /// The facts below each other.
    pub fn text(&self, indent: &str, now: i64) -> String {
        let mut rows = vec![("Subject", self.subject.clone()), ("Issuer", self.issuer.clone())];
        rows.extend(self.uri_sans.iter().map(|san| ("URI", san.clone())));
        rows.extend(self.dns_sans.iter().map(|san| ("DNS name", san.clone())));
        rows.push(("Serial", self.serial.clone()));
        rows.push(("Valid from", render::time(self.not_before)));
        rows.push((
            "Valid until",
            format!("{} ({})", render::time(self.not_after), left(self.not_after, now)),
        ));
        rows.push(("Key", self.key.clone()));
        rows.push(("Authority", if self.is_ca { "yes, it may sign" } else { "no" }.into()));
        if !self.subject_key_id.is_empty() {
            rows.push(("Key id", self.subject_key_id.clone()));
        }
        if !self.authority_key_id.is_empty() {
            rows.push(("Signed by key", self.authority_key_id.clone()));
        }
        facts(indent, &rows)
    }
}

/// The kind of a public key in words.
pub fn key_words(spki: &[u8]) -> String {
    match PublicKey::from_spki(spki).map(|key| key.kind()) {
        Ok(PublicKeyKind::EcP256) => "ECDSA P-256".into(),
        Ok(PublicKeyKind::EcP384) => "ECDSA P-384".into(),
        Ok(PublicKeyKind::Rsa { bits }) => format!("RSA {bits}"),
        Err(_) => "of a kind that SPIFFE servers here do not issue for".into(),
    }
}
