//! The SPIFFE identity server: a trust domain's authority.

pub mod api;
pub mod attest;
pub mod ca;
pub mod cli;
pub mod clock_guard;
pub mod config;
pub mod directory;
pub mod federation;
pub mod run;
pub mod store;
