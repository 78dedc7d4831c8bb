//! Issuance, slots and rotation.
