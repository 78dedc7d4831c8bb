//! Callers come in: mTLS with the agent's certificate, a rule on the SPIFFE ID that was shown, then the service.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use svid_core::id::TrustDomain;

use super::parts;
use super::plan::{Callers, Mode, Plan, Port, Protocol};

/// Name of every bundle that the agent has for this workload, each for its own trust domain.
const ALL_BUNDLES: &str = "ALL";
/// What stands in the access log and in statistics where nobody has proved who calls.
const NOBODY: &str = "unauthenticated (plaintext)";

/// One listener a port.
pub fn listeners(plan: &Plan) -> impl Iterator<Item = Value> {
    plan.ports.iter().map(|port| listener(plan, port))
}

/// The service, once for each place.
pub fn clusters(plan: &Plan) -> Vec<Value> {
    let mut seen = BTreeSet::new();
    let distinct = plan.ports.iter().filter(|port| seen.insert(&port.cluster));
    distinct.map(|port| cluster(plan, port)).collect()
}

fn listener(plan: &Plan, port: &Port) -> Value {
    let mut listener =
        json!({"name": format!("in_{}", port.listen.port()), "address": parts::listen(port.listen)});
    let chains = match port.mode {
        Mode::Strict => vec![mtls(plan, port, None)],
        Mode::Disable => vec![plaintext(plan, port, None)],
        Mode::Permissive => {
            let inspector = parts::extension(
                "envoy.filters.listener.tls_inspector",
                "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
                json!({}),
            );
            listener["listener_filters"] = json!([inspector]);
            listener["listener_filters_timeout"] = "10s".into();
            vec![mtls(plan, port, Some("tls")), plaintext(plan, port, Some("raw_buffer"))]
        }
    };
    listener["filter_chains"] = chains.into();
    listener
}

fn chain(name: &str, transport: Option<&str>) -> Map<String, Value> {
    let mut chain = Map::new();
    chain.insert("name".into(), name.into());
    if let Some(transport) = transport {
        chain.insert("filter_chain_match".into(), json!({"transport_protocol": transport}));
    }
    chain
}

fn mtls(plan: &Plan, port: &Port, transport: Option<&str>) -> Value {
    let mut chain = chain("mtls", transport);
    chain.insert("transport_socket_connect_timeout".into(), "10s".into());
    chain.insert("transport_socket".into(), tls(plan));
    let principals = json!({
        "mode": mode_name(port.mode),
        "caller": "%DOWNSTREAM_PEER_URI_SAN%",
        "own_id": "%DOWNSTREAM_LOCAL_URI_SAN%",
        "tls": "%DOWNSTREAM_TLS_VERSION%",
    });
    chain.insert("filters".into(), filters(plan, port, principals, Some(&plan.callers)));
    Value::Object(chain)
}

fn plaintext(plan: &Plan, port: &Port, transport: Option<&str>) -> Value {
    let mut chain = chain("plaintext", transport);
    let principals = json!({"mode": mode_name(port.mode), "caller": NOBODY});
    chain.insert("filters".into(), filters(plan, port, principals, None));
    Value::Object(chain)
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Strict => "strict",
        Mode::Permissive => "permissive",
        Mode::Disable => "disable",
    }
}

/// No resumption: a resumed session would outlive a changed bundle.
fn tls(plan: &Plan) -> Value {
    let mut common = json!({
        "tls_params": parts::tls_params(),
        "tls_certificate_sds_secret_configs": [parts::secret(&plan.service.svid)],
        "validation_context_sds_secret_config": parts::secret(&bundle(&plan.callers)),
    });
    if plan.protocol != Protocol::Tcp {
        common["alpn_protocols"] = json!(["h2", "http/1.1"]);
    }
    parts::extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            "common_tls_context": common,
        }),
    )
}

/// The one bundle that callers can be checked with, or all of them, kept apart by Envoy's SPIFFE validator.
fn bundle(callers: &Callers) -> String {
    let trust_domains = callers.all_trust_domains();
    match trust_domains.first() {
        Some(only) if trust_domains.len() == 1 => only.id().to_string(),
        _ => ALL_BUNDLES.into(),
    }
}

