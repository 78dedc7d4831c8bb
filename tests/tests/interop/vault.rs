//! UpstreamAuthority `vault` against a real OpenBao.

use serde_json::json;
use svid_tests::bao::{Bao, ROOT_TOKEN, SIGN_POLICY};
use svid_tests::lint::{self, ders};
use svid_tests::pki::TestCa;
use svid_tests::process::eventually;
use svid_tests::{Agent, Process, Server, ServerOptions, until};

/// The policy of the documentation, which is the least that works.
fn tight_policy() -> &'static str {
    let (_, page) = include_str!("../../../docs/vault.md").split_once("<<'POLICY'\n").expect("the policy");
    page.split_once("POLICY\n").expect("its end").0
}

fn upstream(bao: &Bao, more: &str) -> ServerOptions {
    let plugins =
        format!(r#"UpstreamAuthority "vault" {{ plugin_data {{ vault_addr = "{}" {more} }} }}"#, bao.address);
    ServerOptions { plugins, ..ServerOptions::default() }
}

fn token_auth(token: &str) -> String {
    format!(r#"token_auth {{ token = "{token}" }}"#)
}

fn approle_auth((role_id, secret_id): &(String, String)) -> String {
    format!(r#"approle_auth {{ approle_id = "{role_id}" approle_secret_id = "{secret_id}" }}"#)
}

/// Starts a server with this upstream and an agent; the workload's chain leads to `root`, and strict readers like it.
async fn issues_below(options: ServerOptions, root: &[u8]) -> (Server, Agent) {
    let server = Server::start_with(options).await;
    let agent = Agent::join(&server).await;
    server.entry("/web", &format!("unix:uid:{}", nix::unistd::geteuid()), &[]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let (chain, bundle) = agent.x509().await;
    assert_eq!(bundle, [root.to_vec()], "the bundle is the root of the upstream and nothing else");
    assert!(chain.len() > 1, "a CA of the server's own stands between");
    lint::check_chain(&chain, &bundle).await;
    (server, agent)
}

/// Starts a server that cannot get its CA, and waits for the words that say why.
async fn refused(options: ServerOptions, words: &[&str]) {
    let server = Server::prepare(&options);
    let (code, log) = server.launch().end().await;
    assert_ne!(code, 0);
    let log = log.replace("\\\"", "\"");
    for word in words {
        assert!(log.contains(word), "{log}\n lacks {word:?}");
    }
}

/// Nothing that was printed holds a secret.
fn assert_silent(secrets: &[&str], processes: &[&Process]) {
    for process in processes {
        for line in process.log().iter() {
            for secret in secrets {
                assert!(!line.contains(secret), "a secret is in the log: {line}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_with_the_tight_policy_is_enough() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.policy("", "spire", tight_policy()).await;
    let token = bao.token("spire", "1h").await;
    let (mut server, mut agent) = issues_below(upstream(&bao, &token_auth(&token)), &root).await;
    assert_silent(&[&token], &[server.process(), agent.process()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_promises_of_upstream_authorities() {
    let Some(bao) = Bao::start().await else { return };
    bao.pki("", "pki").await;
    bao.intermediate("below", "pki", "8760h").await;
    let pem = lint::pem(&[bao.root("pki").await]);
    bao.post("below/issuers/import/cert", json!({"pem_bundle": pem})).await;
    for mount in ["pki", "below"] {
        let text = format!(
            r#"vault_addr = "{}" pki_mount_point = "{mount}" token_auth {{ token = "{ROOT_TOKEN}" }}"#,
            bao.address
        );
        let body = svid_core::hcl::parse(&text).expect("HCL");
        let (config, report) =
            svid_core::hcl::decode(&body, |r| svid_vault::UpstreamConfig::read(r, &|_| None));
        assert_eq!(report.errors, []);
        let upstream = svid_vault::UpstreamVault::open(config.expect("a configuration")).expect("open");
        let trust_domain = svid_tests::TRUST_DOMAIN.parse().expect("a trust domain");
        svid_plugin_api::conformance::upstream_authority(&upstream, &trust_domain).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_token_is_renewed_and_shown_nowhere_even_at_trace() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.policy("", "spire", SIGN_POLICY).await;
    let token = bao.token("spire", "15s").await;
    let mut options = upstream(&bao, &token_auth(&token));
    options.server = "log_level = \"TRACE\"".into();
    let (mut server, mut agent) = issues_below(options, &root).await;
    server.process().wait_for("Renewed the token for Vault").await;
    server.cli(&["localauthority", "x509", "prepare"]).await.ok();
    assert_silent(&[&token], &[server.process(), agent.process()]);
    let login = bao.approle("", "spire").await;
    let mut options = upstream(&bao, &approle_auth(&login));
    options.server = "log_level = \"TRACE\"".into();
    let mut server = Server::start_with(options).await;
    assert_silent(&[&login.1, "client_token"], &[server.process()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn approle_logs_in_again_when_its_token_was_revoked() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.policy("", "spire", SIGN_POLICY).await;
    let login = bao.approle("", "spire").await;
    let (mut server, mut agent) = issues_below(upstream(&bao, &approle_auth(&login)), &root).await;
    bao.revoke_logins("approle").await;
    let prepared = server.cli(&["localauthority", "x509", "prepare"]).await.ok();
    assert!(prepared.contains("Authority ID"), "{prepared}");
    server.process().wait_for("Vault refused the token; logging in again").await;
    assert_silent(&[&login.1], &[server.process(), agent.process()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_authority_takes_over_and_leads_to_the_same_root() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.policy("", "spire", SIGN_POLICY).await;
    let token = bao.token("spire", "1h").await;
    let (server, agent) = issues_below(upstream(&bao, &token_auth(&token)), &root).await;
    let (before, _) = agent.x509().await;
    let out = server.cli(&["localauthority", "x509", "prepare"]).await.ok();
    let id =
        out.lines().find_map(|line| line.trim().strip_prefix("Authority ID: ")).expect("an id").to_owned();
    server.cli(&["localauthority", "x509", "activate", "-authorityID", &id]).await.ok();
    let old = server.cli(&["localauthority", "x509", "show"]).await.ok();
    let old_id = old
        .lines()
        .skip_while(|line| !line.contains("Old"))
        .find_map(|line| line.trim().strip_prefix("Authority ID: "));
    assert!(old_id.is_some(), "{old}");
    // A second agent gets its certificates from the new authority.
    let other = Agent::join(&server).await;
    eventually(|| other.cli(&["api", "fetch", "x509"])).await;
    let (after, bundle) = other.x509().await;
    assert_ne!(before[1], after[1], "another CA signs");
    assert_eq!(bundle, [root]);
    lint::check_chain(&after, &bundle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_certificate_method_over_tls() {
    let Some(bao) = Bao::start_tls().await else { return };
    let root = bao.pki("", "pki").await;
    bao.policy("", "spire", SIGN_POLICY).await;
    bao.post("sys/auth/cert", json!({"type": "cert"})).await;
    let ca = TestCa::new("clients");
    let body = json!({"certificate": ca.pem(), "token_policies": "spire", "allowed_common_names": "spire"});
    bao.post("auth/cert/certs/spire", body).await;
    // The role that would be tried first, were the configured one not named.
    let body = json!({"certificate": ca.pem(), "token_policies": "default"});
    bao.post("auth/cert/certs/another", body).await;
    let client = ca.leaf("spire", &[]);
    let (cert_path, key_path) = (bao.path().join("client.pem"), bao.path().join("client-key.pem"));
    std::fs::write(&cert_path, &client.cert_pem).expect("write");
    std::fs::write(&key_path, &client.key_pem).expect("write");
    let cert_auth = |role: &str| {
        format!(
            r#"ca_cert_path = "{}" cert_auth {{ cert_auth_role_name = "{role}" client_cert_path = "{}" client_key_path = "{}" }}"#,
            bao.ca_path().display(),
            cert_path.display(),
            key_path.display()
        )
    };
    let (mut server, mut agent) = issues_below(upstream(&bao, &cert_auth("spire")), &root).await;
    let key_line = client.key_pem.lines().nth(1).expect("a key").to_owned();
    assert_silent(&[&key_line], &[server.process(), agent.process()]);
    refused(upstream(&bao, &cert_auth("another")), &["answers 403", "path \"pki/root/sign-intermediate\""])
        .await;
    refused(
        upstream(&bao, &cert_auth("missing")),
        &["authentication failed auth/cert/login", "cert_auth_role_name"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kubernetes_method() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.policy("", "spire", SIGN_POLICY).await;
    let reviewer = svid_tests::bao::token_reviewer().await;
    bao.post("sys/auth/kubernetes", json!({"type": "kubernetes"})).await;
    let ca = TestCa::new("cluster").pem();
    let body = json!({
        "kubernetes_host": reviewer,
        "kubernetes_ca_cert": ca,
        "disable_local_ca_jwt": true,
        "token_reviewer_jwt": "x",
    });
    bao.post("auth/kubernetes/config", body).await;
    let body = json!({
        "bound_service_account_names": "spire-server",
        "bound_service_account_namespaces": "spire",
        "token_policies": "spire",
    });
    bao.post("auth/kubernetes/role/spire", body).await;
    let jwt = svid_tests::bao::service_account_token("spire", "spire-server");
    let token_path = bao.path().join("sa-token");
    std::fs::write(&token_path, format!("{jwt}\n")).expect("write");
    let k8s_auth =
        format!(r#"k8s_auth {{ k8s_auth_role_name = "spire" token_path = "{}" }}"#, token_path.display());
    let (mut server, mut agent) = issues_below(upstream(&bao, &k8s_auth), &root).await;
    assert_silent(&[&jwt], &[server.process(), agent.process()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_keep_mounts_of_one_name_apart() {
    let Some(bao) = Bao::start().await else { return };
    let outer = bao.pki("", "pki").await;
    bao.post("sys/namespaces/team", json!({})).await;
    let inner = bao.pki("team", "pki").await;
    assert_ne!(outer, inner);
    bao.policy("team", "spire", SIGN_POLICY).await;
    let login = bao.approle("team", "spire").await;
    let in_team = format!(r#"namespace = "team" {}"#, approle_auth(&login));
    issues_below(upstream(&bao, &in_team), &inner).await;
    let elsewhere = format!(r#"namespace = "other" {}"#, approle_auth(&login));
    refused(
        upstream(&bao, &elsewhere),
        &["in the namespace \"other\"", "check its mount point and the namespace"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_intermediate_mount_needs_its_root() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.intermediate("below", "pki", "8760h").await;
    let auth = format!(r#"pki_mount_point = "below" {}"#, token_auth(ROOT_TOKEN));
    refused(
        upstream(&bao, &auth),
        &["vault mount below does not know its root; import it or set root_bundle_path"],
    )
    .await;
    let file = bao.path().join("root.pem");
    std::fs::write(&file, lint::pem(std::slice::from_ref(&root))).expect("write");
    let with_file = format!(r#"root_bundle_path = "{}" {auth}"#, file.display());
    issues_below(upstream(&bao, &with_file), &root).await;
    let pem = lint::pem(std::slice::from_ref(&root));
    bao.post("below/issuers/import/cert", json!({"pem_bundle": pem})).await;
    let (_server, agent) = issues_below(upstream(&bao, &auth), &root).await;
    assert_eq!(agent.x509().await.0.len(), 3, "leaf, the server's CA and the mount's");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_issuer_of_the_mount_by_its_name() {
    let Some(bao) = Bao::start().await else { return };
    bao.pki("", "pki").await;
    let body = json!({"common_name": "next root", "issuer_name": "next", "ttl": "87600h", "key_type": "rsa"});
    let next = bao.post("pki/root/generate/internal", body).await;
    let next = ders(next["certificate"].as_str().expect("a certificate")).remove(0);
    bao.policy("", "spire", r#"path "pki/issuer/next/sign-intermediate" { capabilities = ["update"] }"#)
        .await;
    let token = bao.token("spire", "1h").await;
    let named = format!(r#"issuer_ref = "next" max_path_length = 1 {}"#, token_auth(&token));
    issues_below(upstream(&bao, &named), &next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_shortens_the_life_is_told() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.post("sys/mounts/pki/tune", json!({"max_lease_ttl": "2h"})).await;
    let mut options = upstream(&bao, &token_auth(ROOT_TOKEN));
    options.server = "ca_ttl = \"48h\"".into();
    let (mut server, _agent) = issues_below(options, &root).await;
    server.process().wait_for("raise its max_lease_ttl or lower ca_ttl").await;
    server.process().wait_for("Vault signed the CA with a warning").await;
}

/// OpenBao signs CAs that outlive their issuer, with no more than a warning.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_the_mounts_own_certificate() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    bao.intermediate("below", "pki", "2h").await;
    bao.post("below/issuers/import/cert", json!({"pem_bundle": lint::pem(std::slice::from_ref(&root))}))
        .await;
    let auth = format!(r#"pki_mount_point = "below" {}"#, token_auth(ROOT_TOKEN));
    let mut options = upstream(&bao, &auth);
    options.server = "default_x509_svid_ttl = \"20h\"".into();
    let (_server, agent) = issues_below(options, &root).await;
    let (chain, _) = agent.x509().await;
    let end = |at: usize| {
        let (_, cert) = x509_parser::parse_x509_certificate(&chain[at]).expect("a certificate");
        cert.validity().not_after
    };
    assert!(end(1) > end(2), "this is what OpenBao does");
    assert!(end(0) <= end(2), "an SVID ends with its chain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_name_like_a_host_becomes_no_dns_name() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    let mut options = upstream(&bao, &token_auth(ROOT_TOKEN));
    options.server =
        r#"ca_subject { country = ["DE"] organization = ["Acme, Inc."] common_name = "ca.example.org" }"#
            .into();
    let (_server, agent) = issues_below(options, &root).await;
    let (chain, _) = agent.x509().await;
    let (_, ca) = x509_parser::parse_x509_certificate(&chain[1]).expect("a certificate");
    let subject = ca.subject().to_string();
    assert!(subject.contains("O=Acme, Inc.") && subject.contains("CN=ca.example.org"), "{subject}");
    let names = ca.subject_alternative_name().expect("readable").expect("present").value.general_names.len();
    assert_eq!(names, 1, "the trust domain and no host");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_get_clear_words() {
    let Some(bao) = Bao::start().await else { return };
    bao.pki("", "pki").await;
    bao.policy("", "spire", SIGN_POLICY).await;
    let (role_id, secret_id) = bao.approle("", "spire").await;
    let wrong = approle_auth(&(role_id.clone(), "not-the-secret-id".into()));
    refused(upstream(&bao, &wrong), &["authentication failed auth/approle/login", "approle_secret_id"]).await;
    let good = approle_auth(&(role_id, secret_id));
    let nowhere = format!(r#"pki_mount_point = "nowhere" {}"#, token_auth(ROOT_TOKEN));
    refused(upstream(&bao, &nowhere), &["mount \"nowhere\"", "check pki_mount_point and namespace"]).await;
    let denied = format!(r#"pki_mount_point = "nowhere" {good}"#);
    refused(
        upstream(&bao, &denied),
        &["path \"nowhere/root/sign-intermediate\" { capabilities = [\"update\"] }"],
    )
    .await;
    let token = token_auth("not-a-token-of-anybody");
    refused(upstream(&bao, &token), &["authentication failed auth/token/lookup-self", "was revoked"]).await;
    bao.seal().await;
    refused(upstream(&bao, &good), &["has to be unsealed"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_of_another_ca_is_not_believed() {
    let Some(bao) = Bao::start_tls().await else { return };
    let other = bao.path().join("other.pem");
    std::fs::write(&other, TestCa::new("another").pem()).expect("write");
    let auth = format!(r#"ca_cert_path = "{}" {}"#, other.display(), token_auth(ROOT_TOKEN));
    refused(upstream(&bao, &auth), &["cannot reach Vault", "is not signed by a CA of ca_cert_path"]).await;
    let auth = format!(
        r#"ca_cert_path = "{}" {}"#,
        bao.path().join("missing.pem").display(),
        token_auth(ROOT_TOKEN)
    );
    refused(upstream(&bao, &auth), &["ca_cert_path", "No such file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_need_no_vault() {
    let Some(bao) = Bao::start().await else { return };
    let root = bao.pki("", "pki").await;
    let (mut server, _) = issues_below(upstream(&bao, &token_auth(ROOT_TOKEN)), &root).await;
    bao.process.kill().await;
    server.stop().await;
    server.restart().await;
    let other = Agent::join(&server).await;
    eventually(|| other.cli(&["api", "fetch", "x509"])).await;
    let refused = server.cli(&["localauthority", "x509", "prepare"]).await;
    assert_ne!(refused.code, 0, "only a new authority needs it");
    assert!(refused.stderr.contains("cannot reach Vault"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_root_reaches_workloads_without_a_restart() {
    let Some(bao) = Bao::start().await else { return };
    let old = bao.pki("", "pki").await;
    let (server, agent) = issues_below(upstream(&bao, &token_auth(ROOT_TOKEN)), &old).await;
    let body = json!({"common_name": "next root", "issuer_name": "next", "ttl": "87600h", "key_type": "ec"});
    let next = bao.post("pki/root/generate/internal", body).await;
    let next = ders(next["certificate"].as_str().expect("a certificate")).remove(0);
    bao.post("pki/root/replace", json!({"default": "next"})).await;
    server.cli(&["localauthority", "x509", "prepare"]).await.ok();
    until("both roots are in the bundle of a workload", || async {
        let (_, bundle) = agent.x509().await;
        bundle.contains(&old) && bundle.contains(&next)
    })
    .await;
}
