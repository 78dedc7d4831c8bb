//! The whole command line against a fake server on a Unix socket.
#![allow(clippy::unwrap_used)]

mod fake;
mod verbs;

use std::time::{Duration, SystemTime};

use svid_core::clock::Clock;

use self::fake::{Fake, Running};
use super::{Surroundings, execute};

/// Exit code, standard output, standard error.
type Said = (i32, String, String);

async fn run(server: &Running, line: &str, stdin: &str) -> Said {
    let socket = format!("-socketPath={}", server.socket.display());
    let split = line.find(" -").unwrap_or(line.len());
    let (verb, flags) = line.split_at(split);
    let mut args: Vec<String> = verb.split_whitespace().map(str::to_owned).collect();
    args.push(socket);
    args.extend(flags.split_whitespace().map(str::to_owned));
    say(&args, stdin, &|_| None).await
}

async fn say(args: &[String], stdin: &str, env: &dyn Fn(&str) -> Option<String>) -> Said {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let clock = Clock::from_fn(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
    let surroundings =
        Surroundings { stdin: &mut stdin.as_bytes(), out: &mut out, err: &mut err, env, clock };
    let code = execute(args, surroundings).await;
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test]
async fn mistakes_are_told_without_a_server() {
    for (line, want) in [
        ("entry create", "at least one selector is required"),
        ("entry create -selector a:b", "a parent ID is required if the node flag is not set"),
        ("entry create -selector a:b -node", "a SPIFFE ID is required"),
        ("entry create -node -selector a:b -federatesWith x", "node entries can not federate"),
        (
            "entry create -selector a -node -spiffeID spiffe://a.org/b",
            "selector \"a\" must be formatted as type:value",
        ),
        (
            "entry create -selector a:b -node -spiffeID spiffe://a.org/b -x509SVIDTTL -1",
            "a positive x509-SVID TTL is required",
        ),
        ("entry update", "entry ID is required"),
        ("entry delete", "an entry ID is required"),
        ("entry show -entryID a -spiffeID b", "the -entryID flag can't be combined with others"),
        ("entry count -selector a:b -matchSelectorsOn x", "match behavior \"x\" unknown"),
        ("agent show", "a SPIFFE ID is required"),
        (
            "agent list -expiresBefore soon",
            "date is not valid: parsing time \"soon\" as \"2006-01-02 15:04:05 -0700 -07\"",
        ),
        ("bundle set", "id flag is required"),
        ("bundle set -id a.org -format x", "invalid format: \"x\""),
        ("bundle delete -id a.org -mode x", "unsupported mode \"x\""),
        ("federation create", "trust domain is required"),
        ("federation refresh", "id is required"),
        ("logger set -level loud", "the value \"loud\" is not a valid setting"),
        ("localauthority x509 taint", "an authority ID is required"),
        ("upstreamauthority revoke", "the Subject Key ID of the X.509 upstream authority is required"),
        ("x509 mint", "spiffeID must be specified"),
        ("jwt mint -spiffeID spiffe://a.org/b", "at least one audience must be specified"),
    ] {
        let (code, out, err) = say(&words(line), "", &|_| None).await;
        assert_eq!((code, out.as_str(), err), (1, "", format!("Error: {want}\n")), "{line}");
    }
}

#[tokio::test]
async fn a_missing_server_is_explained() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none.sock");
    let env = |name: &str| (name == "SPIRE_SERVER_PRIVATE_SOCKET").then(|| socket.display().to_string());
    let (code, out, err) = say(&words("agent count"), "", &env).await;
    let want = format!(
        "Error: rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial \
         unix {}: connect: no such file or directory\"\nNothing is there. Is the server running?",
        socket.display()
    );
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with(&want), "{err}");
    let (code, _, err) = say(&words("healthcheck"), "", &env).await;
    assert_eq!((code, err.as_str()), (1, "Error: server is unhealthy: unable to determine health\n"));
}

#[tokio::test]
async fn instances_need_a_template() {
    let template = |value: &'static str| {
        move |name: &str| (name == "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE").then(|| value.to_owned())
    };
    let line = words("agent count -instance a");
    let (_, _, err) = say(&line, "", &|_| None).await;
    assert_eq!(err, "Error: you must define SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE to use the instance flag\n");
    let (_, _, err) = say(&line, "", &template("/run/x.sock")).await;
    assert_eq!(err, "Error: failed to find %i in SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE\n");
    let (_, _, err) = say(&line, "", &template("/nowhere/%i.sock")).await;
    assert!(err.contains("dial unix /nowhere/a.sock:"), "{err}");
}

#[tokio::test]
async fn an_rpc_error_reads_as_go_prints_it() {
    let path = "/spire.api.server.agent.v1.Agent/GetAgent";
    let server = Fake::new().refuse(path, tonic::Status::not_found("agent not found")).start();
    let said = run(&server, "agent show -spiffeID spiffe://example.org/spire/agent/x", "").await;
    assert_eq!(said, (1, String::new(), "Error: rpc error: code = NotFound desc = agent not found\n".into()));
    let (code, _, err) = run(&server, "federation list", "").await;
    assert_eq!(code, 1);
    assert!(err.starts_with("Error: error listing federation relationship: rpc error: code = Unimplemented"));
}
