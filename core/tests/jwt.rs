//! JWT-SVIDs from end to end, and the documents their keys travel in.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use svid_core::bundle::document::{BundleDocument, DocumentError};
use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::jwt::{
    JwtError, JwtSigner, JwtSvid, MAX_AUDIENCE_BYTES, MAX_TOKEN_BYTES, ParsedJwt, jwks_json, new_jti,
    new_kid, sign_jwt_svid, validate,
};
use svid_core::key::{KeyType, LocalKey};
use svid_core::pem;
use svid_core::x509::{CaSubject, PublicKey, VerifiedCsr, ca::self_signed_ca};

const MINUTE: Duration = Duration::from_secs(60);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)
}

fn td() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn web() -> SpiffeId {
    "spiffe://example.org/web".parse().unwrap()
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn jwt_key(kind: KeyType, issuer: Option<&str>) -> (JwtSigner, Bundle) {
    let signer = LocalKey::generate(kind).unwrap().into_signer();
    let mut bundle = Bundle::empty(td());
    bundle.jwt_authorities.push(JwtAuthority {
        key_id: "kid".into(),
        public_key: Arc::from(signer.public_key_der()),
        expires_at: 0,
        tainted: false,
    });
    (JwtSigner::new("kid".into(), signer, now() + 10 * MINUTE, issuer.map(str::to_owned)), bundle)
}

fn sign(key: &JwtSigner, audience: &[&str]) -> Result<JwtSvid, JwtError> {
    sign_jwt_svid(key, &web(), &texts(audience), 5 * MINUTE, now(), None)
}

fn part(token: &str, at: usize) -> String {
    String::from_utf8(URL_SAFE_NO_PAD.decode(token.split('.').nth(at).unwrap()).unwrap()).unwrap()
}

#[test]
fn tokens_have_spires_shape() {
    let (key, _) = jwt_key(KeyType::EcP256, Some("https://issuer.example"));
    let svid =
        sign_jwt_svid(&key, &web(), &texts(&["b", "", "a\"\n"]), 5 * MINUTE, now(), Some("j")).unwrap();
    assert_eq!(part(&svid.token, 0), r#"{"alg":"ES256","kid":"kid","typ":"JWT"}"#);
    let claims = concat!(
        r#"{"aud":["b","a\"\u000a"],"exp":1900000300,"iat":1900000000,"iss":"https://issuer.example","#,
        r#""jti":"j","sub":"spiffe://example.org/web"}"#
    );
    assert_eq!(part(&svid.token, 1), claims);
    assert_eq!(svid.expires_at, now() + 5 * MINUTE);
    assert!(!format!("{svid:?}").contains(&svid.token));
}

#[test]
fn signing_refuses_and_caps() {
    let (key, _) = jwt_key(KeyType::EcP256, None);
    assert_eq!(sign(&key, &[]), Err(JwtError::AudienceRequired));
    assert_eq!(sign(&key, &[""]), Err(JwtError::AudienceRequired));
    let long = "a".repeat(MAX_AUDIENCE_BYTES - 3);
    assert!(sign(&key, &[&long]).unwrap().token.len() < MAX_TOKEN_BYTES);
    assert_eq!(sign(&key, &[&long, "b"]), Err(JwtError::AudienceLength));
    assert_eq!(sign(&key, &["\0".repeat(MAX_AUDIENCE_BYTES / 2).as_str()]), Err(JwtError::AudienceLength));
    let sign = |id: &SpiffeId, ttl, at| sign_jwt_svid(&key, id, &texts(&["a"]), ttl, at, None);
    assert_eq!(sign(&td().id(), MINUTE, now()), Err(JwtError::NoPath));
    assert_eq!(sign(&web(), Duration::ZERO, now()), Err(JwtError::NoLife));
    assert_eq!(sign(&web(), MINUTE, now() + 10 * MINUTE), Err(JwtError::NoLife));
    assert_eq!(sign(&web(), Duration::MAX, now()), Err(JwtError::Time));
    assert_eq!(sign(&web(), 60 * MINUTE, now()).unwrap().expires_at, now() + 10 * MINUTE);
}

#[test]
fn every_key_type_validates_and_survives_a_document() {
    for kind in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
        let (key, bundle) = jwt_key(kind, None);
        let token = sign(&key, &["a", "b"]).unwrap().token;
        let document = BundleDocument::parse(&td(), bundle.to_document().as_bytes()).unwrap();
        assert_eq!(document.bundle, bundle);
        let valid =
            validate(&token, &Arc::new(document.bundle), &texts(&["x", "b"]), now(), Duration::ZERO).unwrap();
        assert_eq!(*valid.id(), web());
        assert_eq!(valid.claims()["exp"], 1_900_000_300);
    }
}

#[test]
fn validation_names_what_is_wrong() {
    let (key, bundle) = jwt_key(KeyType::EcP256, None);
    let token = sign(&key, &["a"]).unwrap().token;
    let check = |token: &str, bundle: &Bundle, audience: &[&str], at, leeway| {
        validate(token, &Arc::new(bundle.clone()), &texts(audience), at, leeway).map(|_| ())
    };
    let zero = Duration::ZERO;
    assert_eq!(check(&token, &bundle, &[], now(), zero), Err(JwtError::AudienceRequired));
    let audience = JwtError::Audience { want: texts(&["b"]), got: texts(&["a"]) };
    assert_eq!(audience.to_string(), r#"expected audience in ["b"] (audience=["a"])"#);
    assert_eq!(check(&token, &bundle, &["b"], now(), zero), Err(audience));
    let end = now() + 5 * MINUTE;
    assert_eq!(check(&token, &bundle, &["a"], end, zero), Err(JwtError::Expired));
    assert_eq!(check(&token, &bundle, &["a"], end, MINUTE), Ok(()));
    assert_eq!(check(&token, &bundle, &["a"], end + MINUTE, MINUTE), Err(JwtError::Expired));
    assert_eq!(check(&token, &bundle, &["a"], now() - MINUTE, zero), Err(JwtError::IssuedInFuture));
    assert_eq!(check(&token, &bundle, &["a"], now() - MINUTE, MINUTE), Ok(()));
    let (_, other) = jwt_key(KeyType::EcP256, None);
    assert_eq!(check(&token, &other, &["a"], now(), zero), Err(JwtError::Signature));
    let empty = Bundle::empty(td());
    assert_eq!(check(&token, &empty, &["a"], now(), zero), Err(JwtError::TrustDomainUnknown(td())));
    let mut renamed = bundle.clone();
    renamed.jwt_authorities[0].key_id = "other".into();
    let unknown = JwtError::KeyUnknown { key_id: "kid".into(), trust_domain: td() };
    assert_eq!(check(&token, &renamed, &["a"], now(), zero), Err(unknown));
    let long = "a".repeat(MAX_TOKEN_BYTES + 1);
    assert_eq!(check(&long, &bundle, &["a"], now(), zero), Err(JwtError::TooLarge));
}

#[test]
fn names_are_random_and_of_spires_form() {
    let (one, two) = (new_kid().unwrap(), new_kid().unwrap());
    assert!(one.len() == 32 && one.bytes().all(|b| b.is_ascii_alphanumeric()));
    assert_ne!(one, two);
    assert_eq!(new_jti().len(), 22);
    assert_ne!(new_jti(), new_jti());
}

#[test]
fn jwks_for_the_workload_api() {
    let (_, bundle) = jwt_key(KeyType::EcP256, None);
    let json = jwks_json(&bundle);
    let start =
        "{\n    \"keys\": [\n        {\n            \"kty\": \"EC\",\n            \"kid\": \"kid\",\n";
    assert!(json.starts_with(start), "{json}");
    assert!(!json.contains("use"));
    assert_eq!(jwks_json(&Bundle::empty(td())), "{\n    \"keys\": []\n}");
}

#[test]
fn documents_of_whole_bundles() {
    let (_, mut bundle) = jwt_key(KeyType::Rsa2048, None);
    let key = LocalKey::generate(KeyType::EcP384).unwrap();
    let root = self_signed_ca(&td(), &CaSubject::default(), 5 * MINUTE, &key, now()).unwrap();
    bundle.x509_authorities.push(X509Authority::from_der(&root).unwrap());
    bundle.sequence_number = 7;
    bundle.refresh_hint = 5 * MINUTE;
    let text = bundle.to_document();
    assert!(text.contains("\"spiffe_sequence\": 7,\n    \"spiffe_refresh_hint\": 300\n}"));
    let document = BundleDocument::parse(&td(), text.as_bytes()).unwrap();
    assert_eq!(document.bundle, bundle);
    assert_eq!(BundleDocument::parse(&td(), b"{}"), Err(DocumentError::KeysMissing));
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    assert_eq!(BundleDocument::parse(&td(), &large), Err(DocumentError::TooLarge(large.len())));
}

fn flipped(bytes: &[u8], at: usize, with: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % bytes.len();
    bytes[at] = with;
    bytes
}

proptest::proptest! {
    #[test]
    fn readers_never_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), text in "\\PC{0,80}") {
        let _ = VerifiedCsr::from_der(&bytes);
        let _ = PublicKey::from_spki(&bytes);
        let _ = ParsedJwt::parse(&text);
        let _ = BundleDocument::parse(&td(), text.as_bytes());
        let _ = (pem::parse_certs_pem(&bytes), pem::parse_key_pem(&text));
    }

    #[test]
    fn readers_never_panic_on_nearly_good_bytes(at in 0usize..4096, with in proptest::num::u8::ANY) {
        const CSR: &str = include_str!("data/csr.pem");
        const DOCUMENT: &str = r#"{"keys":[{"use":"jwt-svid","kid":"a","kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;
        const HEADER: &str = r#"{"alg":"ES256","kid":"a"}"#;
        const CLAIMS: &str = r#"{"sub":"spiffe://a/b","aud":["a"],"exp":4102444800}"#;
        let csr = pem::parse_block_pem(CSR, "CERTIFICATE REQUEST").unwrap();
        let _ = VerifiedCsr::from_der(&flipped(&csr, at, with));
        let _ = BundleDocument::parse(&td(), &flipped(DOCUMENT.as_bytes(), at, with));
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(flipped(text.as_bytes(), at, with));
        let _ = ParsedJwt::parse(&format!("{}.{}.AAAA", encode(HEADER), encode(CLAIMS)));
    }
}
