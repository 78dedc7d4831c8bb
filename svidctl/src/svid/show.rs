//! `svid show`: says what a file holds.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::{Map, Value};
use svid_core::x509::{VerifiedCsr, split_der_chain};

use super::facts::{CertFacts, key_words};
use crate::connect::Failure;
use crate::render::{self, Paint, Screen, facts, left};

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Debug, Serialize)]
struct Shown {
    items: Vec<Item>,
}

/// One thing found in a file.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Item {
    Certificate(CertFacts),
    CertificateRequest(RequestFacts),
    /// What it is, never what it holds.
    PrivateKey {
        label: String,
    },
    Jwt(JwtFacts),
    Other {
        label: String,
    },
}

#[derive(Debug, Serialize)]
struct RequestFacts {
    subject: String,
    uri_sans: Vec<String>,
    dns_sans: Vec<String>,
    key: String,
}

/// A token's words, which prove nothing without the keys of its trust domain.
#[derive(Debug, Serialize)]
struct JwtFacts {
    header: Map<String, Value>,
    claims: Map<String, Value>,
    /// Always false: no keys were asked.
    verified: bool,
}

pub fn run(file: &Path, screen: &mut Screen) -> Result<(), Failure> {
    let bytes = read_file(file)?;
    let now = render::now();
    let shown = Shown { items: items(&bytes, now).map_err(|failure| named(file, &failure))? };
    screen.print(&shown, |shown, paint| text(shown, now, paint))
}

fn named(file: &Path, failure: &Failure) -> Failure {
    Failure::new(format!("{}: {}", file.display(), failure.what()))
        .advise("This reads certificates and requests in PEM or DER, private keys in PEM, and JWTs.")
}

fn read_file(file: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    } else {
        let opened = std::fs::File::open(file)
            .map_err(|error| Failure::new(format!("cannot open {}: {error}", file.display())))?;
        opened.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::new(format!("{} is larger than {MAX_FILE_BYTES} bytes", file.display())));
    }
    Ok(bytes)
}

fn items(bytes: &[u8], now: i64) -> Result<Vec<Item>, Failure> {
    if bytes.trim_ascii().is_empty() {
        return Err(Failure::new("it is empty"));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        if text.contains("-----BEGIN ") {
            return pem_items(text, now);
        }
        return match jwt(text.trim()) {
            Some(jwt) => Ok(vec![Item::Jwt(jwt)]),
            None => Err(Failure::new("the text is neither PEM nor a JWT")),
        };
    }
    if let Ok(request) = request(bytes) {
        return Ok(vec![request]);
    }
    let ders = split_der_chain(bytes)
        .map_err(|_| Failure::new("the bytes are neither certificates nor a request"))?;
    ders.iter().map(|der| Ok(Item::Certificate(CertFacts::from_der(der, now)?))).collect()
}

fn pem_items(text: &str, now: i64) -> Result<Vec<Item>, Failure> {
    let blocks = pem::parse_many(text).map_err(|error| Failure::new(format!("malformed PEM: {error}")))?;
    if blocks.is_empty() {
        return Err(Failure::new("there is no whole PEM block in it"));
    }
    (blocks.iter())
        .map(|block| match block.tag() {
            "CERTIFICATE" => Ok(Item::Certificate(CertFacts::from_der(block.contents(), now)?)),
            "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST" => request(block.contents()),
            label if label.ends_with("PRIVATE KEY") => Ok(Item::PrivateKey { label: label.into() }),
            label => Ok(Item::Other { label: label.into() }),
        })
        .collect()
}

fn request(der: &[u8]) -> Result<Item, Failure> {
    let csr =
        VerifiedCsr::from_der(der).map_err(|error| Failure::new(format!("certificate request: {error}")))?;
    Ok(Item::CertificateRequest(RequestFacts {
        subject: csr.subject(),
        uri_sans: csr.uri_sans().to_vec(),
        dns_sans: csr.dns_sans().to_vec(),
        key: key_words(csr.public_key().spki()),
    }))
}

/// A token in compact form, whatever is in it.
fn jwt(text: &str) -> Option<JwtFacts> {
    let mut parts = text.split('.');
    let (header, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
    let object = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
    let is_whole = parts.next().is_none() && URL_SAFE_NO_PAD.decode(signature).is_ok();
    is_whole.then_some(())?;
    Some(JwtFacts { header: object(header)?, claims: object(claims)?, verified: false })
}

fn text(shown: &Shown, now: i64, paint: Paint) -> String {
    let mut text = String::new();
    for (number, item) in shown.items.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        let (heading, body) = match item {
            Item::Certificate(cert) => ("Certificate", cert.text("  ", now)),
            Item::CertificateRequest(request) => ("Certificate request", request_text(request)),
            Item::PrivateKey { label } => {
                ("Private key", format!("  PEM block {label}; keep this file closed\n"))
            }
            Item::Jwt(jwt) => ("JWT", jwt_text(jwt, now)),
            Item::Other { label } => ("Something else", format!("  PEM block {label}\n")),
        };
        text += &format!("{}\n{body}", paint.bold(heading));
    }
    text
}

