//! What each verb prints.

use svid_proto::spire::api::server::agent::v1 as agent;
use svid_proto::spire::api::server::bundle::v1 as bundle;
use svid_proto::spire::api::server::debug::v1 as debug;
use svid_proto::spire::api::server::entry::v1 as entry;
use svid_proto::spire::api::server::localauthority::v1 as authority;
use svid_proto::spire::api::types;

use super::{Fake, run};

fn id(path: &str) -> Option<types::Spiffeid> {
    Some(types::Spiffeid { trust_domain: "example.org".into(), path: path.into() })
}

fn web() -> types::Entry {
    types::Entry {
        id: "e1".into(),
        spiffe_id: id("/web"),
        parent_id: id("/node"),
        selectors: vec![types::Selector { r#type: "unix".into(), value: "uid:1000".into() }],
        x509_svid_ttl: 60,
        admin: true,
        expires_at: 1_700_000_000,
        dns_names: vec!["web".into()],
        ..Default::default()
    }
}

const WEB: &str = "\
Entry ID                : e1
SPIFFE ID               : spiffe://example.org/web
Parent ID               : spiffe://example.org/node
Revision                : 0
X509-SVID TTL           : 60
JWT-SVID TTL            : default
Expiration time         : 2023-11-14 22:13:20 +0000 UTC
Selector                : unix:uid:1000
DNS name                : web
Admin                   : true

";

fn failed(code: i32, message: &str) -> Option<types::Status> {
    Some(types::Status { code, message: message.into() })
}

const CREATE: &str = "/spire.api.server.entry.v1.Entry/BatchCreateEntry";
const CREATE_LINE: &str = "entry create -parentID spiffe://example.org/node -spiffeID spiffe://example.org/web \
                           -selector unix:uid:1000 -x509SVIDTTL 60 -admin --dns web -entryExpiry=1700000000 -entryID e1";

#[tokio::test]
async fn entry_create() {
    let result = entry::batch_create_entry_response::Result { status: failed(0, "OK"), entry: Some(web()) };
    let answer = entry::BatchCreateEntryResponse { results: vec![result] };
    let server = Fake::new().answer(CREATE, &answer).start();
    assert_eq!(run(&server, CREATE_LINE, "").await, (0, WEB.into(), String::new()));
    assert_eq!(server.asked::<entry::BatchCreateEntryRequest>(CREATE).entries, [web()]);
    let file = r#"{"entries":[{"selectors":[{"type":"unix","value":"uid:1000"}],"parent_id":"spiffe://example.org/node",
        "spiffe_id":"spiffe://example.org/web","x509_svid_ttl":60,"admin":true,"entryExpiry":1700000000,
        "dns_names":["web"],"entry_id":"e1","unknown":1}]}"#;
    assert_eq!(run(&server, "entry create -data -", file).await.0, 0);
    assert_eq!(server.asked::<entry::BatchCreateEntryRequest>(CREATE).entries, [web()]);
}

