//! AWS: the `aws_kms` key manager and the `aws_pca` upstream authority.
//!
//! Configuration keys, names, tags and policies are SPIRE's, so that its keys and IAM policies carry over.

mod errors;
mod kms;
mod pca;
mod session;

pub use kms::{AwsKms, KeyIdentifier, KmsConfig};
pub use pca::{AwsPca, PcaConfig};
pub use session::AccessKey;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod testing;
