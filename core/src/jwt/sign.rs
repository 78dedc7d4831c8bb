//! Signing JWT-SVIDs. The header is made once per key; claims are written straight into the token.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;

use super::{JwtError, MAX_TOKEN_BYTES};
use crate::id::SpiffeId;
use crate::key::{KeyError, KeyType, Signer};
use crate::remote;

/// Most bytes of all audiences of a token together: no verifier reads a token of more than 64 KiB.
pub const MAX_AUDIENCE_BYTES: usize = 32 * 1024;

/// Room for the signature of RSA-4096 and its dot.
const MAX_SIGNATURE_CHARS: usize = 1024;

/// Checks the length of a wanted audience.
/// # Errors
/// [`JwtError::AudienceLength`].
pub fn check_audience_length(audience: &[String]) -> Result<(), JwtError> {
    // Each comes with two quotes and a comma.
    let length = audience.iter().fold(0usize, |sum, one| sum.saturating_add(one.len().saturating_add(3)));
    if length > MAX_AUDIENCE_BYTES { Err(JwtError::AudienceLength) } else { Ok(()) }
}

/// A JWT signing key in use.
pub struct JwtSigner {
    key_id: String,
    signer: Arc<dyn Signer>,
    not_after: SystemTime,
    issuer: Option<String>,
    /// The encoded header, with the dot behind it.
    header: String,
}

