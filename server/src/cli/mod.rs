//! SPIRE's command line.
