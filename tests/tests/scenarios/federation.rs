//! Two real trust domains, each with the other's bundle.

use serde_json::Value;
use spiffe::workload_api::WorkloadApiClient;
use svid_tests::partner::https;
use svid_tests::pki::TestCa;
use svid_tests::process::{bin, eventually};
use svid_tests::{Agent, PATIENCE, Process, Server, ServerOptions, free_port, until};
use tokio::process::Command;
use tokio_stream::StreamExt;

const GET: &str = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

fn my_uid() -> String {
    format!("unix:uid:{}", nix::unistd::geteuid())
}

/// A server of `name`, its bundle endpoint at `port` with this profile, and more of the federation section.
fn options(name: &str, port: u16, profile: &str, more: &str) -> ServerOptions {
    ServerOptions {
        trust_domain: Some(name.into()),
        server: format!(
            "federation {{ bundle_endpoint {{ address = \"127.0.0.1\" port = {port} profile {profile} }} {more} }}"
        ),
        ..ServerOptions::default()
    }
}

fn federates_with(name: &str, port: u16, profile: &str) -> String {
    format!(
        "federates_with \"{name}\" {{ bundle_endpoint_url = \"https://localhost:{port}\" bundle_endpoint_profile {profile} }}"
    )
}

fn by_svid(name: &str) -> String {
    format!("\"https_spiffe\" {{ endpoint_spiffe_id = \"spiffe://{name}/spire/server\" }}")
}

/// The document at an endpoint.
async fn document(port: u16) -> Value {
    let (head, body, _) = https(port, GET).await.expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).expect("JSON")
}

/// What `server` has of a trust domain.
async fn known(server: &Server, name: &str) -> Value {
    let out = server.cli(&["bundle", "list", "-id", name, "-format", "spiffe"]).await.ok();
    serde_json::from_str(&out).expect("JSON")
}

async fn set_bundle(of: &Server, at: &Server) {
    let file = at.path().join(format!("{}.json", of.trust_domain));
    let bundle = of.cli(&["bundle", "show", "-format", "spiffe"]).await.ok();
    std::fs::write(&file, bundle).expect("write the bundle");
    let (id, file) = (format!("spiffe://{}", of.trust_domain), file.display().to_string());
    at.cli(&["bundle", "set", "-id", &id, "-path", &file, "-format", "spiffe"]).await.ok();
}

