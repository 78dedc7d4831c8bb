//! KeyManager `hashicorp_vault`: the server's keys are in the transit engine of a real OpenBao.

use std::sync::Arc;

use serde_json::json;
use svid_plugin_api::conformance::{durable_key_manager, key_manager};
use svid_tests::bao::{Bao, ROOT_TOKEN};
use svid_tests::process::eventually;
use svid_tests::{Agent, Process, Server, ServerOptions, lint, until};
use svid_vault::{KeyManagerConfig, TransitKeyManager};

/// The policy of the documentation: the last block of its page.
fn policy() -> &'static str {
    let (_, page) = include_str!("../../../docs/vault.md").rsplit_once("```hcl\n").expect("the policy");
    page.split_once("```").expect("its end").0
}

fn plugin_data(bao: &Bao, auth: &str, server: &str) -> String {
    format!(r#"vault_addr = "{}" key_identifier_value = "{server}" {auth}"#, bao.address)
}

async fn open(bao: &Bao, server: &str) -> TransitKeyManager {
    let auth = format!(r#"token_auth {{ token = "{ROOT_TOKEN}" }}"#);
    let body = svid_core::hcl::parse(&plugin_data(bao, &auth, server)).expect("HCL");
    let (config, report) = svid_core::hcl::decode(&body, |r| KeyManagerConfig::read(r, &|_| None));
    assert_eq!(report.errors, []);
    TransitKeyManager::open(config.expect("a configuration")).await.expect("open")
}

async fn names(bao: &Bao) -> Vec<String> {
    let listed = bao.get("transit/keys?list=true").await.unwrap_or_default();
    let names = listed["data"]["keys"].as_array().cloned().unwrap_or_default();
    names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_promises_of_key_managers() {
    let Some(bao) = Bao::start().await else { return };
    bao.mount("", "transit", "transit").await;
    key_manager(&open(&bao, "one").await).await;
    let bao = &bao;
    durable_key_manager(async || Arc::new(open(bao, "two").await) as _).await;
    assert!(names(bao).await.iter().any(|name| name.starts_with("one-")), "each sees its own keys only");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_without_users_are_deleted_and_the_newest_counts() {
    use svid_core::key::KeyType;
    use svid_plugin_api::KeyManager as _;
    let Some(bao) = Bao::start().await else { return };
    bao.mount("", "transit", "transit").await;
    let keys = open(&bao, "one").await;
    let held = keys.generate("a", KeyType::EcP256).await.expect("generate");
    let second = keys.generate("a", KeyType::EcP256).await.expect("generate");
    assert_eq!(names(&bao).await.len(), 2, "the first is held still");
    drop(held);
    until("the replaced key is deleted", || async { names(&bao).await.len() == 1 }).await;
    // Another process ended between the two steps.
    let left = names(&bao).await.remove(0);
    let stale = left.replacen(&left[4..12], "00000000", 1);
    drop(keys);
    bao.post(&format!("transit/keys/{stale}"), json!({"type": "ecdsa-p256"})).await;
    let keys = open(&bao, "one").await;
    let found = keys.get("a").await.expect("get").expect("a key");
    assert_ne!(found.public_key_der(), second.public_key_der(), "the newest counts");
    until("the older one is deleted", || async { names(&bao).await == [stale.clone()] }).await;
    let rsa = keys.generate("b", KeyType::Rsa2048).await.expect("generate");
    svid_core::remote::sign(&*rsa, b"message").await.expect("an RSA signature that was verified");
}

/// The server with its keys in transit, and more plugins.
async fn start(bao: &Bao, plugins: &str) -> (Server, String) {
    bao.mount("", "transit", "transit").await;
    bao.policy("", "keys", policy()).await;
    let login = bao.approle("", "keys").await;
    let auth = format!(r#"approle_auth {{ approle_id = "{}" approle_secret_id = "{}" }}"#, login.0, login.1);
    let key_manager =
        format!(r#"KeyManager "hashicorp_vault" {{ plugin_data {{ {} }} }}"#, plugin_data(bao, &auth, "one"));
    let options =
        ServerOptions { key_manager: Some(key_manager), plugins: plugins.into(), ..ServerOptions::default() };
    (Server::start_with(options).await, login.1)
}

async fn workload_gets_both_kinds(agent: &Agent) -> Vec<Vec<u8>> {
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let (chain, bundle) = agent.x509().await;
    lint::check_chain(&chain, &bundle).await;
    let out = agent.cli(&["api", "fetch", "jwt", "-audience", "billing"]).await.ok();
    let token = out.lines().map(str::trim).find(|line| line.starts_with("eyJ")).expect("a token").to_owned();
    let said = agent.cli(&["api", "validate", "jwt", "-audience", "billing", "-svid", &token]).await.ok();
    assert!(said.contains("SVID is valid"), "{said}");
    bundle
}

fn assert_silent(secret: &str, process: &Process) {
    assert!(!process.log().iter().any(|line| line.contains(secret)), "the secret id is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_outlives_the_process_and_its_token() {
    let Some(bao) = Bao::start().await else { return };
    let (mut server, secret_id) = start(&bao, "").await;
    let agent = Agent::join(&server).await;
    server.entry("/web", &format!("unix:uid:{}", nix::unistd::geteuid()), &[]).await;
    let before = workload_gets_both_kinds(&agent).await;
    assert!(!server.path().join("data/keys.json").exists(), "no key is on the server's disk");
    assert_silent(&secret_id, server.process());
    server.stop().await;
    server.restart().await;
    bao.revoke_logins("approle").await;
    server.entry("/more", "unix:uid:1", &[]).await;
    let other = Agent::join(&server).await;
    let after = workload_gets_both_kinds(&other).await;
    assert_eq!(before, after, "the same authority goes on");
    server.process().wait_for("Vault refused the token; logging in again").await;
    assert_silent(&secret_id, server.process());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_with_its_key_in_transit_below_the_pki_engine() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    let upstream = format!(
        r#"UpstreamAuthority "vault" {{ plugin_data {{ vault_addr = "{}" token_auth {{ token = "{ROOT_TOKEN}" }} }} }}"#,
        bao.address
    );
    let (server, _) = start(&bao, &upstream).await;
    let agent = Agent::join(&server).await;
    server.entry("/web", &format!("unix:uid:{}", nix::unistd::geteuid()), &[]).await;
    assert_eq!(workload_gets_both_kinds(&agent).await, [root]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_vault_is_sealed_nothing_new_is_signed_and_afterwards_all_goes_on() {
    let Some(mut bao) = Bao::start().await else { return };
    let (server, _) = start(&bao, "").await;
    let agent = Agent::join(&server).await;
    server.entry("/web", &format!("unix:uid:{}", nix::unistd::geteuid()), &[]).await;
    workload_gets_both_kinds(&agent).await;
    bao.seal().await;
    let id = server.id("/minted");
    let refused = server.cli(&["x509", "mint", "-spiffeID", &id]).await;
    assert_ne!(refused.code, 0);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("Unavailable") && said.contains("Vault"), "{said}");
    agent.x509().await;
    bao.unseal().await;
    server.cli(&["x509", "mint", "-spiffeID", &id]).await.ok();
    workload_gets_both_kinds(&agent).await;
}
