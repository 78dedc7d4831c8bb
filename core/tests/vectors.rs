//! The SPIFFE conformance vectors, which live beside the repository. `SVID_VECTORS` names the file; without it and
//! without `../shared/vectors.json` the tests say so and pass.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;
use svid_core::bundle::document::BundleDocument;
use svid_core::bundle::{Bundle, JwtAuthority};
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::jwt::{JwtError, ParsedJwt, ValidatedJwt, validate};
use svid_core::key::{KeyType, LocalKey, Signer};
use svid_core::x509::{CertChain, ParsedCert, Roots, X509Svid, verify};

/// Vectors on which we differ on purpose, all of them marked as ambiguous, and why.
const DIFFERENCES: [(&str, &str); 4] = [
    ("jc-53", "a sub without a path names a trust domain, never a workload: refused, as for X.509"),
    (
        "xc-67",
        "the size of a leaf's RSA key is judged where its signature is, in the TLS handshake and at issuance",
    ),
    ("xc-96", "the path builder refuses every URI name constraint"),
    ("xc-99", "the path builder refuses every URI name constraint"),
];

/// Reads a section, or nothing if the file is not there.
fn section(name: &str) -> Vec<Value> {
    let Some(all) = load() else { return Vec::new() };
    all[name].as_array().unwrap().clone()
}

fn load() -> Option<Value> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors.json");
    let path = std::env::var_os("SVID_VECTORS").map_or(beside, PathBuf::from);
    match fs::read(&path) {
        Ok(bytes) => Some(serde_json::from_slice(&bytes).unwrap()),
        Err(_) => {
            println!("skipped: no vectors at {}", path.display());
            None
        }
    }
}

