#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use svid_core::id::TrustDomain;

use super::*;

pub(crate) struct TestCa(CertifiedIssuer<'static, KeyPair>);

impl TestCa {
    pub(crate) fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn issue(&self, ids: &[&str]) -> Identity {
        self.issue_with(ids, |_| ())
    }

    fn issue_with(&self, ids: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = ids.iter().map(|id| uri(id)).collect();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let cert = params.signed_by(&key, &self.0).unwrap();
        Identity::from_pkcs8([cert.der().as_ref()], &key.serialize_der()).unwrap()
    }

    pub(crate) fn bundles(&self, trust_domain: &'static str) -> Arc<dyn BundleSource> {
        let roots = Arc::new(Roots::from_ders([self.0.der().as_ref()]).unwrap());
        Arc::new(move |asked: &TrustDomain| (asked.as_str() == trust_domain).then(|| Arc::clone(&roots)))
    }
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// A subject alternative name with an ID and a URI that is no text.
fn odd_san(id: &str) -> rcgen::CustomExtension {
    let mut names = vec![0x86, 2, 0xff, 0xfe, 0x86, u8::try_from(id.len()).unwrap()];
    names.extend(id.as_bytes());
    let mut content = vec![0x30, u8::try_from(names.len()).unwrap()];
    content.extend(names);
    rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], content)
}

pub(crate) fn td(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

/// Runs a handshake in memory; the error of whichever side refuses.
pub(crate) fn handshake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> Result<ServerConnection, rustls::Error> {
    let mut client = ClientConnection::new(client, ServerName::try_from("x").unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    for _ in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut input = wire.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!server.is_handshaking() && !client.is_handshaking());
    Ok(server)
}

fn server_of(ca: &TestCa, identity: &Identity, policy: TlsPolicy) -> Arc<ServerConfig> {
    let verifier = SpiffeClientVerifier::new(
        td("a.test"),
        ["spiffe://b.test/admin".parse().unwrap()],
        ca.bundles("a.test"),
    );
    server_config(identity, Arc::new(verifier), policy).unwrap()
}

fn client_of(trust: ServerTrust, identity: Option<&Identity>, policy: TlsPolicy) -> Arc<ClientConfig> {
    client_config(identity, Arc::new(SpiffeServerVerifier::new(td("a.test"), trust)), policy).unwrap()
}

/// Conformance: X509-SVID sections 2, 4.1 to 4.4 and 5.2.
#[test]
fn who_may_connect() {
    let (ca, other) = (TestCa::new("a.test"), TestCa::new("a.test"));
    let server = server_of(&ca, &ca.issue(&["spiffe://a.test/spire/server"]), TlsPolicy::default());
    let trust = || ServerTrust::Bundle(ca.bundles("a.test"));
    let check = |identity: Option<Identity>, refused: Option<&str>| {
        let client = client_of(trust(), identity.as_ref(), TlsPolicy::default());
        let got = handshake(client, Arc::clone(&server)).map(|_| ()).map_err(|error| error.to_string());
        match (refused, got) {
            (None, Ok(())) => {}
            (Some(words), Err(error)) => assert!(error.contains(words), "{error}"),
            (refused, got) => panic!("{refused:?} {got:?}"),
        }
    };
    let agent = "spiffe://a.test/spire/agent/x";
    check(None, None);
    check(Some(ca.issue(&[agent])), None);
    check(Some(other.issue(&[agent])), Some("UnknownIssuer"));
    check(Some(ca.issue(&[agent, "spiffe://a.test/b"])), Some("UriSans(2)"));
    check(Some(ca.issue(&[])), Some("UriSans(0)"));
    check(Some(ca.issue(&["https://a.test/b"])), Some("Id("));
    let long_serial = |params: &mut CertificateParams| {
        params.serial_number = Some(rcgen::SerialNumber::from(vec![1; 22]));
    };
    check(Some(ca.issue_with(&[agent], long_serial)), Some("serial number is too long"));
    let odd_uri = |params: &mut CertificateParams| {
        params.custom_extensions.push(odd_san(agent));
        params.subject_alt_names.clear();
    };
    check(Some(ca.issue_with(&[agent], odd_uri)), Some("UriSans(2)"));
    // A foreign admin needs the bundle of its own trust domain, and our CA cannot speak for it.
    check(Some(ca.issue(&["spiffe://b.test/admin"])), Some("NoBundle"));
    check(Some(ca.issue(&["spiffe://b.test/other"])), Some("UnexpectedId"));
    let as_ca = |params: &mut CertificateParams| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    check(Some(ca.issue_with(&[agent], as_ca)), Some("CaLeaf"));
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    check(Some(ca.issue_with(&[agent], expired)), Some("Chain("));
    let server_only = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
    };
    check(Some(ca.issue_with(&[agent], server_only)), Some("Chain("));
}

