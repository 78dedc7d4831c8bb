//! KeyManager `aws_kms`: keys in AWS KMS, found by their aliases or by their tags.
//!
//! A key is made, then gets its alias; whatever fails in between leaves a key without an alias, which is swept away
//! later. A key that was replaced is scheduled for deletion once nobody holds it any more.

mod config;
mod discover;
mod housekeeping;
mod manager;
mod names;
mod policy;
mod service;
mod tags;

#[cfg(test)]
mod tests;

pub use config::{KeyIdentifier, KmsConfig};
pub use manager::AwsKms;
