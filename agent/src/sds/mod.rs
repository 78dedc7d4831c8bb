//! Envoy SDS v3.
