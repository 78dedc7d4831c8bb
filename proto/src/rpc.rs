//! Every RPC of this crate, read from the descriptors, so that tables written by hand can be proved complete.

use crate::descriptor_pool;

/// One RPC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Method {
    /// Full service name, such as `spire.api.server.agent.v1.Agent`.
    pub service: String,
    /// Method name, such as `BanAgent`.
    pub name: String,
    /// HTTP/2 path, such as `/spire.api.server.agent.v1.Agent/BanAgent`.
    pub full: String,
    /// The client sends a stream.
    pub client_streaming: bool,
    /// The server sends a stream.
    pub server_streaming: bool,
}

/// All RPCs of all services, sorted by path.
pub fn all_methods() -> Vec<Method> {
    let mut methods: Vec<Method> = descriptor_pool()
        .services()
        .flat_map(|service| service.methods().map(|method| describe(&method)).collect::<Vec<_>>())
        .collect();
    methods.sort_by(|a, b| a.full.cmp(&b.full));
    methods
}

fn describe(method: &prost_reflect::MethodDescriptor) -> Method {
    let service = method.parent_service().full_name().to_owned();
    Method {
        full: format!("/{service}/{}", method.name()),
        name: method.name().to_owned(),
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
        service,
    }
}

#[cfg(test)]
mod tests;
