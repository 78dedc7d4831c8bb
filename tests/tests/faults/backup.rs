//! Backups: taken while everything goes on, restored after the database was lost or spoiled, and what must not come back.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use svid_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use svid_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, CountEntriesRequest};
use svid_proto::spire::api::types::{Entry, Selector, Spiffeid};
use svid_tests::calls::call;
use svid_tests::client::{attest_by_token, unix};
use svid_tests::pki::TestCa;
use svid_tests::process::{Output, bin, eventually, run};
use svid_tests::{Agent, Process, Server, ServerOptions, postgres, until};
use tokio::process::Command;

use crate::lost_answers::{ENTRIES, renew};
use crate::my_uid;

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn file(server: &Server) -> PathBuf {
    server.path().join("state.backup")
}

/// Takes a backup; what it says it holds.
async fn back_up(server: &Server) -> Value {
    let (socket, file) = (text(&server.socket()), text(&file(server)));
    let out =
        run("svidctl", &["--server-socket", &socket, "-o", "json", "backup", "--force", &file]).await.ok();
    serde_json::from_str(&out).expect("JSON")
}

fn restore_args(server: &Server, flags: &[&str]) -> Vec<String> {
    let (config, file) = (text(&server.config()), text(&file(server)));
    let head = ["-o", "json", "restore", "--config", &config].map(str::to_owned);
    let flags = flags.iter().map(|flag| (*flag).to_owned());
    head.into_iter().chain(flags).chain([file]).collect()
}

