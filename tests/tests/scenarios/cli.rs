//! SPIRE's verbs, as scripts use them.

use svid_tests::{Agent, Server, process::run};

#[tokio::test(flavor = "multi_thread")]
async fn the_verbs_of_both_halves_answer() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    assert_eq!(server.cli(&["healthcheck"]).await.ok().trim(), "Server is healthy.");
    assert_eq!(agent.cli(&["healthcheck"]).await.ok().trim(), "Agent is healthy.");
    let id = server.entry("/web", "unix:uid:1", &["-dns", "web.example.org", "-hint", "public"]).await;
    assert_eq!(server.cli(&["entry", "count"]).await.ok().trim(), "2 registration entries");
    let shown = server.cli(&["entry", "show", "--entryID", &id]).await.ok();
    for line in
        ["SPIFFE ID               : spiffe://example.org/web", "DNS name                : web.example.org"]
    {
        assert!(shown.contains(line), "{shown}");
    }
    let agents = server.cli(&["agent", "list"]).await.ok();
    assert!(agents.contains("Found 1 attested agent"), "{agents}");
    let deleted = server.cli(&["entry", "delete", "-entryID", &id]).await.ok();
    assert!(deleted.contains(&format!("Deleted entry with ID: {id}")), "{deleted}");
    let level = agent.admin_cli(&["logger", "get"]).await.ok();
    assert!(level.contains("Logger Level : debug"), "{level}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_answered_with_what_to_do() {
    let unknown = run("svid-server", &["entry", "create", "-nonsense"]).await;
    assert_ne!(unknown.code, 0);
    assert!(unknown.stderr.contains("flag provided but not defined: -nonsense"), "{}", unknown.stderr);
    let missing = run("svid-server", &["entry", "show", "-socketPath", "/nonexistent/api.sock"]).await;
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("/nonexistent/api.sock"), "{}", missing.stderr);
    assert!(missing.stderr.contains("Is the server running?"), "{}", missing.stderr);
    let config = run("svid-server", &["run", "-config", "/nonexistent/server.conf"]).await;
    assert_eq!(config.code, 1);
    assert!(config.stderr.contains("/nonexistent/server.conf"), "{}", config.stderr);
    for program in ["svid-server", "svid-agent", "svidctl"] {
        let version = run(program, &["--version"]).await;
        assert_eq!(version.code, 0, "{program}");
        let said = format!("{}{}", version.stdout, version.stderr);
        assert!(said.contains(env!("CARGO_PKG_VERSION")), "{program}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_pair_needs_no_attention() {
    let server = Server::start().await;
    let agent = Agent::join(&server).await;
    let sockets =
        [&server.socket(), &agent.socket(), &agent.admin_socket()].map(|path| path.display().to_string());
    let flags = ["--server-socket", "--agent-socket", "--agent-admin-socket"];
    let args: Vec<&str> =
        flags.iter().zip(&sockets).flat_map(|(flag, path)| [*flag, path.as_str()]).collect();
    let said = run("svidctl", &[&args[..], &["status", "--output", "json"]].concat()).await.ok();
    let status: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let warnings = status["warnings"].as_array().expect("warnings");
    // Both look at the same kernel, so both lack something or neither does.
    let (old_kernel, others): (Vec<_>, Vec<_>) =
        warnings.iter().partition(|warning| warning.to_string().contains("SO_PEERPIDFD"));
    assert!(others.is_empty() && [0, 2].contains(&old_kernel.len()), "{warnings:?}");
}
