//! NodeAttestor x509pop: proof of possession of an X.509 key, both halves.
