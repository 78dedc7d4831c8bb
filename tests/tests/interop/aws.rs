//! UpstreamAuthority `aws_pca` and KeyManager `aws_kms` in a whole system, against moto.

use serde_json::{Value, json};
use svid_tests::aws::{Moto, REGION, SECRET, SESSION_TOKEN};
use svid_tests::lint::{self, ders};
use svid_tests::process::eventually;
use svid_tests::{Agent, Process, Server, ServerOptions, until};

fn pca(moto: &Moto, arn: &str, access_key_id: &str, more: &str) -> ServerOptions {
    let plugins = format!(
        r#"UpstreamAuthority "aws_pca" {{ plugin_data {{
            region = "{REGION}" certificate_authority_arn = "{arn}" {more}
        }} }}"#
    );
    ServerOptions { plugins, env: moto.env(access_key_id), ..ServerOptions::default() }
}

fn kms(moto: &Moto, more: &str) -> ServerOptions {
    // The key in the file counts more than the one in the environment.
    let env = moto.env("WRONG");
    let key_manager = format!(
        r#"KeyManager "aws_kms" {{ plugin_data {{
            region = "{REGION}" key_identifier_value = "server-1" key_tags {{ Team = "trust" }}
            access_key_id = "AKIDOFTHESERVER" secret_access_key = "{SECRET}" {more}
        }} }}"#
    );
    ServerOptions { key_manager: Some(key_manager), env, ..ServerOptions::default() }
}

fn assert_silent(processes: &[&Process]) {
    for process in processes {
        is_silent(&process.log().join("\n"));
    }
}

