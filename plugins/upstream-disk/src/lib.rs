//! UpstreamAuthority that signs with a CA key kept in files.
