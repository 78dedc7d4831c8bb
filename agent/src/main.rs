//! The SPIFFE identity agent: one per node, serves workloads and Envoy.
fn main() {}
