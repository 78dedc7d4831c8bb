//! Just enough of a Vault to do what a real one will not do on demand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use svid_core::id::TrustDomain;
use svid_core::key::{KeyType, LocalKey};
use svid_core::pem::certs_to_pem;
use svid_core::x509::ca::{CaSubject, CaTemplate, self_signed_ca, sign_ca};
use svid_core::x509::{PublicKey, VerifiedCsr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const HOUR: Duration = Duration::from_secs(3600);

/// A request as the fake saw it.
pub struct Seen {
    pub path: String,
    pub token: Option<String>,
    pub body: Value,
    /// 1 for the first request of this path.
    pub nth: usize,
}

/// What it answers.
pub enum Reply {
    Json(u16, Value),
    /// With one more header line.
    Header(u16, String),
    /// The connection ends instead.
    Nothing,
    /// So many bytes, with their number said before or not.
    Huge {
        bytes: usize,
        announced: bool,
    },
}

type Handler = dyn Fn(&Seen) -> Reply + Send + Sync;

/// A running fake; it ends with the test's runtime.
pub struct Fake {
    pub address: String,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

impl Fake {
    pub async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let counts = Arc::new(Mutex::new(HashMap::new()));
        let (handler, known): (Arc<Handler>, _) = (Arc::new(handler), counts.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, handler.clone(), known.clone()));
            }
        });
        Self { address, counts }
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> usize {
        self.counts.lock().expect("lock").get(path).copied().unwrap_or_default()
    }
}

async fn serve(mut stream: TcpStream, handler: Arc<Handler>, counts: Arc<Mutex<HashMap<String, usize>>>) {
    let Some((head, body)) = read(&mut stream).await else { return };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let nth = {
        let mut counts = counts.lock().expect("lock");
        let count = counts.entry(path.clone()).or_default();
        *count += 1;
        *count
    };
    let token = head.lines().find_map(|line| line.strip_prefix("x-vault-token: ")).map(str::to_owned);
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let answer = match handler(&Seen { path, token, body, nth }) {
        Reply::Nothing => return,
        Reply::Json(status, body) => respond(status, "x-nothing: 1", body.to_string().as_bytes(), true),
        Reply::Header(204, line) => respond(204, &line, b"", true),
        Reply::Header(status, line) => respond(status, &line, b"{\"errors\":[]}", true),
        Reply::Huge { bytes, announced } => respond(200, "x-nothing: 1", &vec![b' '; bytes], announced),
    };
    let _ = stream.write_all(&answer).await;
    let _ = stream.shutdown().await;
}

fn respond(status: u16, line: &str, body: &[u8], announced: bool) -> Vec<u8> {
    let length = if announced { format!("content-length: {}\r\n", body.len()) } else { String::new() };
    let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\n{length}{line}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

async fn read(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or_default();
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes[end + 4..].to_vec()));
            }
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

/// A CA that signs as a PKI engine does.
pub struct Ca {
    key: LocalKey,
    der: Vec<u8>,
}

impl Ca {
    pub fn new() -> Self {
        let key = LocalKey::generate(KeyType::EcP256).expect("a key");
        let der = self_signed_ca(&trust_domain(), &CaSubject::default(), HOUR, &key, SystemTime::now());
        Self { key, der: der.expect("a root") }
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The certificate for a CSR, in DER.
    pub fn sign(&self, csr: &[u8]) -> Vec<u8> {
        let csr = VerifiedCsr::from_der(csr).expect("a CSR");
        let subject = csr.subject_der().to_vec();
        let template = CaTemplate::from_csr(csr, &trust_domain(), HOUR / 2).expect("a CA's CSR");
        sign_ca(&self.der, &self.key, &template, &subject, SystemTime::now()).expect("sign")
    }

    /// A CA for a key that nobody asked for.
    pub fn sign_another(&self) -> Vec<u8> {
        let key = LocalKey::generate(KeyType::EcP256).expect("a key");
        let public_key = PublicKey::of(&key).expect("a key");
        let template = CaTemplate { trust_domain: trust_domain(), public_key, ttl: HOUR / 2 };
        sign_ca(&self.der, &self.key, &template, &[0x30, 0], SystemTime::now()).expect("sign")
    }

    /// The answer of `sign-intermediate` with these certificates.
    pub fn answer(cert: &[u8], chain: &[&[u8]]) -> Reply {
        let chain: Vec<String> = chain.iter().map(|der| certs_to_pem([der])).collect();
        let issuing_ca = chain.last().cloned().unwrap_or_default();
        let data = json!({"certificate": certs_to_pem([cert]), "issuing_ca": issuing_ca, "ca_chain": chain});
        Reply::Json(200, json!({"data": data, "warnings": null}))
    }
}

pub fn trust_domain() -> TrustDomain {
    "example.org".parse().expect("a trust domain")
}
