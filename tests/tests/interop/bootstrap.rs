//! What `svidctl envoy bootstrap` writes is accepted by the oldest and the newest Envoy.

use svid_tests::envoy::{Version, program};
use svid_tests::interop;
use svid_tests::process::{run, run_at};

const FLAGS: [&str; 7] = [
    "--allow spiffe://example.org/shop",
    "--allow spiffe://example.org/shop --allow-any-in-trust-domain other.example --trust-domain example.org",
    "--allow spiffe://example.org/shop --mode permissive --port 9090=strict --port [::]:9091=disable,to=localhost:8081 \
     --upstream api=api.example:8443,spiffe://other.example/api --upstream v6=[fd00::1]:8443,spiffe://example.org/v6",
    "--allow spiffe://example.org/shop --protocol tcp --mode permissive \
     --upstream db=10.0.0.1:5432,spiffe://example.org/db,listen=5432,protocol=tcp",
    "--allow-any-in-trust-domain example.org --protocol http2 --max-connection-age 86400",
    "--allow-any-in-trust-domain a.example --allow-any-in-trust-domain b.example --protocol tcp",
    "--mode disable",
];

#[tokio::test(flavor = "multi_thread")]
async fn both_envoys_accept_every_form() {
    if !interop("envoy --mode validate") {
        return;
    }
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("envoy.json").display().to_string();
    for version in [Version::Old, Version::New] {
        let envoy = program(version).expect("SVID_TEST_ENVOY and SVID_TEST_ENVOY_OLD");
        for flags in FLAGS {
            let always = "envoy bootstrap --service web --listen 8443 --to 127.0.0.1:8080 --file";
            let args: Vec<&str> =
                always.split(' ').chain([file.as_str()]).chain(flags.split_whitespace()).collect();
            run("svidctl", &args).await.ok();
            let said = run_at(&envoy, &["--mode", "validate", "-c", &file]).await;
            assert_eq!(said.code, 0, "{version:?} {flags}\n{}{}", said.stdout, said.stderr);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_nothing_is_written() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let file = dir.path().join("envoy.json").display().to_string();
    let line = "envoy bootstrap --service web --listen 8443 --mode open --allow example.org/shop --port 8443=strict --file";
    let args: Vec<&str> = line.split(' ').chain([file.as_str()]).collect();
    let said = run("svidctl", &args).await;
    assert_eq!(said.code, 1);
    assert_eq!(said.stdout, "");
    let lines: Vec<&str> = said.stderr.lines().collect();
    let starts =
        ["Error: --to is missing", "Error: --mode: \"open\"", "Error: --allow: \"example.org/shop\""];
    assert_eq!(lines.len(), starts.len(), "{}", said.stderr);
    for (line, start) in lines.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert!(!std::path::Path::new(&file).exists());
}
