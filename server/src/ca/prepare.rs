//! Making an X.509 authority for a key: signed by itself, or by an upstream authority and then proved.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use svid_core::id::SpiffeId;
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::ca::{ca_csr_awaited, check_ca_cert, self_signed_ca_awaited};
use svid_core::x509::{Authority, IssueError, LeafTemplate, PublicKey, Roots, Subject, verify};
use svid_plugin_api::{MintedCa, UpstreamAuthority};

use super::{CaConfig, CaError};

/// How long an upstream authority may take; some are queues of other services.
const UPSTREAM_DEADLINE: Duration = Duration::from_secs(300);
/// Life of the SVID that proves a new authority.
const THROWAWAY_TTL: Duration = Duration::from_secs(60);

/// A new authority that nothing has been signed with, and the roots it leads to.
pub(super) struct Minted {
    pub(super) authority: Authority,
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
    Ok(Minted { authority: Authority::new(&der, Vec::new(), signer)?, roots: vec![root] })
}

pub(super) async fn upstream_signed(
    config: &CaConfig,
    upstream: &dyn UpstreamAuthority,
    signer: Arc<dyn Signer>,
    now: SystemTime,
) -> Result<Minted, CaError> {
    let csr = ca_csr_awaited(&config.trust_domain, &config.ca_subject, &*signer).await?;
    let minted = tokio::time::timeout(UPSTREAM_DEADLINE, upstream.mint_x509_ca(&csr, config.ca_ttl))
        .await
        .map_err(|_| CaError::UpstreamTimeout(UPSTREAM_DEADLINE.as_secs()))??;
    accept(config, minted, signer, now).await
}

/// Takes over what an upstream signed if it keeps the rules, and SVIDs signed with it verify to the upstream's roots.
async fn accept(
    config: &CaConfig,
    minted: MintedCa,
    signer: Arc<dyn Signer>,
    now: SystemTime,
) -> Result<Minted, CaError> {
    let MintedCa { chain, roots } = minted;
    let ca_cert = chain.first().ok_or(CaError::UpstreamCa("the chain is empty"))?;
    if roots.is_empty() {
        return Err(CaError::UpstreamCa("no upstream roots"));
    }
    let authority = Authority::new(ca_cert, chain.clone(), signer.clone())?;
    check_ca_cert(authority.cert(), &config.trust_domain, signer.public_key_der(), now)?;
    prove(config, &authority, &roots, now).await?;
    Ok(Minted { authority, roots })
}

async fn prove(
    config: &CaConfig,
    authority: &Authority,
    roots: &[X509Authority],
    now: SystemTime,
) -> Result<(), CaError> {
    let key = LocalKey::generate(KeyType::EcP256)?;
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
    verify(&chain, &roots, now).map_err(CaError::UpstreamRoots)?;
    Ok(())
}
