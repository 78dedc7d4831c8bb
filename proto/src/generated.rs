//! The generated code, in a tree that must mirror the packages: it refers to itself with `super`.
#![allow(missing_docs)]
#![allow(clippy::all, rustdoc::all)]

macro_rules! include_package {
    ($file:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $file, ".rs"));
    };
}

/// The SPIFFE Workload API. Its protobuf has no package.
pub mod workload {
    include_package!("_");

    /// The server trait with `X509SVIDResponse` as [`crate::Encoded`].
    pub mod encoded_server {
        include_package!("encoded/_");
    }
}

/// APIs of the SPIFFE project that have a package.
pub mod spiffe {
    /// The Broker API (experimental).
    pub mod broker {
        include_package!("spiffe.broker");

        /// The server trait with `SubscribeToX509SVIDResponse` as [`crate::Encoded`].
        pub mod encoded_server {
            include_package!("encoded/spiffe.broker");
        }
    }
}

/// SPIRE's APIs.
pub mod spire {
    /// Only the agent's debug API lives here: its package lacks the `api`.
    pub mod agent {
        pub mod debug {
            pub mod v1 {
                include_package!("spire.agent.debug.v1");
            }
        }
    }

    pub mod api {
        /// Served by agents, on the admin socket.
        pub mod agent {
            pub mod delegatedidentity {
                pub mod v1 {
                    include_package!("spire.api.agent.delegatedidentity.v1");

                    /// The server trait with `SubscribeToX509SVIDsResponse` as [`crate::Encoded`].
                    pub mod encoded_server {
                        include_package!("encoded/spire.api.agent.delegatedidentity.v1");
                    }
                }
            }
            pub mod logger {
                pub mod v1 {
                    include_package!("spire.api.agent.logger.v1");
                }
            }
        }

        /// Served by servers.
        pub mod server {
            pub mod agent {
                pub mod v1 {
                    include_package!("spire.api.server.agent.v1");
                }
            }
            pub mod bundle {
                pub mod v1 {
                    include_package!("spire.api.server.bundle.v1");
                }
            }
            pub mod debug {
                pub mod v1 {
                    include_package!("spire.api.server.debug.v1");
                }
            }
            pub mod entry {
                pub mod v1 {
                    include_package!("spire.api.server.entry.v1");
                }
            }
            pub mod localauthority {
                pub mod v1 {
                    include_package!("spire.api.server.localauthority.v1");
                }
            }
            pub mod logger {
                pub mod v1 {
                    include_package!("spire.api.server.logger.v1");
                }
            }
            pub mod svid {
                pub mod v1 {
                    include_package!("spire.api.server.svid.v1");
                }
            }
            pub mod trustdomain {
                pub mod v1 {
                    include_package!("spire.api.server.trustdomain.v1");
                }
            }
        }

        /// Shared messages.
        pub mod types {
            include_package!("spire.api.types");
        }
    }

    /// The older model, in files and database blobs.
    pub mod common {
        include_package!("spire.common");
    }

    pub mod private {
        pub mod server {
            /// The CA journal as stored.
            pub mod journal {
                include_package!("spire.private.server.journal");
            }
        }
    }
}

/// Envoy's Secret Discovery Service and what it carries.
pub mod envoy {
    pub mod config {
        pub mod core {
            pub mod v3 {
                include_package!("envoy.config.core.v3");
            }
        }
    }
    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                pub mod v3 {
                    include_package!("envoy.extensions.transport_sockets.tls.v3");
                }
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include_package!("envoy.service.discovery.v3");
            }
        }
        pub mod secret {
            pub mod v3 {
                include_package!("envoy.service.secret.v3");
            }
        }
    }
    pub mod r#type {
        pub mod matcher {
            pub mod v3 {
                include_package!("envoy.r#type.matcher.v3");
            }
        }
        pub mod v3 {
            include_package!("envoy.r#type.v3");
        }
    }
}

/// `google.rpc.Status`.
pub mod google {
    pub mod rpc {
        include_package!("google.rpc");
    }
}

/// gRPC's own services.
pub mod grpc {
    pub mod health {
        pub mod v1 {
            include_package!("grpc.health.v1");
        }
    }
}

/// Our additions. A peer that lacks them answers `Unimplemented`.
pub mod svid {
    pub mod backup {
        pub mod v1 {
            include_package!("svid.backup.v1");
        }
    }
    pub mod federation {
        pub mod v1 {
            include_package!("svid.federation.v1");
        }
    }
    pub mod status {
        pub mod v1 {
            include_package!("svid.status.v1");
        }
    }
    pub mod sync {
        pub mod v1 {
            include_package!("svid.sync.v1");
        }
    }
}
