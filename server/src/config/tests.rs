use std::path::Path;

use super::*;

const GOOD: &str = r#"
server {
    bind_address = "127.0.0.1"
    bind_port = "8081"
    trust_domain = "example.org"
    data_dir = "/tmp/data"
    log_level = "DEBUG"
    ca_ttl = "72h"
    default_x509_svid_ttl = "30m"
    ratelimit { attestation = false }
    experimental { events_based_cache = true, new_thing = 1, max_stale = "20m" }
}
plugins {
    DataStore "sql" { plugin_data { database_type = "sqlite3", connection_string = "/tmp/data/x.sqlite3" } }
    KeyManager "memory" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data {} }
}
"#;

fn read(text: &str) -> Result<Loaded, ConfigError> {
    parse(text, Path::new("server.conf"), &RunFlags::default())
}

/// `from` in the good file becomes `to`; the error must hold every one of `want`.
#[track_caller]
fn refused(from: &str, to: &str, want: &[&str]) {
    assert!(GOOD.contains(from), "{from}");
    let error = read(&GOOD.replace(from, to)).expect_err(to).to_string();
    for text in want {
        assert!(error.contains(text), "{error}\n lacks {text}");
    }
}

#[test]
fn good_file() {
    let loaded = read(GOOD).expect("valid");
    assert_eq!(loaded.config.trust_domain.as_str(), "example.org");
    assert_eq!(loaded.config.bind_port, 8081);
    assert_eq!(loaded.config.log.level, svid_daemon::log::LogLevel::Debug);
    assert_eq!(loaded.config.ratelimit, RateLimits { attestation: false, signing: true });
    assert_eq!(loaded.config.socket_path, Path::new(DEFAULT_SOCKET_PATH));
    let keys: Vec<&str> = loaded.warnings.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["server.experimental.events_based_cache", "server.experimental.new_thing"]);
}

