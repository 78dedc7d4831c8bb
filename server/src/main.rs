//! The SPIFFE identity server: a trust domain's authority.
fn main() {}
