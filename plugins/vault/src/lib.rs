//! HashiCorp Vault and OpenBao: UpstreamAuthority `vault` has its PKI engine sign the server's CA, KeyManager
//! `hashicorp_vault` keeps the server's keys in its transit engine.
//!
//! vaultrs gives the requests as far as it has them right; they are sent by a client of ours that trusts the configured CA
//! alone, follows one redirect at most, reads no more than it has to and repeats no secret.

pub mod answer;
mod chain;
pub mod config;
mod error;
mod files;
mod http;
mod lease;
mod login;
mod pki;
mod secret;
mod session;
mod tls;
mod transit;

pub use config::process_env;
pub use pki::{UpstreamConfig, UpstreamVault};
pub use transit::{KeyManagerConfig, TransitKeyManager};
