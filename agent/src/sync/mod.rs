//! Keeping the cache equal to what the server says.
