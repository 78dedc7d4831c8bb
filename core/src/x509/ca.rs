//! CA certificates: self-signed roots, CSRs for upstream authorities, and signing the CSRs of others.

use std::time::{Duration, SystemTime};

use super::cert::{self, CertError, ParsedCert};
use super::csr::{self, PublicKey, VerifiedCsr};
use super::issue::{self, IssueError, TbsParts};
use super::name::{self, COMMON_NAME, COUNTRY, ORGANIZATION, ORGANIZATIONAL_UNIT, SERIAL_NUMBER};
use super::signature;
use crate::id::TrustDomain;
use crate::key::{KeyError, Signer};

/// A CA's subject, as `ca_subject` configures it. Empty fields are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaSubject {
    /// C.
    pub country: Vec<String>,
    /// O.
    pub organization: Vec<String>,
    /// CN.
    pub common_name: String,
}

impl Default for CaSubject {
    /// C=US, O=SPIFFE.
    fn default() -> Self {
        Self { country: vec!["US".into()], organization: vec!["SPIFFE".into()], common_name: String::new() }
    }
}

impl CaSubject {
    fn to_der(&self, serial: &str) -> Vec<u8> {
        let mut attributes: Vec<(u8, &str)> = Vec::new();
        attributes.extend(self.country.iter().map(|value| (COUNTRY, value.as_str())));
        attributes.extend(self.organization.iter().map(|value| (ORGANIZATION, value.as_str())));
        attributes.extend((!self.common_name.is_empty()).then_some((COMMON_NAME, self.common_name.as_str())));
        attributes.push((SERIAL_NUMBER, serial));
        name::build(&attributes)
    }
}

/// What a CA certificate below another shall be.
#[derive(Clone, Debug)]
pub struct CaTemplate {
    /// Whose CA it is; its ID becomes the certificate's one URI.
    pub trust_domain: TrustDomain,
    /// The CA's key.
    pub public_key: PublicKey,
    /// The wanted life from now on. Capped at the parent's end.
    pub ttl: Duration,
}

impl CaTemplate {
    /// The template that a CA's CSR asks for: its one URI has to be the ID of `trust_domain`.
    /// # Errors
    /// [`IssueError::Csr`] or [`IssueError::CaProfile`].
    pub fn from_csr(csr: VerifiedCsr, trust_domain: &TrustDomain, ttl: Duration) -> Result<Self, IssueError> {
        let id = csr.spiffe_id()?;
        if id != trust_domain.id() {
            return Err(IssueError::CaProfile("URI SAN is not the ID of the trust domain"));
        }
        Ok(Self { trust_domain: trust_domain.clone(), public_key: csr.into_public_key(), ttl })
    }
}

/// Checks what SPIRE checks of a CA certificate's usages.
pub(super) fn check_ca(cert: &ParsedCert) -> Result<(), IssueError> {
    const CERT_SIGN_CRL_SIGN_DIGITAL_SIGNATURE: u16 = 0b0110_0001;
    if !cert.is_ca() {
        return Err(IssueError::CaProfile("cA constraint is not set"));
    }
    let usage = cert.key_usage().ok_or(IssueError::CaProfile("keyCertSign key usage must be set"))?;
    if !usage.key_cert_sign() {
        return Err(IssueError::CaProfile("keyCertSign key usage must be set"));
    }
    if usage.bits & !CERT_SIGN_CRL_SIGN_DIGITAL_SIGNATURE != 0 {
        return Err(IssueError::CaProfile(
            "only keyCertSign, cRLSign, or digitalSignature key usage can be set",
        ));
    }
    Ok(())
}

/// Checks a CA certificate as SPIRE does before it is used, also one that came from an upstream authority: its usages,
/// exactly one URI, the ID of the trust domain, and that it is for this key and valid at `now`.
/// # Errors
/// [`IssueError::CaProfile`] or [`IssueError::AuthorityExpired`].
pub fn check_ca_cert(
    cert: &ParsedCert,
    trust_domain: &TrustDomain,
    public_key_der: &[u8],
    now: SystemTime,
) -> Result<(), IssueError> {
    check_ca(cert)?;
    if cert.uri_sans() != [trust_domain.id().as_str()] {
        return Err(IssueError::CaProfile("URI SAN is not the ID of the trust domain"));
    }
    if cert.public_key_der() != public_key_der {
        return Err(IssueError::CaProfile("certificate is not for the signing key"));
    }
    if cert.life().not_before > now {
        return Err(IssueError::CaProfile("not yet valid"));
    }
    if cert.life().is_over(now) {
        return Err(IssueError::AuthorityExpired);
    }
    Ok(())
}

