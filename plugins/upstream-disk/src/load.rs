//! Reading the files, and the checks that they belong together.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use svid_core::bundle::X509Authority;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::pem::{MAX_PEM_BYTES, parse_certs_pem, parse_key_pem};
use svid_core::x509::{Authority, LeafTemplate, ParsedCert, PublicKey, Roots, Subject, verify};
use svid_plugin_api::PluginError;
use zeroize::Zeroizing;

use crate::DiskConfig;

/// The upstream CA, proved to lead to its roots.
pub(crate) struct Loaded {
    pub(crate) ca_cert: Vec<u8>,
    pub(crate) signer: Arc<dyn Signer>,
    /// From the CA's own certificate up to, and without, the root. Empty when the CA is itself a root.
    pub(crate) intermediates: Vec<Vec<u8>>,
    pub(crate) roots: Arc<[X509Authority]>,
}

pub(crate) fn load(
    config: &DiskConfig,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Loaded, PluginError> {
    let signer = read_key(&config.key_file_path)
        .map_err(|error| PluginError::invalid(format!("unable to load upstream CA key: {error}")))?;
    let certs = read_certs(&config.cert_file_path)
        .map_err(|error| PluginError::invalid(format!("unable to load upstream CA cert: {error}")))?;
    let roots = match &config.bundle_file_path {
        Some(path) => read_certs(path)
            .map_err(|error| PluginError::invalid(format!("unable to load upstream CA bundle: {error}")))?,
        None if certs.len() == 1 && is_self_issued(&certs[0]) => certs.clone(),
        None => {
            return Err(PluginError::invalid(
                "with no bundle_file_path configured only self-signed CAs are supported",
            ));
        }
    };
    let ca_cert = certs[0].clone();
    check_ca(&ca_cert, &*signer)?;
    let intermediates: Vec<_> = certs.into_iter().filter(|cert| !roots.contains(cert)).collect();
    prove(trust_domain, &ca_cert, &intermediates, &roots, signer.clone(), now)?;
    let roots = roots.iter().map(|der| X509Authority::from_der(der)).collect::<Result<_, _>>();
    let roots = roots.map_err(|error| refuse(&error.to_string()))?;
    Ok(Loaded { ca_cert, signer, intermediates, roots })
}

/// A root names itself as its issuer; verifiers look no further than that at their anchors either.
fn is_self_issued(cert: &[u8]) -> bool {
    ParsedCert::from_der(cert).is_ok_and(|cert| cert.subject_der() == cert.issuer_der())
}

fn refuse(rule: &str) -> PluginError {
    PluginError::invalid(format!("unable to load upstream CA: {rule}"))
}

fn check_ca(ca_cert: &[u8], signer: &dyn Signer) -> Result<(), PluginError> {
    let cert = ParsedCert::from_der(ca_cert).map_err(|error| refuse(&error.to_string()))?;
    if cert.public_key_der() != signer.public_key_der() {
        return Err(refuse("certificate and private key do not match"));
    }
    if !cert.is_ca() {
        return Err(refuse("certificate is not a CA"));
    }
    Ok(())
}

/// Signs an SVID that nobody gets, and verifies it to the roots as peers will.
fn prove(
    trust_domain: &TrustDomain,
    ca_cert: &[u8],
    intermediates: &[Vec<u8>],
    roots: &[Vec<u8>],
    signer: Arc<dyn Signer>,
    now: SystemTime,
) -> Result<(), PluginError> {
    let words = |error: &dyn std::error::Error| refuse(&error.to_string());
    let authority = Authority::new(ca_cert, intermediates.to_vec(), signer).map_err(|error| words(&error))?;
    let key = LocalKey::generate(KeyType::EcP256).map_err(|error| words(&error))?;
    let template = LeafTemplate {
        id: SpiffeId::from_parts(trust_domain.as_str(), "/spire/throwaway").map_err(|error| words(&error))?,
        public_key: PublicKey::of(&key).map_err(|error| words(&error))?,
        ttl: Duration::from_secs(60),
        dns_names: Vec::new(),
        subject: Subject::Spire,
        not_after_limit: None,
    };
    let svid = authority
        .prepare(template, now)
        .and_then(|prepared| prepared.sign())
        .map_err(|error| words(&error))?;
    let roots = Roots::for_trust_domain(trust_domain, roots).map_err(|error| words(&error))?;
    let chain: Vec<&[u8]> = svid.chain().iter().collect();
    verify(&chain, &roots, now).map(drop).map_err(|error| {
        refuse(&format!(
            "certificate cannot be validated with the provided bundle or is not self-signed: {error}"
        ))
    })
}

fn read_certs(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = read(path)?;
    parse_certs_pem(&*text).map_err(|error| format!("{}: {error}", path.display()))
}

fn read_key(path: &Path) -> Result<Arc<dyn Signer>, String> {
    let text = read(path)?;
    let key = parse_key_pem(&*text).map_err(|error| format!("{}: {error}", path.display()))?;
    let key = LocalKey::from_pkcs8(key).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(key.into_signer())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let words = |error: io::Error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(words)?;
    let length = file.metadata().map_err(words)?.len();
    if length > MAX_PEM_BYTES as u64 {
        return Err(format!("{}: larger than {MAX_PEM_BYTES} bytes", path.display()));
    }
    // Reserved in full, so that growing leaves no copies of a key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(length as usize + 1));
    file.take(MAX_PEM_BYTES as u64).read_to_end(&mut text).map_err(words)?;
    Ok(text)
}
