//! The SPIFFE identity agent: one per node, serves workloads and Envoy over a Unix socket.

pub mod admin;
pub mod attest;
pub mod backoff;
pub mod cache;
pub mod caller;
pub mod cli;
pub mod client;
pub mod config;
pub mod manager;
pub mod rotate;
pub mod run;
pub mod sds;
pub mod stored;
pub mod sync;
pub mod workload_api;

#[cfg(test)]
pub(crate) mod testing;
