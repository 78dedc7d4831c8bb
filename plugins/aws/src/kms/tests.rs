#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_sdk_kms::error::{ErrorMetadata, SdkError};
use aws_sdk_kms::operation::create_alias::CreateAliasError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as B64;
use serde_json::json;
use svid_core::clock::Clock;
use svid_core::key::{KeyError, KeyType, LocalKey, Signer as _};
use svid_core::remote;
use svid_plugin_api::{KeyManager, PluginCode, PluginError, SigningLimits, conformance};

use super::manager::{Kms, Seams};
use super::*;
use crate::testing::{Answer, Fake, Moto, REGION, access_key};

const DAY: Duration = Duration::from_secs(86_400);

fn config(server: &str, by_tags: bool) -> KmsConfig {
    KmsConfig {
        region: REGION.to_owned(),
        access_key: Some(access_key("AKID")),
        identifier: KeyIdentifier::Value(server.to_owned()),
        key_policy_file: None,
        key_tags: BTreeMap::from([("Team".to_owned(), "trust".to_owned())]),
        by_tags,
    }
}

async fn open(url: &str, config: &KmsConfig) -> Result<AwsKms, PluginError> {
    let seams = Seams { endpoint: Some(url), limits: SigningLimits::default() };
    AwsKms::open_with(config, &"prod.example.org".parse().unwrap(), Clock::system(), seams).await
}

/// Waits for background work.
async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let done = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.expect(what);
}

async fn is_enabled(kms: &Kms, key: &str) -> bool {
    kms.describe(key).await.unwrap().enabled
}

#[tokio::test]
async fn keeps_every_promise() {
    let Some(moto) = Moto::start() else { return };
    for (by_tags, server) in [(false, "by-alias"), (true, "by-tag")] {
        let config = config(server, by_tags);
        conformance::key_manager(&open(&moto.url, &config).await.unwrap()).await;
        let config = KmsConfig { identifier: KeyIdentifier::Value(format!("{server}-again")), ..config };
        let reopen = async || {
            let keys: Arc<dyn KeyManager> = Arc::new(open(&moto.url, &config).await.unwrap());
            keys
        };
        conformance::durable_key_manager(reopen).await;
    }
}

#[tokio::test]
async fn keys_are_named_as_spire_names_them_and_go_when_replaced() {
    let Some(moto) = Moto::start() else { return };
    let keys = open(&moto.url, &config("server-1", false)).await.unwrap();
    let kms = keys.shared().clone();
    let alias = "alias/SPIRE_SERVER/prod_example_org/server-1/x509-CA-A";
    let rsa = keys.generate("x509-CA-A", KeyType::Rsa2048).await.unwrap();
    remote::sign(&*rsa, b"x").await.unwrap();
    let first = kms.describe(alias).await.unwrap();
    assert_eq!(first.description.as_deref(), Some("SPIRE_SERVER_KEY/prod_example_org/x509-CA-A"));
    let tags = kms.client.list_resource_tags().key_id(&first.key_id).send().await.unwrap().tags.unwrap();
    let tags: Vec<_> = tags.iter().map(|tag| (tag.tag_key(), tag.tag_value())).collect();
    assert_eq!(tags, [("Team", "trust")], "without discovery by tags there are the operator's own only");

    let second = keys.generate("x509-CA-A", KeyType::EcP256).await.unwrap();
    let now = kms.describe(alias).await.unwrap();
    assert_ne!(now.arn, first.arn, "the alias moves to the new key");
    remote::sign(&*rsa, b"x").await.expect("the old one signs as long as somebody holds it");
    assert!(is_enabled(&kms, first.arn().unwrap()).await);
    drop(rsa);
    until("the old key is to be deleted", async || !is_enabled(&kms, first.arn().unwrap()).await).await;
    remote::sign(&*second, b"x").await.unwrap();

    // Somebody disabled the key that is in use.
    kms.client.disable_key().key_id(&now.key_id).send().await.unwrap();
    let error = open(&moto.url, &config("server-1", false)).await.unwrap_err();
    assert_eq!(error.code, PluginCode::FailedPrecondition);
    assert!(error.message.contains("found disabled SPIRE key") && error.message.contains(alias), "{error}");
}

#[tokio::test]
async fn an_alias_of_a_lost_answer_is_taken_over() {
    let Some(moto) = Moto::start() else { return };
    let config = config("server-1", false);
    let (one, other) = (open(&moto.url, &config).await.unwrap(), open(&moto.url, &config).await.unwrap());
    one.generate("a", KeyType::EcP256).await.unwrap();
    // This one does not know that the alias exists.
    let made = other.generate("a", KeyType::EcP256).await.unwrap();
    let found = open(&moto.url, &config).await.unwrap().get("a").await.unwrap().unwrap();
    assert_eq!(found.public_key_der(), made.public_key_der());
    // And the first one does not turn the alias back when it shows that its keys are in use.
    one.shared().stamp().await;
    let found = open(&moto.url, &config).await.unwrap().get("a").await.unwrap().unwrap();
    assert_eq!(found.public_key_der(), made.public_key_der());
}

