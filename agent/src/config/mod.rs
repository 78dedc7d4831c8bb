//! SPIRE's configuration file for agents: HCL to checked values, all mistakes at once.

mod types;

pub use types::*;
