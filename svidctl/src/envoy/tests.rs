//! Command lines, the mistakes they make, and what the configuration holds.

use clap::Parser;
use serde_json::Value;

use crate::args::{Args, Command};
use crate::envoy::plan::Plan;
use crate::envoy::{EnvoyCommand, configuration};

const GOOD: &str = "--service web --listen 8443 --to 127.0.0.1:8080 --allow spiffe://example.org/shop";

fn plan(line: &str) -> Result<Plan, Vec<String>> {
    let words =
        "svidctl --agent-socket /run/a.sock envoy bootstrap".split(' ').chain(line.split_whitespace());
    let args = Args::try_parse_from(words).map_err(|error| vec![error.to_string()])?;
    let Command::Envoy(EnvoyCommand::Bootstrap(flags)) = &args.command else {
        return Err(vec!["another command".into()]);
    };
    Plan::check(flags, &args.workload_socket())
        .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect())
}

fn written(line: &str) -> Value {
    plan(line).map(|plan| configuration(&plan)).expect(line)
}

/// Each command line has exactly these mistakes, in this order; each line says at least this much.
#[test]
fn mistakes_have_one_line_each() {
    let long = format!("{GOOD} --admin-socket /{}", "a".repeat(107));
    let upstream = |rest: &str| format!("{GOOD} --upstream {rest}");
    let rows: Vec<(String, Vec<&str>)> = vec![
        (String::new(), vec!["--service is missing", "--listen is missing", "--to is missing"]),
        (
            "--service web --listen 8443 --allow spiffe://a/b".into(),
            vec!["--to is missing: where the service"],
        ),
        (
            "--service web --listen 8443 --to 127.0.0.1:8080".into(),
            vec!["--allow is missing: without it nobody"],
        ),
        (
            format!("{GOOD} --allow example.org/web"),
            vec!["--allow: \"example.org/web\" is not the SPIFFE ID"],
        ),
        (format!("{GOOD} --allow spiffe://Example.org/web"), vec!["trust domain characters are limited"]),
        (format!("{GOOD} --allow spiffe://example.org"), vec!["path is empty"]),
        (format!("{GOOD} --allow spiffe://example.org/spire/server"), vec!["reserved namespace"]),
        (format!("{GOOD} --allow-any-in-trust-domain Bad"), vec!["\"Bad\" is not a trust domain"]),
        (format!("{GOOD} --mode none"), vec!["--mode: \"none\" is unknown; there is strict, permissive"]),
        (format!("{GOOD} --mode disable"), vec!["--allow has no effect"]),
        (format!("{GOOD} --protocol udp"), vec!["--protocol: \"udp\" is unknown"]),
        (format!("{GOOD} --port 9090"), vec!["--port: \"9090\" is not PORT=MODE"]),
        (format!("{GOOD} --port 9090=open"), vec!["--port: \"open\" is unknown"]),
        (format!("{GOOD} --port 9090=strict,from=x"), vec!["something behind the mode"]),
        (format!("{GOOD} --port 70000=strict"), vec!["--port: \"70000\" has no port from 1 to 65535"]),
        (format!("{GOOD} --port 8443=permissive"), vec!["port 8443 is used twice: by --listen"]),
        (
            format!("{GOOD} --port 9090=strict --port 127.0.0.1:9090=disable"),
            vec!["port 9090 is used twice: by --port 0.0.0.0:9090 and by --port 127.0.0.1:9090"],
        ),
        (format!("{GOOD} --max-connection-age 0"), vec!["--max-connection-age: \"0\" is no number"]),
        (upstream("api"), vec!["\"api\" is not NAME=HOST:PORT,SPIFFE-ID"]),
        (upstream("api=host:1"), vec!["is not NAME=HOST:PORT,SPIFFE-ID"]),
        (upstream("a/b=host:1,spiffe://a/b"), vec!["--upstream: \"a/b\" is no name"]),
        (upstream("api=host,spiffe://a/b"), vec!["--upstream: \"host\" is not HOST:PORT"]),
        (upstream("api=host:1,spiffe://a/"), vec!["trailing slash"]),
        (upstream("api=host:1,spiffe://a/b,port=1"), vec!["neither listen="]),
        (upstream("api=host:1,spiffe://a/b,listen=0.0.0.0:1"), vec!["is not a loopback address"]),
        (upstream("api=host:1,spiffe://a/b,listen=8443"), vec!["port 8443 is used twice"]),
        (upstream("api=h:1,spiffe://a/b --upstream api=h:2,spiffe://a/b"), vec!["two named \"api\""]),
        (
            upstream("a=h:1,spiffe://a/b,listen=15002 --upstream b=h:2,spiffe://a/b"),
            vec!["port 15002 is used twice: by --upstream a (listen 127.0.0.1:15002)"],
        ),
        (
            GOOD.replace("127.0.0.1:8080", "localhost:8443"),
            vec!["--to: localhost:8443 is where Envoy itself listens (--listen 0.0.0.0:8443)"],
        ),
        (
            format!("{GOOD} --port 9090=strict,to=127.0.0.1:9090"),
            vec!["--port: 127.0.0.1:9090 is where Envoy"],
        ),
        (GOOD.replace("web", "we/b"), vec!["--service: \"we/b\" is no name"]),
        (
            GOOD.replace("web", "spiffe://example.org/web --trust-domain b"),
            vec!["belongs to a bare --service"],
        ),
        (long, vec!["is too long for a Unix socket: 108 bytes, 107 allowed"]),
        (format!("{GOOD} --admin-socket run/x"), vec!["is not an absolute path"]),
    ];
    for (line, wants) in rows {
        let got = plan(&line).err().unwrap_or_default();
        assert_eq!(got.len(), wants.len(), "{line}: {got:?}");
        for (got, want) in got.iter().zip(wants) {
            assert!(got.contains(want) && !got.contains('\n'), "{line}: {got}");
        }
    }
}