#[test]
fn the_configuration_of_docs_authorities_is_read() {
    let page = include_str!("../../../docs/authorities.md");
    let (_, page) = page.split_once("```hcl\nplugins {").expect("a block");
    let (block, _) = page.split_once("\n}\n```").expect("its end");
    let text = GOOD.replace(r#"KeyManager "memory" { plugin_data {} }"#, block);
    let plugins = read(&text).expect("valid").config.plugins;
    let Some(UpstreamChoice::Disk { bundle_file_path, .. }) = plugins.upstream else { panic!("disk") };
    assert_eq!(bundle_file_path.as_deref(), Some(Path::new("/etc/svid/upstream/roots.pem")));
}

#[test]
fn mistakes_have_lines_and_spires_words() {
    refused("trust_domain = \"example.org\"", "", &["trust_domain must be configured"]);
    refused("data_dir = \"/tmp/data\"", "", &["data_dir must be configured"]);
    refused(
        "trust_domain = \"example.org\"",
        "trust_domain = \"Example\"",
        &["line 5", "could not parse trust_domain"],
    );
    refused("log_level = \"DEBUG\"", "log_level = \"loud\"", &["line 7", "not a valid logrus Level"]);
    refused("ca_ttl = \"72h\"", "ca_ttl = \"72\"", &["line 8", "server.ca_ttl"]);
    refused("ca_ttl", "ca_ttll", &["line 8", "unknown configuration key"]);
    refused("attestation = false", "attest = false", &["unknown configuration key"]);
    refused("\"sqlite3\"", "\"mysql\"", &["not built into this server; use \"postgres\""]);
    refused("\"sqlite3\"", "\"oracle\"", &["unsupported database_type: oracle"]);
    refused("database_type = \"sqlite3\"", "database_type \"aws_postgres\" { region = \"x\" }", &["IAM"]);
    refused(
        "\"sqlite3\"",
        "\"postgres\"",
        &["line 14", "connection_string: missing \"=\" after key number 1"],
    );
    refused("/tmp/data/x.sqlite3", ":memory:", &["a database in memory is lost"]);
    refused(
        "KeyManager \"memory\"",
        "KeyManager \"gcp_kms\"",
        &["\"gcp_kms\" is not built into this server"],
    );
    refused("KeyManager \"memory\"", "KeyManager \"nope\"", &["no built-in plugin \"nope\""]);
    refused("plugins {", "plugin {", &["plugins section must be configured"]);
    refused("server {", "sever {", &["server section must be configured"]);
}

#[cfg(feature = "vault")]
#[test]
fn vault_as_upstream_and_as_key_manager() {
    let auth = r#"vault_addr = "https://vault:8200" token_auth { token = "hush" }"#;
    let vault = format!(r#"UpstreamAuthority "vault" {{ plugin_data {{ {auth} }} }} NodeAttestor"#);
    let text = GOOD.replace("NodeAttestor", &vault);
    let loaded = read(&text).expect("valid");
    assert!(matches!(loaded.config.plugins.upstream, Some(UpstreamChoice::Vault(_))));
    assert!(!format!("{:?}", loaded.config).contains("hush"));
    let bad = text
        .replace("https://vault:8200", "vault:8200")
        .replace("token_auth", "pki_mount_point = \"a//b\" x");
    let error = read(&bad).expect_err("four mistakes").to_string();
    for want in
        ["line 16", "UpstreamAuthority.vault", "vault_addr", "another scheme", "pki_mount_point", "a//b"]
    {
        assert!(error.contains(want), "{error}\n lacks {want}");
    }
    assert!(!error.contains("hush"), "{error}");
    refused(
        "KeyManager \"memory\" { plugin_data {} }",
        &format!("KeyManager \"hashicorp_vault\" {{ plugin_data {{ {auth} }} }}"),
        &["line 15", "one of 'key_identifier_file' or 'key_identifier_value' must be provided"],
    );
}

#[cfg(not(feature = "vault"))]
#[test]
fn a_plugin_that_was_left_out_is_named() {
    let want = ["\"hashicorp_vault\" is not in this build", "without the feature \"vault\""];
    refused("KeyManager \"memory\"", "KeyManager \"hashicorp_vault\"", &want);
}

#[test]
fn all_mistakes_at_once() {
    let text = GOOD.replace("\"72h\"", "\"x\"").replace("\"DEBUG\"", "\"loud\"").replace("example.org", "A");
    let ConfigError::Invalid(problems) = read(&text).expect_err("three mistakes") else {
        panic!("not Invalid")
    };
    assert_eq!(problems.len(), 3, "{problems:?}");
}

#[test]
fn flags_go_over_the_file() {
    let args: Vec<std::ffi::OsString> =
        ["-trustDomain", "other.org", "--serverPort=9", "-logLevel", "warn", "-expandEnv"]
            .map(Into::into)
            .into();
    let flags = RunFlags::parse(&args).expect("valid");
    assert!(flags.expand_env);
    let config = parse(GOOD, Path::new("x"), &flags).expect("valid").config;
    assert_eq!((config.trust_domain.as_str(), config.bind_port), ("other.org", 9));
    assert_eq!(config.log.level, svid_daemon::log::LogLevel::Warn);
    let bad: Vec<std::ffi::OsString> = vec!["-nope".into()];
    assert_eq!(RunFlags::parse(&bad), Err(FlagError::Unknown("nope".into())));
}

/// Every page that begins with a configuration begins with one that is taken.
#[test]
fn the_federation_page_begins_with_a_working_configuration() {
    let page = include_str!("../../../docs/federation.md");
    let (_, rest) = page.split_once("```hcl\n").expect("a configuration");
    let (text, _) = rest.split_once("```").expect("its end");
    let loaded = read(text).expect("valid");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let federation = loaded.config.federation;
    let endpoint = federation.endpoint.expect("an endpoint");
    assert_eq!((endpoint.port, endpoint.refresh_hint.as_secs()), (8443, 300));
    let names: Vec<_> =
        federation.relationships.iter().map(|one| (one.trust_domain.as_str(), one.profile.name())).collect();
    assert_eq!(names, [("west.example", "https_spiffe"), ("north.example", "https_web")]);
}

/// Conformance: FED-20, FED-24, FED-25, FED-46 to FED-48.
#[test]
fn what_is_wrong_with_a_federation_section_is_said() {
    let section =
        |text: &str| GOOD.replace("ratelimit {", &format!("federation {{ {text} }}\n ratelimit {{"));
    let check = |text: &str, want: &str| {
        let error = read(&section(text)).expect_err(text).to_string();
        assert!(error.contains(want), "{error}\n lacks {want}");
    };
    let with = |name: &str, url: &str, profile: &str| {
        format!("federates_with \"{name}\" {{ bundle_endpoint_url = \"{url}\" {profile} }}")
    };
    let web = "bundle_endpoint_profile \"https_web\" {}";
    check(&with("a.test", "http://a.test", web), "must use the HTTPS protocol; URL found: \"http://a.test\"");
    check(
        &with("a.test", "", web),
        "federation.federates_with[\"a.test\"].bundle_endpoint_url must be configured",
    );
    check(&with("a.test", "https://me@a.test", web), "must not contain user info; URL found");
    check(&with("A.test", "https://a.test", web), "invalid trust domain \"A.test\"");
    check(&with("example.org", "https://a.test", web), "is the server's own trust domain");
    check(&with("a.test", "https://a.test", ""), "exactly one bundle endpoint profile is expected");
    check(
        &with("a.test", "https://a.test", &format!("{web} {}", web.replace("web", "spiffe"))),
        "exactly one bundle endpoint profile",
    );
    check(
        &with("a.test", "https://a.test", "bundle_endpoint_profile \"http\" {}"),
        "no bundle endpoint profile defined",
    );
    check(
        &with("a.test", "https://a.test", "bundle_endpoint_profile \"https_spiffe\" {}"),
        "could not get endpoint SPIFFE ID",
    );
    let twice = with("a.test", "https://a.test", web);
    check(&format!("{twice} {}", twice.replace("\"a.test", "\"spiffe://a.test")), "is configured again");
    let endpoint = |text: &str| format!("bundle_endpoint {{ {text} }}");
    check(&endpoint(""), "port must be configured");
    check(&endpoint("port = 1 refresh_hint = \"5\""), "could not parse refresh_hint");
    check(&endpoint("port = 1 profile \"http\" {}"), "unknown bundle endpoint profile configured");
    check(&endpoint("port = 1 profile \"https_web\" {}"), "'acme' or 'serving_cert_file' is required");
    check(
        &endpoint("port = 1 profile \"https_web\" { acme { domain_name = \"a\" email = \"b\" } }"),
        "certbot",
    );
    check(
        &endpoint("port = 1 profile \"https_web\" { serving_cert_file {} }"),
        "cert_file_path must name a PEM file",
    );
    check(
        &endpoint("port = 1 acme {} profile \"https_web\" {}"),
        "'acme' or 'profile' can be set, but not both",
    );
    let no_profile = read(&section(&endpoint("port = 1 refresh_hint = \"1s\""))).expect("valid");
    let warned: Vec<_> = no_profile.warnings.iter().map(|problem| problem.message.as_str()).collect();
    assert!(warned.iter().any(|text| text.contains("refresh hint set too low")), "{warned:?}");
    assert!(warned.iter().any(|text| text.contains("using https_spiffe as default")), "{warned:?}");
}