impl std::fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSigner")
            .field("key_id", &self.key_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl JwtSigner {
    /// `issuer` becomes the `iss` claim where it is set and not empty.
    pub fn new(
        key_id: String,
        signer: Arc<dyn Signer>,
        not_after: SystemTime,
        issuer: Option<String>,
    ) -> Self {
        let alg = match signer.key_type() {
            KeyType::EcP256 => "ES256",
            KeyType::EcP384 => "ES384",
            KeyType::Rsa2048 | KeyType::Rsa4096 => "RS256",
        };
        let mut json = format!(r#"{{"alg":"{alg}","kid":"#);
        write_json_text(&mut json, &key_id);
        json.push_str(r#","typ":"JWT"}"#);
        let header = format!("{}.", B64.encode(json));
        let issuer = issuer.filter(|issuer| !issuer.is_empty());
        Self { key_id, signer, not_after, issuer, header }
    }

    /// The `kid`, which is the authority's ID.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// When the key ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The signer.
    pub fn signer(&self) -> &Arc<dyn Signer> {
        &self.signer
    }

    /// The public key as SubjectPublicKeyInfo DER.
    pub fn public_key_der(&self) -> &[u8] {
        self.signer.public_key_der()
    }
}

/// A signed token. It is a bearer secret, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    /// The token in compact form.
    pub token: String,
    /// Whose token it is.
    pub id: SpiffeId,
    /// `iat`, in whole seconds.
    pub issued_at: SystemTime,
    /// `exp`, in whole seconds.
    pub expires_at: SystemTime,
}

impl std::fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Signs a JWT-SVID with a local key, for `ttl` from `now`, capped at the key's end. Empty audiences are dropped, as SPIRE does.
/// # Errors
/// [`JwtError::AudienceRequired`], [`JwtError::AudienceLength`], [`JwtError::NoPath`], [`JwtError::NoLife`],
/// [`JwtError::Time`] or [`JwtError::Key`].
pub fn sign_jwt_svid(
    key: &JwtSigner,
    id: &SpiffeId,
    audience: &[String],
    ttl: Duration,
    now: SystemTime,
    jti: Option<&str>,
) -> Result<JwtSvid, JwtError> {
    let draft = draft(key, id, audience, ttl, now, jti)?;
    let signature = key.signer.sign_jws(draft.signed.as_bytes())?;
    Ok(draft.finish(id, &signature))
}

/// As [`sign_jwt_svid`], with a key that lives here or elsewhere.
/// # Errors
/// As [`sign_jwt_svid`].
pub async fn sign_jwt_svid_awaited(
    key: &JwtSigner,
    id: &SpiffeId,
    audience: &[String],
    ttl: Duration,
    now: SystemTime,
    jti: Option<&str>,
) -> Result<JwtSvid, JwtError> {
    let draft = draft(key, id, audience, ttl, now, jti)?;
    let signature = remote::sign_jws(&*key.signer, draft.signed.as_bytes()).await?;
    Ok(draft.finish(id, &signature))
}

/// A token that lacks its signature only.
struct Draft {
    /// Header and claims, as they are signed.
    signed: String,
    issued: u64,
    expires: u64,
}

impl Draft {
    fn finish(self, id: &SpiffeId, signature: &[u8]) -> JwtSvid {
        let Self { signed: mut token, issued, expires } = self;
        token.push('.');
        B64.encode_string(signature, &mut token);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        JwtSvid { token, id: id.clone(), issued_at: at(issued), expires_at: at(expires) }
    }
}

fn draft(
    key: &JwtSigner,
    id: &SpiffeId,
    audience: &[String],
    ttl: Duration,
    now: SystemTime,
    jti: Option<&str>,
) -> Result<Draft, JwtError> {
    if id.path().is_empty() {
        return Err(JwtError::NoPath);
    }
    check_audience_length(audience)?;
    let issued = unix(now)?;
    let expires = unix(now.checked_add(ttl).ok_or(JwtError::Time)?.min(key.not_after))?;
    if expires <= issued {
        return Err(JwtError::NoLife);
    }
    let claims = claims_json(id, audience, issued, expires, key.issuer.as_deref(), jti)?;

    const SIGNATURE_CHARS: usize = 128; // of P-384; RSA grows once
    let mut token = String::with_capacity(key.header.len() + claims.len() * 4 / 3 + SIGNATURE_CHARS + 8);
    token.push_str(&key.header);
    B64.encode_string(claims, &mut token);
    // Escapes may have made the audience longer than it looked.
    if token.len() > MAX_TOKEN_BYTES - MAX_SIGNATURE_CHARS {
        return Err(JwtError::AudienceLength);
    }
    Ok(Draft { signed: token, issued, expires })
}

/// Claims in alphabetical order, as SPIRE's map marshals.
fn claims_json(
    id: &SpiffeId,
    audience: &[String],
    issued: u64,
    expires: u64,
    issuer: Option<&str>,
    jti: Option<&str>,
) -> Result<String, JwtError> {
    use std::fmt::Write;
    let mut json = String::with_capacity(256);
    json.push_str(r#"{"aud":["#);
    let mut separator = "";
    for audience in audience.iter().filter(|audience| !audience.is_empty()) {
        json.push_str(separator);
        write_json_text(&mut json, audience);
        separator = ",";
    }
    if separator.is_empty() {
        return Err(JwtError::AudienceRequired);
    }
    // Writing into a String cannot fail.
    let _ = write!(json, r#"],"exp":{expires},"iat":{issued}"#);
    for (name, value) in [("iss", issuer), ("jti", jti)] {
        if let Some(value) = value {
            let _ = write!(json, r#","{name}":"#);
            write_json_text(&mut json, value);
        }
    }
    let _ = write!(json, r#","sub":"{id}"}}"#); // an ID holds nothing that JSON escapes
    Ok(json)
}

/// Appends a JSON string with its quotes.
fn write_json_text(json: &mut String, text: &str) {
    use std::fmt::Write;
    json.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            '\0'..='\u{1f}' => {
                let _ = write!(json, "\\u{:04x}", u32::from(c));
            }
            _ => json.push(c),
        }
    }
    json.push('"');
}

fn unix(time: SystemTime) -> Result<u64, JwtError> {
    Ok(time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| JwtError::Time)?.as_secs())
}

/// A new key id: 32 characters of `a-z A-Z 0-9`.
/// # Errors
/// [`KeyError::Generate`] without randomness.
pub fn new_kid() -> Result<String, KeyError> {
    const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    const LENGTH: usize = 32;
    let mut kid = String::with_capacity(LENGTH);
    while kid.len() < LENGTH {
        let mut bytes = [0; 64];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeyError::Generate)?;
        // Values from 62 on are thrown away, so that every character is as likely.
        let drawn = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 0x3f)));
        kid.extend(drawn.take(LENGTH - kid.len()).map(|c| char::from(*c)));
    }
    Ok(kid)
}

/// A new token id: the 16 bytes of a random UUID in base64url, 22 characters.
pub fn new_jti() -> String {
    B64.encode(uuid::Uuid::new_v4().as_bytes())
}
