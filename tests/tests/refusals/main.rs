//! Who must be refused, by the real binaries. Nothing here waits for a duration: all of it waits for what happens.

mod callers;
mod certificates;
mod flood;
mod headers;
mod places;
mod resumption;
mod revoked;
mod table;
mod tokens;
mod wire;
mod x509pop;
