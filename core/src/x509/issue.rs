//! Issuance: prove that a template keeps the rules, sign it, then look at what came out.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::ca::{self, CaTemplate};
use super::cert::{self, CertError, ParsedCert};
use super::chain::CertChain;
use super::csr::{self, CsrError, PublicKey};
use super::der::{self, OCTET_STRING, SEQUENCE, Time, Writer};
use super::name::{self, COMMON_NAME, COUNTRY, ORGANIZATION};
use super::signature;
use super::svid::{self, SvidError, X509Svid};
use crate::id::SpiffeId;
use crate::key::{KeyError, Signer};
use crate::rotation::{self, Life};

/// Longest DNS name in bytes.
const MAX_DNS_NAME_BYTES: usize = 253;
/// digitalSignature, keyEncipherment and keyAgreement, the first bit highest.
const LEAF_KEY_USAGE: u8 = 0b1010_1000;
/// keyCertSign and cRLSign.
const CA_KEY_USAGE: u8 = 0b0000_0110;

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];

/// Why nothing was issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The CA certificate or one behind it does not parse.
    #[error("malformed CA certificate: {0}")]
    CaCert(#[from] CertError),
    /// The CA certificate may not sign, or is not for the signer's key.
    #[error("invalid X509 CA: {0}")]
    CaProfile(&'static str),
    /// The authority has ended.
    #[error("X509 CA has expired")]
    AuthorityExpired,
    /// Nothing is left of the wanted life: the TTL is zero, or the entry has ended.
    #[error("X509-SVID would be expired when issued")]
    NoLife,
    /// A date is outside of what certificates can hold.
    #[error("validity is out of range")]
    Time,
    /// The ID names a trust domain, not a workload.
    #[error("SPIFFE ID has no path")]
    NoPath,
    /// A DNS name is empty, too long or not ASCII.
    #[error("DNS name {0:?} is not valid")]
    DnsName(String),
    /// A serial number is not one of ours.
    #[error("serial number is not valid")]
    Serial,
    /// A subject is no name in DER.
    #[error("subject is not valid")]
    Subject,
    /// The CSR of a CA is not acceptable.
    #[error("invalid CSR: {0}")]
    Csr(#[from] CsrError),
    /// Randomness or the signer failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// What was signed breaks a rule.
    #[error("issued certificate is not an X509-SVID: {0}")]
    Profile(#[from] SvidError),
    /// What was signed is not what was asked for.
    #[error("issued certificate differs from its template: {0}")]
    Differs(&'static str),
}

/// The subject of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// C=US, O=SPIRE: servers, agents and workloads.
    Spire,
    /// A Name in DER, as a minted SVID takes it from its CSR. An empty name means [`Subject::Spire`].
    Raw(Vec<u8>),
}

/// What a leaf shall be.
#[derive(Clone, Debug)]
pub struct LeafTemplate {
    /// The one URI of the leaf.
    pub id: SpiffeId,
    /// Whose leaf it is.
    pub public_key: PublicKey,
    /// The wanted life from now on. Capped at the authority's end.
    pub ttl: Duration,
    /// DNS names, the first of which becomes the subject's CN, as SPIRE does it for workloads.
    pub dns_names: Vec<String>,
    /// The rest of the subject.
    pub subject: Subject,
    /// A further end, such as the entry's expiry.
    pub not_after_limit: Option<SystemTime>,
}

/// A CA that signs: its key, and everything of its certificate that a leaf repeats, prepared once.
pub struct Authority {
    signer: Arc<dyn Signer>,
    algorithm: Vec<u8>,
    cert_der: Vec<u8>,
    cert: ParsedCert,
    life: Life,
    chain: Vec<Vec<u8>>,
    key_id: Vec<u8>,
    /// C=US, O=SPIRE in DER, the subject that nearly all leaves have.
    spire_subject: Vec<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("id", &self.id_hex())
            .field("life", &self.life())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// `chain` goes behind each leaf as it is: empty for a self-signed root, else this CA and its intermediates.
    /// # Errors
    /// [`IssueError::CaCert`] or [`IssueError::CaProfile`].
    pub fn new(ca_cert: &[u8], chain: Vec<Vec<u8>>, signer: Arc<dyn Signer>) -> Result<Self, IssueError> {
        let cert = ParsedCert::from_der(ca_cert)?;
        ca::check_ca(&cert)?;
        if cert.public_key_der() != signer.public_key_der() {
            return Err(IssueError::CaProfile("certificate is not for the signing key"));
        }
        let mut life = cert.life();
        for der in &chain {
            let above = ParsedCert::from_der(der)?;
            svid::check_intermediate(&above)?;
            life.not_after = life.not_after.min(above.life().not_after);
        }
        let key_id = match cert.subject_key_id() {
            Some(id) => id.to_vec(),
            None => cert::key_id(cert.public_key_der()).ok_or(CertError::Malformed)?.to_vec(),
        };
        Ok(Self {
            algorithm: signature::signature_algorithm(signer.key_type()),
            spire_subject: name::build(&[(COUNTRY, "US"), (ORGANIZATION, "SPIRE")]),
            cert_der: ca_cert.to_vec(),
            signer,
            cert,
            life,
            chain,
            key_id,
        })
    }

    /// The same authority, ending at `not_after` at the latest: what vouches for it may end before its chain does.
    #[must_use]
    pub fn limited_to(mut self, not_after: SystemTime) -> Self {
        self.life.not_after = self.life.not_after.min(not_after);
        self
    }

    /// The authority's ID: its subject key identifier in lower-case hex.
    pub fn id_hex(&self) -> String {
        hex::encode(&self.key_id)
    }

    /// The CA certificate's validity, as far as everything above it lasts: nothing that is signed outlives its chain.
    pub fn life(&self) -> Life {
        self.life
    }

    /// The CA certificate in DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    /// The CA certificate's facts.
    pub fn cert(&self) -> &ParsedCert {
        &self.cert
    }

    /// What goes behind each leaf.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The signing key.
    pub fn signer(&self) -> &Arc<dyn Signer> {
        &self.signer
    }

    /// True if the key lives in this process: signing then needs no waiting, and [`Prepared::sign`] does it.
    pub fn signs_inline(&self) -> bool {
        self.signer.remote().is_none()
    }

    /// Checks a leaf's template and fixes its serial and validity. Signs nothing.
    /// # Errors
    /// [`IssueError`] names what is wrong with the template or the authority.
    pub fn prepare(&self, template: LeafTemplate, now: SystemTime) -> Result<Prepared<'_>, IssueError> {
        self.prepare_numbered(template, new_serial()?, now)
    }

    /// As [`Authority::prepare`], for a leaf that was prepared at `then` and whose answer was lost: the same number
    /// and life again, as far as this authority lasts.
    /// # Errors
    /// As [`Authority::prepare`], and [`IssueError::Serial`] for a number that was never given.
    pub fn prepare_again(
        &self,
        template: LeafTemplate,
        serial_decimal: &str,
        then: SystemTime,
    ) -> Result<Prepared<'_>, IssueError> {
        let serial: u128 = serial_decimal.parse().map_err(|_| IssueError::Serial)?;
        if serial == 0 {
            return Err(IssueError::Serial);
        }
        self.prepare_numbered(template, serial.to_be_bytes(), then)
    }

    fn prepare_numbered(
        &self,
        template: LeafTemplate,
        serial: [u8; 16],
        now: SystemTime,
    ) -> Result<Prepared<'_>, IssueError> {
        if template.id.path().is_empty() {
            return Err(IssueError::NoPath);
        }
        if let Some(bad) = template.dns_names.iter().find(|name| !is_dns_text(name)) {
            return Err(IssueError::DnsName(bad.clone()));
        }
        let life = leaf_life(template.ttl, template.not_after_limit, self.life(), now)?;
        let subject = self.leaf_subject(&template)?;
        let parts = TbsParts {
            serial: &serial,
            algorithm: &self.algorithm,
            issuer: self.cert.subject_der(),
            life,
            subject: &subject,
            public_key: &template.public_key,
            authority_key_id: &self.key_id,
        };
        let tbs = parts.write(write_leaf_usage, Some(template.id.as_str()), &template.dns_names)?;
        let expected = Expected { life, public_key: template.public_key, dns_names: template.dns_names };
        Ok(Prepared { authority: self, id: template.id, serial, tbs, expected })
    }

    fn leaf_subject(&self, template: &LeafTemplate) -> Result<Vec<u8>, IssueError> {
        let base = match &template.subject {
            Subject::Raw(raw) if !name::is_empty(raw) => {
                if !name::is_name(raw) {
                    return Err(IssueError::Subject);
                }
                raw
            }
            _ => &self.spire_subject,
        };
        match template.dns_names.first() {
            Some(first) => name::with_attribute(base, COMMON_NAME, first).ok_or(IssueError::Subject),
            None => Ok(base.clone()),
        }
    }

    /// Issues a CA certificate below this one, as nested servers ask for it.
    /// Its subject is this CA's with an OU of `DOWNSTREAM-<length of the chain>`, as SPIRE's.
    /// # Errors
    /// [`IssueError`].
    pub fn issue_downstream_ca(
        &self,
        template: CaTemplate,
        now: SystemTime,
    ) -> Result<CertChain, IssueError> {
        let template = self.clamped(template, now)?;
        let draft = self.draft_downstream_ca(&template, now)?;
        self.below(draft.sign(self.signer.as_ref())?)
    }

    /// As [`Authority::issue_downstream_ca`], with a key that lives here or elsewhere.
    /// # Errors
    /// [`IssueError`].
    pub async fn issue_downstream_ca_awaited(
        &self,
        template: CaTemplate,
        now: SystemTime,
    ) -> Result<CertChain, IssueError> {
        let template = self.clamped(template, now)?;
        let draft = self.draft_downstream_ca(&template, now)?;
        self.below(draft.sign_awaited(self.signer.as_ref()).await?)
    }

    /// No CA below outlives what vouches for this one.
    fn clamped(&self, template: CaTemplate, now: SystemTime) -> Result<CaTemplate, IssueError> {
        if self.life.is_over(now) {
            return Err(IssueError::AuthorityExpired);
        }
        Ok(CaTemplate { ttl: template.ttl.min(self.life.remaining(now)), ..template })
    }

    fn draft_downstream_ca<'a>(
        &'a self,
        template: &'a CaTemplate,
        now: SystemTime,
    ) -> Result<ca::CaDraft<'a>, IssueError> {
        let subject = ca::downstream_subject(self.cert.subject_der(), self.chain.len().max(1))?;
        ca::draft_ca(&self.cert, self.signer.key_type(), template, &subject, now)
    }

    fn below(&self, der: Vec<u8>) -> Result<CertChain, IssueError> {
        Ok(CertChain::from_certs(std::iter::once(der).chain(self.chain.iter().cloned()))?)
    }
}

