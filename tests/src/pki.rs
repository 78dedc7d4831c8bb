//! Throw-away certificate authorities for scenarios.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};

/// A CA of the scenario's own.
pub struct TestCa(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub struct TestCert {
    /// The certificate in PEM.
    pub cert_pem: String,
    /// The certificate in DER.
    pub cert_der: Vec<u8>,
    /// The key in PEM.
    pub key_pem: String,
    /// The key in PKCS#8 DER.
    pub key_der: Vec<u8>,
}

impl TestCert {
    /// As what a TLS client shows.
    pub fn client(&self) -> crate::client::ClientCert {
        crate::client::ClientCert { chain: vec![self.cert_der.clone()], key: self.key_der.clone() }
    }
}

impl TestCa {
    /// A CA with this common name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("sign"))
    }

    /// The CA's certificate in PEM.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The CA's certificate in DER.
    pub fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// The CA's key in PEM.
    pub fn key_pem(&self) -> String {
        self.0.key().serialize_pem()
    }

    /// A leaf with this common name and these URI names.
    pub fn leaf(&self, name: &str, uris: &[&str]) -> TestCert {
        self.signed(name, uris, |_| {})
    }

    /// A certificate for a server with these DNS names or IP addresses.
    pub fn server(&self, names: &[&str]) -> TestCert {
        let name = |name: &&str| match name.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().expect("ascii")),
        };
        self.signed("server", &[], |params| params.subject_alt_names = names.iter().map(name).collect())
    }

    /// As [`TestCa::leaf`], over since 2020.
    pub fn expired_leaf(&self, name: &str, uris: &[&str]) -> TestCert {
        self.signed(name, uris, |params| {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        })
    }

    fn signed(&self, name: &str, uris: &[&str], change: impl FnOnce(&mut CertificateParams)) -> TestCert {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ascii"))).collect();
        change(&mut params);
        let key = KeyPair::generate().expect("key");
        let cert = params.signed_by(&key, &self.0).expect("sign");
        TestCert {
            cert_pem: cert.pem(),
            cert_der: cert.der().to_vec(),
            key_pem: key.serialize_pem(),
            key_der: key.serialize_der(),
        }
    }
}