/// Compares verdicts; ambiguous vectors may go either way, but only where the table says so.
fn check_all(vectors: &[Value], verdict: impl Fn(&Value) -> Result<(), String>) {
    let mut wrong = Vec::new();
    for vector in vectors {
        let id = vector["id"].as_str().unwrap();
        let Some(want) = vector["valid"].as_bool() else { continue };
        let got = verdict(vector);
        let excused = vector["ambiguous"] == true && DIFFERENCES.iter().any(|(other, _)| *other == id);
        // A difference that is none any more has to leave the table.
        if (got.is_ok() != want) != excused {
            wrong.push(format!("{id}: want {want}, got {got:?} ({})", vector["reason"]));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn text_error(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap())
}

const NOW: i64 = 1_893_456_000;

#[test]
fn spiffe_ids() {
    check_all(&section("spiffe_id"), |vector| {
        let id: SpiffeId = vector["value"].as_str().unwrap().parse().map_err(text_error)?;
        if let Some(want) = vector["trust_domain"].as_str() {
            assert_eq!(id.trust_domain_name(), want);
        }
        if let Some(want) = vector["path"].as_str() {
            assert_eq!(id.path(), want);
        }
        Ok(())
    });
}

#[test]
fn spiffe_id_equality() {
    for vector in section("spiffe_id_equality") {
        let id = |side: &str| vector[side].as_str().unwrap().parse::<SpiffeId>().ok();
        let equal = id("a").is_some() && id("a") == id("b");
        assert_eq!(equal, vector["equal"].as_bool().unwrap(), "{vector}");
    }
}

#[test]
fn trust_domains() {
    check_all(&section("trust_domain"), |vector| {
        vector["value"].as_str().unwrap().parse::<TrustDomain>().map(|_| ()).map_err(text_error)
    });
}

/// A key source with one key `k1`, and a function that signs any header and claims with it.
fn signed_by_k1(header: &str, claims: &str) -> (String, Arc<Bundle>) {
    let key = LocalKey::generate(KeyType::EcP256).unwrap();
    let mut bundle = Bundle::empty("example.org".parse().unwrap());
    bundle.jwt_authorities.push(JwtAuthority {
        key_id: "k1".into(),
        public_key: key.public_key_der().into(),
        expires_at: 0,
        tainted: false,
    });
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(key.sign_jws(signed.as_bytes()).unwrap());
    (format!("{signed}.{signature}"), Arc::new(bundle))
}

fn raw_or_json(vector: &Value, member: &str) -> String {
    match &vector[member] {
        Value::String(raw) if vector["raw"] == true => raw.clone(),
        json => json.to_string(),
    }
}

#[test]
fn jwt_headers() {
    const CLAIMS: &str = r#"{"sub":"spiffe://example.org/api","aud":["a"],"exp":4102444800}"#;
    check_all(&section("jwt_svid_headers"), |vector| {
        let (token, _) = signed_by_k1(&raw_or_json(vector, "header"), CLAIMS);
        ParsedJwt::parse(&token).map(|_| ()).map_err(text_error)
    });
}

#[test]
fn jwt_claims() {
    const HEADER: &str = r#"{"alg":"ES256","kid":"k1","typ":"JWT"}"#;
    check_all(&section("jwt_svid_claims"), |vector| {
        let (token, bundle) = signed_by_k1(HEADER, &raw_or_json(vector, "claims"));
        let audience = [vector["expected_audience"].as_str().unwrap().to_owned()];
        let now = at(vector["now"].as_i64().unwrap());
        validate(&token, &bundle, &audience, now, Duration::ZERO).map(|_| ()).map_err(text_error)
    });
}

#[test]
fn jwt_claims_beyond_the_largest_leeway() {
    const HEADER: &str = r#"{"alg":"ES256","kid":"k1"}"#;
    for vector in section("jwt_svid_claims").iter().filter(|vector| vector["id"] == "jc-36") {
        let (token, bundle) = signed_by_k1(HEADER, &vector["claims"].to_string());
        let audience = [vector["expected_audience"].as_str().unwrap().to_owned()];
        let got = validate(&token, &bundle, &audience, at(NOW), Duration::from_secs(60));
        assert_eq!(got.err(), Some(JwtError::Expired));
    }
}

fn workload_bundles(all: &Value) -> HashMap<TrustDomain, Arc<Bundle>> {
    let bundles = all["fixtures"]["jose"]["workload_api_jwt_bundles"].as_object().unwrap();
    let read = |(name, keys): (&String, &Value)| {
        let trust_domain = name.parse::<SpiffeId>().unwrap().trust_domain();
        let mut document = keys.clone();
        for key in document["keys"].as_array_mut().unwrap() {
            key["use"] = "jwt-svid".into(); // the Workload API leaves it out
        }
        let document = BundleDocument::parse(&trust_domain, document.to_string().as_bytes()).unwrap();
        (trust_domain, Arc::new(document.bundle))
    };
    bundles.iter().map(read).collect()
}

#[test]
fn jwt_tokens() {
    let Some(all) = load() else { return };
    let bundles = workload_bundles(&all);
    check_all(all["jwt_svid_tokens"].as_array().unwrap(), |vector| {
        let audience = [vector["audience"].as_str().unwrap().to_owned()];
        let token = vector["token"].as_str().unwrap();
        let valid: ValidatedJwt =
            validate(token, &bundles, &audience, at(NOW), Duration::ZERO).map_err(text_error)?;
        if let Some(want) = vector["expected_spiffe_id"].as_str() {
            assert_eq!(valid.id().as_str(), want);
        }
        Ok(())
    });
}

#[test]
fn x509_svids() {
    let Some(all) = load() else { return };
    let der = |name: &Value| {
        let text = all["fixtures"]["certificates_der_base64"][name.as_str().unwrap()].as_str().unwrap();
        STANDARD.decode(text).unwrap()
    };
    let ders = |names: &Value| names.as_array().map(|names| names.iter().map(der).collect::<Vec<_>>());
    let with_files: Vec<_> =
        all["x509_svid"].as_array().unwrap().iter().filter(|v| v["chain"].is_array()).collect();
    let with_files: Vec<Value> = with_files.into_iter().cloned().collect();
    check_all(&with_files, |vector| {
        let chain = ders(&vector["chain"]).unwrap();
        let bundle = ders(&vector["bundle"]).unwrap();
        // Where the choice of the bundle is the point, its root says whose it is.
        let trust_domain: TrustDomain = match vector["layer"].as_str() {
            Some("bundle selection") => {
                ParsedCert::from_der(&bundle[0]).unwrap().spiffe_id().unwrap().trust_domain()
            }
            _ => vector["trust_domain"].as_str().unwrap().parse().unwrap(),
        };
        let roots = Roots::for_trust_domain(&trust_domain, bundle).unwrap();
        verify(&chain, &roots, at(NOW)).map_err(text_error)?;
        // What verifies also parses as an SVID.
        X509Svid::parse(CertChain::from_certs(chain).unwrap()).map_err(text_error)?;
        Ok(())
    });
}

#[test]
fn bundle_documents() {
    let trust_domain: TrustDomain = "example.org".parse().unwrap();
    check_all(&section("bundle_documents"), |vector| {
        let text = vector["document"].as_str().unwrap();
        let document = BundleDocument::parse(&trust_domain, text.as_bytes()).map_err(text_error)?;
        check_document(&document, &vector["expect"], vector["id"].as_str().unwrap());
        // What we read we also write: the same authorities come back.
        let again = BundleDocument::parse(&trust_domain, document.bundle.to_document().as_bytes()).unwrap();
        assert_eq!(again.bundle, document.bundle);
        Ok(())
    });
}

fn check_document(document: &BundleDocument, expect: &Value, id: &str) {
    let Some(expect) = expect.as_object() else { return };
    let bundle = &document.bundle;
    let texts = |value: &Value| -> Vec<String> { serde_json::from_value(value.clone()).unwrap() };
    let key_ids: Vec<_> = bundle.jwt_authorities.iter().map(|key| key.key_id.clone()).collect();
    assert_eq!(key_ids, texts(&expect["jwt_key_ids"]), "{id}");
    assert_eq!(document.wit_key_ids, texts(&expect["wit_key_ids"]), "{id}");
    assert_eq!(bundle.x509_authorities.len() as u64, expect["x509_authorities"].as_u64().unwrap(), "{id}");
    if let Some(sequence) = expect.get("sequence") {
        assert_eq!(document.has_sequence.then_some(bundle.sequence_number), sequence.as_u64(), "{id}");
    }
    if let Some(hint) = expect.get("refresh_hint") {
        assert_eq!(document.has_refresh_hint.then_some(bundle.refresh_hint.as_secs()), hint.as_u64(), "{id}");
    }
}