/// Proof that a template keeps the rules. Only [`Authority::prepare`] makes one.
pub struct Prepared<'a> {
    authority: &'a Authority,
    id: SpiffeId,
    serial: [u8; 16],
    tbs: Vec<u8>,
    expected: Expected,
}

struct Expected {
    life: Life,
    public_key: PublicKey,
    dns_names: Vec<String>,
}

impl Prepared<'_> {
    /// The serial number in decimal, to be stored before anything is signed.
    pub fn serial_decimal(&self) -> String {
        cert::decimal(&self.serial)
    }

    /// The validity it will have, in whole seconds.
    pub fn life(&self) -> Life {
        self.expected.life
    }

    /// Whose SVID it will be.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Signs with a local key, reads the result and compares it with the template. One check buys one signature.
    /// # Errors
    /// [`IssueError::Key`] if the signer refuses, [`IssueError::Differs`] or [`IssueError::Profile`] if what came out
    /// is not what was asked for.
    pub fn sign(self) -> Result<X509Svid, IssueError> {
        let authority = self.authority;
        let der = signature::sign_der(&self.tbs, authority.signer.as_ref(), &authority.algorithm)?;
        self.finish(der)
    }

    /// As [`Prepared::sign`], with a key that lives here or elsewhere. What comes from elsewhere is verified.
    /// # Errors
    /// As [`Prepared::sign`].
    pub async fn sign_awaited(self) -> Result<X509Svid, IssueError> {
        let authority = self.authority;
        let signed = signature::sign_der_awaited(&self.tbs, authority.signer.as_ref(), &authority.algorithm);
        let der = signed.await?;
        self.finish(der)
    }

    fn finish(self, der: Vec<u8>) -> Result<X509Svid, IssueError> {
        let authority = self.authority;
        let leaf = ParsedCert::from_der(&der)?;
        let id = svid::check_leaf(&leaf)?;
        self.compare(&leaf, &id)?;
        let chain = CertChain::from_certs(std::iter::once(der).chain(authority.chain.iter().cloned()))?;
        Ok(X509Svid::from_checked(chain, leaf, id))
    }

    fn compare(&self, leaf: &ParsedCert, id: &SpiffeId) -> Result<(), IssueError> {
        let serial_differs = || cert::decimal(leaf.serial()) != cert::decimal(&self.serial);
        let differs = match () {
            () if *id != self.id => "SPIFFE ID",
            () if leaf.public_key_der() != self.expected.public_key.spki() => "public key",
            () if leaf.life() != self.expected.life => "validity",
            () if leaf.dns_sans() != self.expected.dns_names => "DNS names",
            () if leaf.issuer_der() != self.authority.cert.subject_der() => "issuer",
            () if leaf.authority_key_id() != Some(&self.authority.key_id) => "authority key identifier",
            () if leaf.server_and_client_auth() != (true, true) => "extended key usage",
            () if serial_differs() => "serial number",
            () => return Ok(()),
        };
        Err(IssueError::Differs(differs))
    }
}

