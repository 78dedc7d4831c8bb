//! Pieces that inbound and outbound share.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::endpoint::{Endpoint, Host};

/// Cluster of the agent's SDS socket.
const AGENT: &str = "svid_agent";
/// Connections that Envoy holds at most. It warns without a limit, and would end for want of memory instead.
const MAX_CONNECTIONS: u32 = 50_000;

/// A typed extension: `@type` first, then its fields.
pub fn typed(message: &str, fields: Value) -> Value {
    let mut all = Map::new();
    all.insert("@type".into(), format!("type.googleapis.com/{message}").into());
    if let Value::Object(fields) = fields {
        all.extend(fields);
    }
    Value::Object(all)
}

/// A named extension with its configuration.
pub fn extension(name: &str, message: &str, fields: Value) -> Value {
    json!({"name": name, "typed_config": typed(message, fields)})
}

/// A secret by its name at the agent. Without a timeout Envoy opens no port before it has the secret.
pub fn secret(name: &str) -> Value {
    json!({
        "name": name,
        "sds_config": {
            "resource_api_version": "V3",
            "initial_fetch_timeout": "0s",
            "api_config_source": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": AGENT}}],
            },
        },
    })
}

/// TLS 1.2 is there for old clients; 1.3 must be named, since clients do not offer it by default in every version.
pub fn tls_params() -> Value {
    json!({"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"})
}

/// The agent's socket as a cluster.
pub fn agent_cluster(socket: &str) -> Value {
    json!({
        "name": AGENT,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": http_options(json!({"explicit_http_config": {"http2_protocol_options": {}}})),
        "load_assignment": assignment(AGENT, json!({"pipe": {"path": socket}})),
    })
}

/// A cluster's HTTP options.
pub fn http_options(fields: Value) -> Value {
    let message = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    json!({message: typed(message, fields)})
}

/// The one endpoint of a cluster.
pub fn assignment(cluster: &str, address: Value) -> Value {
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}

/// An address to connect to.
pub fn address(to: &Endpoint) -> Value {
    json!({"socket_address": {"address": to.host_text(), "port_value": to.port}})
}

/// How Envoy finds the address.
pub fn discovery(to: &Endpoint) -> &'static str {
    match to.host {
        Host::Ip(_) => "STATIC",
        Host::Name(_) => "STRICT_DNS",
    }
}

/// An address to listen at. `[::]` takes IPv4 too.
pub fn listen(at: SocketAddr) -> Value {
    let mut address = json!({"address": at.ip().to_string(), "port_value": at.port()});
    if at.is_ipv6() && at.ip().is_unspecified() {
        address["ipv4_compat"] = true.into();
    }
    json!({"socket_address": address})
}

/// The filter that gives each stream to its cluster.
pub fn router() -> Value {
    extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", json!({}))
}

/// Everything to one cluster. No total limit, or streams would end; a request is sent again only when it is certain
/// that nobody has seen it.
pub fn one_route(cluster: &str) -> Value {
    let retry = json!({"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 3});
    let route = json!({"cluster": cluster, "timeout": "0s", "retry_policy": retry});
    json!({
        "name": cluster,
        "virtual_hosts": [{
            "name": cluster,
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": route}],
        }],
    })
}

/// Timeouts and manners of every HTTP listener.
pub fn http_manager(stat_prefix: &str, fields: Value) -> Value {
    let mut all = json!({
        "stat_prefix": stat_prefix,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "300s",
        "delayed_close_timeout": "1s",
        "server_header_transformation": "PASS_THROUGH",
        "http2_protocol_options": {"max_concurrent_streams": 100},
    });
    if let (Value::Object(all), Value::Object(fields)) = (&mut all, fields) {
        all.extend(fields);
    }
    extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        all,
    )
}

/// Everything to one cluster, whatever it is.
pub fn tcp_proxy(stat_prefix: &str, cluster: &str, log: &Value) -> Value {
    extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        json!({"stat_prefix": stat_prefix, "cluster": cluster, "idle_timeout": "3600s", "access_log": [log]}),
    )
}

/// One JSON object a request (HTTP) or connection (TCP), on standard output. A path goes without its query, which may
/// hold secrets.
pub fn access_log(direction: &str, port: &str, http: bool, principals: Value) -> Value {
    let mut line = Map::new();
    line.insert("time".into(), "%START_TIME%".into());
    line.insert("direction".into(), direction.into());
    line.insert("port".into(), port.into());
    if let Value::Object(principals) = principals {
        line.extend(principals);
    }
    let http_only = [
        ("method", "%REQ(:METHOD)%"),
        ("authority", "%REQ(:AUTHORITY)%"),
        ("path", "%PATH(NQ:PATH)%"),
        ("protocol", "%PROTOCOL%"),
        ("status", "%RESPONSE_CODE%"),
        ("status_details", "%RESPONSE_CODE_DETAILS%"),
    ];
    let both = [
        ("connection_details", "%CONNECTION_TERMINATION_DETAILS%"),
        ("tls_failure", "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"),
        ("upstream_failure", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
        ("flags", "%RESPONSE_FLAGS%"),
        ("from", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
        ("to", "%UPSTREAM_HOST%"),
        ("bytes_received", "%BYTES_RECEIVED%"),
        ("bytes_sent", "%BYTES_SENT%"),
        ("duration_ms", "%DURATION%"),
    ];
    let fields = http_only.iter().filter(|_| http).chain(&both);
    line.extend(fields.map(|(name, value)| ((*name).to_owned(), Value::from(*value))));
    extension(
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        json!({"log_format": {"json_format": line}}),
    )
}

/// The overload manager, with one limit.
pub fn connection_limit() -> Value {
    json!({"resource_monitors": [extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        json!({"max_active_downstream_connections": MAX_CONNECTIONS}),
    )]})
}
