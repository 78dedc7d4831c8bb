//! KeyManagers that keep keys in memory or in a file on disk.