fn is_dns_text(name: &str) -> bool {
    (1..=MAX_DNS_NAME_BYTES).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic())
}

/// A leaf's validity: back-dated for clocks that lag, capped at every given end, in whole seconds.
fn leaf_life(
    ttl: Duration,
    limit: Option<SystemTime>,
    ca: Life,
    now: SystemTime,
) -> Result<Life, IssueError> {
    if ca.is_over(now) {
        return Err(IssueError::AuthorityExpired);
    }
    capped_life(ttl, limit.map_or(ca.not_after, |limit| limit.min(ca.not_after)), now)
}

pub(super) fn capped_life(ttl: Duration, cap: SystemTime, now: SystemTime) -> Result<Life, IssueError> {
    let wanted = now.checked_add(ttl).ok_or(IssueError::Time)?;
    let not_after = whole_seconds(wanted.min(cap)).ok_or(IssueError::Time)?;
    let left = not_after.duration_since(now).unwrap_or_default();
    if left.is_zero() {
        return Err(IssueError::NoLife);
    }
    let not_before =
        now.checked_sub(rotation::back_date(left)).and_then(whole_seconds).ok_or(IssueError::Time)?;
    Ok(Life { not_before, not_after })
}

fn whole_seconds(time: SystemTime) -> Option<SystemTime> {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(since_epoch.as_secs()))
}

