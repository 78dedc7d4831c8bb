//! Metrics of the agent's sockets under SPIRE's names. Their handles are made once: a call looks nothing up.

use std::time::Instant;

use http::Response;
use svid_daemon::metrics::{Call, Counter, Gauge, Metrics, code_name, on_end};
use tonic::Code;
use tonic::body::Body;

/// Which API a method belongs to, for the connection metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Workload,
    Sds,
    Debug,
    Logger,
    /// Health has none.
    Uncounted,
}

/// Path, SPIRE's key behind `rpc`, and whether it streams.
const METHODS: &[(&str, &[&str], bool, Api)] = &[
    ("/SpiffeWorkloadAPI/FetchX509SVID", &["workload_api", "fetch_x509svid"], true, Api::Workload),
    ("/SpiffeWorkloadAPI/FetchX509Bundles", &["workload_api", "fetch_x509_bundles"], true, Api::Workload),
    ("/SpiffeWorkloadAPI/FetchJWTSVID", &["workload_api", "fetch_jwtsvid"], false, Api::Workload),
    ("/SpiffeWorkloadAPI/FetchJWTBundles", &["workload_api", "fetch_jwt_bundles"], true, Api::Workload),
    ("/SpiffeWorkloadAPI/ValidateJWTSVID", &["workload_api", "validate_jwtsvid"], false, Api::Workload),
    ("/SpiffeWorkloadAPI/FetchWITSVID", &["workload_api", "fetch_witsvid"], true, Api::Workload),
    ("/SpiffeWorkloadAPI/FetchWITBundles", &["workload_api", "fetch_wit_bundles"], true, Api::Workload),
    (crate::sds::STREAM_SECRETS, &["sds", "v3", "stream_secrets"], true, Api::Sds),
    (crate::sds::DELTA_SECRETS, &["sds", "v3", "delta_secrets"], true, Api::Sds),
    (crate::sds::FETCH_SECRETS, &["sds", "v3", "fetch_secrets"], false, Api::Sds),
    ("/grpc.health.v1.Health/Check", &["health", "check"], false, Api::Uncounted),
    ("/spire.agent.debug.v1.Debug/GetInfo", &["debug", "get_info"], false, Api::Debug),
    ("/spire.api.agent.logger.v1.Logger/GetLogger", &["logger", "get_logger"], false, Api::Logger),
    ("/spire.api.agent.logger.v1.Logger/SetLogLevel", &["logger", "set_log_level"], false, Api::Logger),
    ("/spire.api.agent.logger.v1.Logger/ResetLogLevel", &["logger", "reset_log_level"], false, Api::Logger),
];

#[derive(Clone, Debug)]
struct Connections {
    api: Api,
    count: Counter,
    open: Gauge,
}

struct Method {
    path: &'static str,
    streams: bool,
    api: Api,
    call: Call,
}

/// Counts the calls of a socket.
pub(crate) struct SocketMetrics {
    methods: Vec<Method>,
    connections: Vec<Connections>,
}

impl SocketMetrics {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        if !metrics.is_enabled() {
            return Self { methods: Vec::new(), connections: Vec::new() };
        }
        let method = |&(path, key, streams, api): &(&'static str, &[&str], bool, Api)| Method {
            path,
            streams,
            api,
            call: metrics.call(&[&["rpc"], key].concat()),
        };
        let apis = [
            (Api::Workload, "workload_api"),
            (Api::Sds, "sds_api"),
            (Api::Debug, "debug_api"),
            (Api::Logger, "logger_api"),
        ];
        let connections = apis.map(|(api, name)| Connections {
            api,
            count: metrics.counter(&[name, "connection"], &[]),
            open: metrics.gauge(&[name, "connections"], &[]),
        });
        Self { methods: METHODS.iter().map(method).collect(), connections: connections.into() }
    }

    /// Counts a call that begins; `None` without a sink and for unknown methods. Calls of the agent itself, which are
    /// its health checks, are no calls in SPIRE's numbers.
    pub(crate) fn begin(&self, path: &str, is_agent: bool) -> Option<InFlight> {
        let method = self.methods.iter().find(|method| method.path == path)?;
        let connections = self.connections.iter().find(|connections| connections.api == method.api);
        if let Some(connections) = connections {
            connections.count.add(1);
            connections.open.add(1.0);
        }
        Some(InFlight {
            call: (!is_agent).then(|| method.call.clone()),
            open: connections.map(|connections| connections.open.clone()),
            streams: method.streams,
            since: Instant::now(),
            code: Code::Cancelled,
        })
    }
}

/// A call that goes on. When it is dropped, it ended.
pub(crate) struct InFlight {
    call: Option<Call>,
    open: Option<Gauge>,
    streams: bool,
    since: Instant,
    code: Code,
}

impl InFlight {
    /// Lasts as long as the answer.
    pub(crate) fn until_end(self, response: Response<Body>) -> Response<Body> {
        // A client that leaves a stream has had what it wanted, as SPIRE's handlers see it.
        let given_up = if self.streams { Code::Ok } else { Code::Cancelled };
        on_end(response, given_up, move |code| self.end(code))
    }

    fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.add(-1.0);
        }
        if let Some(call) = &self.call {
            call.done(code_name(self.code), self.since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use svid_daemon::metrics::MetricsOptions;

    use super::*;

    fn shows(metrics: &Metrics, line: &str) -> bool {
        metrics.render().lines().any(|got| got == line)
    }

    #[test]
    fn a_stream_counts_from_its_begin_to_its_end() {
        let metrics = Metrics::new(MetricsOptions { prefix: "spire_agent".into(), ..Default::default() });
        let socket = SocketMetrics::new(&metrics);
        let call = socket.begin("/SpiffeWorkloadAPI/FetchX509SVID", false);
        let body = Body::new(http_body_util::Full::new(bytes::Bytes::from_static(b"x")));
        let response = call.map(|call| call.until_end(Response::new(body)));
        assert!(shows(&metrics, "spire_agent_workload_api_connection 1"));
        assert!(shows(&metrics, "spire_agent_workload_api_connections 1"));
        drop(response);
        assert!(shows(&metrics, "spire_agent_workload_api_connections 0"));
        assert!(shows(&metrics, "spire_agent_rpc_workload_api_fetch_x509svid{status=\"OK\"} 1"));
    }

    #[test]
    fn refusals_and_the_agent_itself() {
        let metrics = Metrics::new(MetricsOptions { prefix: "spire_agent".into(), ..Default::default() });
        let socket = SocketMetrics::new(&metrics);
        let call = socket.begin(crate::sds::FETCH_SECRETS, false);
        drop(call.map(|call| call.until_end(tonic::Status::permission_denied("no").into_http())));
        assert!(shows(&metrics, "spire_agent_rpc_sds_v3_fetch_secrets{status=\"PermissionDenied\"} 1"));
        drop(socket.begin(crate::sds::STREAM_SECRETS, true));
        assert!(!metrics.render().contains("stream_secrets"));
        assert!(shows(&metrics, "spire_agent_sds_api_connection 2"));
        assert!(socket.begin("/x/y", false).is_none());
    }
}
