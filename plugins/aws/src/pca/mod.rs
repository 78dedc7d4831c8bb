//! UpstreamAuthority `aws_pca`: CAs signed by AWS Private CA.

mod authority;
mod bundle;
mod config;

#[cfg(test)]
mod tests;

pub use authority::AwsPca;
pub use config::PcaConfig;
