//! The usual client libraries of other languages fetch, verify and speak mTLS.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use svid_tests::process::{eventually, run_at};
use svid_tests::{Agent, Server, interop};

async fn workload() -> (Server, Agent) {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    server
        .entry("/client", &format!("unix:uid:{}", nix::unistd::geteuid()), &["-dns", "client.example.org"])
        .await;
    // The PyPI client asks once and gives up, so the entry has to have arrived.
    eventually(|| agent.cli(&["api", "fetch", "x509"])).await;
    (server, agent)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_fetches_everything() {
    if !interop("the PyPI client") {
        return;
    }
    let python =
        PathBuf::from(std::env::var_os("SVID_TEST_PYTHON").expect("SVID_TEST_PYTHON is set by ./test"));
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/python/client.py");
    let (_server, agent) = workload().await;
    let out = run_at(&python, &[&script.display().to_string(), &agent.endpoint(), "billing"]).await.ok();
    let said: serde_json::Value = serde_json::from_str(out.trim()).expect("one line of JSON");
    assert_eq!(said["id"], "spiffe://example.org/client");
    assert_eq!(said["jwt"], "spiffe://example.org/client");
    assert_eq!(
        (said["chain"].as_u64(), said["roots"].as_u64(), said["jwt_keys"].as_u64()),
        (Some(1), Some(1), Some(1))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn go_spiffe_fetches_validates_and_speaks_mtls() {
    if !interop("go-spiffe") {
        return;
    }
    let program = go_program();
    let (_server, agent) = workload().await;
    let out = run_at(program, &[&agent.endpoint(), "billing"]).await.ok();
    let said: serde_json::Value = serde_json::from_str(out.trim()).expect("one line of JSON");
    for field in ["id", "jwt", "peer"] {
        assert_eq!(said[field], "spiffe://example.org/client", "{field}");
    }
}

/// Builds the Go program once, next to the test binaries.
fn go_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let target = svid_tests::process::bin("svid-agent").with_file_name("go-interop");
        let built = std::process::Command::new("go")
            .args(["build", "-o"])
            .arg(&target)
            .arg(".")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/go"))
            .status();
        assert!(built.expect("go is installed").success(), "the Go client was not built");
        target
    })
}
