//! Bootstrap and node attestation.
