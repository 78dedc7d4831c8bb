//! JWT-SVIDs: signing, and validation against the bundle of the token's trust domain.

mod jwk;
mod sign;
mod validate;

pub(crate) use jwk::{Jwk, JwkError, spki_to_jwk, to_indented_json};
pub use sign::{
    JwtSigner, JwtSvid, MAX_AUDIENCE_BYTES, check_audience_length, new_jti, new_kid, sign_jwt_svid,
    sign_jwt_svid_awaited,
};
pub use validate::{JwtKeySource, MAX_TOKEN_BYTES, ParsedJwt, ValidatedJwt, validate};

use crate::bundle::Bundle;
use crate::id::{IdError, TrustDomain};
use crate::key::KeyError;

/// Why a token was not signed or not accepted. Texts are SPIRE's where it has them; none holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// No audience was given, or only empty ones.
    #[error("audience is required")]
    AudienceRequired,
    /// The audiences are longer than [`MAX_AUDIENCE_BYTES`] together.
    #[error("audience is too long: {MAX_AUDIENCE_BYTES} bytes allowed")]
    AudienceLength,
    /// The ID names a trust domain, not a workload.
    #[error("SPIFFE ID has no path")]
    NoPath,
    /// The signing key has ended, or the TTL is zero.
    #[error("JWT-SVID would be expired when issued")]
    NoLife,
    /// A moment cannot be written as seconds since 1970.
    #[error("time is out of range")]
    Time,
    /// The signer or randomness failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The token is longer than [`MAX_TOKEN_BYTES`].
    #[error("unable to parse JWT token: token is too large")]
    TooLarge,
    /// Not a compact JWS with a JSON object in header and claims.
    #[error("unable to parse JWT token: {0}")]
    Malformed(&'static str),
    /// The algorithm is none of the nine SPIFFE allows.
    #[error("unable to parse JWT token: unexpected signature algorithm {0:?}")]
    Algorithm(String),
    /// The header has no `kid`.
    #[error("token header missing key id")]
    KeyIdMissing,
    /// The header's `typ` is neither `JWT` nor `JOSE`.
    #[error("token header type not equal to either JWT or JOSE")]
    Type,
    /// The header has a parameter outside of `alg`, `kid` and `typ`.
    #[error("token header has a parameter that is not allowed: {0:?}")]
    HeaderParameter(String),
    /// No `sub`.
    #[error("token missing subject claim")]
    SubjectMissing,
    /// `sub` is no SPIFFE ID of a workload. (The text is SPIRE's, slip included.)
    #[error("token has in invalid subject claim: {0}")]
    Subject(IdError),
    /// No `exp`.
    #[error("token missing exp claim")]
    ExpiryMissing,
    /// A claim has another type than it must have.
    #[error("token has an invalid {0} claim")]
    Claim(&'static str),
    /// No bundle for the token's trust domain.
    #[error("no keys found for trust domain {0:?}")]
    TrustDomainUnknown(TrustDomain),
    /// The bundle has no key of this id.
    #[error("public key {key_id:?} not found in trust domain {trust_domain:?}")]
    KeyUnknown {
        /// The token's `kid`.
        key_id: String,
        /// The token's trust domain.
        trust_domain: TrustDomain,
    },
    /// The signature is not by this key.
    #[error("token signature is not valid")]
    Signature,
    /// `exp` has passed.
    #[error("token has expired")]
    Expired,
    /// `nbf` has not come.
    #[error("token is not yet valid")]
    NotYetValid,
    /// `iat` lies in the future.
    #[error("token was issued in the future")]
    IssuedInFuture,
    /// None of the wanted audiences is in `aud`.
    #[error("expected audience in {} (audience={})", quoted(want), quoted(got))]
    Audience {
        /// What the caller is.
        want: Vec<String>,
        /// What the token is for.
        got: Vec<String>,
    },
}

/// A list as Go's `%q` prints it, because SPIRE's error text does.
fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(" "))
}

/// The JWT keys of a bundle as the Workload API hands them out: plain JWKS, indented by four spaces, without `use`.
pub fn jwks_json(bundle: &Bundle) -> String {
    let keys = bundle.jwt_authorities.iter().filter_map(|key| {
        let jwk = spki_to_jwk(&key.public_key).ok()?;
        Some(Jwk { kid: Some(key.key_id.clone()), ..jwk })
    });
    to_indented_json(&jwk::KeySet { keys: keys.collect() })
}