#[test]
fn the_certificate_that_is_shown() {
    for (service, more, name, svid) in [
        ("web", "", "web", "default"),
        ("web", "--trust-domain example.org", "web", "spiffe://example.org/web"),
        ("spiffe://example.org/shop/web", "", "shop-web", "spiffe://example.org/shop/web"),
    ] {
        let plan = plan(&format!("{} {more}", GOOD.replace("web", service))).expect(service);
        assert_eq!((plan.service.name.as_str(), plan.service.svid.as_str()), (name, svid));
        assert_eq!(plan.admin_socket, format!("/run/svid-envoy/{name}/admin.sock"));
    }
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(|item| item["name"].as_str()).collect()
}

fn common_tls(owner: &Value) -> &Value {
    &owner["transport_socket"]["typed_config"]["common_tls_context"]
}

#[test]
fn strict_asks_every_caller_for_a_certificate() {
    let config = written(GOOD);
    let listeners = &config["static_resources"]["listeners"];
    assert_eq!(names(listeners), ["in_8443"]);
    let chains = listeners[0]["filter_chains"].as_array().expect("chains");
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0]["transport_socket"]["typed_config"]["require_client_certificate"], true);
    let bundle = &common_tls(&chains[0])["validation_context_sds_secret_config"]["name"];
    assert_eq!(bundle, "spiffe://example.org");
    let manager = &chains[0]["filters"][0]["typed_config"];
    assert_eq!(names(&manager["http_filters"]), ["envoy.filters.http.rbac", "envoy.filters.http.router"]);
    let allowed =
        &manager["http_filters"][0]["typed_config"]["matcher"]["matcher_tree"]["exact_match_map"]["map"];
    assert_eq!(allowed.as_object().expect("a map").keys().collect::<Vec<_>>(), ["spiffe://example.org/shop"]);
    assert_eq!(manager["forward_client_cert_details"], "SANITIZE_SET");
    assert_eq!(config["admin"]["address"]["pipe"]["mode"], 0o600);
    assert_eq!(names(&config["static_resources"]["clusters"]), ["local_service", "svid_agent"]);
}

