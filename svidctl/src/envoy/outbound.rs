//! The service calls out: plaintext on loopback, then mTLS to one peer that must be exactly who it is said to be.

use serde_json::{Value, json};

use super::endpoint::Host;
use super::parts;
use super::plan::{Plan, Protocol};
use super::upstream::Upstream;

/// One listener an upstream.
pub fn listeners(plan: &Plan) -> impl Iterator<Item = Value> {
    plan.upstreams.iter().map(listener)
}

/// One cluster an upstream.
pub fn clusters(plan: &Plan) -> Vec<Value> {
    plan.upstreams.iter().map(|upstream| cluster(plan, upstream)).collect()
}

fn name(upstream: &Upstream) -> String {
    format!("upstream_{}", upstream.name)
}

fn listener(upstream: &Upstream) -> Value {
    let cluster = name(upstream);
    let stat_prefix = format!("out_{}", upstream.name);
    let http = upstream.protocol != Protocol::Tcp;
    let principals = json!({
        "upstream": upstream.name,
        "peer": "%UPSTREAM_PEER_URI_SAN%",
        "expected_peer": upstream.id.as_str(),
        "own_id": "%UPSTREAM_LOCAL_URI_SAN%",
    });
    let log = parts::access_log("outbound", &upstream.listen.port().to_string(), http, principals);
    let filter = match http {
        false => parts::tcp_proxy(&stat_prefix, &cluster, &log),
        true => parts::http_manager(
            &stat_prefix,
            json!({
                "common_http_protocol_options": {"idle_timeout": "3600s"},
                "forward_client_cert_details": "SANITIZE",
                "route_config": parts::one_route(&cluster),
                "http_filters": [parts::router()],
                "access_log": [log],
            }),
        ),
    };
    json!({
        "name": stat_prefix,
        "address": parts::listen(upstream.listen),
        "filter_chains": [{"filters": [filter]}],
    })
}

fn cluster(plan: &Plan, upstream: &Upstream) -> Value {
    let name = name(upstream);
    let mut cluster = json!({
        "name": name,
        "type": parts::discovery(&upstream.to),
        "connect_timeout": "5s",
    });
    if upstream.protocol != Protocol::Tcp {
        // A certificate is shown once a connection, so old connections must end for a new one to be seen.
        let age = format!("{}s", plan.max_connection_age);
        cluster["typed_extension_protocol_options"] = parts::http_options(json!({
            "common_http_protocol_options": {"idle_timeout": "300s", "max_connection_duration": age},
            "auto_config": {},
        }));
    }
    cluster["load_assignment"] = parts::assignment(&name, parts::address(&upstream.to));
    cluster["transport_socket"] = tls(plan, upstream);
    cluster
}

/// The bundle is that of the peer's own trust domain and no other. No resumption: it would outlive a changed bundle.
fn tls(plan: &Plan, upstream: &Upstream) -> Value {
    let mut fields = json!({"max_session_keys": 0});
    if let Host::Name(host) = &upstream.to.host {
        fields["sni"] = host.trim_end_matches('.').into();
    }
    fields["common_tls_context"] = json!({
        "tls_params": parts::tls_params(),
        "tls_certificate_sds_secret_configs": [parts::secret(&plan.service.svid)],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": upstream.id.as_str()}}],
            },
            "validation_context_sds_secret_config": parts::secret(upstream.id.trust_domain().id().as_str()),
        },
    });
    parts::extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        fields,
    )
}
