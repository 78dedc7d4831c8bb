//! The systemd units in deploy/: systemd reads them, and they say what the configurations beside them say.

use std::path::{Path, PathBuf};

use svid_tests::process::{bin, run, run_at};
use svid_tests::root;

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(units().join(name)).expect(name)
}

/// Every unit in a directory of its own, with programs that exist here.
fn copies() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    let names = [
        "svid-server.service",
        "svid-agent.service",
        "svid-agent.socket",
        "svid-agent-admin.socket",
        "svid-envoy@.service",
    ];
    for name in names {
        let text = ["svid-server", "svid-agent"].iter().fold(read(name), |text, program| {
            text.replace(&format!("/usr/local/bin/{program}"), &bin(program).display().to_string())
        });
        let text = text.replace("/usr/local/bin/envoy", "/bin/true");
        std::fs::write(dir.path().join(name.replace("@.", "@web.")), text).expect("write");
    }
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_has_nothing_to_say_about_the_units() {
    let program = Path::new("/usr/bin/systemd-analyze");
    if !program.exists() {
        println!("skipped: systemd-analyze verify; install the package systemd");
        return;
    }
    let dir = copies();
    let mut paths: Vec<String> = std::fs::read_dir(dir.path())
        .expect("read")
        .map(|entry| entry.expect("an entry").path().display().to_string())
        .collect();
    paths.sort();
    let args: Vec<&str> =
        ["verify", "--man=no"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let said = run_at(program, &args).await;
    let ours = |line: &&str| line.contains("svid-");
    let complaints: Vec<&str> = said.stdout.lines().chain(said.stderr.lines()).filter(ours).collect();
    assert!(complaints.is_empty() && said.code == 0, "exit {}: {complaints:?}\n{}", said.code, said.stderr);
    for unit in paths.iter().filter(|path| path.ends_with(".service")) {
        // 10 is no protection at all; systemd calls 5 and more exposed.
        let said =
            run_at(program, &["security", "--offline=yes", "--threshold=35", "--no-pager", unit]).await;
        assert_eq!(said.code, 0, "{unit}: {}", said.stdout.lines().last().unwrap_or_default());
    }
}

#[test]
fn units_and_configurations_name_the_same_paths() {
    let (agent, server) = (read("agent.conf"), read("server.conf"));
    let value = |text: &str, key: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.expect(key).trim().trim_matches('"').to_owned()
    };
    let profile = read("svid.profile");
    assert_eq!(value(&read("svid-agent.socket"), "ListenStream"), value(&agent, "socket_path "));
    assert_eq!(value(&read("svid-agent-admin.socket"), "ListenStream"), value(&agent, "admin_socket_path "));
    for (path, unit) in [
        (value(&agent, "data_dir "), "svid-agent.service"),
        (value(&server, "data_dir "), "svid-server.service"),
    ] {
        assert_eq!(path, format!("/var/lib/{}", value(&read(unit), "StateDirectory")));
    }
    assert!(value(&server, "socket_path ").starts_with("/run/svid-server/"));
    assert!(profile.contains(&format!("PRIVATE_SOCKET={}\n", value(&server, "socket_path "))));
    assert!(profile.contains(&format!("AGENT_ADMIN_SOCKET={}\n", value(&agent, "admin_socket_path "))));
    assert!(profile.contains(&format!("PUBLIC_SOCKET={}\n", value(&agent, "socket_path "))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_installer_puts_there_is_accepted() {
    if !root("the installer") || !Path::new("/usr/bin/systemd-sysusers").exists() {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let installer = units().join("../install");
    let bins = bin("svidctl").parent().expect("a directory").display().to_string();
    let tree = dir.path().display().to_string();
    std::fs::write(dir.path().join("bundle.pem"), svid_tests::pki::TestCa::new("td").pem()).expect("write");
    let bundle = format!("{tree}/bundle.pem");
    let always = ["--bin", &bins, "--root", &tree];
    let install = async |args: &[&str]| run_at(&installer, &[args, &always].concat()).await;
    install(&["server", "--trust-domain", "example.org"]).await.ok();
    let agent = ["agent", "--trust-domain", "example.org", "--bundle", &bundle];
    install(&[&agent[..], &["--server", "[fd00::1]:8081", "--token", "abc-1"]].concat()).await.ok();
    install(&["envoy", "web", "--envoy", "/bin/true"]).await.ok();
    for (path, mode) in [
        ("usr/local/bin/svid-agent", 0o755),
        ("usr/local/bin/envoy", 0o755),
        ("etc/systemd/system/svid-envoy@.service", 0o644),
        ("etc/svid/join-token", 0o600),
        ("etc/svid/agent.conf", 0o600),
        ("etc/svid/server.conf", 0o640),
    ] {
        let meta = std::fs::metadata(dir.path().join(path)).expect(path);
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o7777, mode, "{path}");
    }
    let users = std::fs::read_to_string(dir.path().join("etc/passwd")).expect("users");
    assert!(users.contains("svid-server:") && users.contains("envoy-web:"), "{users}");
    for name in ["server", "agent"] {
        // The configuration names places of the machine; here they are below a directory.
        let path = dir.path().join(format!("etc/svid/{name}.conf"));
        let text = std::fs::read_to_string(&path).expect("the configuration");
        assert!(name == "server" || text.contains(r#"server_address = "fd00::1""#), "{text}");
        std::fs::write(&path, text.replace("/etc/svid/", &format!("{tree}/etc/svid/"))).expect("write");
        run(&format!("svid-{name}"), &["validate", "-config", &path.display().to_string()]).await.ok();
    }
    for (args, want) in [
        (vec!["server", "--trust-domain", "Example"], "'Example' is not a trust domain"),
        (vec!["agent", "--trust-domain", "a"], "--server is missing"),
        (
            vec!["agent", "--trust-domain", "a", "--server", "a\nb", "--bundle", &bundle, "--token", "t"],
            "is not HOST",
        ),
        (
            vec!["agent", "--trust-domain", "a", "--server", "a", "--bundle", "/dev/null", "--token", "t"],
            "no certificate",
        ),
        (vec!["envoy", "we b", "--envoy", "/bin/true"], "'we b' is not a name"),
        (vec!["envoy", "web", "--envoy", "/nowhere"], "/nowhere is no program"),
    ] {
        let said = install(&args).await;
        assert!(said.code == 1 && said.stderr.contains(want), "{args:?}: {}", said.stderr);
    }
}
