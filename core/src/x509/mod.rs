//! X.509: reading certificates, the X509-SVID rules, verification against a bundle, CSRs and issuance.
//!
//! DER is written by a small writer of ours: the issuer's name has to appear in a leaf byte for byte as it stands in
//! the CA certificate, and a minted SVID carries the name of its CSR. Builders that re-encode names cannot promise that.

pub mod ca;
pub mod cert;
pub mod chain;
pub mod csr;
mod der;
pub mod issue;
mod name;
pub mod path;
mod request;
mod signature;
pub mod svid;
pub mod verify;

pub use ca::{CaSubject, CaTemplate};
pub use cert::{CertError, ParsedCert, key_id, split_der_chain};
pub use chain::CertChain;
pub(crate) use csr::rsa_spki;
pub use csr::{CsrError, PublicKey, UnverifiedCsr, VerifiedCsr};
pub use issue::{Authority, IssueError, LeafTemplate, Prepared, Subject};
pub use path::{OrderedPath, is_issued_by, is_self_issued, order_path};
pub use svid::{SvidError, X509Svid};
pub use verify::{Roots, VerifiedPeer, VerifyError, verify, verify_path};
