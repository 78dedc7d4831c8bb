//! CA certificates: self-signed roots, CSRs for upstream authorities, and signing the CSRs of others.

use std::time::{Duration, SystemTime};

use super::cert::{self, CertError, ParsedCert};
use super::csr::{self, PublicKey, VerifiedCsr};
use super::issue::{self, IssueError, TbsParts};
use super::name::{self, COMMON_NAME, COUNTRY, ORGANIZATION, ORGANIZATIONAL_UNIT, SERIAL_NUMBER};
use super::signature;
use crate::id::TrustDomain;
use crate::key::{KeyError, KeyType, Signer};

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

/// A CA certificate that lacks its signature only.
pub(super) struct CaDraft<'a> {
    tbs: Vec<u8>,
    algorithm: Vec<u8>,
    trust_domain: &'a TrustDomain,
    public_key_der: &'a [u8],
    issuer_key_der: &'a [u8],
    now: SystemTime,
}

impl CaDraft<'_> {
    /// Signs with a local key, and verifies all the same.
    pub(super) fn sign(&self, signer: &dyn Signer) -> Result<Vec<u8>, IssueError> {
        self.checked(signature::sign_der(&self.tbs, signer, &self.algorithm)?)
    }

    /// As [`CaDraft::sign`], with a key that lives here or elsewhere.
    pub(super) async fn sign_awaited(&self, signer: &dyn Signer) -> Result<Vec<u8>, IssueError> {
        self.checked(signature::sign_der_awaited(&self.tbs, signer, &self.algorithm).await?)
    }

    fn checked(&self, der: Vec<u8>) -> Result<Vec<u8>, IssueError> {
        check_ca_cert(&ParsedCert::from_der(&der)?, self.trust_domain, self.public_key_der, self.now)?;
        signature::verify_cert(&der, self.issuer_key_der)?;
        Ok(der)
    }
}

/// Makes and verifies a self-signed CA certificate with a local key. The subject gets the serial number as an
/// attribute, so that no two CAs of a trust domain share a name.
/// # Errors
/// [`IssueError`].
pub fn self_signed_ca(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    ttl: Duration,
    signer: &dyn Signer,
    now: SystemTime,
) -> Result<Vec<u8>, IssueError> {
    draft_self_signed(trust_domain, subject, ttl, signer, now)?.sign(signer)
}

/// As [`self_signed_ca`], with a key that lives here or elsewhere.
/// # Errors
/// [`IssueError`].
pub async fn self_signed_ca_awaited(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    ttl: Duration,
    signer: &dyn Signer,
    now: SystemTime,
) -> Result<Vec<u8>, IssueError> {
    draft_self_signed(trust_domain, subject, ttl, signer, now)?.sign_awaited(signer).await
}

fn draft_self_signed<'a>(
    trust_domain: &'a TrustDomain,
    subject: &CaSubject,
    ttl: Duration,
    signer: &'a dyn Signer,
    now: SystemTime,
) -> Result<CaDraft<'a>, IssueError> {
    let serial = issue::new_serial()?;
    let subject = subject.to_der(&cert::decimal(&serial));
    let public_key = PublicKey::of(signer)?;
    let algorithm = signature::signature_algorithm(signer.key_type());
    let parts = TbsParts {
        serial: &serial,
        algorithm: &algorithm,
        issuer: &subject,
        life: issue::capped_life(ttl, now.checked_add(ttl).ok_or(IssueError::Time)?, now)?,
        subject: &subject,
        public_key: &public_key,
        authority_key_id: &csr::key_id_of(&public_key),
    };
    let tbs = parts.write(issue::write_ca_usage, Some(trust_domain.id().as_str()), &[])?;
    let key = signer.public_key_der();
    Ok(CaDraft { tbs, algorithm, trust_domain, public_key_der: key, issuer_key_der: key, now })
}

/// A CSR for a CA certificate of `trust_domain`, to be sent to an upstream authority, with a local key. Its subject gets
/// a random serial number as an attribute, so that each CA has a name of its own.
/// # Errors
/// [`KeyError::Sign`] or [`KeyError::Generate`].
pub fn ca_csr(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    signer: &dyn Signer,
) -> Result<Vec<u8>, KeyError> {
    let content = ca_csr_content(trust_domain, subject, signer)?;
    signature::sign_der(&content, signer, &signature::signature_algorithm(signer.key_type()))
}

/// As [`ca_csr`], with a key that lives here or elsewhere.
/// # Errors
/// [`KeyError`].
pub async fn ca_csr_awaited(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    signer: &dyn Signer,
) -> Result<Vec<u8>, KeyError> {
    let content = ca_csr_content(trust_domain, subject, signer)?;
    signature::sign_der_awaited(&content, signer, &signature::signature_algorithm(signer.key_type())).await
}

fn ca_csr_content(
    trust_domain: &TrustDomain,
    subject: &CaSubject,
    signer: &dyn Signer,
) -> Result<Vec<u8>, KeyError> {
    let subject = subject.to_der(&cert::decimal(&issue::new_serial()?));
    Ok(csr::csr_content(signer.public_key_der(), &subject, Some(trust_domain.id().as_str()), &[]))
}

/// Signs a CA certificate below `parent` (DER) with a local key. `subject` is the CSR's Name, kept as it is; where it
/// has no serial number, that of the certificate is added.
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
    draft_ca(&parent, parent_signer.key_type(), template, subject, now)?.sign(parent_signer)
}

pub(super) fn draft_ca<'a>(
    parent: &'a ParsedCert,
    parent_key: KeyType,
    template: &'a CaTemplate,
    subject: &[u8],
    now: SystemTime,
) -> Result<CaDraft<'a>, IssueError> {
    if parent.life().is_over(now) {
        return Err(IssueError::AuthorityExpired);
    }
    let serial = issue::new_serial()?;
    let subject = with_serial(subject, &cert::decimal(&serial))?;
    let parent_key_id = match parent.subject_key_id() {
        Some(id) => id.to_vec(),
        None => cert::key_id(parent.public_key_der()).ok_or(CertError::Malformed)?.to_vec(),
    };
    let algorithm = signature::signature_algorithm(parent_key);
    let parts = TbsParts {
        serial: &serial,
        algorithm: &algorithm,
        issuer: parent.subject_der(),
        life: issue::capped_life(template.ttl, parent.life().not_after, now)?,
        subject: &subject,
        public_key: &template.public_key,
        authority_key_id: &parent_key_id,
    };
    let tbs = parts.write(issue::write_ca_usage, Some(template.trust_domain.id().as_str()), &[])?;
    Ok(CaDraft {
        tbs,
        algorithm,
        trust_domain: &template.trust_domain,
        public_key_der: template.public_key.spki(),
        issuer_key_der: parent.public_key_der(),
        now,
    })
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
