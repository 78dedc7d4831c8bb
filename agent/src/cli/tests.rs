#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use svid_core::x509::CertChain;
use svid_proto::workload::{X509svid, X509svidResponse};

use super::*;
use crate::testing::TestCa;

fn run_with(line: &[&str], vars: &[(&str, &str)]) -> (i32, String, String) {
    let args: Vec<String> = line.iter().map(|&word| word.into()).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let var =
        |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    let code = dispatch(&args, &mut Env { out: &mut out, err: &mut err, var: &var, run: |_| 42 });
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn commands_and_exit_codes() {
    let (code, out, err) = run_with(&["--version"], &[]);
    assert_eq!((code, out.as_str(), err.as_str()), (0, "", concat!(env!("CARGO_PKG_VERSION"), "\n")));
    for (line, code, text) in [
        (&["api", "fetch", "jwt"][..], 1, "audience must be specified\n"),
        (&["api", "validate", "jwt", "--svid", "x"], 1, "audience must be specified\n"),
        (&["api", "validate", "jwt", "-audience=a"], 1, "svid must be specified\n"),
        (&["logger", "set"], 1, "Error: a value (-level) must be set\n"),
        (&["logger", "set", "-level", "loud"], 1, "Error: the value \"loud\" is not a valid setting\n"),
        (&["nope"], 127, "Available commands are:"),
        (&["api"], 1, "one of the subcommands below"),
        (&["run", "-nope"], 1, "flag provided but not defined: -nope"),
    ] {
        let (got, _, err) = run_with(line, &[]);
        assert_eq!(got, code, "{line:?}");
        assert!(err.contains(text), "{line:?}: {err}");
    }
}

#[test]
fn nobody_listens() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock").display().to_string();
    let dial = format!("dial unix {socket}: connect: no such file or directory");
    for (line, start) in [
        (&["api", "fetch"][..], "rpc error: code = Unavailable desc = connection error"),
        (&["api", "fetch", "x509"], "rpc error: code = Unavailable"),
        (
            &["api", "fetch", "jwt", "-audience", "a,b"],
            "failed to receive JWT bundles: rpc error: code = Unavailable",
        ),
        (&["debug", "getinfo"], "Error: rpc error: code = Unavailable"),
        (&["logger", "get"], "Error: error fetching logger: rpc error: code = Unavailable"),
        (&["logger", "reset"], "Error: failed to reset logger: rpc error: code = Unavailable"),
        (
            &["api", "validate", "jwt", "-audience", "a", "-svid", "b"],
            "unable to validate JWT SVID: rpc error",
        ),
    ] {
        let line: Vec<&str> = line.iter().copied().chain(["-socketPath", &socket]).collect();
        let (code, out, err) = run_with(&line, &[]);
        assert_eq!((code, out.as_str()), (1, ""), "{line:?}");
        assert!(err.starts_with(start) && err.contains(&dial), "{line:?}: {err}");
    }
    let (code, _, err) = run_with(&["healthcheck", "--socketPath", &socket], &[]);
    assert_eq!((code, err.as_str()), (1, "Agent is unhealthy: unable to determine health\n"));
}

#[test]
fn where_the_socket_is() {
    const TEMPLATE: &str = "SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE";
    let check = |line: &[&str], vars: &[(&str, &str)], want: Result<&str, &str>| {
        let args: Vec<String> = line.iter().map(|&word| word.into()).collect();
        let flags = socket::flags(FlagSet::new("x")).parse(&args).unwrap();
        let var =
            |name: &str| vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let env = Env { out: &mut Vec::new(), err: &mut Vec::new(), var: &var, run: |_| 0 };
        let got = socket::resolve(&flags, &env);
        let got = got.as_ref().map(|path| path.to_str().unwrap()).map_err(String::as_str);
        assert_eq!(got, want, "{line:?} {vars:?}");
    };
    let env = ("SPIRE_AGENT_PUBLIC_SOCKET", "/env.sock");
    let template = (TEMPLATE, "/run/%i/api.sock");
    check(&[], &[], Ok("/tmp/spire-agent/public/api.sock"));
    check(&[], &[env], Ok("/env.sock"));
    check(&["-socketPath", "/flag.sock"], &[env, template], Ok("/flag.sock"));
    check(&["-instance", "two"], &[env, template], Ok("/run/two/api.sock"));
    check(
        &["-instance", "two"],
        &[env],
        Err(
            " SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE environment variable must be defined when using the instance flag",
        ),
    );
    check(
        &["-instance", "two"],
        &[(TEMPLATE, "/x")],
        Err("failed to find %i in SPIRE_AGENT_PUBLIC_SOCKET_TEMPLATE"),
    );
}

