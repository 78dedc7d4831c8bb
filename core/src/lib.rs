//! What a SPIFFE identity is: IDs, selectors, entries, bundles, X.509 and JWT building and checking, HCL.
//!
//! No tokio, no I/O, no SQL. Time and randomness come in as arguments.

pub mod bundle;
pub mod clock;
pub mod entry;
pub mod federation;
pub mod hcl;
pub mod id;
pub mod jwt;
pub mod key;
pub mod libpq;
pub mod pem;
pub mod remote;
pub mod rotation;
pub mod selector;
pub mod x509;
