//! x509pop at the server: the payload of a stranger, and the answer to a challenge about a certificate that is good.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use svid_core::clock::Clock;
use svid_core::hcl::{decode, parse};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::ca::self_signed_ca;
use svid_core::x509::{Authority, CaSubject, LeafTemplate, PublicKey, Subject};
use svid_plugin_api::{AttestContext, Challenger, PluginError, ServerNodeAttestor};
use svid_x509pop::{ServerConfig, X509PopServer};

const HOUR: Duration = Duration::from_secs(3600);

struct Setting {
    server: X509PopServer,
    context: AttestContext,
    /// A payload that leads to a challenge.
    good: Vec<u8>,
    runtime: tokio::runtime::Runtime,
}

/// One authority, one node with a certificate of it, and a clock that stands still.
static SETTING: LazyLock<Setting> = LazyLock::new(|| {
    let now = SystemTime::UNIX_EPOCH + HOUR * 500_000;
    let key = || -> Arc<dyn Signer> { LocalKey::generate(KeyType::EcP256).expect("key").into_signer() };
    let trust_domain: TrustDomain = "example.org".parse().expect("a trust domain");
    let (ca_key, node_key) = (key(), key());
    let ca =
        self_signed_ca(&trust_domain, &CaSubject::default(), HOUR * 24, ca_key.as_ref(), now).expect("CA");
    let template = LeafTemplate {
        id: SpiffeId::from_parts("example.org", "/spire-exchange/node").expect("an ID"),
        public_key: PublicKey::of(node_key.as_ref()).expect("public key"),
        ttl: HOUR,
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let authority = Authority::new(&ca, Vec::new(), ca_key).expect("authority");
    let svid = authority.prepare(template, now).expect("template").sign().expect("SVID");
    let leaf = svid.chain().leaf();
    let good = serde_json::json!({ "certificates": [STANDARD.encode(leaf)] });
    let body = parse("mode = \"spiffe\"").expect("HCL");
    let config = decode(&body, ServerConfig::read).0.expect("a configuration");
    Setting {
        server: X509PopServer::new(config, Arc::new(move || vec![ca.clone()]), Clock::from_fn(move || now)),
        context: AttestContext { trust_domain, client_ip: None },
        good: good.to_string().into_bytes(),
        runtime: tokio::runtime::Builder::new_current_thread().build().expect("a runtime"),
    }
});

struct Answer<'a> {
    bytes: &'a [u8],
    asked: bool,
}

#[async_trait]
impl Challenger for Answer<'_> {
    async fn challenge(&mut self, _: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        self.asked = true;
        Ok(self.bytes.to_vec())
    }
}

/// Whether the attestor asked for a proof. Nobody here has the key, so it must not be satisfied.
fn asked(payload: &[u8], answer: &[u8]) -> bool {
    let setting = &*SETTING;
    let mut answer = Answer { bytes: answer, asked: false };
    let attested = setting.server.attest(&setting.context, payload, &mut answer);
    assert!(setting.runtime.block_on(attested).is_err(), "attested without the key");
    answer.asked
}

fuzz_target!(|bytes: &[u8]| {
    asked(bytes, b"{}");
    assert!(asked(&SETTING.good, bytes), "a good certificate is asked for its key");
});

svid_fuzz::seeds!("x509pop": "ecdsa", "payload", "rsa");
