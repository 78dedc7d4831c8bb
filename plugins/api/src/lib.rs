//! The plugin traits, in domain types, and the conformance suites that every implementation runs.

pub mod conformance;
pub mod error;
pub mod key_manager;
pub mod node_attestor;
pub mod remote_key;
pub mod upstream_authority;
pub mod workload_attestor;

pub use error::{PluginCode, PluginError};
pub use key_manager::KeyManager;
pub use node_attestor::{
    AgentNodeAttestor, AttestContext, AttestSession, AttestedNode, Challenger, ServerNodeAttestor,
};
pub use remote_key::{KeyService, RemoteKey, SigningLane, SigningLimits};
pub use upstream_authority::{MintedCa, UpstreamAuthority};
pub use workload_attestor::{Caller, Executable, WorkloadAttestor};
