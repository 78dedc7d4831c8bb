//! The tool people look through: status, entries, agents, SVIDs.
fn main() {}
