//! The systemd units in deploy/: systemd reads them, and they say what the configurations beside them say.

use std::path::{Path, PathBuf};

use svid_tests::process::{bin, run_at};

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
    assert!(profile.contains(&format!("PUBLIC_SOCKET={}\n", value(&agent, "socket_path "))));
}