#[test]
fn callers_of_two_trust_domains_need_every_bundle() {
    let config = written(&format!("{GOOD} --allow-any-in-trust-domain other.example"));
    let chain = &config["static_resources"]["listeners"][0]["filter_chains"][0];
    assert_eq!(common_tls(chain)["validation_context_sds_secret_config"]["name"], "ALL");
    let rbac = &chain["filters"][0]["typed_config"]["http_filters"][0]["typed_config"]["matcher"];
    let rule =
        &rbac["on_no_match"]["matcher"]["matcher_list"]["matchers"][0]["predicate"]["single_predicate"];
    // The whole text: no other trust domain that begins the same, and no second name behind a comma.
    assert_eq!(rule["value_match"]["safe_regex"]["regex"], r"spiffe://other\.example/[a-zA-Z0-9._/-]+");
}

#[test]
fn ports_have_modes_of_their_own() {
    let config = written(&format!("{GOOD} --port 9090=permissive --port 9091=disable,to=127.0.0.1:8081"));
    let listeners = &config["static_resources"]["listeners"];
    assert_eq!(names(listeners), ["in_8443", "in_9090", "in_9091"]);
    assert_eq!(names(&listeners[1]["filter_chains"]), ["mtls", "plaintext"]);
    let [mtls, plaintext] = [0, 1].map(|at| &listeners[1]["filter_chains"][at]);
    assert_eq!(mtls["filter_chain_match"]["transport_protocol"], "tls");
    assert_eq!(plaintext["filter_chain_match"]["transport_protocol"], "raw_buffer");
    assert_eq!(plaintext["transport_socket"], Value::Null);
    let manager = &plaintext["filters"][0]["typed_config"];
    assert_eq!(names(&manager["http_filters"]), ["envoy.filters.http.router"]);
    assert_eq!(manager["forward_client_cert_details"], "SANITIZE");
    let line = &manager["access_log"][0]["typed_config"]["log_format"]["json_format"];
    assert_eq!(line["caller"], "unauthenticated (plaintext)");
    assert_eq!(names(&listeners[2]["filter_chains"]), ["plaintext"]);
    let clusters = names(&config["static_resources"]["clusters"]);
    assert_eq!(clusters, ["local_service", "local_service_9091", "svid_agent"]);
}

#[test]
fn an_upstream_must_be_exactly_who_it_is() {
    let config = written(&format!(
        "{GOOD} --upstream api=api.example:8443,spiffe://other.example/api --upstream db=10.0.0.1:5432,spiffe://example.org/db,listen=5432,protocol=tcp"
    ));
    assert_eq!(names(&config["static_resources"]["listeners"]), ["in_8443", "out_api", "out_db"]);
    let at = &config["static_resources"]["listeners"][1]["address"]["socket_address"];
    assert_eq!((&at["address"], &at["port_value"]), (&"127.0.0.1".into(), &15_001.into()));
    let clusters = &config["static_resources"]["clusters"];
    assert_eq!(names(clusters), ["local_service", "upstream_api", "upstream_db", "svid_agent"]);
    let context = &common_tls(&clusters[1])["combined_validation_context"];
    let san = &context["default_validation_context"]["match_typed_subject_alt_names"];
    assert_eq!(san[0]["matcher"]["exact"], "spiffe://other.example/api");
    assert_eq!(context["validation_context_sds_secret_config"]["name"], "spiffe://other.example");
    assert_eq!(clusters[1]["type"], "STRICT_DNS");
    assert_eq!(clusters[2]["type"], "STATIC");
    assert_eq!(clusters[2]["typed_extension_protocol_options"], Value::Null);
}

#[test]
fn what_the_writer_is_told() {
    let line = "--service web --listen 8443 --to 10.0.0.9:80 --mode permissive --allow spiffe://a/b --upstream api=h:1,spiffe://a/c";
    let notes = plan(line).expect(line).notes();
    let wants = [
        "note: 10.0.0.9:80 is not on this machine",
        "note: port 8443 takes plaintext",
        "api: http://127.0.0.1:15001 leads to h:1 as spiffe://a/c",
    ];
    assert_eq!(notes.len(), wants.len(), "{notes:?}");
    for (note, want) in notes.iter().zip(wants) {
        assert!(note.contains(want), "{note}");
    }
}