#[tokio::test]
async fn what_servers_that_are_gone_left_behind_is_swept_away() {
    let Some(moto) = Moto::start() else { return };
    let now = SystemTime::now();
    for by_tags in [false, true] {
        let name = |who: &str| format!("{who}-{by_tags}");
        let gone = open(&moto.url, &config(&name("gone"), by_tags)).await.unwrap();
        let here = open(&moto.url, &config(&name("here"), by_tags)).await.unwrap();
        gone.generate("a", KeyType::EcP256).await.unwrap();
        here.generate("a", KeyType::EcP256).await.unwrap();
        let kms = here.shared().clone();
        let arn = |keys: &AwsKms| keys.shared().keys()["a"].key.arn().to_owned();
        let (theirs, ours) = (arn(&gone), arn(&here));
        drop(gone);
        let sweep = async |at| {
            if by_tags { kms.sweep_tagged(at).await } else { kms.sweep_aliases(at).await }.unwrap();
        };
        sweep(now + DAY * 13).await;
        assert!(is_enabled(&kms, &theirs).await, "it may come back");
        sweep(now + DAY * 15).await;
        until("the key of a server that is gone goes", async || !is_enabled(&kms, &theirs).await).await;
        assert!(is_enabled(&kms, &ours).await, "our own never goes");
        if by_tags {
            assert_eq!(kms.tagged(None).await.unwrap().len(), 1, "it is no longer marked as active");
            continue;
        }
        // A crash between a key and its alias.
        let orphan = kms.client.create_key().description(kms.names.description("b"));
        let orphan = orphan.key_usage("SIGN_VERIFY".into()).key_spec("ECC_NIST_P256".into()).send().await;
        let orphan = orphan.unwrap().key_metadata.unwrap();
        kms.sweep_keys(now + DAY).await.unwrap();
        assert!(is_enabled(&kms, orphan.arn().unwrap()).await);
        kms.sweep_keys(now + DAY * 3).await.unwrap();
        until("the orphan goes", async || !is_enabled(&kms, orphan.arn().unwrap()).await).await;
        assert!(is_enabled(&kms, &ours).await);
    }
}

