//! Load generator that speaks only SPIRE's APIs.
fn main() {}
