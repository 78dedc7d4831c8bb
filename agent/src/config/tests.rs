#![allow(clippy::unwrap_used)]

use std::time::Duration;

use svid_core::key::KeyType;
use svid_daemon::log::LogLevel;

use super::*;

const PLUGINS: &str = r#"
plugins {
    KeyManager "memory" {}
    NodeAttestor "join_token" {}
    WorkloadAttestor "unix" { plugin_data { discover_workload_path = true } }
}
"#;

const MINIMAL: &str = r#"
    server_address = "server.example.org"
    server_port = "8081"
    trust_domain = "example.org"
    trust_bundle_path = "bundle.pem"
"#;

fn load_agent(agent: &str, plugins: &str, overlay: &Overlay) -> Result<Loaded, ConfigError> {
    parse(&format!("agent {{\n{agent}\n}}\n{plugins}"), Path::new("agent.conf"), overlay)
}

fn errors(agent: &str, plugins: &str) -> Vec<String> {
    match load_agent(agent, plugins, &Overlay::default()) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Invalid(problems)) => {
            problems.0.into_iter().map(|problem| problem.message).collect()
        }
        Err(other) => panic!("{other}"),
    }
}

fn check_agent(agent: &str, want: &str) {
    let found = errors(agent, PLUGINS);
    assert!(found.iter().any(|message| message.contains(want)), "{want:?} not in {found:?}");
}

#[test]
fn defaults_are_spires() {
    let config = load_agent(MINIMAL, PLUGINS, &Overlay::default()).unwrap().config;
    assert_eq!((config.server_address.as_str(), config.server_port), ("server.example.org", 8081));
    assert_eq!(config.data_dir, Path::new("."));
    assert_eq!(config.socket_path, Path::new("/tmp/spire-agent/public/api.sock"));
    assert_eq!(config.admin_socket_path, None);
    assert_eq!(config.workload_key_type, KeyType::EcP256);
    assert_eq!((config.x509_svid_cache_max_size, config.jwt_svid_cache_max_size), (1000, 1000));
    assert_eq!(config.sync_interval, Duration::from_secs(5));
    assert_eq!(config.rebootstrap.delay, Duration::from_secs(600));
    assert_eq!(config.sds, SdsConfig::default());
    assert_eq!(config.log.level, LogLevel::Info);
    assert!(config.use_sync_authorized_entries);
    assert_eq!(config.ratelimit, RateLimits::default());
    assert!(
        matches!(&config.plugins.workload_attestors[..], [WorkloadAttestorConfig::Unix(body)] if body.items.len() == 1)
    );
}

#[test]
fn the_command_line_wins() {
    let overlay = Overlay {
        server_address: Some("other".into()),
        server_port: Some(1),
        log_level: Some("DEBUG".into()),
        data_dir: Some("/data".into()),
        ..Overlay::default()
    };
    let config = load_agent(MINIMAL, PLUGINS, &overlay).unwrap().config;
    assert_eq!((config.server_address.as_str(), config.server_port), ("other", 1));
    assert_eq!(config.log.level, LogLevel::Debug);
    assert_eq!(config.data_dir, Path::new("/data"));
}

#[test]
fn all_mistakes_at_once() {
    let found = errors("server_port = \"x\"\nlog_level = \"loud\"\nsocket_pth = \"/s\"", "");
    for want in [
        "server_address must be configured",
        "expected a whole number",
        "trust_domain must be configured",
        "must be configured unless insecure_bootstrap is set",
        "not a valid logrus Level",
        "plugins section must be configured",
        "unknown configuration key",
    ] {
        assert!(found.iter().any(|message| message.contains(want)), "{want:?} not in {found:?}");
    }
    assert!(matches!(parse("a b", Path::new("x"), &Overlay::default()), Err(ConfigError::Syntax { .. })));
    assert!(matches!(
        load(Path::new("/nonexistent/agent.conf"), &Overlay::default()),
        Err(ConfigError::NotFound(_))
    ));
}

#[test]
fn bootstrap_rules() {
    let base = "server_address = \"s\"\nserver_port = 1\ntrust_domain = \"example.org\"\n";
    let rows = [
        (
            "insecure_bootstrap = true\ntrust_bundle_path = \"b\"",
            "only one of insecure_bootstrap or trust_bundle_path",
        ),
        (
            "insecure_bootstrap = true\ntrust_bundle_url = \"https://b\"",
            "only one of insecure_bootstrap or trust_bundle_url",
        ),
        (
            "trust_bundle_path = \"b\"\ntrust_bundle_url = \"https://b\"",
            "only one of trust_bundle_url or trust_bundle_path",
        ),
        ("trust_bundle_url = \"http://b\"", "must start with https://"),
        ("trust_bundle_path = \"b\"\ntrust_bundle_format = \"der\"", "invalid value for trust_bundle_format"),
        ("trust_bundle_path = \"b\"\ntrust_bundle_unix_socket = \"/s\"", "so must be trust_bundle_url"),
        ("trust_bundle_url = \"https://b\"\ntrust_bundle_unix_socket = \"/s\"", "must start with http://"),
        (
            "trust_bundle_url = \"http://b/?spire-x=1\"\ntrust_bundle_unix_socket = \"/s\"",
            "can not start with spire-",
        ),
        ("trust_bundle_spiffe_workload_api = \"unix:///s\"", "not built"),
        ("insecure_bootstrap = true\nrebootstrap_mode = \"auto\"", "can not be used with rebootstrapping"),
        ("trust_bundle_path = \"b\"\nrebootstrap_mode = \"x\"", "unknown rebootstrap mode specified: x"),
    ];
    for (lines, want) in rows {
        check_agent(&format!("{base}{lines}"), want);
    }
    let ok = format!("{base}trust_bundle_url = \"http://b/?x=1\"\ntrust_bundle_unix_socket = \"/s\"");
    assert_eq!(errors(&ok, PLUGINS), Vec::<String>::new());
}

