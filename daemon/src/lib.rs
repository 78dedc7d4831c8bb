//! What both daemons need of the operating system and the network: accept loops, the peer verifier, logs, metrics,
//! health, flags.

pub mod caps;
pub mod cli;
pub mod config;
pub mod flags;
pub mod harden;
pub mod health;
pub mod http;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod peer;
pub mod signals;
pub mod tls;