fn request_text(request: &RequestFacts) -> String {
    let mut rows = vec![("Subject", request.subject.clone())];
    rows.extend(request.uri_sans.iter().map(|san| ("URI", san.clone())));
    rows.extend(request.dns_sans.iter().map(|san| ("DNS name", san.clone())));
    rows.push(("Key", request.key.clone()));
    rows.push(("Signature", "made with this key".into()));
    facts("  ", &rows)
}

fn jwt_text(jwt: &JwtFacts, now: i64) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |(name, value): (&String, &Value)| {
        let when = match (name.as_str(), value.as_i64()) {
            ("exp", Some(at)) => format!(" ({}, {})", render::time(at), left(at, now)),
            ("iat" | "nbf", Some(at)) => format!(" ({})", render::time(at)),
            _ => String::new(),
        };
        (name.clone(), word(value) + &when)
    };
    let part = |object: &Map<String, Value>| {
        let rows: Vec<_> = object.iter().map(row).collect();
        let rows: Vec<_> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        facts("    ", &rows)
    };
    format!(
        "  Header\n{}  Claims\n{}  Not verified: whether it is genuine only the keys of its trust domain tell\n  \
         (`svid-agent api validate jwt`).\n",
        part(&jwt.header),
        part(&jwt.claims)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use svid_core::key::{KeyType, LocalKey};
    use svid_core::pem::{block_to_pem, certs_to_pem, key_to_pem};
    use svid_core::x509::ca::{CaSubject, self_signed_ca};
    use svid_core::x509::csr::make_csr;

    fn kinds(bytes: &[u8]) -> Vec<String> {
        let items = items(bytes, 0).unwrap();
        let kind = |item| serde_json::to_value(item).unwrap()["kind"].as_str().unwrap().to_owned();
        items.iter().map(kind).collect()
    }

    fn token(claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.{}", part(r#"{"alg":"ES256","kid":"k"}"#), part(claims), part("signature"))
    }

    #[test]
    fn files_are_recognised() {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let trust_domain = "example.org".parse().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let now = std::time::SystemTime::UNIX_EPOCH + hour;
        let cert = self_signed_ca(&trust_domain, &CaSubject::default(), hour, &key, now).unwrap();
        let csr = make_csr(&key, Some(&"spiffe://example.org/web".parse().unwrap()), &[]).unwrap();
        let pem = certs_to_pem([&cert]) + &key_to_pem(key.private_key());
        let csr_pem = block_to_pem("CERTIFICATE REQUEST", &csr);
        for (name, bytes, want) in [
            ("DER", cert.clone(), vec!["certificate"]),
            ("two in DER", [cert.clone(), cert.clone()].concat(), vec!["certificate", "certificate"]),
            ("PEM with key", pem.into_bytes(), vec!["certificate", "private_key"]),
            ("request in DER", csr, vec!["certificate_request"]),
            ("request in PEM", csr_pem.into_bytes(), vec!["certificate_request"]),
            ("JWT", (token("{}") + "\n").into_bytes(), vec!["jwt"]),
        ] {
            assert_eq!(kinds(&bytes), want, "{name}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let key = LocalKey::generate(KeyType::EcP256).unwrap();
        let pem = key_to_pem(key.private_key());
        let shown = Shown { items: items(pem.as_bytes(), 0).unwrap() };
        let printed = text(&shown, 0, Paint(false)) + &serde_json::to_string(&shown).unwrap();
        let secret = pem.lines().nth(1).unwrap();
        assert!(!printed.contains(secret));
        assert_eq!(
            text(&shown, 0, Paint(false)),
            "Private key\n  PEM block PRIVATE KEY; keep this file closed\n"
        );
    }

    #[test]
    fn a_token_is_never_called_valid() {
        let bytes = token(r#"{"sub":"spiffe://example.org/web","aud":["a"],"exp":160}"#);
        let shown = Shown { items: items(bytes.as_bytes(), 100).unwrap() };
        let want = "\
JWT
  Header
    alg:  ES256
    kid:  k
  Claims
    sub:  spiffe://example.org/web
    aud:  [\"a\"]
    exp:  160 (1970-01-01T00:02:40Z, 1m 0s left)
  Not verified: whether it is genuine only the keys of its trust domain tell
  (`svid-agent api validate jwt`).
";
        assert_eq!(text(&shown, 100, Paint(false)), want);
        assert!(serde_json::to_string(&shown).unwrap().contains(r#""verified":false"#));
    }

    #[test]
    fn other_files_are_refused_in_words() {
        for (bytes, want) in [
            (&b""[..], "it is empty"),
            (b"hello", "the text is neither PEM nor a JWT"),
            (b"a.b.c", "the text is neither PEM nor a JWT"),
            (b"\xff\xfe\x00", "the bytes are neither certificates nor a request"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "malformed certificate"),
        ] {
            assert_eq!(items(bytes, 0).unwrap_err().what(), want);
        }
    }
}
