//! What several test modules share: a CA, entries, selectors.
#![allow(clippy::unwrap_used)]

pub(crate) mod server;

use std::time::{Duration, SystemTime};

use svid_core::bundle::{Bundle, X509Authority};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey, PrivateKeyDer};
use svid_core::selector::SelectorSet;
use svid_core::x509::{Authority, CaSubject, LeafTemplate, PublicKey, Subject, X509Svid, ca};

use crate::cache::{AgentEntry, X509Identity};

/// A trust domain's CA.
pub(crate) struct TestCa {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) authority: Authority,
}

impl TestCa {
    pub(crate) fn new(trust_domain: &str) -> Self {
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let key = LocalKey::generate(KeyType::EcP256).unwrap().into_signer();
        let now = SystemTime::now();
        let ttl = Duration::from_secs(100 * 24 * 3600);
        let cert = ca::self_signed_ca(&trust_domain, &CaSubject::default(), ttl, &*key, now).unwrap();
        let authority = Authority::new(&cert, Vec::new(), key).unwrap();
        Self { trust_domain, authority }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        let mut bundle = Bundle::empty(self.trust_domain.clone());
        bundle.x509_authorities.push(X509Authority::from_der(self.authority.cert_der()).unwrap());
        bundle.sequence_number = 1;
        bundle
    }

    pub(crate) fn sign(
        &self,
        id: &SpiffeId,
        public_key: PublicKey,
        ttl: Duration,
        subject: Subject,
        now: SystemTime,
    ) -> X509Svid {
        let template = LeafTemplate {
            id: id.clone(),
            public_key,
            ttl,
            dns_names: Vec::new(),
            subject,
            not_after_limit: None,
        };
        self.authority.prepare(template, now).unwrap().sign().unwrap()
    }

    pub(crate) fn identity(&self, id: &SpiffeId, ttl: Duration, now: SystemTime) -> X509Identity {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let svid = self.sign(id, PublicKey::of(&key).unwrap(), ttl, Subject::Spire, now);
        let key = PrivateKeyDer::from_pkcs8(key.private_key().secret_bytes().to_vec());
        X509Identity { svid, key }
    }
}

pub(crate) fn selectors(texts: &[&str]) -> SelectorSet {
    texts.iter().map(|text| text.parse::<svid_core::selector::Selector>().unwrap()).collect()
}

pub(crate) fn entry(id: &str, path: &str, texts: &[&str]) -> AgentEntry {
    AgentEntry {
        id: id.parse().unwrap(),
        spiffe_id: format!("spiffe://example.org{path}").parse().unwrap(),
        selectors: selectors(texts),
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        hint: String::new(),
        revision: 0,
        created_at: 1,
        disable_x509_svid_prefetch: false,
    }
}
