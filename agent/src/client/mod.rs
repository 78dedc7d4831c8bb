//! The connection to the server.