#[test]
fn values_are_checked() {
    let rows = [
        ("join_token = \"a\"\njoin_token_file = \"b\"", "only one of join_token or join_token_file"),
        ("join_token_file = \"/nonexistent\"", "unable to read join token file"),
        ("availability_target = \"1h\"", "availability_target must be at least 24h0m0s"),
        ("x509_svid_cache_max_size = -1", "x509_svid_cache_max_size should not be negative"),
        ("workload_x509_svid_key_type = \"rsa-4096\"", "is unknown"),
        ("authorized_delegates = [\"spiffe://other.org/x\"]", "error validating authorized delegate"),
        (
            "admin_socket_path = \"/tmp/spire-agent/public/admin/api.sock\"",
            "admin socket cannot be in the same",
        ),
        ("experimental { jwt_svid_cache_hit_timeout = \"1s\" }", "must be greater than 5s"),
        ("experimental { jwt_svid_cache_hit_timeout = \"30s\" }", "must be less than 30s"),
        (
            "experimental { ratelimit { fetch_secrets = -1 } }",
            "experimental.ratelimit.fetch_secrets must not be negative",
        ),
        ("experimental { feature_flags = [\"x\"] }", "unknown feature flag: x"),
        ("nonsense = 1", "unknown configuration key"),
    ];
    for (lines, want) in rows {
        check_agent(&format!("{MINIMAL}\n{lines}"), want);
    }
}

#[test]
fn plugin_rules() {
    let unix = "WorkloadAttestor \"unix\" {}";
    let rows = [
        (
            format!("KeyManager \"memory\" {{}}\nNodeAttestor \"k8s_psat\" {{}}\n{unix}"),
            "\"k8s_psat\" is not built",
        ),
        (
            format!("KeyManager \"disk\" {{}}\nNodeAttestor \"join_token\" {{}}\n{unix}"),
            "directory must be configured",
        ),
        (
            format!("NodeAttestor \"join_token\" {{}}\n{unix}"),
            "expected exactly 1 KeyManager plugin but got 0",
        ),
        (format!("KeyManager \"memory\" {{}}\n{unix}"), "expected exactly 1 NodeAttestor plugin but got 0"),
        (
            "KeyManager \"memory\" {}\nNodeAttestor \"join_token\" {}".to_owned(),
            "at least 1 WorkloadAttestor",
        ),
        (
            format!(
                "KeyManager \"memory\" {{ plugin_cmd = \"/x\" }}\nNodeAttestor \"join_token\" {{}}\n{unix}"
            ),
            "external plugins are not built",
        ),
        (
            format!("KeyManager \"memory\" {{}}\nNodeAttestor \"join_token\" {{}}\n{unix}\nThing \"x\" {{}}"),
            "unsupported plugin type",
        ),
    ];
    for (plugins, want) in rows {
        let found = errors(MINIMAL, &format!("plugins {{\n{plugins}\n}}"));
        assert!(found.iter().any(|message| message.contains(want)), "{want:?} not in {found:?}");
    }
    let overlay = Overlay { join_token: Some("t".into()), ..Overlay::default() };
    let plugins = "plugins { KeyManager \"memory\" {}\n WorkloadAttestor \"unix\" {} }";
    let config = load_agent(MINIMAL, plugins, &overlay).unwrap().config;
    assert_eq!(format!("{:?}", config.join_token), "Some(JoinToken)");
}

#[test]
fn telemetry_and_health() {
    let rest = format!(
        "{PLUGINS}\ntelemetry {{ Prometheus {{ port = 9988 }} Other = 1 }}\n\
         health_checks {{ listener_enabled = true, bind_port = \"8080\", live_path = \"/l\" }}"
    );
    let loaded = load_agent(MINIMAL, &rest, &Overlay::default()).unwrap();
    let prometheus = loaded.config.telemetry.prometheus.unwrap();
    assert_eq!((prometheus.host.as_str(), prometheus.port), ("localhost", 9988));
    assert_eq!((loaded.config.health.listener_enabled, loaded.config.health.bind_port), (true, 8080));
    assert_eq!(
        (loaded.config.health.live_path.as_str(), loaded.config.health.ready_path.as_str()),
        ("/l", "/ready")
    );
    assert!(loaded.warnings.iter().any(|warning| warning.key == "telemetry.Other"));
}