#[tokio::test]
async fn a_refused_entry_ends_with_one_in_text_and_zero_in_json() {
    let result = entry::batch_create_entry_response::Result {
        status: failed(6, "similar entry already exists"),
        entry: None,
    };
    let answer = entry::BatchCreateEntryResponse { results: vec![result] };
    let server = Fake::new().answer(CREATE, &answer).start();
    let want = format!(
        "Failed to create the following entry (code: AlreadyExists, msg: \"similar entry already exists\"):\n\
         {WEB}Error: failed to create one or more entries\n"
    );
    assert_eq!(run(&server, CREATE_LINE, "").await, (1, String::new(), want));
    let (code, out, err) = run(&server, &format!("{CREATE_LINE} -output json"), "").await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains(r#""status":{"code":6,"message":"similar entry already exists"}"#), "{out}");
}

#[tokio::test]
async fn entry_show_and_count() {
    let other =
        types::Entry { id: "e0".into(), spiffe_id: id("/a"), parent_id: id("/node"), ..Default::default() };
    let list = entry::ListEntriesResponse { entries: vec![web(), other], next_page_token: String::new() };
    let path = "/spire.api.server.entry.v1.Entry/ListEntries";
    let server = Fake::new()
        .answer(path, &list)
        .answer("/spire.api.server.entry.v1.Entry/CountEntries", &entry::CountEntriesResponse { count: 1 })
        .start();
    let (code, out, _) = run(&server, "entry show -selector unix:uid:1000 -hint h", "").await;
    assert_eq!(code, 0);
    assert!(out.starts_with("Found 2 entries\nEntry ID                : e0\n"), "{out}");
    assert!(out.ends_with(WEB), "{out}");
    let filter = server.asked::<entry::ListEntriesRequest>(path).filter.unwrap();
    assert_eq!(filter.by_hint.as_deref(), Some("h"));
    assert_eq!(filter.by_selectors.unwrap().selectors, web().selectors);
    let said = run(&server, "entry count", "").await;
    assert_eq!(said, (0, "1 registration entry\n".into(), String::new()));
    let said = run(&server, "entry count -output json", "").await;
    assert_eq!(said, (0, "{\"count\":1}\n".into(), String::new()));
}

#[tokio::test]
async fn entry_delete() {
    let result = |id: &str, status| entry::batch_delete_entry_response::Result { id: id.into(), status };
    let path = "/spire.api.server.entry.v1.Entry/BatchDeleteEntry";
    let both = vec![result("a", failed(0, "OK")), result("b", failed(5, "entry not found"))];
    let server = Fake::new().answer(path, &entry::BatchDeleteEntryResponse { results: both }).start();
    let (code, out, err) = run(&server, "entry delete -file -", r#"{"ids":["a","b"]}"#).await;
    assert_eq!(code, 1);
    assert_eq!(
        out,
        "Deleted entry with ID: a\n\n\n\n\nDeleted 1 entries successfully, but failed to delete 1 entries"
    );
    assert_eq!(
        err,
        "Failed to delete entry with ID b (code: NotFound, msg: \"entry not found\")\n\
         Error: failed to delete one or more entries\n"
    );
    assert_eq!(server.asked::<entry::BatchDeleteEntryRequest>(path).ids, ["a", "b"]);
}

#[tokio::test]
async fn agents() {
    let one = types::Agent {
        id: id("/spire/agent/x"),
        attestation_type: "x509pop".into(),
        x509svid_serial_number: "7".into(),
        x509svid_expires_at: 10,
        can_reattest: true,
        ..Default::default()
    };
    let server = Fake::new()
        .answer(
            "/spire.api.server.agent.v1.Agent/ListAgents",
            &agent::ListAgentsResponse { agents: vec![one], next_page_token: String::new() },
        )
        .answer("/spire.api.server.agent.v1.Agent/DeleteAgent", &())
        .answer("/spire.api.server.agent.v1.Agent/BanAgent", &())
        .answer("/spire.api.server.agent.v1.Agent/CountAgents", &agent::CountAgentsResponse { count: 2 })
        .answer(
            "/spire.api.server.agent.v1.Agent/CreateJoinToken",
            &types::JoinToken { value: "t".into(), expires_at: 1 },
        )
        .start();
    let (_, out, _) = run(&server, "agent list", "").await;
    assert!(
        out.starts_with(
            "Found 1 attested agent:\n\nSPIFFE ID         : spiffe://example.org/spire/agent/x\n"
        )
    );
    assert!(out.ends_with("Serial number     : 7\nCan re-attest     : true\n\n"), "{out}");
    for (line, want) in [
        ("agent count", "2 attested agents\n"),
        ("agent ban -spiffeID spiffe://example.org/spire/agent/x", "Agent banned successfully\n"),
        ("agent ban -spiffeID spiffe://example.org/spire/agent/x -output json", "{}\n"),
        ("agent evict -spiffeID spiffe://example.org/spire/agent/x", "Agent evicted successfully\n"),
        ("token generate", "Token: t\nWarning: Missing SPIFFE ID.\n"),
        ("token generate -spiffeID spiffe://example.org/n", "Token: t\n"),
        ("token generate -output json", "{\"expires_at\":\"1\",\"value\":\"t\"}\n"),
        ("agent purge", "No agents to purge.\n"),
        (
            "agent purge -expiredFor 1h",
            "Found 1 expired agent\n\nAgents purged:\nSPIFFE ID         : spiffe://example.org/spire/agent/x\n",
        ),
        (
            "agent purge -expiredFor 1h -dryRun -output json",
            "{\"expired_agents\":[{\"agent_id\":\"spiffe://example.org/spire/agent/x\",\"deleted\":false}]}\n",
        ),
    ] {
        assert_eq!(run(&server, line, "").await, (0, want.into(), String::new()), "{line}");
    }
}

#[tokio::test]
async fn small_verbs() {
    let set = bundle::batch_set_federated_bundle_response::Result { status: failed(3, "bad"), bundle: None };
    let state = authority::AuthorityState {
        authority_id: "k".into(),
        expires_at: 1_700_000_000,
        upstream_authority_subject_key_id: String::new(),
    };
    let info = debug::GetInfoResponse { uptime: 61, agents_count: 1, ..Default::default() };
    let server = Fake::new()
        .answer("/spire.api.server.bundle.v1.Bundle/CountBundles", &bundle::CountBundlesResponse { count: 1 })
        .answer(
            "/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle",
            &bundle::BatchSetFederatedBundleResponse { results: vec![set] },
        )
        .answer(
            "/spire.api.server.logger.v1.Logger/GetLogger",
            &types::Logger { current_level: 4, launch_level: 5 },
        )
        .answer(
            "/spire.api.server.localauthority.v1.LocalAuthority/PrepareX509Authority",
            &authority::PrepareX509AuthorityResponse { prepared_authority: Some(state.clone()) },
        )
        .answer(
            "/spire.api.server.localauthority.v1.LocalAuthority/GetJWTAuthorityState",
            &authority::GetJwtAuthorityStateResponse { active: Some(state), prepared: None, old: None },
        )
        .answer("/spire.api.server.debug.v1.Debug/GetInfo", &info)
        .start();
    for (line, want) in [
        ("bundle count", "1 bundle\n"),
        ("logger get", "Logger Level : warning\nLaunch Level : info\n\n"),
        (
            "localauthority x509 prepare",
            "Prepared X.509 authority:\n  Authority ID: k\n  Expires at: 2023-11-14 22:13:20 +0000 UTC\n  Upstream \
             authority ID: No upstream authority\n",
        ),
        (
            "localauthority jwt show",
            "Active JWT authority:\n  Authority ID: k\n  Expires at: 2023-11-14 22:13:20 +0000 UTC\n\nPrepared JWT \
             authority:\n  No prepared JWT authority found\n\nOld JWT authority:\n  No old JWT authority found\n",
        ),
        (
            "debug getinfo",
            "Server Debug Info:\n  Uptime:                  1m1s\n  Registered Agents:       1\n  Registration \
             Entries:    0\n  Federated Bundles:       0\n",
        ),
    ] {
        assert_eq!(run(&server, line, "").await, (0, want.into(), String::new()), "{line}");
    }
    let document = r#"{"keys":[]}"#;
    let (code, _, err) = run(&server, "bundle set -id other.org -format spiffe", document).await;
    assert_eq!((code, err.as_str()), (1, "Error: failed to set federated bundle: bad\n"));
}