#[test]
fn validate_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.conf");
    std::fs::write(&path, "agent { nope = 1 }").unwrap();
    let (code, out, err) = run_with(&["validate", "-config", path.to_str().unwrap()], &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("SPIRE agent configuration file is invalid"), "{err}");
    let (code, _, err) = run_with(&["run", "-config", dir.path().join("none.conf").to_str().unwrap()], &[]);
    assert_eq!(code, 1);
    assert!(err.contains("could not find config file"), "{err}");
}

#[test]
fn x509_text() {
    let (ca, partner) = (TestCa::new("example.org"), TestCa::new("partner.example"));
    let id = "spiffe://example.org/web".parse().unwrap();
    let identity = ca.identity(&id, Duration::from_secs(3600), SystemTime::now());
    let response = || X509svidResponse {
        svids: vec![X509svid {
            spiffe_id: id.to_string(),
            x509_svid: identity.svid.chain().to_concatenated_der(),
            x509_svid_key: identity.key.secret_bytes().to_vec(),
            bundle: ca.bundle().x509_der(),
            hint: "blue".into(),
        }],
        federated_bundles: [("spiffe://partner.example".to_owned(), partner.bundle().x509_der())].into(),
        ..Default::default()
    };
    let set = x509_text::ReceivedSet::parse(response()).unwrap();
    set.verify(SystemTime::now()).unwrap();
    let print = |style| {
        let mut out = Vec::new();
        set.print(Duration::from_millis(1500), style, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    };
    let watched = print(x509_text::Style::Watch);
    assert!(!watched.contains("Hint"), "{watched}");
    assert!(watched.contains("\n[partner.example] CA #1 Valid Until:\t"), "{watched}");
    let out = print(x509_text::Style::Fetch);
    let until = text::time(identity.svid.not_after());
    assert!(out.starts_with("Received 1 svid after 1.5s\n\nSPIFFE ID:\t\tspiffe://example.org/web\nHint:\t\t\tblue\nSVID Valid After:\t"), "{out}");
    assert!(out.contains(&format!("\nSVID Valid Until:\t{until}\n")), "{out}");
    assert!(
        out.contains("\nCA #1 Valid After:\t")
            && out.contains("\n[spiffe://partner.example] CA #1 Valid Until:\t"),
        "{out}"
    );
    assert!(out.ends_with(" +0000 UTC\n\n"), "{out}");

    let mut wrong = response();
    wrong.svids[0].bundle = partner.bundle().x509_der();
    let err = x509_text::ReceivedSet::parse(wrong).unwrap().verify(SystemTime::now()).unwrap_err();
    assert!(
        err.starts_with("\"spiffe://example.org/web\" SVID failed verification against bundle: "),
        "{err}"
    );
    let empty = x509_text::ReceivedSet::parse(X509svidResponse::default()).err().unwrap();
    assert_eq!(empty, "workload response contains no svids");
    assert!(CertChain::from_concatenated_der(&response().svids[0].x509_svid).is_ok());
}

#[test]
fn go_texts() {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    assert_eq!(text::time(at), "2023-11-14 22:13:20 +0000 UTC");
    assert_eq!(text::rfc3339(1_700_000_000), "2023-11-14T22:13:20Z");
    let denied = tonic::Status::permission_denied("no identity issued");
    assert_eq!(text::rpc_error(&denied), "rpc error: code = PermissionDenied desc = no identity issued");
    assert_eq!(text::rpc_error(&tonic::Status::cancelled("x")), "rpc error: code = Canceled desc = x");
}
