use std::time::{Duration, Instant};

use super::*;

fn metrics() -> Metrics {
    Metrics::new(MetricsOptions {
        prefix: "spire_server".into(),
        host: Some("node-1.local".into()),
        trust_domain: None,
        filter: Filter::default(),
    })
}

#[test]
fn names_and_kinds_are_spires() {
    let metrics = metrics();
    metrics.incr_counter(&["ca", "manager", "x509_ca", "activate"], 2, &[]);
    metrics.set_gauge(&["started"], 1.0, &[("version", "1.15.0"), ("trust_domain_id", "example.org")]);
    let call = metrics.call(&["rpc", "agent", "v1", "agent", "attest_agent"]);
    call.done("OK", Duration::from_millis(4));
    call.done("OK", Duration::from_millis(2));
    metrics.measure_call(
        &["rpc", "agent", "v1", "agent", "attest_agent"],
        "NotFound",
        Duration::from_millis(1),
        &[],
    );
    let text = metrics.render();
    for line in [
        "# TYPE spire_server_ca_manager_x509_ca_activate counter",
        "spire_server_ca_manager_x509_ca_activate{host=\"node-1.local\"} 2",
        "spire_server_started{host=\"node-1.local\",trust_domain_id=\"example_org\",version=\"1_15_0\"} 1",
        "spire_server_rpc_agent_v1_agent_attest_agent{host=\"node-1.local\",status=\"OK\"} 2",
        "spire_server_rpc_agent_v1_agent_attest_agent{host=\"node-1.local\",status=\"NotFound\"} 1",
        "# TYPE spire_server_rpc_agent_v1_agent_attest_agent_elapsed_time summary",
        "spire_server_rpc_agent_v1_agent_attest_agent_elapsed_time{host=\"node-1.local\",status=\"OK\",quantile=\"0.99\"} 4",
        "spire_server_rpc_agent_v1_agent_attest_agent_elapsed_time_sum{host=\"node-1.local\",status=\"OK\"} 6",
        "spire_server_rpc_agent_v1_agent_attest_agent_elapsed_time_count{host=\"node-1.local\",status=\"OK\"} 2",
    ] {
        assert!(text.lines().any(|got| got == line), "{line}\n{text}");
    }
}

#[test]
fn quantiles_forget() {
    let timing = metrics().timing(&["t"], &[]);
    let start = Instant::now();
    for millis in 1..=2000 {
        timing.record_at(Duration::from_millis(millis), start);
    }
    let summary = timing.summary(start).map(|summary| (summary.quantiles[0].1, summary.count));
    assert_eq!(summary, Some((1488.0, 2000)));
    let later = timing.summary(start + Duration::from_secs(11));
    assert!(later.is_some_and(|summary| summary.quantiles[0].1.is_nan() && summary.count == 2000));
}

#[test]
fn gauges_move_and_samples_add_up() {
    let metrics = metrics();
    let gauge = metrics.gauge(&["sds_api", "connections"], &[]);
    for delta in [1.0, 1.0, -1.0] {
        gauge.add(delta);
    }
    metrics.timing(&["workload_api", "discovered_selectors"], &[]).sample(7.0);
    metrics.call_with(&["w"], &[("attestor", "unix")]).done("OK", Duration::ZERO);
    let text = metrics.render();
    for line in [
        "spire_server_sds_api_connections{host=\"node-1.local\"} 1",
        "spire_server_workload_api_discovered_selectors_sum{host=\"node-1.local\"} 7",
        "spire_server_w{attestor=\"unix\",host=\"node-1.local\",status=\"OK\"} 1",
    ] {
        assert!(text.lines().any(|got| got == line), "{line}\n{text}");
    }
}

#[test]
fn no_sink_no_cost() {
    let metrics = Metrics::disabled();
    metrics.incr_counter(&["x"], 1, &[]);
    metrics.call(&["y"]).done("OK", Duration::ZERO);
    assert!(!metrics.is_enabled() && metrics.render().is_empty());
}
