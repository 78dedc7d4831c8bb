//! Vaults that throttle, are sealed, behind or gone, lie, or send us elsewhere. What a real one does on demand is tried with
//! a real one, in the whole-system tests.

mod fake;

use std::sync::Arc;
use std::time::Duration;

use fake::{Ca, Fake, Reply, Seen, trust_domain};
use serde_json::json;
use svid_core::hcl;
use svid_core::key::{KeyType, LocalKey};
use svid_core::x509::ca::{CaSubject, ca_csr};
use svid_plugin_api::{MintedCa, PluginCode, PluginError, UpstreamAuthority as _};
use svid_vault::{UpstreamConfig, UpstreamVault};

const SIGN: &str = "/v1/pki/root/sign-intermediate";
const LOGIN: &str = "/v1/auth/approle/login";
const RENEW: &str = "/v1/auth/token/renew-self";
const SECRET_ID: &str = "secret-id-nobody-may-see";
const TTL: Duration = Duration::from_secs(1800);

fn upstream(address: &str) -> UpstreamVault {
    UpstreamVault::open(config(address)).expect("open")
}

fn config(address: &str) -> UpstreamConfig {
    let text = format!(
        r#"vault_addr = "{address}" approle_auth {{ approle_id = "r" approle_secret_id = "{SECRET_ID}" }}"#
    );
    let body = hcl::parse(&text).expect("HCL");
    let (config, report) = hcl::decode(&body, |r| UpstreamConfig::read(r, &|_| None));
    assert_eq!(report.errors, []);
    config.expect("a configuration")
}

fn csr() -> Vec<u8> {
    let key = LocalKey::generate(KeyType::EcP256).expect("a key");
    ca_csr(&trust_domain(), &CaSubject::default(), &key).expect("a CSR")
}

/// A Vault that does as it should, but for what `sign` says about signing.
async fn vault(sign: impl Fn(&Ca, &Seen, &[u8]) -> Reply + Send + Sync + 'static) -> (Fake, Arc<Ca>) {
    let ca = Arc::new(Ca::new());
    let signer = ca.clone();
    let fake = Fake::start(move |seen| match seen.path.as_str() {
        LOGIN => login(seen),
        SIGN => {
            let csr = seen.body["csr"].as_str().expect("a CSR");
            let csr = svid_core::pem::parse_block_pem(csr, "CERTIFICATE REQUEST").expect("in PEM");
            sign(&signer, seen, &csr)
        }
        _ => Reply::Json(404, json!({"errors": []})),
    })
    .await;
    (fake, ca)
}

