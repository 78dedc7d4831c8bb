//! Bundles and their authorities.

use std::time::Duration;

use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::id::TrustDomain;
use svid_core::x509::{PublicKey, split_der_chain};

use super::ConvertError;
use crate::spire::api::types;

/// A bundle on the wire, every field.
pub fn bundle_to_wire(bundle: &Bundle) -> types::Bundle {
    let x509 = |authority: &X509Authority| types::X509Certificate {
        asn1: authority.der().to_vec(),
        tainted: authority.tainted,
    };
    types::Bundle {
        trust_domain: bundle.trust_domain.as_str().to_owned(),
        x509_authorities: bundle.x509_authorities.iter().map(x509).collect(),
        jwt_authorities: bundle.jwt_authorities.iter().map(jwt_authority_to_wire).collect(),
        refresh_hint: i64::try_from(bundle.refresh_hint.as_secs()).unwrap_or(i64::MAX),
        sequence_number: bundle.sequence_number,
        wit_authorities: Vec::new(),
    }
}

/// A JWT key on the wire.
pub fn jwt_authority_to_wire(authority: &JwtAuthority) -> types::JwtKey {
    types::JwtKey {
        public_key: authority.public_key.to_vec(),
        key_id: authority.key_id.clone(),
        expires_at: authority.expires_at,
        tainted: authority.tainted,
    }
}

/// A bundle from the wire. Taints are not taken over: only this server taints.
/// # Errors
/// [`ConvertError`] names the part.
pub fn bundle_from_wire(bundle: &types::Bundle) -> Result<Bundle, ConvertError> {
    let trust_domain = TrustDomain::from_name_or_id(&bundle.trust_domain);
    let trust_domain =
        trust_domain.map_err(|error| ConvertError::Id(error).in_field("invalid trust domain"))?;
    Ok(Bundle {
        trust_domain,
        x509_authorities: x509_authorities_from_wire(&bundle.x509_authorities)
            .map_err(|error| error.in_field("unable to parse X.509 authority"))?,
        jwt_authorities: jwt_authorities_from_wire(&bundle.jwt_authorities)
            .map_err(|error| error.in_field("unable to parse JWT authority"))?,
        refresh_hint: Duration::from_secs(u64::try_from(bundle.refresh_hint).unwrap_or_default()),
        sequence_number: bundle.sequence_number,
    })
}

/// X.509 roots; an item may hold several certificates one behind the other.
/// # Errors
/// [`ConvertError::Authority`].
pub fn x509_authorities_from_wire(
    certs: &[types::X509Certificate],
) -> Result<Vec<X509Authority>, ConvertError> {
    let authority = |error: svid_core::x509::CertError| ConvertError::Authority(error.to_string());
    let mut authorities = Vec::with_capacity(certs.len());
    for cert in certs {
        for der in split_der_chain(&cert.asn1).map_err(authority)? {
            authorities.push(X509Authority::from_der(&der).map_err(authority)?);
        }
    }
    Ok(authorities)
}

/// JWT keys.
/// # Errors
/// [`ConvertError::Authority`].
pub fn jwt_authorities_from_wire(keys: &[types::JwtKey]) -> Result<Vec<JwtAuthority>, ConvertError> {
    keys.iter().map(jwt_authority).collect()
}

fn jwt_authority(key: &types::JwtKey) -> Result<JwtAuthority, ConvertError> {
    PublicKey::from_spki(&key.public_key).map_err(|error| ConvertError::Authority(error.to_string()))?;
    if key.key_id.is_empty() {
        return Err(ConvertError::Authority("missing key ID".into()));
    }
    Ok(JwtAuthority {
        key_id: key.key_id.clone(),
        public_key: key.public_key.as_slice().into(),
        expires_at: key.expires_at,
        tainted: false,
    })
}

/// Clears the fields that `mask` does not name; without a mask nothing is cleared.
pub fn apply_bundle_mask(bundle: &mut types::Bundle, mask: Option<&types::BundleMask>) {
    let Some(mask) = mask else { return };
    if !mask.x509_authorities {
        bundle.x509_authorities.clear();
    }
    if !mask.jwt_authorities {
        bundle.jwt_authorities.clear();
    }
    if !mask.refresh_hint {
        bundle.refresh_hint = 0;
    }
    if !mask.sequence_number {
        bundle.sequence_number = 0;
    }
    if !mask.wit_authorities {
        bundle.wit_authorities.clear();
    }
}
