//! The authorisation state in memory.
