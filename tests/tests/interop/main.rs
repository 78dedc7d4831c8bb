//! Foreign programs against our sockets: a real Envoy, the PyPI client, go-spiffe. They run when `./test` says so.

mod aws;
mod bootstrap;
mod certificates;
mod clients;
mod envoy;
mod federation;
mod machines;
mod mesh;
mod transit;
mod two_names;
mod vault;
