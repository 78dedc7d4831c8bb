//! Validation of JWT-SVIDs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::signature::{self as sig, UnparsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::JwtError;
use crate::bundle::Bundle;
use crate::id::{SpiffeId, TrustDomain};

/// Longest token we look at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// The end of the year 9999 in Unix seconds.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// Where the JWT keys of trust domains are found.
pub trait JwtKeySource {
    /// The bundle of a trust domain, if the caller may use it.
    fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>>;
}

impl JwtKeySource for HashMap<TrustDomain, Arc<Bundle>> {
    fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.get(trust_domain).cloned()
    }
}

/// Copies the bundle at each look-up: for tools and tests. Servers keep an `Arc`.
impl JwtKeySource for Bundle {
    fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        (*trust_domain == self.trust_domain).then(|| Arc::new(self.clone()))
    }
}

impl JwtKeySource for Arc<Bundle> {
    fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        (*trust_domain == self.trust_domain).then(|| self.clone())
    }
}

/// The algorithms of SPIFFE's list (JWT-SVID, 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Es256,
    Es384,
    Es512,
    Ps256,
    Ps384,
    Ps512,
}

impl Algorithm {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "ES512" => Self::Es512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            _ => return None,
        })
    }

    fn verifier(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Rs256 => &sig::RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &sig::RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &sig::RSA_PKCS1_2048_8192_SHA512,
            Self::Es256 => &sig::ECDSA_P256_SHA256_FIXED,
            Self::Es384 => &sig::ECDSA_P384_SHA384_FIXED,
            Self::Es512 => &sig::ECDSA_P521_SHA512_FIXED,
            Self::Ps256 => &sig::RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &sig::RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &sig::RSA_PSS_2048_8192_SHA512,
        }
    }

    /// Whether the key is of the algorithm's kind: the verifier alone would read the bits of one kind as another.
    fn fits(self, key: &SubjectPublicKeyInfo<'_>) -> bool {
        let curve = key.algorithm.parameters.as_ref().map(|parameters| parameters.data);
        match key.algorithm.algorithm.to_id_string().as_str() {
            RSA_ENCRYPTION => !matches!(self, Self::Es256 | Self::Es384 | Self::Es512),
            EC_PUBLIC_KEY => match self {
                Self::Es256 => curve == Some(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07]),
                Self::Es384 => curve == Some(&[0x2b, 0x81, 0x04, 0x00, 0x22]),
                Self::Es512 => curve == Some(&[0x2b, 0x81, 0x04, 0x00, 0x23]),
                _ => false,
            },
            _ => false,
        }
    }
}

const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";

/// A token whose shape was read and whose signature was not: nothing in it is proved.
#[derive(Clone)]
pub struct ParsedJwt {
    algorithm: Algorithm,
    key_id: String,
    id: SpiffeId,
    audience: Vec<String>,
    expires_at: f64,
    claims: Map<String, Value>,
    /// Header, dot and claims as they were signed.
    signed: String,
    signature: Vec<u8>,
}

impl std::fmt::Debug for ParsedJwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParsedJwt")
            .field("id", &self.id)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

impl ParsedJwt {
    /// Reads a token in compact form and checks everything that needs no key and no clock.
    /// # Errors
    /// [`JwtError`].
    pub fn parse(token: &str) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed("not a compact JWS"))?;
        let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed("not a compact JWS"))?;
        if claims.contains('.') {
            return Err(JwtError::Malformed("not a compact JWS"));
        }
        let (algorithm, key_id) = read_header(&object(header, "header is not a JSON object")?)?;
        let claims = object(claims, "claims are not a JSON object")?;
        let signature =
            B64.decode(signature).map_err(|_| JwtError::Malformed("signature is not base64url"))?;
        let id = read_subject(&claims)?;
        let expires_at = read_date(&claims, "exp")?.ok_or(JwtError::ExpiryMissing)?;
        let audience = read_audience(&claims)?;
        Ok(Self { algorithm, key_id, id, audience, expires_at, claims, signed: signed.to_owned(), signature })
    }

    /// Whose token it claims to be.
    pub fn unverified_id(&self) -> &SpiffeId {
        &self.id
    }

    /// The `kid` it names.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The audiences it claims.
    pub fn audience(&self) -> &[String] {
        &self.audience
    }

    /// The claims, unverified.
    pub fn unverified_claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// `iat` and `exp` as they claim to be; `iat` is 1970 where there is none.
    pub fn unverified_life(&self) -> crate::rotation::Life {
        let at = |seconds: f64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds as u64) // `as` makes 0 of negative numbers
        };
        let issued = read_date(&self.claims, "iat").ok().flatten().unwrap_or(0.0);
        crate::rotation::Life { not_before: at(issued), not_after: at(self.expires_at) }
    }

    fn verify_signature(&self, spki: &[u8]) -> Result<(), JwtError> {
        let (_, key) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| JwtError::Signature)?;
        if !self.algorithm.fits(&key) {
            return Err(JwtError::Signature);
        }
        UnparsedPublicKey::new(self.algorithm.verifier(), &key.subject_public_key.data)
            .verify(self.signed.as_bytes(), &self.signature)
            .map_err(|_| JwtError::Signature)
    }
}

/// A token that was proved. Only [`validate`] makes one.
#[derive(Clone, Debug)]
pub struct ValidatedJwt {
    id: SpiffeId,
    claims: Map<String, Value>,
}

impl ValidatedJwt {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Every claim.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// Takes the claims out.
    pub fn into_claims(self) -> Map<String, Value> {
        self.claims
    }
}

