//! An upstream authority whose strings a test pulls.

use std::sync::Mutex;

use async_trait::async_trait;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SignatureAlgorithm,
};
use svid_core::bundle::X509Authority;
use svid_core::x509::{PublicKey, VerifiedCsr};
use svid_plugin_api::{MintedCa, PluginCode, PluginError};

use super::*;

/// A CA above ours.
pub(super) type Issuer = CertifiedIssuer<'static, KeyPair>;

pub(super) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name.push(DnType::CommonName, name);
    // Years on both sides of any clock that tests go by.
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    params
}

pub(super) fn root(name: &str) -> Arc<Issuer> {
    Arc::new(CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap())
}

pub(super) fn below(parent: &Issuer, params: CertificateParams) -> Arc<Issuer> {
    Arc::new(CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), parent).unwrap())
}

pub(super) fn authority(issuer: &Issuer) -> X509Authority {
    X509Authority::from_der(issuer.der()).unwrap()
}

pub(super) fn id_of(issuer: &Issuer) -> String {
    authority(issuer).parsed().subject_key_id_hex().unwrap()
}

struct Theirs(PublicKey);

impl PublicKeyData for Theirs {
    fn der_bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// Signs the CSR's key below `issuer`, changed as a test likes.
pub(super) fn sign(issuer: &Issuer, csr: &[u8], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let csr = VerifiedCsr::from_der(csr).unwrap();
    let mut params = ca_params(&hex::encode(csr.subject_der()));
    params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
    change(&mut params);
    params.signed_by(&Theirs(csr.public_key().clone()), issuer).unwrap().der().to_vec()
}

/// How a CSR is answered.
type Act = Box<dyn Fn(&[u8]) -> Result<MintedCa, PluginError> + Send>;

/// The upstream authority. Answers only while its gate is open.
pub(super) struct Puppet {
    name: &'static str,
    act: Mutex<Act>,
    roots: watch::Sender<Arc<[X509Authority]>>,
    seen: watch::Sender<Vec<Vec<u8>>>,
    gate: watch::Sender<bool>,
}

impl Puppet {
    /// Signs honestly below `issuer`.
    pub(super) fn honest(issuer: &Arc<Issuer>) -> Arc<Self> {
        let puppet = Arc::new(Self {
            name: "puppet",
            act: Mutex::new(Box::new(|_| Err(PluginError::internal("no act")))),
            roots: watch::Sender::new(Arc::from([])),
            seen: watch::Sender::new(Vec::new()),
            gate: watch::Sender::new(true),
        });
        puppet.signs_below(issuer);
        puppet
    }

    pub(super) fn named(name: &'static str, issuer: &Arc<Issuer>) -> Arc<Self> {
        let mut puppet = Arc::into_inner(Self::honest(issuer)).unwrap();
        puppet.name = name;
        Arc::new(puppet)
    }

    pub(super) fn signs_below(&self, issuer: &Arc<Issuer>) {
        let issuer = issuer.clone();
        self.acts(move |csr| {
            Ok(MintedCa { chain: vec![sign(&issuer, csr, |_| {})], roots: vec![authority(&issuer)] })
        });
    }

    pub(super) fn acts(&self, act: impl Fn(&[u8]) -> Result<MintedCa, PluginError> + Send + 'static) {
        *self.act.lock().unwrap() = Box::new(act);
    }

    pub(super) fn refuses(&self, code: PluginCode) {
        self.acts(move |_| Err(PluginError::new(code, "the puppet does not want to")));
    }

    pub(super) fn set_roots(&self, roots: Vec<X509Authority>) {
        self.roots.send_replace(roots.into());
    }

    pub(super) fn open(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// Every CSR that came, once there are so many.
    pub(super) async fn seen(&self, count: usize) -> Vec<Vec<u8>> {
        let mut seen = self.seen.subscribe();
        seen.wait_for(|seen| seen.len() >= count).await.unwrap().clone()
    }

    pub(super) fn all(&self) -> Vec<Vec<u8>> {
        self.seen.borrow().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.seen.borrow().len()
    }
}

#[async_trait]
impl UpstreamAuthority for Puppet {
    fn name(&self) -> &str {
        self.name
    }

    async fn mint_x509_ca(&self, csr: &[u8], _ttl: Duration) -> Result<MintedCa, PluginError> {
        self.seen.send_modify(|seen| seen.push(csr.to_vec()));
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        let minted = self.act.lock().unwrap()(csr)?;
        let known = self.roots.borrow().clone();
        if known.is_empty() {
            self.roots.send_replace(minted.roots.clone().into());
        }
        Ok(minted)
    }

    fn roots(&self) -> watch::Receiver<Arc<[X509Authority]>> {
        self.roots.subscribe()
    }
}