/// With callers: only those. A header that names a caller is taken away, and set anew where one has proved itself.
fn filters(plan: &Plan, port: &Port, principals: Value, callers: Option<&Callers>) -> Value {
    let stat_prefix = format!("in_{}", port.listen.port());
    let log = parts::access_log(
        "inbound",
        &port.listen.port().to_string(),
        plan.protocol != Protocol::Tcp,
        principals,
    );
    if plan.protocol == Protocol::Tcp {
        let rbac = callers.map(|callers| {
            parts::extension(
                "envoy.filters.network.rbac",
                "envoy.extensions.filters.network.rbac.v3.RBAC",
                json!({"stat_prefix": format!("{stat_prefix}."), "matcher": allow(callers)}),
            )
        });
        let proxy = parts::tcp_proxy(&stat_prefix, &port.cluster, &log);
        return rbac.into_iter().chain([proxy]).collect();
    }
    let rbac = callers.map(|callers| {
        parts::extension(
            "envoy.filters.http.rbac",
            "envoy.extensions.filters.http.rbac.v3.RBAC",
            json!({"matcher": allow(callers)}),
        )
    });
    let mut fields = json!({
        "use_remote_address": true,
        "common_http_protocol_options": {
            "idle_timeout": "3600s",
            "max_connection_duration": format!("{}s", 2 * u64::from(plan.max_connection_age)),
        },
        "forward_client_cert_details": if callers.is_some() { "SANITIZE_SET" } else { "SANITIZE" },
    });
    if callers.is_some() {
        fields["set_current_client_cert_details"] = json!({"uri": true});
    }
    fields["route_config"] = parts::one_route(&port.cluster);
    fields["http_filters"] = rbac.into_iter().chain([parts::router()]).collect();
    fields["access_log"] = json!([log]);
    json!([parts::http_manager(&stat_prefix, fields)])
}

/// Lets in whom the plan names and nobody else.
///
/// Not by RBAC's `principals`: those match any URI of a certificate, while the bundle was chosen by the first one, so
/// that the CA of another trust domain could add an ID of ours as a second. This input is all URIs in one text, which
/// is a SPIFFE ID only where there is exactly one.
fn allow(callers: &Callers) -> Value {
    let let_in = json!({"action": parts::extension(
        "allow",
        "envoy.config.rbac.v3.Action",
        json!({"name": "callers", "action": "ALLOW"}),
    )});
    let input = parts::extension(
        "envoy.matching.inputs.uri_san",
        "envoy.extensions.matching.common_inputs.ssl.v3.UriSanInput",
        json!({}),
    );
    let ids: Map<String, Value> = callers.ids.iter().map(|id| (id.to_string(), let_in.clone())).collect();
    let ids =
        (!ids.is_empty()).then(|| json!({"matcher_tree": {"input": input, "exact_match_map": {"map": ids}}}));
    let member = |trust_domain: &TrustDomain| {
        let regex = format!("{}/[a-zA-Z0-9._/-]+", trust_domain.id().as_str().replace('.', r"\."));
        let value = json!({"safe_regex": {"google_re2": {}, "regex": regex}});
        json!({"predicate": {"single_predicate": {"input": input, "value_match": value}}, "on_match": let_in})
    };
    let members: Vec<Value> = callers.trust_domains.iter().map(member).collect();
    let members = (!members.is_empty()).then(|| json!({"matcher_list": {"matchers": members}}));
    match (ids, members) {
        (Some(mut ids), Some(members)) => {
            ids["on_no_match"] = json!({"matcher": members});
            ids
        }
        (one, other) => one.or(other).unwrap_or_else(|| json!({})),
    }
}

fn cluster(plan: &Plan, port: &Port) -> Value {
    let mut cluster = json!({
        "name": port.cluster,
        "type": parts::discovery(&port.to),
        "connect_timeout": "5s",
    });
    let explicit = match plan.protocol {
        Protocol::Http => Some("http_protocol_options"),
        Protocol::Http2 => Some("http2_protocol_options"),
        Protocol::Tcp => None,
    };
    if let Some(explicit) = explicit {
        cluster["typed_extension_protocol_options"] =
            parts::http_options(json!({"explicit_http_config": {explicit: {}}}));
    }
    cluster["load_assignment"] = parts::assignment(&port.cluster, parts::address(&port.to));
    cluster
}
