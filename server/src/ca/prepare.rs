//! Making an X.509 authority for a key: signed by itself, or by an upstream authority and then proved.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use svid_core::id::SpiffeId;
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::ca::{check_ca_cert, self_signed_ca_awaited};
use svid_core::x509::{
    Authority, CertError, IssueError, LeafTemplate, ParsedCert, PublicKey, Roots, Subject, VerifyError,
    is_issued_by, is_self_issued, order_path, verify,
};
use svid_plugin_api::{MintedCa, PluginCode, PluginError, UpstreamAuthority};

use super::{CaConfig, CaError};

/// How long an upstream authority may take; some are queues of other services.
const UPSTREAM_DEADLINE: Duration = Duration::from_secs(300);
/// Life of the SVID that proves a new authority.
const THROWAWAY_TTL: Duration = Duration::from_secs(60);

/// What an upstream authority did wrong, or why it refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamFault {
    /// It refused, in its own words.
    #[error("{0}")]
    Refused(#[from] PluginError),
    /// It did not answer in time.
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// The plugin's code panicked or was stopped.
    #[error("the plugin failed")]
    Crashed,
    /// The chain or the roots break this rule.
    #[error("X509 CA minted by upstream authority is invalid: {0}")]
    Invalid(&'static str),
    /// A certificate of the chain cannot be read.
    #[error("X509 CA minted by upstream authority is invalid: {0}")]
    Cert(#[from] CertError),
    /// The CA certificate breaks a rule of SPIFFE, or is not for the key.
    #[error("X509 CA minted by upstream authority is invalid: {0}")]
    Ca(#[from] IssueError),
    /// An SVID signed with the new CA does not verify to the roots that came with it.
    #[error("X509 CA minted by upstream authority failed validation: {0}")]
    Roots(VerifyError),
    /// The new CA leads to a root that was revoked, and to no other.
    #[error("X509 CA minted by upstream authority leads to a root that was revoked")]
    Revoked,
    /// The new CA leads to a tainted root, as the one that it shall replace.
    #[error("X509 CA minted by upstream authority leads to a tainted root")]
    Tainted,
}

impl UpstreamFault {
    /// True if the upstream authority surely signed nothing, and would not sign the same CSR later either.
    pub(super) fn is_final(&self) -> bool {
        use PluginCode::{
            FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated, Unimplemented,
        };
        match self {
            Self::Refused(error) => matches!(
                error.code,
                FailedPrecondition | InvalidArgument | PermissionDenied | Unauthenticated | Unimplemented
            ),
            _ => false,
        }
    }

    /// True if the upstream authority signed something that cannot be used.
    pub(super) fn is_bad_answer(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Timeout(_) | Self::Crashed)
    }

    /// True if the upstream authority has enough of us.
    pub(super) fn is_throttled(&self) -> bool {
        matches!(self, Self::Refused(error) if error.code == PluginCode::ResourceExhausted)
    }

    /// True if the same request may succeed later without a change to anything.
    pub(super) fn is_unavailable(&self) -> bool {
        use PluginCode::{DeadlineExceeded, ResourceExhausted, Unavailable};
        match self {
            Self::Refused(error) => matches!(error.code, Unavailable | DeadlineExceeded | ResourceExhausted),
            Self::Timeout(_) | Self::Crashed => true,
            _ => false,
        }
    }
}

/// A new authority that nothing has been signed with, and the roots it leads to.
pub(super) struct Minted {
    pub(super) authority: Arc<Authority>,
    pub(super) roots: Vec<X509Authority>,
}

pub(super) async fn self_signed(
    config: &CaConfig,
    signer: Arc<dyn Signer>,
    now: SystemTime,
) -> Result<Minted, CaError> {
    let signed =
        self_signed_ca_awaited(&config.trust_domain, &config.ca_subject, config.ca_ttl, &*signer, now);
    let der = signed.await?;
    let root = X509Authority::from_der(&der)?;
    let authority = Authority::new(&der, Vec::new(), signer)?;
    Ok(Minted { authority: Arc::new(authority), roots: vec![root] })
}

/// Has a CSR signed upstream, within a deadline.
pub(super) async fn ask(
    upstream: Arc<dyn UpstreamAuthority>,
    csr: Vec<u8>,
    ttl: Duration,
) -> Result<MintedCa, UpstreamFault> {
    let asked = tokio::time::timeout(UPSTREAM_DEADLINE, upstream.mint_x509_ca(&csr, ttl)).await;
    Ok(asked.map_err(|_| UpstreamFault::Timeout(UPSTREAM_DEADLINE.as_secs()))??)
}

/// Takes over what an upstream signed if it keeps the rules, and SVIDs signed with it verify to the upstream's roots.
/// The authority ends with the first certificate of its chain, root included.
pub(super) async fn accept(
    config: &CaConfig,
    minted: MintedCa,
    signer: Arc<dyn Signer>,
    now: SystemTime,
) -> Result<Minted, UpstreamFault> {
    let MintedCa { chain, roots } = minted;
    if roots.is_empty() {
        return Err(UpstreamFault::Invalid("no upstream roots"));
    }
    let chain = in_order(chain, &roots, signer.public_key_der())?;
    let authority = Authority::new(&chain[0], chain.clone(), signer.clone())?;
    check_ca_cert(authority.cert(), &config.trust_domain, signer.public_key_der(), now)?;
    prove(config, &authority, &roots, now).await?;
    let end = end_of_root(&chain, &roots);
    let authority = authority.limited_to(end);
    if authority.life().is_over(now) {
        return Err(UpstreamFault::Ca(IssueError::AuthorityExpired));
    }
    Ok(Minted { authority: Arc::new(authority), roots })
}

/// The CA for our key, then each one's issuer, without roots and without what signed nothing of it.
fn in_order(
    chain: Vec<Vec<u8>>,
    roots: &[X509Authority],
    public_key_der: &[u8],
) -> Result<Vec<Vec<u8>>, UpstreamFault> {
    if chain.is_empty() {
        return Err(UpstreamFault::Invalid("the chain is empty"));
    }
    let is_ours =
        |der: &Vec<u8>| ParsedCert::from_der(der).is_ok_and(|cert| cert.public_key_der() == public_key_der);
    let Some(at) = chain.iter().position(is_ours) else {
        ParsedCert::from_der(&chain[0])?;
        return Err(IssueError::CaProfile("certificate is not for the signing key").into());
    };
    let mut others = chain;
    let first = others.remove(at);
    let is_root = |der: &Vec<u8>| roots.iter().any(|root| root.der() == der.as_slice());
    others.retain(|der| !is_root(der) && !is_self_issued(der));
    let ordered = order_path(&first, others)?;
    if !ordered.rest.is_empty() {
        tracing::warn!(
            count = ordered.rest.len(),
            "The upstream authority's chain holds certificates that signed nothing of it; they are left out"
        );
    }
    Ok(ordered.path)
}

/// When the root that signed the last of the chain ends; the latest, where several could have.
fn end_of_root(chain: &[Vec<u8>], roots: &[X509Authority]) -> SystemTime {
    let last = chain.last().map_or(&[][..], Vec::as_slice);
    let signed = roots.iter().filter(|root| is_issued_by(last, root.der()));
    let ends = signed.map(|root| root.parsed().life().not_after);
    // None: the path that was proved goes another way than ours, and its end is not known better.
    ends.max().unwrap_or_else(|| {
        roots.iter().map(|root| root.parsed().life().not_after).max().unwrap_or(SystemTime::UNIX_EPOCH)
    })
}

/// Signs an SVID that nobody gets, and verifies it to the roots as peers will.
pub(super) async fn prove(
    config: &CaConfig,
    authority: &Authority,
    roots: &[X509Authority],
    now: SystemTime,
) -> Result<(), UpstreamFault> {
    let key = LocalKey::generate(KeyType::EcP256).map_err(IssueError::from)?;
    let id = SpiffeId::from_parts(config.trust_domain.as_str(), "/spire/throwaway").expect("a constant path");
    let template = LeafTemplate {
        id,
        public_key: PublicKey::of(&key).map_err(IssueError::from)?,
        ttl: THROWAWAY_TTL,
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let svid = authority.prepare(template, now)?.sign_awaited().await?;
    let roots = Roots::for_trust_domain(&config.trust_domain, roots.iter().map(X509Authority::der))?;
    let chain: Vec<&[u8]> = svid.chain().iter().collect();
    verify(&chain, &roots, now).map_err(UpstreamFault::Roots)?;
    Ok(())
}