/// Validates a token for any of `audience`, with the keys of the token's own trust domain. `leeway` is granted on both
/// ends of its life.
/// # Errors
/// [`JwtError`]; the first rule that fails, in SPIRE's order.
pub fn validate(
    token: &str,
    keys: &dyn JwtKeySource,
    audience: &[String],
    now: SystemTime,
    leeway: Duration,
) -> Result<ValidatedJwt, JwtError> {
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(JwtError::AudienceRequired);
    }
    let jwt = ParsedJwt::parse(token)?;
    let trust_domain = jwt.id.trust_domain();
    let bundle = keys.bundle(&trust_domain).filter(|bundle| !bundle.jwt_authorities.is_empty());
    let bundle = bundle.ok_or_else(|| JwtError::TrustDomainUnknown(trust_domain.clone()))?;
    let Some(key) = bundle.jwt_authority(&jwt.key_id) else {
        return Err(JwtError::KeyUnknown { key_id: jwt.key_id, trust_domain });
    };
    jwt.verify_signature(&key.public_key)?;
    check_times(&jwt, now, leeway)?;
    if !jwt.audience.iter().any(|got| audience.contains(got)) {
        return Err(JwtError::Audience { want: audience.to_vec(), got: jwt.audience });
    }
    Ok(ValidatedJwt { id: jwt.id, claims: jwt.claims })
}

fn check_times(jwt: &ParsedJwt, now: SystemTime, leeway: Duration) -> Result<(), JwtError> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| JwtError::Time)?.as_secs_f64();
    let leeway = leeway.as_secs_f64();
    if read_date(&jwt.claims, "nbf")?.is_some_and(|not_before| now + leeway < not_before) {
        return Err(JwtError::NotYetValid);
    }
    if now - leeway >= jwt.expires_at {
        return Err(JwtError::Expired);
    }
    if read_date(&jwt.claims, "iat")?.is_some_and(|issued| now + leeway < issued) {
        return Err(JwtError::IssuedInFuture);
    }
    Ok(())
}

/// Header parameters are limited to three: any other, be it a key, a URL or `crit`, is refused (JWT-SVID, 2).
fn read_header(header: &Map<String, Value>) -> Result<(Algorithm, String), JwtError> {
    if let Some(other) = header.keys().find(|name| !matches!(name.as_str(), "alg" | "kid" | "typ")) {
        return Err(JwtError::HeaderParameter(other.chars().take(32).collect()));
    }
    let name = header.get("alg").and_then(Value::as_str).ok_or(JwtError::Malformed("alg is not a string"))?;
    let algorithm = Algorithm::from_name(name);
    let algorithm = algorithm.ok_or_else(|| JwtError::Algorithm(name.chars().take(32).collect()))?;
    match header.get("typ") {
        None => {}
        Some(typ) if matches!(typ.as_str(), Some("JWT" | "JOSE")) => {}
        Some(_) => return Err(JwtError::Type),
    }
    match header.get("kid") {
        None => Err(JwtError::KeyIdMissing),
        Some(Value::String(key_id)) if key_id.is_empty() => Err(JwtError::KeyIdMissing),
        Some(Value::String(key_id)) => Ok((algorithm, key_id.clone())),
        Some(_) => Err(JwtError::Malformed("kid is not a string")),
    }
}

fn read_subject(claims: &Map<String, Value>) -> Result<SpiffeId, JwtError> {
    match claims.get("sub") {
        None => Err(JwtError::SubjectMissing),
        Some(Value::String(subject)) if subject.is_empty() => Err(JwtError::SubjectMissing),
        Some(Value::String(subject)) => {
            let id: SpiffeId = subject.parse().map_err(JwtError::Subject)?;
            if id.path().is_empty() {
                return Err(JwtError::NoPath);
            }
            Ok(id)
        }
        Some(_) => Err(JwtError::Claim("sub")),
    }
}

/// A NumericDate: seconds since 1970, whole or not (RFC 7519, 2), up to the year 9999. Null does not count as absent.
fn read_date(claims: &Map<String, Value>, name: &'static str) -> Result<Option<f64>, JwtError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => match number.as_f64() {
            Some(seconds) if seconds <= LAST_SECOND => Ok(Some(seconds)),
            _ => Err(JwtError::Claim(name)),
        },
        Some(_) => Err(JwtError::Claim(name)),
    }
}

fn read_audience(claims: &Map<String, Value>) -> Result<Vec<String>, JwtError> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(JwtError::Claim("aud"));
    let audience = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(many)) => many.iter().map(text).collect::<Result<Vec<_>, _>>()?,
        _ => return Err(JwtError::Claim("aud")),
    };
    match audience.iter().all(String::is_empty) {
        true => Err(JwtError::Claim("aud")),
        false => Ok(audience),
    }
}

/// Decodes one part of a token. Duplicate members at the top are refused: readers differ in which one counts.
fn object(part: &str, what: &'static str) -> Result<Map<String, Value>, JwtError> {
    struct Unique;
    impl<'de> Visitor<'de> for Unique {
        type Value = Map<String, Value>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a JSON object without duplicate members")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = Map::new();
            while let Some((name, value)) = access.next_entry::<String, Value>()? {
                if map.insert(name, value).is_some() {
                    return Err(serde::de::Error::custom("duplicate member"));
                }
            }
            Ok(map)
        }
    }
    let json = B64.decode(part).map_err(|_| JwtError::Malformed(what))?;
    let mut reader = serde_json::Deserializer::from_slice(&json);
    let map = reader.deserialize_map(Unique).map_err(|_| JwtError::Malformed(what))?;
    reader.end().map_err(|_| JwtError::Malformed(what))?;
    Ok(map)
}
