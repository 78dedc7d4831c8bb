//! The agent's half.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P521_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PSS_SHA256,
    RsaKeyPair,
};
use svid_core::hcl::Reader;
use svid_core::pem::{parse_certs_pem, parse_key_pem};
use svid_plugin_api::{AgentNodeAttestor, AttestSession, PluginCode, PluginError};
use zeroize::Zeroizing;

use crate::wire::{AttestationData, Bytes, Challenge, EcdsaProof, Nonce, Response, RsaProof, to_json};
use crate::{NAME, proof};

/// Where the node's certificate is. Field names are SPIRE's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// The key in PEM.
    pub private_key_path: PathBuf,
    /// The certificate in PEM, perhaps with intermediates behind it.
    pub certificate_path: PathBuf,
    /// Further intermediates in PEM.
    pub intermediates_path: Option<PathBuf>,
}

impl AgentConfig {
    /// Reads the plugin's section. `None` only together with a recorded mistake.
    pub fn read(r: &mut Reader) -> Option<Self> {
        if r.string("spiffe_endpoint_socket").is_some_and(|socket| !socket.is_empty()) {
            r.error("spiffe_endpoint_socket", "is not built; use private_key_path and certificate_path");
            return None;
        }
        let required = |key: &str, r: &mut Reader| {
            let path = r.string(key).filter(|path| !path.is_empty()).map(PathBuf::from);
            if path.is_none() {
                r.error(key, format!("{key} is required"));
            }
            path
        };
        let private_key_path = required("private_key_path", r);
        let certificate_path = required("certificate_path", r);
        let intermediates_path =
            r.string("intermediates_path").filter(|path| !path.is_empty()).map(PathBuf::from);
        Some(Self {
            private_key_path: private_key_path?,
            certificate_path: certificate_path?,
            intermediates_path,
        })
    }
}

/// The agent's half of x509pop. Files are read anew for each attestation, so that they can be replaced.
#[derive(Clone, Debug)]
pub struct X509PopAgent(AgentConfig);

impl X509PopAgent {
    /// An attestor over these files.
    pub fn new(config: AgentConfig) -> Self {
        Self(config)
    }
}

fn read(path: &Path, what: &str) -> Result<Zeroizing<Vec<u8>>, PluginError> {
    let unable = |error| {
        let text = format!("unable to load {what} {:?}: {error}", path.display());
        PluginError::new(PluginCode::FailedPrecondition, text)
    };
    std::fs::read(path).map(Zeroizing::new).map_err(unable)
}

fn certs(path: &Path, what: &str) -> Result<Vec<Vec<u8>>, PluginError> {
    let unable = |error| {
        let text = format!("unable to load {what} {:?}: {error}", path.display());
        PluginError::new(PluginCode::FailedPrecondition, text)
    };
    parse_certs_pem(read(path, what)?.as_slice()).map_err(unable)
}

/// A key that can answer a challenge.
enum Key {
    Ecdsa(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

fn key(path: &Path) -> Result<Key, PluginError> {
    let unable = |why: &str| {
        let text = format!("unable to load private key {:?}: {why}", path.display());
        PluginError::new(PluginCode::FailedPrecondition, text)
    };
    let text = read(path, "private key")?;
    let pkcs8 = parse_key_pem(text.as_slice()).map_err(|error| unable(&error.to_string()))?;
    let der = pkcs8.secret_bytes();
    let ecdsa = [&ECDSA_P256_SHA256_FIXED_SIGNING, &ECDSA_P521_SHA256_FIXED_SIGNING];
    if let Some(pair) = ecdsa.into_iter().find_map(|algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).ok())
    {
        return Ok(Key::Ecdsa(pair));
    }
    let rsa = RsaKeyPair::from_pkcs8(der);
    rsa.map(Key::Rsa)
        .map_err(|_| unable("not an ECDSA key on P-256 or P-521, nor an RSA key of 2048 to 8192 bits"))
}

#[async_trait]
impl AgentNodeAttestor for X509PopAgent {
    fn name(&self) -> &str {
        NAME
    }

    async fn begin(&self) -> Result<Box<dyn AttestSession>, PluginError> {
        let config = &self.0;
        let mut chain = certs(&config.certificate_path, "certificate")?;
        if let Some(path) = &config.intermediates_path {
            chain.extend(certs(path, "intermediate certificates")?);
        }
        let data = AttestationData { certificates: Some(chain.into_iter().map(Bytes).collect()) };
        let session = Session { payload: to_json(&data)?, key: Arc::new(key(&config.private_key_path)?) };
        Ok(Box::new(session))
    }
}

struct Session {
    payload: Vec<u8>,
    key: Arc<Key>,
}

fn sign_failed<E>(_: E) -> PluginError {
    PluginError::internal("signing the challenge failed")
}

fn message(asked: &Nonce, own: &Bytes) -> Result<Vec<u8>, PluginError> {
    proof::combined(&asked.nonce, own).map_err(PluginError::invalid)
}

impl Key {
    fn answer(&self, challenge: &Challenge) -> Result<Response, PluginError> {
        let random = SystemRandom::new();
        let nonce = proof::nonce()?;
        match self {
            Self::Ecdsa(pair) => {
                let asked = challenge
                    .ecdsa_signature
                    .as_ref()
                    .ok_or_else(|| PluginError::invalid("expecting ECDSA challenge"))?;
                let signature = pair.sign(&random, &message(asked, &nonce)?).map_err(sign_failed)?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                let proof = EcdsaProof { nonce, r: Bytes(r.to_vec()), s: Bytes(s.to_vec()) };
                Ok(Response { ecdsa_signature: Some(proof), rsa_signature: None })
            }
            Self::Rsa(pair) => {
                let asked = challenge
                    .rsa_signature
                    .as_ref()
                    .ok_or_else(|| PluginError::invalid("expecting RSA challenge"))?;
                let mut signature = vec![0; pair.public_modulus_len()];
                let signed = pair.sign(&RSA_PSS_SHA256, &random, &message(asked, &nonce)?, &mut signature);
                signed.map_err(sign_failed)?;
                let proof = RsaProof { nonce, signature: Bytes(signature) };
                Ok(Response { rsa_signature: Some(proof), ecdsa_signature: None })
            }
        }
    }
}

#[async_trait]
impl AttestSession for Session {
    fn payload(&self) -> &[u8] {
        &self.payload
    }

    async fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, PluginError> {
        let challenge: Challenge = serde_json::from_slice(challenge)
            .map_err(|error| PluginError::invalid(format!("unable to unmarshal challenge: {error}")))?;
        to_json(&self.key.answer(&challenge)?)
    }
}