fn is_silent(log: &str) {
    for secret in [SECRET, SESSION_TOKEN] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

async fn workload(server: &Server) -> Agent {
    let agent = Agent::join(server).await;
    server.entry("/web", &format!("unix:uid:{}", nix::unistd::geteuid()), &["-dns", "web.example.org"]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    agent
}

async fn has_good_jwt(agent: &Agent) {
    let out = agent.cli(&["api", "fetch", "jwt", "-audience", "billing"]).await.ok();
    let token = out.lines().map(str::trim).find(|line| line.starts_with("eyJ")).expect("a token").to_owned();
    let said = agent.cli(&["api", "validate", "jwt", "-audience", "billing", "-svid", &token]).await.ok();
    assert!(said.contains("SVID is valid"), "{said}");
}

async fn rotate(server: &Server, kind: &str) {
    let out = server.cli(&["localauthority", kind, "prepare"]).await.ok();
    let id = out.lines().find_map(|line| line.trim().strip_prefix("Authority ID: ")).expect("an id");
    server.cli(&["localauthority", kind, "activate", "-authorityID", id]).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn workloads_chain_to_the_private_ca() {
    let Some(moto) = Moto::start().await else { return };
    let (arn, root) = moto.root_ca(None).await;
    let options = ServerOptions { server: "log_level = \"TRACE\"".into(), ..pca(&moto, &arn, "AKID", "") };
    let mut server = Server::start_with(options).await;
    let agent = workload(&server).await;
    let (before, bundle) = agent.x509().await;
    assert_eq!(bundle, ders(&root), "the bundle is the root of the private CA and nothing else");
    assert_eq!(before.len(), 2);
    lint::check_chain(&before, &bundle).await;

    rotate(&server, "x509").await;
    let other = Agent::join(&server).await;
    eventually(|| other.cli(&["api", "fetch", "x509"])).await;
    let (after, bundle) = other.x509().await;
    assert_ne!(before[1], after[1], "another CA signs");
    assert_eq!(bundle, ders(&root));
    lint::check_chain(&after, &bundle).await;

    // The CA that it has outlives a restart without AWS.
    server.stop().await;
    moto.freeze();
    server.restart().await;
    moto.thaw();
    assert_silent(&[server.process()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_use_the_ca_is_assumed() {
    let Some(moto) = Moto::start().await else { return };
    let (arn, root) = moto.root_ca(Some("ASIA")).await;
    let role = r#"assume_role_arn = "arn:aws:iam::123456789012:role/pca""#;
    let server = Server::start_with(pca(&moto, &arn, "AKID", role)).await;
    assert_eq!(ders(&server.bundle_pem().await), ders(&root));
    let denied = format!(
        "failed to describe CertificateAuthority: AccessDeniedException: AKID is not authorized to perform this on {arn}; \
         the identity that this server uses needs acm-pca:DescribeCertificateAuthority on {arn}"
    );
    refused(&pca(&moto, &arn, "AKID", ""), &[&denied]).await;
}

/// Starts a server that cannot start, and looks for the words that say why.
async fn refused(options: &ServerOptions, words: &[&str]) {
    let (code, log) = Server::prepare(options).launch().end().await;
    assert_ne!(code, 0);
    let log = log.replace("\\\"", "\"");
    for word in words {
        assert!(log.contains(word), "{log}\n lacks {word:?}");
    }
    is_silent(&log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_that_cannot_sign_is_told_in_words() {
    let Some(moto) = Moto::start().await else { return };
    let (arn, _) = moto.root_ca(None).await;
    let check = async |options: ServerOptions, word: &str| refused(&options, &["aws_pca", word]).await;
    check(
        pca(&moto, &format!("{arn}0"), "AKID", ""),
        "failed to describe CertificateAuthority: ResourceNotFoundException",
    )
    .await;
    check(pca(&moto, &arn, "WRONG", ""), "UnrecognizedClientException").await;
    check(pca(&moto, &arn, "WRONG", ""), "check the credentials that this server finds").await;
    check(pca(&moto, "arn:aws:iam::1:role/x", "AKID", ""), "certificate_authority_arn: found").await;
    let nowhere = r#"supplemental_bundle_path = "/nowhere.pem""#;
    check(pca(&moto, &arn, "AKID", nowhere), "failed to load supplemental bundle: /nowhere.pem").await;
    let config = json!({
        "CertificateAuthorityType": "SUBORDINATE",
        "CertificateAuthorityConfiguration": {
            "KeyAlgorithm": "RSA_2048", "SigningAlgorithm": "SHA256WITHRSA", "Subject": { "CommonName": "pending" },
        },
    });
    let pending = moto.call("acm-pca", "create_certificate_authority", &config).await;
    let pending = pending["CertificateAuthorityArn"].as_str().expect("an ARN");
    let words = format!(
        "certificate authority {pending} is PENDING_CERTIFICATE and cannot sign; install its certificate"
    );
    refused(&pca(&moto, pending, "AKID", ""), &[&words]).await;
}

/// The key that an alias of the server points to: its id, and whether it is enabled.
async fn key(moto: &Moto, id: &str) -> (String, bool) {
    let alias = format!("alias/SPIRE_SERVER/example_org/server-1/{id}");
    described(moto, &alias).await
}

async fn described(moto: &Moto, key: &str) -> (String, bool) {
    let said = moto.call("kms", "describe_key", &json!({ "KeyId": key })).await;
    let key = &said["KeyMetadata"];
    (key["KeyId"].as_str().expect("an id").to_owned(), key["Enabled"] == Value::Bool(true))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_servers_keys_live_in_kms() {
    let Some(moto) = Moto::start().await else { return };
    for more in ["", "enable_tag_based_key_discovery = true"] {
        let mut server = Server::start_with(kms(&moto, more)).await;
        let agent = workload(&server).await;
        let (chain, bundle) = agent.x509().await;
        lint::check_chain(&chain, &bundle).await;
        has_good_jwt(&agent).await;
        assert!(!server.path().join("data/keys.json").exists(), "no key is on the server's disk");

        server.stop().await;
        server.restart().await;
        let same = Agent::join(&server).await;
        eventually(|| same.cli(&["api", "fetch", "x509"])).await;
        assert_eq!(same.x509().await.1, bundle, "the same authority goes on");
        has_good_jwt(&same).await;

        let (ca, jwt) = (key(&moto, "x509-CA-A").await, key(&moto, "JWT-Signer-A").await);
        assert!(ca.1 && jwt.1);
        for kind in ["x509", "jwt"] {
            rotate(&server, kind).await;
            rotate(&server, kind).await;
        }
        for (id, old) in [("x509-CA-A", &ca.0), ("JWT-Signer-A", &jwt.0)] {
            let (now, enabled) = key(&moto, id).await;
            assert!(enabled && now != *old, "{id} has another key");
            until("the replaced key is scheduled for deletion", || async { !described(&moto, old).await.1 })
                .await;
        }
        let late = Agent::join(&server).await;
        eventually(|| late.cli(&["api", "fetch", "x509"])).await;
        let (chain, bundle) = late.x509().await;
        lint::check_chain(&chain, &bundle).await;
        has_good_jwt(&late).await;
        assert_silent(&[server.process()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kms_nothing_is_signed_and_everything_else_goes_on() {
    let Some(moto) = Moto::start().await else { return };
    let server = Server::start_with(kms(&moto, "")).await;
    let agent = workload(&server).await;
    moto.freeze();
    let id = server.id("/mint");
    let mint = ["x509", "mint", "-spiffeID", &id];
    let (said, ()) = tokio::join!(server.cli(&mint), async {
        // A signature that waits holds up nothing else.
        server.entry("/more", "unix:uid:1", &[]).await;
        server.bundle_pem().await;
        agent.cli(&["api", "fetch", "x509"]).await.ok();
    });
    assert_ne!(said.code, 0);
    let words = "AWS KMS did not sign within 10 s; try again";
    assert!(said.stderr.contains(words) && said.stderr.contains("Unavailable"), "{}", said.stderr);
    moto.thaw();
    eventually(|| server.cli(&mint)).await;
}