#[tokio::test]
async fn keys_of_before_are_found_by_tags_too() {
    let Some(moto) = Moto::start() else { return };
    let made = open(&moto.url, &config("server-1", false)).await.unwrap();
    let made = made.generate("JWT-Signer-A", KeyType::EcP384).await.unwrap();
    for _ in 0..2 {
        let keys = open(&moto.url, &config("server-1", true)).await.unwrap();
        let found = keys.get("JWT-Signer-A").await.unwrap().unwrap();
        assert_eq!(found.public_key_der(), made.public_key_der());
        assert_eq!(keys.shared().tagged(Some("server-1")).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn of_two_tagged_keys_the_one_with_the_alias_stays() {
    let Some(moto) = Moto::start() else { return };
    let config = config("server-1", true);
    let keys = open(&moto.url, &config).await.unwrap();
    let kms = keys.shared().clone();
    let stray = async || kms.create("a", KeyType::EcP256).await.unwrap().key.arn().to_owned();
    let in_use = |keys: &AwsKms| keys.shared().keys()["a"].key.arn().to_owned();
    // Without an alias either stays.
    let strays = [stray().await, stray().await];
    let keys = open(&moto.url, &config).await.unwrap();
    let kept = in_use(&keys);
    let other = strays.iter().find(|arn| **arn != kept).unwrap();
    until("the other one goes", async || !is_enabled(&kms, other).await).await;
    assert!(is_enabled(&kms, &kept).await);
    // With one, its key.
    keys.generate("a", KeyType::EcP256).await.unwrap();
    let current = in_use(&keys);
    let other = stray().await;
    let again = open(&moto.url, &config).await.unwrap();
    assert_eq!(in_use(&again), current);
    until("the stray one goes", async || !is_enabled(&kms, &other).await).await;
    // Also if that key has no tags.
    let config = |by_tags| KmsConfig { by_tags, ..config.clone() };
    let before = open(&moto.url, &config(false)).await.unwrap();
    before.generate("a", KeyType::EcP256).await.unwrap();
    let other = stray().await;
    let again = open(&moto.url, &config(true)).await.unwrap();
    assert_eq!(in_use(&again), in_use(&before));
    until("the tagged one goes", async || !is_enabled(&kms, &other).await).await;
}

#[test]
fn only_a_clear_no_says_that_nothing_happened() {
    let is_refusal = |code: &str| {
        let error = CreateAliasError::generic(ErrorMetadata::builder().code(code).build());
        manager::is_refusal(&SdkError::service_error(error, ()))
    };
    assert!(
        ["AccessDeniedException", "NotFoundException", "ThrottlingException"].into_iter().all(is_refusal)
    );
    let unclear = ["DependencyTimeoutException", "KMSInternalException", "Surprise"];
    assert!(!unclear.into_iter().any(is_refusal));
    assert!(!manager::is_refusal(&SdkError::<CreateAliasError, ()>::timeout_error("no answer")));
}

/// A KMS with one key that signs with `signer`, and shows `shown`.
fn answers(operation: &str, input: &serde_json::Value, signer: &LocalKey, shown: &LocalKey) -> Answer {
    let arn = "arn:aws:kms:eu-west-1:123456789012:key/k";
    Answer::Json(match operation {
        "ListAliases" => json!({ "Aliases": [], "Truncated": false }),
        "GetCallerIdentity" => json!({}),
        "CreateKey" => json!({ "KeyMetadata": { "KeyId": "k", "Arn": arn } }),
        "GetPublicKey" => json!({ "KeyId": arn, "PublicKey": B64.encode(shown.public_key_der()) }),
        "CreateAlias" => json!({}),
        "Sign" => {
            assert_eq!(input["MessageType"], "DIGEST");
            assert_eq!((&input["KeyId"], &input["SigningAlgorithm"]), (&json!(arn), &json!("ECDSA_SHA_256")));
            let digest = B64.decode(input["Message"].as_str().unwrap()).unwrap();
            assert_eq!(digest, remote::digest(KeyType::EcP256, b"message"));
            json!({ "KeyId": arn, "Signature": B64.encode(signer.sign(b"message").unwrap()) })
        }
        other => panic!("{other} is not expected"),
    })
}

/// Signs once with a KMS whose n-th signature meets `trouble`.
async fn sign_with(
    limits: SigningLimits,
    other_key: bool,
    mut trouble: impl FnMut(usize) -> Option<Answer> + Send + 'static,
) -> Result<Vec<u8>, KeyError> {
    let shown = LocalKey::generate(KeyType::EcP256).unwrap();
    let other = LocalKey::generate(KeyType::EcP256).unwrap();
    let signatures = AtomicUsize::new(0);
    let fake = Fake::start(move |operation, input| {
        let trouble = match operation {
            "Sign" => trouble(signatures.fetch_add(1, Ordering::SeqCst)),
            _ => None,
        };
        trouble.unwrap_or_else(|| answers(operation, &input, if other_key { &other } else { &shown }, &shown))
    });
    let fake = fake.await;
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.json");
    std::fs::write(&policy, "{}").unwrap();
    let config = KmsConfig { key_policy_file: Some(policy), ..config("server-1", false) };
    let seams = Seams { endpoint: Some(&fake.url), limits };
    let td = "prod.example.org".parse().unwrap();
    let keys = AwsKms::open_with(&config, &td, Clock::system(), seams).await.unwrap();
    let key = keys.generate("a", KeyType::EcP256).await.unwrap();
    remote::sign(&*key, b"message").await
}

#[tokio::test]
async fn throttling_and_lost_answers_are_tried_again() {
    let limits = SigningLimits::default();
    let throttled = |n| (n < 2).then_some(Answer::Refuse("ThrottlingException"));
    sign_with(limits, false, throttled).await.unwrap();
    sign_with(limits, false, |n| (n == 0).then_some(Answer::Lose)).await.unwrap();
}

#[tokio::test]
async fn a_signature_by_another_key_is_refused() {
    assert_eq!(sign_with(SigningLimits::default(), true, |_| None).await, Err(KeyError::OtherKey));
}

#[tokio::test]
async fn a_service_that_hangs_or_refuses_is_told_in_words() {
    let limits = SigningLimits { deadline: Duration::from_millis(300), ..SigningLimits::default() };
    let slow = sign_with(limits, false, |_| Some(Answer::Hang(Duration::from_secs(30)))).await;
    assert!(
        matches!(&slow, Err(KeyError::Unavailable(text)) if text.starts_with("AWS KMS did not sign within"))
    );
    let denied = |_| Some(Answer::Refuse("AccessDeniedException"));
    let denied = sign_with(SigningLimits::default(), false, denied).await.unwrap_err().to_string();
    assert!(denied.contains("needs kms:Sign on arn:aws:kms:eu-west-1:123456789012:key/k"), "{denied}");
}

#[tokio::test]
async fn a_missing_policy_file_and_wrong_credentials_are_told() {
    let config = KmsConfig { key_policy_file: Some("/nowhere/policy.json".into()), ..config("s", false) };
    let error = open("http://127.0.0.1:1", &config).await.unwrap_err();
    assert!(error.message.contains("'key_policy_file'") && error.message.contains("/nowhere/policy.json"));
    let fake = Fake::start(|_, _| Answer::Refuse("UnrecognizedClientException")).await;
    let config = KmsConfig { key_policy_file: None, ..config };
    let error = open(&fake.url, &config).await.unwrap_err();
    assert_eq!(error.code, PluginCode::Unauthenticated);
    assert!(error.message.starts_with("failed to fetch aliases: UnrecognizedClientException"), "{error}");
    let error = open("http://127.0.0.1:1", &config).await.unwrap_err();
    assert_eq!(error.code, PluginCode::Unavailable, "{error}");
}
