//! What both daemons need of the operating system and the network: accept loops, the peer verifier, logs, metrics, health, flags.

pub mod cli;
pub mod flags;
pub mod log;
