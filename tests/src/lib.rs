//! Whole-system scenarios against the real binaries.
