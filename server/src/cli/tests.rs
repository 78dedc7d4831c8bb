//! The whole command line against a fake server on a Unix socket.