/// Logins give tokens of ten seconds, the shortest life that is renewed. Says what renewing them is answered.
async fn short_lived(renewal: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Fake {
    let ca = Ca::new();
    Fake::start(move |seen| match seen.path.as_str() {
        LOGIN => token(&format!("token-{}", seen.nth), 10),
        RENEW => renewal(seen),
        SIGN => {
            let csr = seen.body["csr"].as_str().expect("a CSR");
            signed(&ca, &svid_core::pem::parse_block_pem(csr, "CERTIFICATE REQUEST").expect("in PEM"))
        }
        _ => Reply::Json(404, json!({"errors": []})),
    })
    .await
}

fn token(token: &str, seconds: u64) -> Reply {
    Reply::Json(200, json!({"auth": {"client_token": token, "lease_duration": seconds, "renewable": true}}))
}

/// Waits for so many requests of a path.
async fn asked(fake: &Fake, path: &str, count: usize) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    let all = async {
        while fake.count(path) < count {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("asked");
}

#[tokio::test]
async fn a_token_is_renewed_without_being_used() {
    let fake = short_lived(|seen| {
        assert_eq!(seen.token.as_deref(), Some("token-1"));
        token("token-1", if seen.nth == 1 { 10 } else { 600 })
    })
    .await;
    let upstream = upstream(&fake.address);
    upstream.mint_x509_ca(&csr(), TTL).await.expect("minted");
    asked(&fake, RENEW, 2).await;
    upstream.mint_x509_ca(&csr(), TTL).await.expect("minted");
    assert_eq!(fake.count(LOGIN), 1);
}

#[tokio::test]
async fn a_token_that_is_not_renewed_is_replaced() {
    let fake = short_lived(|_| refusal(403, "permission denied")).await;
    let upstream = upstream(&fake.address);
    upstream.mint_x509_ca(&csr(), TTL).await.expect("minted");
    asked(&fake, RENEW, 1).await;
    // The refusal may still be on its way.
    asked_anew(&fake, &upstream).await;
    assert_eq!(fake.count(LOGIN), 2);
}

/// Mints until there was a second login.
async fn asked_anew(fake: &Fake, upstream: &UpstreamVault) {
    let again = async {
        while fake.count(LOGIN) < 2 {
            upstream.mint_x509_ca(&csr(), TTL).await.expect("minted");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("a second login");
}

fn login(seen: &Seen) -> Reply {
    assert_eq!(seen.token, None, "no old token at a login");
    assert_eq!(seen.body, json!({"role_id": "r", "secret_id": SECRET_ID}));
    token(&format!("token-{}", seen.nth), 600)
}

fn signed(ca: &Ca, csr: &[u8]) -> Reply {
    let cert = ca.sign(csr);
    Ca::answer(&cert, &[&cert, ca.der()])
}

fn refusal(status: u16, said: &str) -> Reply {
    Reply::Json(status, json!({"errors": [said]}))
}

async fn mint(fake: &Fake) -> Result<MintedCa, PluginError> {
    upstream(&fake.address).mint_x509_ca(&csr(), TTL).await
}

#[track_caller]
fn assert_error(result: Result<MintedCa, PluginError>, code: PluginCode, words: &str) {
    let error = result.expect_err("refused");
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(words), "{error}\n lacks {words:?}");
    assert!(!error.message.contains(SECRET_ID) && !error.message.contains("token-1"), "{error}");
}

#[tokio::test]
async fn keeps_the_promises_of_upstream_authorities() {
    let (fake, _) = vault(|ca, _, csr| signed(ca, csr)).await;
    svid_plugin_api::conformance::upstream_authority(&upstream(&fake.address), &trust_domain()).await;
    assert_eq!(fake.count(LOGIN), 1);
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    for first in [429, 412, 500, 503] {
        let (fake, ca) = vault(move |ca, seen, csr| match seen.nth {
            1 => Reply::Header(first, "retry-after: 0".into()),
            _ => signed(ca, csr),
        })
        .await;
        let minted = mint(&fake).await.expect("at the second try");
        assert_eq!(minted.roots[0].der(), ca.der());
        assert_eq!(fake.count(SIGN), 2);
    }
}

#[tokio::test]
async fn an_answer_that_got_lost_is_asked_for_again() {
    let (fake, _) = vault(|ca, seen, csr| if seen.nth == 1 { Reply::Nothing } else { signed(ca, csr) }).await;
    mint(&fake).await.expect("at the second try");
    assert_eq!((fake.count(SIGN), fake.count(LOGIN)), (2, 1));
}

#[tokio::test]
async fn what_does_not_pass_ends_after_three_tries() {
    let (fake, _) = vault(|_, _, _| refusal(503, "Vault is sealed")).await;
    assert_error(mint(&fake).await, PluginCode::Unavailable, "It has to be unsealed");
    assert_eq!(fake.count(SIGN), 3);
    let (fake, _) = vault(|_, _, _| refusal(501, "no")).await;
    assert_error(mint(&fake).await, PluginCode::Internal, "501");
    assert_eq!(fake.count(SIGN), 1, "what nobody built is not asked for again");
}

#[tokio::test]
async fn a_refused_token_is_replaced_once() {
    let (fake, _) = vault(|ca, seen, csr| match seen.token.as_deref() {
        Some("token-1") => refusal(403, "permission denied"),
        _ => signed(ca, csr),
    })
    .await;
    mint(&fake).await.expect("with the second token");
    assert_eq!((fake.count(LOGIN), fake.count(SIGN)), (2, 2));
    let (fake, _) = vault(|_, _, _| refusal(403, "permission denied")).await;
    let words = "path \"pki/root/sign-intermediate\" { capabilities = [\"update\"] }";
    assert_error(mint(&fake).await, PluginCode::PermissionDenied, words);
    assert_eq!((fake.count(LOGIN), fake.count(SIGN)), (2, 2), "a policy is not asked without end");
}

#[tokio::test]
async fn one_login_serves_all_who_wait() {
    let (fake, _) = vault(|ca, _, csr| signed(ca, csr)).await;
    let upstream = Arc::new(upstream(&fake.address));
    let mut mints = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let upstream = upstream.clone();
        mints.spawn(async move { upstream.mint_x509_ca(&csr(), TTL).await });
    }
    while let Some(minted) = mints.join_next().await {
        minted.expect("no panic").expect("minted");
    }
    assert_eq!((fake.count(LOGIN), fake.count(SIGN)), (1, 20));
}

#[tokio::test]
async fn one_failed_login_serves_all_who_wait() {
    let fake = Fake::start(|seen| refusal(400, &format!("invalid {}", seen.body["secret_id"]))).await;
    let upstream = Arc::new(upstream(&fake.address));
    let calls = [(); 5].map(|()| {
        let upstream = upstream.clone();
        tokio::spawn(async move { upstream.mint_x509_ca(&csr(), TTL).await })
    });
    for call in calls {
        let result = call.await.expect("no panic");
        assert_error(result, PluginCode::Unauthenticated, "invalid \"[secret]\"");
    }
    assert!(fake.count(LOGIN) < 5, "{} logins", fake.count(LOGIN));
}

#[tokio::test]
async fn answers_that_do_not_fit_are_refused() {
    let (fake, _) = vault(|ca, _, csr| Ca::answer(&ca.sign(csr), &[Ca::new().der()])).await;
    let words = "vault mount pki does not know its root; import it or set root_bundle_path";
    assert_error(mint(&fake).await, PluginCode::FailedPrecondition, words);
    let (fake, _) = vault(|ca, _, _| Ca::answer(&ca.sign_another(), &[ca.der()])).await;
    assert_error(mint(&fake).await, PluginCode::Internal, "another key");
    let (fake, _) = vault(|_, _, _| Reply::Json(200, json!({"data": {"certificate": 1}}))).await;
    assert_error(mint(&fake).await, PluginCode::Internal, "not the JSON expected");
    let (fake, _) = vault(|_, _, _| Reply::Json(200, json!({"data": null}))).await;
    assert_error(mint(&fake).await, PluginCode::Internal, "it holds no data");
}

#[tokio::test]
async fn a_huge_answer_is_not_read_to_its_end() {
    for announced in [true, false] {
        let (fake, _) = vault(move |_, _, _| Reply::Huge { bytes: 8 << 20, announced }).await;
        assert_error(mint(&fake).await, PluginCode::Internal, "it is larger than 4194304 bytes");
    }
}

#[tokio::test]
async fn one_redirect_is_followed_within_a_scheme() {
    let (active, _) = vault(|ca, _, csr| signed(ca, csr)).await;
    let to = format!("location: {}{SIGN}", active.address);
    let (standby, _) = vault(move |_, _, _| Reply::Header(307, to.clone())).await;
    mint(&standby).await.expect("at the active node");
    assert_eq!(active.count(SIGN), 1);
    let to = format!("location: {}{SIGN}", standby.address);
    let (first, _) = vault(move |_, _, _| Reply::Header(307, to.clone())).await;
    assert_error(mint(&first).await, PluginCode::FailedPrecondition, "another redirect");
    for (to, words) in
        [("location: https://127.0.0.1:1/", "another scheme"), ("x-nothing: 1", "nowhere to go")]
    {
        let (fake, _) = vault(move |_, _, _| Reply::Header(302, to.into())).await;
        assert_error(mint(&fake).await, PluginCode::FailedPrecondition, words);
    }
}

#[tokio::test]
async fn a_new_root_is_seen_without_a_mint() {
    let roots = [Ca::new(), Ca::new()];
    let want: Vec<Vec<u8>> = roots.iter().map(|ca| ca.der().to_vec()).collect();
    let fake = Fake::start(move |seen| {
        assert_eq!(seen.path, "/v1/pki/issuer/default/json", "nothing else is asked, and nobody logs in");
        assert_eq!(seen.token, None);
        match seen.nth {
            1 => Ca::answer(roots[0].der(), &[roots[0].der()]),
            2..5 => refusal(501, "not now"),
            _ => Ca::answer(roots[1].der(), &[roots[1].der()]),
        }
    })
    .await;
    let interval = Duration::from_millis(50);
    let upstream = UpstreamVault::open_reading_roots_every(interval, config(&fake.address)).expect("open");
    let mut known = upstream.roots();
    for want in want {
        let one = |roots: &Arc<[_]>| roots.iter().map(svid_core::bundle::X509Authority::der).eq([&want[..]]);
        let seen = tokio::time::timeout(Duration::from_secs(60), known.wait_for(one)).await;
        seen.expect("in time").expect("the plugin lives");
    }
}

#[tokio::test]
async fn a_mount_of_another_kind() {
    let (fake, _) = vault(|_, _, _| Reply::Header(204, "x-nothing: 1".into())).await;
    assert_error(mint(&fake).await, PluginCode::Internal, "is the mount an engine of the right kind?");
    let (fake, _) = vault(|_, _, _| refusal(500, "could not fetch the CA certificate (was one set?)")).await;
    assert_error(mint(&fake).await, PluginCode::FailedPrecondition, "is not set up for this");
    assert_eq!(fake.count(SIGN), 1, "that does not pass by itself");
}

#[tokio::test]
async fn nobody_there() {
    let result = upstream("http://127.0.0.1:9").mint_x509_ca(&csr(), TTL).await;
    assert_error(result, PluginCode::Unavailable, "cannot reach Vault at http://127.0.0.1:9");
}
