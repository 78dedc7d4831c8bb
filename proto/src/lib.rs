//! Wire types and services of SPIRE, the SPIFFE Workload API, Envoy SDS and svid.*.
//!
//! The module tree mirrors the protobuf packages; [`workload`] holds the SPIFFE Workload API, which
//! has none. Names are prost's: `X509SVID` is `X509svid`, `SPIFFEID` is `Spiffeid`. Clients are in
//! `*_client` modules, server traits in `*_server`; the `encoded_server` modules have the same trait
//! with the response that carries private keys as [`Encoded`].

pub mod backup;
pub mod convert;
mod encoded;
mod generated;
pub mod json;
mod redact;
pub mod rpc;

use std::sync::OnceLock;

use prost_reflect::DescriptorPool;

pub use encoded::Encoded;
pub use generated::{envoy, google, grpc, spiffe, spire, svid, workload};

/// All our `.proto` files and their imports, as an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The parsed [`FILE_DESCRIPTOR_SET`].
pub fn descriptor_pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("build.rs wrote a valid descriptor set")
    })
}

#[cfg(test)]
mod wire_tests;
