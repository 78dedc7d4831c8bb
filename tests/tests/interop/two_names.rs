//! A certificate with two names: the CA of one trust domain vouches for the first, and the second is somebody else's.
//! The rules that `svidctl envoy bootstrap` writes must not fall for it. Secrets are in the file here, not from an agent:
//! ours would never sign such a certificate.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use svid_tests::client::careless_tls;
use svid_tests::envoy::{Envoy, Version};
use svid_tests::pki::{TestCa, TestCert};
use svid_tests::process::run;
use svid_tests::{free_port, interop, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SHOP: &str = "spiffe://a.example/shop";
const FRIEND: &str = "spiffe://b.example/friend";
const OTHER: &str = "spiffe://b.example/other";

struct Authorities {
    a: TestCa,
    b: TestCa,
}

/// Puts certificates where the configuration asks the agent for them.
fn without_agent(config: &mut Value, authorities: &Authorities) {
    match config {
        Value::Object(fields) => {
            if fields.remove("tls_certificate_sds_secret_configs").is_some() {
                let own = authorities.a.leaf("web", &["spiffe://a.example/web"]);
                let inline = |text: &str| json!({"inline_string": text});
                let certificate =
                    json!({"certificate_chain": inline(&own.cert_pem), "private_key": inline(&own.key_pem)});
                fields.insert("tls_certificates".into(), json!([certificate]));
            }
            if fields.remove("validation_context_sds_secret_config").is_some() {
                let domains = [("a.example", &authorities.a), ("b.example", &authorities.b)]
                    .map(|(name, ca)| json!({"name": name, "trust_bundle": {"inline_string": ca.pem()}}));
                let validator = json!({
                    "name": "envoy.tls.cert_validator.spiffe",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                        "trust_domains": domains,
                    },
                });
                fields.insert("validation_context".into(), json!({"custom_validator_config": validator}));
            }
            fields.values_mut().for_each(|value| without_agent(value, authorities));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| without_agent(value, authorities)),
        _ => {}
    }
}

/// What is answered to a caller with this certificate; 0 if the connection is broken off.
async fn status(port: u16, cert: &TestCert) -> u16 {
    let ask = async {
        let mut config = careless_tls(Some(&cert.client()));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let name = ServerName::try_from("web").expect("a name");
        let mut tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()?;
        tls.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").await.ok()?;
        let mut head = [0; 12];
        tls.read_exact(&mut head).await.ok()?;
        std::str::from_utf8(&head).ok()?.strip_prefix("HTTP/1.1 ")?.parse().ok()
    };
    ask.await.unwrap_or_default()
}

async fn check(version: Version, allow: &str, rows: &[(&TestCert, u16)], authorities: &Authorities) {
    let mut envoy = Envoy::prepare_version(version).expect("SVID_TEST_ENVOY and SVID_TEST_ENVOY_OLD");
    let port = free_port();
    let admin = envoy.path().join("admin.sock").display().to_string();
    let listen = format!("127.0.0.1:{port}");
    // Nobody serves there: who is let in gets a 503.
    let to = format!("127.0.0.1:{}", free_port());
    let args = [
        "envoy",
        "bootstrap",
        "--service",
        "web",
        "--listen",
        &listen,
        "--to",
        &to,
        "--admin-socket",
        &admin,
    ];
    let args: Vec<&str> = args.into_iter().chain(allow.split(' ')).collect();
    let text = run("svidctl", &args).await.ok();
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    without_agent(&mut config, authorities);
    envoy.start(&config.to_string());
    envoy.process().wait_for("starting workers").await;
    // The workers open the port a moment after they were started.
    until("the port", || async { status(port, rows[0].0).await == rows[0].1 }).await;
    for (row, (cert, want)) in rows.iter().enumerate() {
        assert_eq!(status(port, cert).await, *want, "{version:?} {allow}: row {row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_name_is_worth_nothing() {
    if !interop("certificates with two names") {
        return;
    }
    let authorities = Authorities { a: TestCa::new("a"), b: TestCa::new("b") };
    let (a, b) = (&authorities.a, &authorities.b);
    let shop = a.leaf("shop", &[SHOP]);
    let friend = b.leaf("friend", &[FRIEND]);
    let other = b.leaf("other", &[OTHER]);
    let foreign = b.leaf("foreign", &[SHOP]);
    let second = b.leaf("second", &[OTHER, SHOP]);
    let first = b.leaf("first", &[SHOP, OTHER]);
    for version in [Version::Old, Version::New] {
        let named = format!("--allow {SHOP} --allow {FRIEND}");
        let rows = [(&shop, 503), (&friend, 503), (&other, 403), (&foreign, 0), (&second, 403), (&first, 0)];
        check(version, &named, &rows, &authorities).await;
        let domain = format!("--allow {SHOP} --allow-any-in-trust-domain b.example");
        let rows = [(&shop, 503), (&friend, 503), (&other, 503), (&foreign, 0), (&second, 403), (&first, 0)];
        check(version, &domain, &rows, &authorities).await;
    }
}
