//! NodeAttestor x509pop: a node proves that it holds the key of a certificate. Both halves.
//! Wire format and order of checks: `spire-server.md`, 5.3; JSON with base64 for bytes.

mod agent;
mod chain;
mod config;
mod proof;
mod server;
mod template;
#[cfg(test)]
mod tests;
mod wire;

pub use agent::{AgentConfig, X509PopAgent};
pub use config::{Mode, ServerConfig};
pub use server::{BundleSource, X509PopServer};

/// The plugin's name, which is also the type of its payloads and selectors.
pub const NAME: &str = "x509pop";
/// Bytes of a nonce.
pub(crate) const NONCE_BYTES: usize = 32;
