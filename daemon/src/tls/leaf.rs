//! What a leaf certificate says about its holder.

use std::time::{Duration, SystemTime};

use svid_core::id::SpiffeId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TlsError;

/// Longest serial number in bytes. Source: RFC 5280, section 4.1.2.2, and a leading zero.
const MAX_SERIAL_BYTES: usize = 21;
const URI_TAG: u32 = 6;

/// A peer whose chain was verified in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Beginning of its certificate's life.
    pub not_before: SystemTime,
    /// End of its certificate's life; to be compared again with each request.
    pub not_after: SystemTime,
    /// Serial number as a decimal string, the form in which SPIRE keeps it.
    pub serial: String,
}

impl VerifiedPeer {
    /// Reads a leaf and checks what makes it one: not a CA, no right to sign certificates or CRLs, exactly one
    /// URI SAN and that a SPIFFE ID. Does not check the chain.
    /// Source: X509-SVID, sections 2, 4.3 and 5.2.
    ///
    /// # Errors
    /// [`TlsError`] naming the rule.
    pub(crate) fn from_leaf(der: &[u8]) -> Result<Self, TlsError> {
        let (_, cert) =
            X509Certificate::from_der(der).map_err(|error| TlsError::Malformed(error.to_string()))?;
        // Anybody may present a certificate, and to write a long number in decimal takes long.
        if cert.raw_serial().len() > MAX_SERIAL_BYTES {
            return Err(TlsError::Malformed("the serial number is too long".into()));
        }
        let malformed = |error: x509_parser::error::X509Error| TlsError::Malformed(error.to_string());
        let constraints = cert.basic_constraints().map_err(malformed)?;
        let usage = cert.key_usage().map_err(malformed)?;
        let signs = usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
        if signs || constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(TlsError::CaLeaf);
        }
        let names = cert.subject_alternative_name().map_err(malformed)?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                // One that is no text counts as well, and is no ID.
                GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(""),
                _ => None,
            })
            .collect();
        let [uri] = uris.as_slice() else { return Err(TlsError::UriSans(uris.len())) };
        let time = |seconds: i64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let life = cert.validity();
        let (not_before, not_after) = (time(life.not_before.timestamp()), time(life.not_after.timestamp()));
        Ok(Self { id: uri.parse()?, not_before, not_after, serial: cert.tbs_certificate.serial.to_string() })
    }
}
