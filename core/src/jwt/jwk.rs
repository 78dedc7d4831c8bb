//! JSON Web Keys, to and from SubjectPublicKeyInfo.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde::{Deserialize, Serialize};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey as ParsedKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Largest modulus we take, in bytes: aws-lc verifies up to 8192 bits.
const MAX_MODULUS_BYTES: usize = 1024;
const MIN_MODULUS_BYTES: usize = 256;

/// Why a key is not one we can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwkError {
    /// The kind of key or curve is not known: such keys are skipped.
    #[error("unknown kind of key")]
    Unknown,
    /// A member is missing or malformed.
    #[error("malformed key")]
    Malformed,
    /// A private key was published.
    #[error("key has private members")]
    Private,
}

/// One key. Members stand in the order in which SPIRE writes them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Jwk {
    #[serde(rename = "use", skip_serializing_if = "Option::is_none", default)]
    pub(crate) usage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) kty: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) e: Option<String>,
    /// Only its presence is of interest.
    #[serde(skip_serializing, default)]
    pub(crate) d: Option<serde::de::IgnoredAny>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) x5c: Option<Vec<String>>,
}

/// Plain JWKS.
#[derive(Serialize)]
pub(crate) struct KeySet {
    pub(crate) keys: Vec<Jwk>,
}

/// JSON as Go's `MarshalIndent` with four spaces writes it.
pub(crate) fn to_indented_json(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, format);
    value.serialize(&mut serializer).expect("strings and numbers always serialise");
    String::from_utf8(out).expect("serde_json writes UTF-8")
}

struct Curve {
    name: &'static str,
    /// The AlgorithmIdentifier and BIT STRING headers up to and with the point's 0x04.
    prefix: &'static [u8],
    coordinate_bytes: usize,
}

const CURVES: [Curve; 3] = [
    Curve {
        name: "P-256",
        prefix: &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
            0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
        ],
        coordinate_bytes: 32,
    },
    Curve {
        name: "P-384",
        prefix: &[
            0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
            0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04,
        ],
        coordinate_bytes: 48,
    },
    Curve {
        name: "P-521",
        prefix: &[
            0x30, 0x81, 0x9b, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05,
            0x2b, 0x81, 0x04, 0x00, 0x23, 0x03, 0x81, 0x86, 0x00, 0x04,
        ],
        coordinate_bytes: 66,
    },
];

/// A public key as JWK: EC on the three NIST curves, or RSA.
pub(crate) fn spki_to_jwk(spki: &[u8]) -> Result<Jwk, JwkError> {
    for curve in &CURVES {
        let Some(point) = spki.strip_prefix(curve.prefix) else { continue };
        if point.len() != 2 * curve.coordinate_bytes {
            return Err(JwkError::Malformed);
        }
        let (x, y) = point.split_at(curve.coordinate_bytes);
        return Ok(Jwk {
            kty: Some("EC".into()),
            crv: Some(curve.name.into()),
            x: Some(B64.encode(x)),
            y: Some(B64.encode(y)),
            ..Jwk::default()
        });
    }
    let (_, info) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| JwkError::Malformed)?;
    let Ok(ParsedKey::RSA(key)) = info.parsed() else { return Err(JwkError::Unknown) };
    let digits = |bytes: &[u8]| B64.encode(without_leading_zeros(bytes));
    Ok(Jwk {
        kty: Some("RSA".into()),
        n: Some(digits(key.modulus)),
        e: Some(digits(key.exponent)),
        ..Jwk::default()
    })
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    let skip = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[skip..]
}

impl Jwk {
    /// The key as SubjectPublicKeyInfo.
    pub(crate) fn to_spki(&self) -> Result<Vec<u8>, JwkError> {
        if self.d.is_some() {
            return Err(JwkError::Private);
        }
        match self.kty.as_deref() {
            Some("EC") => self.ec_to_spki(),
            Some("RSA") => self.rsa_to_spki(),
            _ => Err(JwkError::Unknown),
        }
    }

    fn ec_to_spki(&self) -> Result<Vec<u8>, JwkError> {
        let name = self.crv.as_deref().ok_or(JwkError::Malformed)?;
        let curve = CURVES.iter().find(|curve| curve.name == name).ok_or(JwkError::Unknown)?;
        let mut spki = curve.prefix.to_vec();
        for coordinate in [&self.x, &self.y] {
            let bytes = decode(coordinate.as_deref())?;
            if bytes.len() != curve.coordinate_bytes {
                return Err(JwkError::Malformed);
            }
            spki.extend(bytes);
        }
        check_point(curve, &spki[curve.prefix.len() - 1..])?;
        Ok(spki)
    }

    fn rsa_to_spki(&self) -> Result<Vec<u8>, JwkError> {
        const MAX_EXPONENT_BYTES: usize = 4;
        let (n, e) = (decode(self.n.as_deref())?, decode(self.e.as_deref())?);
        let (n, e) = (without_leading_zeros(&n), without_leading_zeros(&e));
        let sizes_ok = (MIN_MODULUS_BYTES..=MAX_MODULUS_BYTES).contains(&n.len())
            && (1..=MAX_EXPONENT_BYTES).contains(&e.len());
        if !sizes_ok || n[n.len() - 1] & 1 == 0 || e[e.len() - 1] & 1 == 0 {
            return Err(JwkError::Malformed);
        }
        Ok(crate::x509::rsa_spki(n, e))
    }
}

fn check_point(curve: &Curve, point: &[u8]) -> Result<(), JwkError> {
    use aws_lc_rs::signature as sig;
    let alg: &dyn sig::VerificationAlgorithm = match curve.coordinate_bytes {
        32 => &sig::ECDSA_P256_SHA256_FIXED,
        48 => &sig::ECDSA_P384_SHA384_FIXED,
        _ => &sig::ECDSA_P521_SHA512_FIXED,
    };
    sig::ParsedPublicKey::new(alg, point).map(|_| ()).map_err(|_| JwkError::Malformed)
}

fn decode(text: Option<&str>) -> Result<Vec<u8>, JwkError> {
    let text = text.ok_or(JwkError::Malformed)?;
    if text.len() > 2 * MAX_MODULUS_BYTES {
        return Err(JwkError::Malformed);
    }
    B64.decode(text).map_err(|_| JwkError::Malformed)
}
