//! PEM files: certificates and private keys. Strict about what a block holds, relaxed about text around blocks.

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::KeyPair as RsaKeyPair;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pem::{EncodeConfig, LineEnding, Pem, encode_config};
use zeroize::Zeroizing;

use crate::key::PrivateKeyDer;
use crate::x509::cert::{CertError, ParsedCert};

/// Largest PEM text we read, in bytes.
pub const MAX_PEM_BYTES: usize = 4 * 1024 * 1024;
const CERTIFICATE: &str = "CERTIFICATE";

/// Why a PEM text was not accepted. Never holds key bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// More bytes than [`MAX_PEM_BYTES`].
    #[error("PEM data is too large")]
    TooLarge,
    /// Not PEM.
    #[error("malformed PEM data")]
    Malformed,
    /// No block of the wanted kind.
    #[error("no PEM blocks")]
    Empty,
    /// A block of another kind.
    #[error("expected block type {want:?}; got {got:?}")]
    Kind {
        /// What was wanted.
        want: &'static str,
        /// What was there.
        got: String,
    },
    /// A block holds no certificate.
    #[error("invalid certificate in PEM block: {0}")]
    Cert(#[from] CertError),
    /// A block holds no private key of a type we use.
    #[error("not a private key of type ECDSA P-256, ECDSA P-384 or RSA")]
    Key,
}

fn blocks(text: &[u8]) -> Result<Vec<Pem>, PemError> {
    if text.len() > MAX_PEM_BYTES {
        return Err(PemError::TooLarge);
    }
    pem::parse_many(text).map_err(|_| PemError::Malformed)
}

/// Reads the certificates of a PEM text, at least one, and checks that each parses.
/// # Errors
/// [`PemError`], also for blocks of other kinds.
pub fn parse_certs_pem(text: impl AsRef<[u8]>) -> Result<Vec<Vec<u8>>, PemError> {
    let certs = blocks(text.as_ref())?.into_iter().map(|block| match block.tag() {
        CERTIFICATE => {
            ParsedCert::from_der(block.contents())?;
            Ok(block.into_contents())
        }
        other => Err(PemError::Kind { want: CERTIFICATE, got: other.to_owned() }),
    });
    let certs = certs.collect::<Result<Vec<_>, _>>()?;
    if certs.is_empty() { Err(PemError::Empty) } else { Ok(certs) }
}

/// Certificates in DER as PEM blocks.
pub fn certs_to_pem<C: AsRef<[u8]>>(ders: impl IntoIterator<Item = C>) -> String {
    let encode = |der: C| block_to_pem(CERTIFICATE, der.as_ref());
    ders.into_iter().map(encode).collect()
}

/// Any DER as a PEM block with this label, such as `CERTIFICATE REQUEST`.
pub fn block_to_pem(label: &str, der: &[u8]) -> String {
    encode_config(&Pem::new(label, der), EncodeConfig::new().set_line_ending(LineEnding::LF))
}

/// The one block of a PEM text that has this label.
/// # Errors
/// [`PemError::Empty`] if there is none.
pub fn parse_block_pem(text: impl AsRef<[u8]>, label: &'static str) -> Result<Vec<u8>, PemError> {
    let block = blocks(text.as_ref())?.into_iter().find(|block| block.tag() == label);
    block.map(Pem::into_contents).ok_or(PemError::Empty)
}

/// A private key as a PKCS#8 PEM block, wiped on drop. Written by hand, so that no copy in between stays behind.
pub fn key_to_pem(key: &PrivateKeyDer) -> Zeroizing<String> {
    const LINE_CHARS: usize = 64;
    let body = Zeroizing::new(STANDARD.encode(key.secret_bytes()));
    let mut rest: &str = &body;
    let mut text = Zeroizing::new(String::with_capacity(rest.len() + rest.len() / LINE_CHARS + 64));
    text.push_str("-----BEGIN PRIVATE KEY-----\n");
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE_CHARS));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END PRIVATE KEY-----\n");
    text
}

/// Reads the first private key of a PEM text: PKCS#8, PKCS#1 (RSA) or SEC1 (EC). Given back as PKCS#8.
/// # Errors
/// [`PemError`]; encrypted keys are [`PemError::Kind`].
pub fn parse_key_pem(text: impl AsRef<[u8]>) -> Result<PrivateKeyDer, PemError> {
    // EC PARAMETERS stand before a key in what `openssl ecparam -genkey` writes.
    let is_key = |block: &Pem| block.tag() != "EC PARAMETERS" && block.tag() != CERTIFICATE;
    let block = blocks(text.as_ref())?.into_iter().find(is_key).ok_or(PemError::Empty)?;
    let kind = block.tag().to_owned();
    let der = Zeroizing::new(block.into_contents());
    let pkcs8 = match kind.as_str() {
        "PRIVATE KEY" => der.to_vec(),
        "RSA PRIVATE KEY" => rsa_to_pkcs8(&der).ok_or(PemError::Key)?,
        "EC PRIVATE KEY" => ec_to_pkcs8(&der).ok_or(PemError::Key)?,
        _ => return Err(PemError::Kind { want: "PRIVATE KEY", got: kind }),
    };
    Ok(PrivateKeyDer::from_pkcs8(pkcs8))
}

fn rsa_to_pkcs8(der: &[u8]) -> Option<Vec<u8>> {
    let key = RsaKeyPair::from_der(der).ok()?;
    let pkcs8: Pkcs8V1Der<'_> = key.as_der().ok()?;
    Some(pkcs8.as_ref().to_vec())
}

fn ec_to_pkcs8(der: &[u8]) -> Option<Vec<u8>> {
    [&ECDSA_P256_SHA256_ASN1_SIGNING, &ECDSA_P384_SHA384_ASN1_SIGNING].into_iter().find_map(|alg| {
        let key = EcdsaKeyPair::from_private_key_der(alg, der).ok()?;
        Some(key.to_pkcs8v1().ok()?.as_ref().to_vec())
    })
}