async fn restore(server: &Server, flags: &[&str]) -> Output {
    let args = restore_args(server, flags);
    run("svidctl", &args.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn report(out: &Output) -> Value {
    serde_json::from_str(&out.stdout).unwrap_or_else(|_| panic!("{}{}", out.stdout, out.stderr))
}

/// Everything that a list of the report names.
fn named(report: &Value, list: &str) -> String {
    report[list].to_string()
}

fn lose_database(server: &Server) {
    for end in ["", "-wal", "-shm"] {
        let path = server.path().join(format!("data/datastore.sqlite3{end}"));
        if path.exists() {
            std::fs::remove_file(path).expect("remove");
        }
    }
}

fn entry(name: &str) -> Entry {
    let id = |path: String| Some(Spiffeid { trust_domain: svid_tests::TRUST_DOMAIN.into(), path });
    Entry {
        spiffe_id: id(format!("/job/{name}")),
        parent_id: id("/host".into()),
        selectors: vec![Selector { r#type: "unix".into(), value: "uid:1".into() }],
        ..Default::default()
    }
}

async fn create(server: &Server, names: impl Iterator<Item = String>) -> Vec<String> {
    let request =
        BatchCreateEntryRequest { entries: names.map(|name| entry(&name)).collect(), output_mask: None };
    let mut client = EntryClient::new(unix(&server.socket()).await);
    let results = client.batch_create_entry(request).await.expect("created").into_inner().results;
    results.into_iter().map(|result| result.entry.expect("an entry").id).collect()
}

async fn count(server: &Server) -> i32 {
    let mut client = EntryClient::new(unix(&server.socket()).await);
    client.count_entries(CountEntriesRequest::default()).await.expect("counted").into_inner().count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_restored_and_agents_go_on() {
    let mut server = Server::start().await;
    let agent = Agent::join(&server).await;
    server.entry("/web", &my_uid(), &[]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;

    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
    let writer = {
        let (stop, made, channel) = (stop.clone(), made.clone(), unix(&server.socket()).await);
        tokio::spawn(async move {
            for round in 0.. {
                let entries = (0..20).map(|n| entry(&format!("{round}-{n}"))).collect();
                let request = BatchCreateEntryRequest { entries, output_mask: None };
                let answer = EntryClient::new(channel.clone()).batch_create_entry(request).await;
                let results = answer.expect("created").into_inner().results;
                let ids = results.into_iter().map(|result| result.entry.expect("an entry").id);
                made.lock().expect("a list").extend(ids);
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    until("some entries are there", async || made.lock().expect("a list").len() > 100).await;
    let before: Vec<String> = made.lock().expect("a list").clone();
    let taken = back_up(&server).await;
    stop.store(true, Ordering::Relaxed);
    writer.await.expect("every batch was answered");
    assert!(taken["entries"].as_u64() >= Some(before.len() as u64), "{taken}");
    assert_eq!(taken["agents"], 1, "{taken}");
    let mode = std::fs::metadata(file(&server)).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    server.entry("/late", &my_uid(), &[]).await;
    eventually(async || match agent.cli(&["api", "fetch", "x509"]).await {
        out if out.stdout.contains("/late") => out,
        out => Output { code: 1, ..out },
    })
    .await;

    server.stop().await;
    lose_database(&server);
    let refused = restore(&server, &["--yes"]).await;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(named(&report(&refused), "refusals").contains("the database is empty, so nothing can tell"));
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    let done = report(&done);
    assert_eq!(
        (&done["restored"], &done["authorities"][0]["key_is_here"]),
        (&true.into(), &true.into()),
        "{done}"
    );
    assert!(named(&done, "next_start").contains("goes on with the authorities"), "{done}");

    server.restart().await;
    assert_eq!(u64::try_from(count(&server).await).ok(), taken["entries"].as_u64());
    let shown = server.cli(&["entry", "show"]).await.ok();
    for id in &before {
        assert!(shown.contains(id.as_str()), "{id} was there before the backup");
    }
    // Its token is used up, so only the SVID that it has can bring it here.
    server.entry("/new", &my_uid(), &[]).await;
    let svids = eventually(async || match agent.cli(&["api", "fetch", "x509"]).await {
        out if out.stdout.contains("/new") && !out.stdout.contains("/late") => out,
        out => Output { code: 1, ..out },
    })
    .await;
    assert!(svids.contains("/web"), "{svids}");
}

/// The backup does not know the certificates that agents got after it.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_renewed_after_the_backup_goes_on() {
    let mut server = Server::start().await;
    let first = attest_by_token(server.port, &server.token().await).await.expect("attested");
    let banned = attest_by_token(server.port, &server.token_for("/two").await).await.expect("attested");
    server.cli(&["agent", "ban", "-spiffeID", &banned.id]).await.ok();
    back_up(&server).await;
    let mut held = vec![first];
    for _ in 0..2 {
        let last = held.last().expect("an agent");
        let next = renew(&last.channel(&server).await, last).await.expect("renewed");
        call(&next.channel(&server).await, ENTRIES, &[]).await.expect("an agent");
        held.push(next);
    }
    server.stop().await;
    lose_database(&server);
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    server.restart().await;

    let [first, earlier, last] = &held[..] else { panic!("three") };
    call(&last.channel(&server).await, ENTRIES, &[]).await.expect("it goes on");
    // Acknowledged is durable: nobody else takes its place later.
    server.kill().await;
    server.restart().await;
    for old in [first, earlier, &banned] {
        call(&old.channel(&server).await, ENTRIES, &[]).await.expect_err("refused");
    }
    let next = renew(&last.channel(&server).await, last).await.expect("renewed");
    call(&next.channel(&server).await, ENTRIES, &[]).await.expect("an agent");
    let shown = server.cli(&["agent", "show", "-spiffeID", &banned.id, "-output", "json"]).await.ok();
    assert!(shown.contains("\"banned\":true"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_banned_or_consumed_after_a_backup_stays_so() {
    let mut server = Server::start().await;
    let tokens = [server.token_for("/one").await, server.token_for("/two").await];
    let banned = attest_by_token(server.port, &tokens[0]).await.expect("attested");
    let deleted = server.entry("/gone", "unix:uid:1", &[]).await;
    back_up(&server).await;
    let consumed = attest_by_token(server.port, &tokens[1]).await.expect("attested");
    server.cli(&["agent", "ban", "-spiffeID", &banned.id]).await.ok();
    server.cli(&["entry", "delete", "-entryID", &deleted]).await.ok();
    server.stop().await;

    for flags in [&["--rehearse"][..], &["--yes"]] {
        let refused = restore(&server, flags).await;
        let told = report(&refused);
        assert_eq!((refused.code, &told["accepted"]), (1, &false.into()), "{told}");
        assert!(named(&told, "comes_back").contains(&deleted), "{told}");
        assert!(named(&told, "stays").contains(&banned.id), "{told}");
    }
    let rehearsed = restore(&server, &["--rehearse", "--accept-rollback"]).await;
    assert_eq!((rehearsed.code, &report(&rehearsed)["restored"]), (0, &false.into()));
    server.restart().await;
    assert!(!server.cli(&["entry", "show"]).await.ok().contains(&deleted), "a rehearsal changes nothing");
    server.stop().await;

    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!((done.code, &report(&done)["restored"]), (0, &true.into()), "{}", done.stdout);
    server.restart().await;
    assert!(server.cli(&["entry", "show"]).await.ok().contains(&deleted));
    let shown = server.cli(&["agent", "show", "-spiffeID", &banned.id, "-output", "json"]).await.ok();
    assert!(shown.contains("\"banned\":true"), "{shown}");
    let shown = server.cli(&["agent", "show", "-spiffeID", &consumed.id, "-output", "json"]).await.ok();
    assert!(shown.contains("\"banned\":false"), "it attested after the backup: {shown}");
    for token in &tokens {
        assert!(attest_by_token(server.port, token).await.is_err(), "a used token was taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumed_token_does_not_come_back_into_a_lost_database() {
    let mut server = Server::start().await;
    let token = server.token().await;
    back_up(&server).await;
    attest_by_token(server.port, &token).await.expect("attested");
    server.stop().await;
    lose_database(&server);
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    server.restart().await;
    assert!(attest_by_token(server.port, &token).await.is_err(), "a used token was taken");
}

async fn authority(server: &Server, verb: &[&str]) -> String {
    let out = server.cli(&[&["localauthority", "x509"], verb].concat()).await.ok();
    let id = out.lines().find_map(|line| line.trim().strip_prefix("Authority ID: "));
    id.unwrap_or_else(|| panic!("{out}")).to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_authority_does_not_come_back() {
    let mut server = Server::start().await;
    let old_bundle = server.bundle_pem().await;
    back_up(&server).await;
    let next = authority(&server, &["prepare"]).await;
    let shown = server.cli(&["localauthority", "x509", "show"]).await.ok();
    let ids = shown.lines().filter_map(|line| line.trim().strip_prefix("Authority ID: "));
    let old = ids.into_iter().find(|id| *id != next).expect("the first authority").to_owned();
    authority(&server, &["activate", "-authorityID", &next]).await;
    authority(&server, &["taint", "-authorityID", &old]).await;
    authority(&server, &["revoke", "-authorityID", &old]).await;
    let bundle = server.bundle_pem().await;
    assert_ne!(bundle, old_bundle);
    server.stop().await;
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert!(named(&report(&done), "stays").contains(&old), "{}", done.stdout);
    server.restart().await;
    assert_eq!(server.bundle_pem().await, bundle);
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_what_is_wrong() {
    let mut server = Server::start().await;
    let (socket, path) = (text(&server.socket()), text(&file(&server)));
    back_up(&server).await;
    let again = run("svidctl", &["--server-socket", &socket, "backup", &path]).await;
    assert!(again.code == 1 && again.stderr.contains("give --force to replace it"), "{}", again.stderr);

    let rehearsed = restore(&server, &["--rehearse"]).await;
    assert_eq!(rehearsed.code, 0, "{}{}", rehearsed.stdout, rehearsed.stderr);
    assert!(named(&report(&rehearsed), "notes").contains("before a restore every server has to be stopped"));
    let running = restore(&server, &["--yes"]).await;
    assert!(running.code == 1 && running.stderr.contains("in use by another process"), "{}", running.stderr);

    server.stop().await;
    let unasked = restore(&server, &[]).await;
    assert!(unasked.code == 1 && unasked.stderr.contains("give --yes to restore"), "{}", unasked.stderr);
    let whole = std::fs::read(file(&server)).expect("a backup");
    for (bytes, words) in [
        (&whole[..whole.len() - 10], "it was cut short"),
        (&whole[..20], "it was cut short"),
        (b"PGDMP and so on", "this is no backup made by svidctl"),
    ] {
        std::fs::write(file(&server), bytes).expect("write");
        let refused = restore(&server, &["--accept-rollback", "--yes"]).await;
        assert!(refused.code == 1 && refused.stderr.contains(words), "{}", refused.stderr);
    }
    let mut altered = whole.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    std::fs::write(file(&server), altered).expect("write");
    let refused = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert!(refused.code == 1 && refused.stderr.contains("Error: "), "{}", refused.stderr);
    let none = run("svidctl", &["restore", "--config", &text(&server.config()), "/nowhere/backup"]).await;
    assert!(
        none.code == 1 && none.stderr.contains("cannot read /nowhere/backup: No such file"),
        "{}",
        none.stderr
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_keys_a_new_ca_has_to_be_meant() {
    let mut server = Server::start().await;
    let bundle = server.bundle_pem().await;
    back_up(&server).await;
    server.stop().await;
    std::fs::remove_file(server.path().join("data/keys.json")).expect("remove");
    let refused = restore(&server, &["--yes"]).await;
    assert_eq!(refused.code, 1);
    assert!(named(&report(&refused), "refusals").contains("would make a new CA"), "{}", refused.stdout);
    let done = restore(&server, &["--accept-new-ca", "--yes"]).await;
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    assert!(named(&report(&done), "next_start").contains("makes a new CA"), "{}", done.stdout);
    server.restart().await;
    let both = server.bundle_pem().await;
    assert!(
        both.contains(bundle.trim()) && both.len() > bundle.len(),
        "the old authority stays in the bundle"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_domain_moves_to_postgresql_and_back() {
    let database = postgres::database();
    let mut server = Server::start().await;
    let agent = Agent::join(&server).await;
    server.entry("/web", &my_uid(), &[]).await;
    let far = server.path().join("far.pem");
    std::fs::write(&far, TestCa::new("far").pem()).expect("write");
    server.cli(&["bundle", "set", "-id", "spiffe://far.org", "-path", &text(&far)]).await.ok();
    server.entry("/far", "unix:uid:1", &["-federatesWith", "spiffe://far.org"]).await;
    create(&server, (0..300).map(|n| format!("{n}"))).await;
    let banned = attest_by_token(server.port, &server.token_for("/two").await).await.expect("attested");
    server.cli(&["agent", "ban", "-spiffeID", &banned.id]).await.ok();
    let bundle = server.bundle_pem().await;
    back_up(&server).await;
    let held = count(&server).await;
    server.stop().await;

    server.write_config(&ServerOptions::on(&database));
    let refused = restore(&server, &["--yes"]).await;
    assert!(named(&report(&refused), "refusals").contains("the database is empty"), "{}", refused.stdout);
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(report(&done)["restored"], true, "{}{}", done.stdout, done.stderr);
    server.restart().await;
    assert_eq!((count(&server).await, server.bundle_pem().await), (held, bundle.clone()));
    let shown = server.cli(&["agent", "show", "-spiffeID", &banned.id, "-output", "json"]).await.ok();
    assert!(shown.contains("\"banned\":true"), "{shown}");
    let kept = server.entry("/new", &my_uid(), &[]).await;
    eventually(async || match agent.cli(&["api", "fetch", "x509"]).await {
        out if out.stdout.contains("/new") => out,
        out => Output { code: 1, ..out },
    })
    .await;

    back_up(&server).await;
    server.cli(&["entry", "delete", "-entryID", &kept]).await.ok();
    server.stop().await;
    let refused = restore(&server, &["--yes"]).await;
    assert!(named(&report(&refused), "comes_back").contains(&kept), "{}{}", refused.stdout, refused.stderr);
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(report(&done)["restored"], true, "{}{}", done.stdout, done.stderr);
    server.restart().await;
    assert!(server.cli(&["entry", "show"]).await.ok().contains(&kept));
    server.stop().await;

    lose_database(&server);
    server.write_config(&ServerOptions::default());
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(report(&done)["restored"], true, "{}{}", done.stdout, done.stderr);
    server.restart().await;
    assert_eq!((count(&server).await, server.bundle_pem().await), (held + 1, bundle));
    let refused = server.cli(&["bundle", "delete", "-id", "spiffe://far.org"]).await;
    assert!(refused.stderr.contains("federated with 1"), "{}{}", refused.stdout, refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_restore() {
    let mut server = Server::start().await;
    for round in 0..8 {
        create(&server, (0..500).map(|n| format!("{round}-{n}"))).await;
    }
    back_up(&server).await;
    let mut gone = Vec::new();
    let shown = server.cli(&["entry", "show", "-spiffeID", &server.id("/job/0-0")]).await.ok();
    let id = shown.lines().find(|line| line.starts_with("Entry ID")).expect("an entry");
    gone.push(id.split_once(": ").expect("a value").1.trim().to_owned());
    server.cli(&["entry", "delete", "-entryID", &gone[0]]).await.ok();
    create(&server, ["newer-1", "newer-2"].map(str::to_owned).into_iter()).await;
    let (old, new) = (4001, 4000);
    assert_eq!(count(&server).await, old);
    server.stop().await;

    let args = restore_args(&server, &["--accept-rollback", "--yes"]);
    let mut restoring = Process::start("svidctl restore", Command::new(bin("svidctl")).args(&args));
    restoring.wait_for("Restoring; until it is done").await;
    restoring.kill().await;
    server.restart().await;
    let found = count(&server).await;
    let shown = server.cli(&["entry", "show"]).await.ok();
    match found {
        found if found == old => assert!(shown.contains("/job/newer-1") && !shown.contains(&gone[0])),
        found if found == new => assert!(!shown.contains("/job/newer-1") && shown.contains(&gone[0])),
        found => panic!("{found} entries: neither the old state nor the new one"),
    }
    server.stop().await;
    let done = restore(&server, &["--accept-rollback", "--yes"]).await;
    assert_eq!(done.code, 0, "{}{}", done.stdout, done.stderr);
    server.restart().await;
    assert_eq!(count(&server).await, new);
}