/// Makes and verifies a self-signed CA certificate. The subject gets the serial number as an attribute, so that no two
/// CAs of a trust domain share a name.
/// # Errors
/// [`IssueError`].
pub fn self_signed_ca(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    ttl: Duration,
    signer: &dyn Signer,
    now: SystemTime,
) -> Result<Vec<u8>, IssueError> {
    let serial = issue::new_serial()?;
    let subject = subject.to_der(&cert::decimal(&serial));
    let public_key = PublicKey::of(signer)?;
    let parts = TbsParts {
        serial: &serial,
        algorithm: &signature::signature_algorithm(signer.key_type()),
        issuer: &subject,
        life: issue::capped_life(ttl, now.checked_add(ttl).ok_or(IssueError::Time)?, now)?,
        subject: &subject,
        public_key: &public_key,
        authority_key_id: &csr::key_id_of(&public_key),
    };
    let tbs = parts.write(issue::write_ca_usage, Some(trust_domain.id().as_str()), &[])?;
    let der = signature::sign_der(&tbs, signer, parts.algorithm)?;
    check_ca_cert(&ParsedCert::from_der(&der)?, trust_domain, signer.public_key_der(), now)?;
    signature::verify_cert(&der, signer.public_key_der())?;
    Ok(der)
}

/// A CSR for a CA certificate of `trust_domain`, to be sent to an upstream authority. Its subject gets a random serial
/// number as an attribute, so that each CA has a name of its own.
/// # Errors
/// [`KeyError::Sign`] or [`KeyError::Generate`].
pub fn ca_csr(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    signer: &dyn Signer,
) -> Result<Vec<u8>, KeyError> {
    let serial = cert::decimal(&issue::new_serial()?);
    csr::make_csr_for(signer, &subject.to_der(&serial), Some(trust_domain.id().as_str()), &[])
}

/// Signs a CA certificate below `parent` (DER). `subject` is the CSR's Name, kept as it is; where it has no serial
/// number, that of the certificate is added.
/// # Errors
/// [`IssueError`].
pub fn sign_ca(
    parent: &[u8],
    parent_signer: &dyn Signer,
    template: &CaTemplate,
    subject: &[u8],
    now: SystemTime,
) -> Result<Vec<u8>, IssueError> {
    let parent = ParsedCert::from_der(parent)?;
    check_ca(&parent)?;
    if parent.public_key_der() != parent_signer.public_key_der() {
        return Err(IssueError::CaProfile("certificate is not for the signing key"));
    }
    sign_ca_with_subject(&parent, parent_signer, template, subject, now)
}

pub(super) fn sign_ca_with_subject(
    parent: &ParsedCert,
    parent_signer: &dyn Signer,
    template: &CaTemplate,
    subject: &[u8],
    now: SystemTime,
) -> Result<Vec<u8>, IssueError> {
    if parent.life().is_over(now) {
        return Err(IssueError::AuthorityExpired);
    }
    let serial = issue::new_serial()?;
    let subject = with_serial(subject, &cert::decimal(&serial))?;
    let parent_key_id = match parent.subject_key_id() {
        Some(id) => id.to_vec(),
        None => cert::key_id(parent.public_key_der()).ok_or(CertError::Malformed)?.to_vec(),
    };
    let parts = TbsParts {
        serial: &serial,
        algorithm: &signature::signature_algorithm(parent_signer.key_type()),
        issuer: parent.subject_der(),
        life: issue::capped_life(template.ttl, parent.life().not_after, now)?,
        subject: &subject,
        public_key: &template.public_key,
        authority_key_id: &parent_key_id,
    };
    let tbs = parts.write(issue::write_ca_usage, Some(template.trust_domain.id().as_str()), &[])?;
    let der = signature::sign_der(&tbs, parent_signer, parts.algorithm)?;
    let signed = ParsedCert::from_der(&der)?;
    check_ca_cert(&signed, &template.trust_domain, template.public_key.spki(), now)?;
    signature::verify_cert(&der, parent.public_key_der())?;
    Ok(der)
}

fn with_serial(subject: &[u8], serial: &str) -> Result<Vec<u8>, IssueError> {
    if !name::is_name(subject) {
        return Err(IssueError::Subject);
    }
    if name::has_attribute(subject, SERIAL_NUMBER) {
        return Ok(subject.to_vec());
    }
    name::with_attribute(subject, SERIAL_NUMBER, serial).ok_or(IssueError::Subject)
}

/// The parent's subject with OU `DOWNSTREAM-<chain length>`.
pub(super) fn downstream_subject(parent: &[u8], chain_length: usize) -> Result<Vec<u8>, IssueError> {
    let unit = format!("DOWNSTREAM-{chain_length}");
    name::with_attribute(parent, ORGANIZATIONAL_UNIT, &unit).ok_or(IssueError::Subject)
}
