//! Entries, SVIDs and bundles, ready for workloads.