/// Conformance: FED-01, FED-32, FED-34, FED-48, FED-49, FED-51, FED-64, FED-73, FED-74, FED-75, FED-77, TDB-07 to TDB-12
/// (hs-01, hs-11 to hs-20, hs-23, hc-33, hc-41, hc-43, hc-54).
#[tokio::test(flavor = "multi_thread")]
async fn two_trust_domains_know_each_other_by_their_svids() {
    let (east_port, west_port) = (free_port(), free_port());
    let spiffe = "\"https_spiffe\" {}";
    let mut east = Server::start_with(options("east.test", east_port, spiffe, "")).await;
    let to_east = federates_with("east.test", east_port, &by_svid("east.test"));
    let mut west = Server::start_with(options("west.test", west_port, spiffe, &to_east)).await;

    // West has it in its configuration, and waits for somebody to say whom to believe.
    let waits =
        west.process().wait_for("can't perform SPIFFE Authentication: local copy of bundle not found").await;
    assert!(waits.contains("trust_domain=east.test"), "{waits}");
    set_bundle(&east, &west).await;
    west.process().wait_for("msg=\"Bundle refreshed\"").await;
    assert_eq!(known(&west, "east.test").await, document(east_port).await);

    // East makes it at run time; the bundle comes with it.
    let file = east.path().join("west.json");
    let bundle = west.cli(&["bundle", "show", "-format", "spiffe"]).await.ok();
    std::fs::write(&file, bundle).expect("write the bundle");
    let url = format!("https://localhost:{west_port}");
    let made = [
        "federation",
        "create",
        "-trustDomain",
        "west.test",
        "-bundleEndpointURL",
        &url,
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        "spiffe://west.test/spire/server",
        "-trustDomainBundlePath",
        file.to_str().expect("text"),
        "-trustDomainBundleFormat",
        "spiffe",
    ];
    east.cli(&made).await.ok();
    east.process().wait_for("msg=\"Bundle refreshed\"").await;
    let again = east.cli(&made).await;
    assert!(again.code != 0 && again.stderr.contains("AlreadyExists"), "{}{}", again.stdout, again.stderr);

    // A workload of east that federates with west has its bundle, and follows it.
    let agent = Agent::join(&east).await;
    east.entry("/web", &my_uid(), &["-federatesWith", "spiffe://west.test"]).await;
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    let client = WorkloadApiClient::connect_to(agent.endpoint()).await.expect("connect");
    let mut updates = client.stream_x509_contexts().await.expect("a stream");
    let mut roots_of_west = async |wanted: usize| {
        let name = "west.test".try_into().expect("a name");
        let seen = async {
            while let Some(update) = updates.next().await {
                let bundles = update.expect("an update");
                let found = bundles.bundle_set().get(&name).map_or(0, |bundle| bundle.authorities().len());
                if found == wanted {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{wanted} roots of west"));
    };
    roots_of_west(1).await;
    let before = document(west_port).await["spiffe_sequence"].as_u64().expect("a number");
    west.cli(&["localauthority", "x509", "prepare"]).await.ok();
    let after = document(west_port).await["spiffe_sequence"].as_u64().expect("a number");
    assert!(after > before, "{before} {after}");
    east.cli(&["federation", "refresh", "-id", "spiffe://west.test"]).await.ok();
    assert_eq!(known(&east, "west.test").await, document(west_port).await);
    roots_of_west(2).await;

    // A restart changes nothing, and a dead partner leaves what is known.
    west.stop().await;
    let refused = east.cli(&["federation", "refresh", "-id", "west.test"]).await;
    assert_ne!(refused.code, 0);
    assert!(
        refused.stderr.contains("failed to fetch federated bundle from endpoint: unable to connect"),
        "{}",
        refused.stderr
    );
    west.restart().await;
    assert_eq!(document(west_port).await["spiffe_sequence"].as_u64(), Some(after));
    east.cli(&["federation", "refresh", "-id", "west.test"]).await.ok();

    let unknown = east.cli(&["federation", "refresh", "-id", "north.test"]).await;
    assert!(unknown.stderr.contains("no federation relationship with trust domain"), "{}", unknown.stderr);
    // What ends is withdrawn, from workloads too.
    east.cli(&["federation", "delete", "-id", "west.test"]).await.ok();
    east.process().wait_for("msg=\"Trust domain no longer managed\"").await;
    roots_of_west(0).await;
    assert!(east.cli(&["bundle", "list", "-id", "west.test"]).await.code != 0);
    endpoint_manners(east_port).await;
}

/// As SPIRE's endpoint answers what is no question for a bundle.
async fn endpoint_manners(port: u16) {
    let check = async |line: &str, status: &str, body: &str| {
        let request =
            format!("{line} HTTP/1.1\r\nhost: x\r\nauthorization: Basic eA==\r\nconnection: close\r\n\r\n");
        let (head, got, _) = https(port, &request).await.expect("an answer");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {head}");
        assert_eq!(got, body, "{line}");
    };
    check("GET /other", "404 Not Found", "404 page not found\n").await;
    check("POST /", "405 Method Not Allowed", "405 method not allowed\n").await;
    check("DELETE /other", "405 Method Not Allowed", "405 method not allowed\n").await;
    check("HEAD /", "405 Method Not Allowed", "").await;
    assert!(svid_tests::calls::http_get(port, "/").await.is_none(), "nothing is served without TLS");
    let (head, ..) =
        https(port, "GET /?x=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.expect("one");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
}

/// Starts a server that believes `ca`'s certificates on the web.
async fn start_believing(server: &mut Server, ca_file: &std::path::Path) {
    let mut command = Command::new(bin("svid-server"));
    command.arg("run").arg("-config").arg(server.config()).env("SSL_CERT_FILE", ca_file);
    server.adopt(Process::start("svid-server", &mut command)).await;
}

/// Conformance: FED-17, FED-18, FED-27 to FED-30, FED-39, FED-40, FED-41, FED-80 (hs-24, hs-25, hc-01, hc-29 to hc-31).
#[tokio::test(flavor = "multi_thread")]
async fn web_certificates_are_checked_by_name_and_reloaded() {
    let (ca, stranger) = (TestCa::new("web"), TestCa::new("stranger"));
    let dir = tempfile::tempdir().expect("a directory");
    let [ca_file, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.path().join(name));
    std::fs::write(&ca_file, ca.pem()).expect("write");
    let install = |signed: &svid_tests::pki::TestCert| {
        std::fs::write(&key, &signed.key_pem).expect("write");
        std::fs::write(&cert, &signed.cert_pem).expect("write");
    };
    install(&ca.server(&["localhost"]));
    let (east_port, west_port) = (free_port(), free_port());
    let profile = format!(
        "\"https_web\" {{ serving_cert_file {{ cert_file_path = \"{}\" key_file_path = \"{}\" file_sync_interval = \"50ms\" }} }}",
        cert.display(),
        key.display()
    );
    let mut east = Server::start_with(options("east.test", east_port, &profile, "")).await;
    let to_east = federates_with("east.test", east_port, "\"https_web\" {}");
    let mut west = Server::prepare(&options("west.test", west_port, "\"https_spiffe\" {}", &to_east));
    start_believing(&mut west, &ca_file).await;
    west.process().wait_for("msg=\"Bundle refreshed\"").await;
    assert_eq!(known(&west, "east.test").await, document(east_port).await);

    // No other profile stands in, and names and authorities count.
    let refresh = async |name: &str| west.cli(&["federation", "refresh", "-id", name]).await;
    let refused = async |words: &str| {
        let out = refresh("east.test").await;
        assert_ne!(out.code, 0);
        assert!(out.stderr.contains(words), "{}", out.stderr);
        assert_eq!(known(&west, "east.test").await["keys"], document(east_port).await["keys"]);
    };
    let swap = async |east: &mut Server, signed: svid_tests::pki::TestCert, count: usize| {
        install(&signed);
        let leaf = signed.cert_der.clone();
        east.process().wait_for_lines("Loaded provided certificate with success", count).await;
        until("the new certificate is shown", async || {
            https(east_port, GET).await.is_ok_and(|(.., shown)| shown == leaf)
        })
        .await;
    };
    swap(&mut east, ca.server(&["other.test"]), 1).await;
    refused("not valid for name").await;
    swap(&mut east, stranger.server(&["localhost"]), 2).await;
    refused("signed by unknown authority").await;
    swap(&mut east, stranger.leaf("x", &["spiffe://east.test/spire/server"]), 3).await;
    refused("maybe the profile is https_spiffe, not https_web").await;
    std::fs::write(&cert, "no certificate").expect("write");
    east.process().wait_for("msg=\"Failed to load certificate\"").await;
    swap(&mut east, ca.server(&["localhost"]), 4).await;
    refresh("east.test").await.ok();
    // Only dynamic relationships are listed, as in SPIRE.
    let listed = west.cli(&["federation", "list"]).await.ok();
    assert!(listed.contains("Found 0 federation relationships"), "{listed}");
}

/// Conformance: FED-63 (hc-34 to hc-37), FED-65 (hc-41, hc-42), FED-13.
#[tokio::test(flavor = "multi_thread")]
async fn several_servers_take_up_a_relationship_at_once() {
    let database = svid_test_postgres::database();
    let first = Server::on(&database).await;
    let mut second = Server::on(&database).await;
    let port = free_port();
    let partner = Server::start_with(options("far.test", port, "\"https_spiffe\" {}", "")).await;
    let url = format!("https://127.0.0.1:{port}/");
    let relationship = |id: &'static str| {
        [
            "-trustDomain",
            "far.test",
            "-bundleEndpointURL",
            &url,
            "-bundleEndpointProfile",
            "https_spiffe",
            "-endpointSpiffeID",
            id,
        ]
        .map(str::to_owned)
    };
    let write = async |verb: &str, id: &'static str| {
        let flags = relationship(id);
        let args: Vec<&str> =
            ["federation", verb].into_iter().chain(flags.iter().map(String::as_str)).collect();
        first.cli(&args).await.ok()
    };
    write("create", "spiffe://far.test/someone/else").await;
    second.process().wait_for("msg=\"Trust domain is now managed\"").await;
    set_bundle(&partner, &first).await;
    let line = second.process().wait_for("unexpected ID").await;
    assert!(line.contains("spiffe://far.test/spire/server"), "{line}");
    write("update", "spiffe://far.test/spire/server").await;
    second.process().wait_for("msg=\"Updated configuration for managed trust domain\"").await;
    second.cli(&["federation", "refresh", "-id", "far.test"]).await.ok();
    until("the other server has it too", || async {
        known(&first, "far.test").await == document(port).await
    })
    .await;
    second.cli(&["federation", "delete", "-id", "far.test"]).await.ok();
    until("the other server let go of it too", async || {
        first
            .cli(&["federation", "refresh", "-id", "far.test"])
            .await
            .stderr
            .contains("no federation relationship")
    })
    .await;
}