/// A serial number from 1 to 2^128 - 1, from the operating system's randomness.
pub(super) fn new_serial() -> Result<[u8; 16], KeyError> {
    let mut serial = [0; 16];
    while serial == [0; 16] {
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| KeyError::Generate)?;
    }
    Ok(serial)
}

/// What leaves and CAs have in common.
pub(super) struct TbsParts<'a> {
    pub(super) serial: &'a [u8],
    pub(super) algorithm: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) life: Life,
    pub(super) subject: &'a [u8],
    pub(super) public_key: &'a PublicKey,
    pub(super) authority_key_id: &'a [u8],
}

impl TbsParts<'_> {
    /// Writes the TBSCertificate. Extensions stand in the order in which Go writes them.
    pub(super) fn write(
        &self,
        usage: impl FnOnce(&mut Writer),
        uri: Option<&str>,
        dns: &[String],
    ) -> Result<Vec<u8>, IssueError> {
        const VERSION: u8 = 0xa0;
        const EXTENSIONS: u8 = 0xa3;
        let not_before = Time::new(self.life.not_before).ok_or(IssueError::Time)?;
        let not_after = Time::new(self.life.not_after).ok_or(IssueError::Time)?;
        let subject_key_id = csr::key_id_of(self.public_key);
        let mut w = Writer::with_capacity(1024);
        w.nest(SEQUENCE, |w| {
            w.nest(VERSION, |w| w.unsigned(&[2]));
            w.unsigned(self.serial);
            w.raw(self.algorithm);
            w.raw(self.issuer);
            w.nest(SEQUENCE, |w| {
                w.time(&not_before);
                w.time(&not_after);
            });
            w.raw(self.subject);
            w.raw(self.public_key.spki());
            w.nest(EXTENSIONS, |w| {
                w.nest(SEQUENCE, |w| {
                    usage(w);
                    write_key_ids(w, &subject_key_id, self.authority_key_id);
                    if uri.is_some() || !dns.is_empty() {
                        csr::write_san(w, uri, dns);
                    }
                });
            });
        });
        Ok(w.into_bytes())
    }
}

fn write_extension(w: &mut Writer, oid: &[u8], critical: bool, value: impl FnOnce(&mut Writer)) {
    w.nest(SEQUENCE, |w| {
        w.oid(oid);
        if critical {
            w.bool_true();
        }
        w.nest(OCTET_STRING, value);
    });
}

fn write_leaf_usage(w: &mut Writer) {
    write_extension(w, KEY_USAGE, true, |w| w.named_bits(LEAF_KEY_USAGE));
    write_extension(w, EXT_KEY_USAGE, false, |w| {
        w.nest(SEQUENCE, |w| {
            w.oid(SERVER_AUTH);
            w.oid(CLIENT_AUTH);
        });
    });
    // cA is false by default, and DER leaves defaults out.
    write_extension(w, BASIC_CONSTRAINTS, true, |w| w.nest(SEQUENCE, |_| ()));
}

pub(super) fn write_ca_usage(w: &mut Writer) {
    write_extension(w, KEY_USAGE, true, |w| w.named_bits(CA_KEY_USAGE));
    write_extension(w, BASIC_CONSTRAINTS, true, |w| w.nest(SEQUENCE, Writer::bool_true));
}

fn write_key_ids(w: &mut Writer, subject: &[u8], authority: &[u8]) {
    const KEY_IDENTIFIER: u8 = 0x80;
    write_extension(w, SUBJECT_KEY_ID, false, |w| w.bytes(OCTET_STRING, subject));
    write_extension(w, AUTHORITY_KEY_ID, false, |w| {
        w.nest(der::SEQUENCE, |w| w.bytes(KEY_IDENTIFIER, authority));
    });
}
