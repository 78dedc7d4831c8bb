//! Stands in for the crate of this name (root `Cargo.toml`, `[patch.crates-io]`).
//!
//! The database driver adds that crate's public roots to those of `sslrootcert`. With `sslmode=verify-ca`, which looks
//! at no name, whoever has a certificate of any public CA could then stand between this server and its database. So
//! the list is empty, and the roots are those that the connection string names, or the system's.

use rustls_pki_types::TrustAnchor;

/// No roots at all.
pub const TLS_SERVER_ROOTS: &[TrustAnchor<'static>] = &[];
