//! WorkloadAttestor unix: selectors from the calling process.