#[test]
fn who_may_serve() {
    let (ca, other) = (TestCa::new("a.test"), TestCa::new("a.test"));
    let refusal = |issuer: &TestCa, id: &str, trust: ServerTrust| {
        let server = server_of(&ca, &issuer.issue(&[id]), TlsPolicy::default());
        handshake(client_of(trust, None, TlsPolicy::default()), server).err()
    };
    let trust = || ServerTrust::Bundle(ca.bundles("a.test"));
    let server = "spiffe://a.test/spire/server";
    assert_eq!(refusal(&ca, server, trust()), None);
    let unknown = refusal(&other, server, trust()).unwrap();
    assert!(is_unknown_authority(&unknown), "{unknown}");
    assert!(is_unknown_authority(&std::io::Error::other(unknown)));
    for id in ["spiffe://a.test/web", "spiffe://b.test/spire/server"] {
        for trust in [trust(), ServerTrust::InsecureBootstrap] {
            let error = refusal(&ca, id, trust).unwrap();
            assert!(error.to_string().contains("UnexpectedId") && !is_unknown_authority(&error), "{error}");
        }
    }
    assert_eq!(refusal(&other, server, ServerTrust::InsecureBootstrap), None);
    let nothing: Arc<dyn BundleSource> = Arc::new(|_: &TrustDomain| None);
    assert!(refusal(&ca, server, ServerTrust::Bundle(nothing)).unwrap().to_string().contains("NoBundle"));
}

/// Conformance: X509-SVID sections 4.2 and 4.3, of the certificates that sign.
#[test]
fn only_signing_certificates_vouch() {
    let ca = TestCa::new("a.test");
    let agent = "spiffe://a.test/spire/agent/x";
    let connects = |usage: rcgen::KeyUsagePurpose| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![usage];
        params.distinguished_name.push(rcgen::DnType::CommonName, "below");
        let below = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &ca.0).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(agent)];
        let leaf = params.signed_by(&key, &below).unwrap();
        let chain = [leaf.der().as_ref(), below.der().as_ref()];
        let identity = Identity::from_pkcs8(chain, &key.serialize_der()).unwrap();
        let server = server_of(&ca, &ca.issue(&["spiffe://a.test/spire/server"]), TlsPolicy::default());
        let trust = ServerTrust::Bundle(ca.bundles("a.test"));
        handshake(client_of(trust, Some(&identity), TlsPolicy::default()), server).is_ok()
    };
    assert!(connects(rcgen::KeyUsagePurpose::KeyCertSign));
    assert!(!connects(rcgen::KeyUsagePurpose::DigitalSignature));
    let leaf = ca.issue(&[agent]);
    assert!(matches!(Roots::from_ders([leaf.0.cert[0].as_ref()]), Err(TlsError::NoAuthority)));
}

#[test]
fn another_key_does_not_fit() {
    let ca = TestCa::new("a.test");
    let (one, two) = (ca.issue(&["spiffe://a.test/x"]), KeyPair::generate().unwrap());
    let leaf = one.0.cert[0].as_ref();
    assert!(matches!(Identity::from_pkcs8([leaf], &two.serialize_der()), Err(TlsError::Config(_))));
}

#[test]
fn post_quantum_policy() {
    let ca = TestCa::new("a.test");
    let identity = ca.issue(&["spiffe://a.test/spire/server"]);
    let strict = TlsPolicy { require_pq_kem: true };
    let trust = || ServerTrust::Bundle(ca.bundles("a.test"));
    for (client, server) in [(strict, strict), (TlsPolicy::default(), strict), (strict, TlsPolicy::default())]
    {
        let conn = handshake(client_of(trust(), None, client), server_of(&ca, &identity, server)).unwrap();
        let group = conn.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(conn.alpn_protocol(), Some(b"h2".as_slice()));
    }
    let mut plain = rustls::crypto::aws_lc_rs::default_provider();
    plain.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let verifier = Arc::new(SpiffeServerVerifier::new(td("a.test"), trust()));
    let client =
        ClientConfig::builder_with_provider(Arc::new(plain)).with_safe_default_protocol_versions().unwrap();
    let client = client.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    assert!(handshake(Arc::new(client), server_of(&ca, &identity, strict)).is_err());
}
