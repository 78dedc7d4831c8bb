//! Why a server does not run.

use svid_core::id::TrustDomain;
use svid_daemon::harden::HardenError;
use svid_daemon::log::LogError;
use svid_daemon::peer::BindError;
use svid_plugin_api::PluginError;

use crate::ca::CaError;
use crate::config::ConfigError;
use crate::directory::Unavailable;
use crate::federation::serving::ServingError;
use crate::store::StoreError;

/// Why the server does not run, or ran no longer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The process or its directories cannot be protected.
    #[error(transparent)]
    Harden(#[from] HardenError),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The database cannot be used.
    #[error("datastore")]
    Store(#[source] StoreError),
    /// The state cannot be loaded.
    #[error("the directory cannot be loaded")]
    Directory(#[from] Unavailable),
    /// The authority cannot start.
    #[error("the CA cannot start")]
    Ca(#[from] CaError),
    /// A plugin cannot be configured.
    #[error("{kind} {name:?}")]
    Plugin {
        /// The plugin's type.
        kind: &'static str,
        /// The plugin's name.
        name: &'static str,
        /// What it said.
        source: PluginError,
    },
    /// The metrics listener's TLS cannot be set up.
    #[error(transparent)]
    ScrapeTls(#[from] svid_daemon::tls::ScrapeTlsError),
    /// The TLS configuration cannot be built.
    #[error("the TLS configuration cannot be built")]
    Tls(#[from] svid_daemon::tls::TlsError),
    /// The bundle endpoint's certificate cannot be used.
    #[error("bundle endpoint")]
    Serving(#[from] ServingError),
    /// An address cannot be listened at.
    #[error("unable to listen at {address}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The admin socket cannot be made.
    #[error("unable to create the admin socket")]
    Socket(#[from] BindError),
    /// gRPC ended by itself.
    #[error("the gRPC server ended")]
    Grpc(#[from] tonic::transport::Error),
    /// A file in the data directory cannot be used.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database does not know the trust domain that this data directory served.
    #[error(
        "{data_dir} belongs to a server of trust domain {trust_domain:?}, and the database knows nothing of that trust \
         domain: is it the right one? Restore a backup of it with `svidctl restore`; or, to begin anew with an authority \
         that no agent and no workload knows, start once with -newTrustDomain"
    )]
    LostTrustDomain {
        /// The trust domain.
        trust_domain: TrustDomain,
        /// The data directory.
        data_dir: String,
    },
    /// Another server runs under this server's id.
    #[error(
        "server id {server_id} is in use by the server that runs as {host}: {data_dir} is a copy of its data directory. \
         Stop that server to go on in its place, or remove the file \"server-id\" from {data_dir} to make this a server \
         of its own"
    )]
    IdHeld {
        /// The id.
        server_id: String,
        /// Host and data directory of the other one.
        host: String,
        /// The data directory.
        data_dir: String,
    },
    /// Another server has taken this server's id while it ran.
    #[error(
        "another server has taken server id {0} while this one could not say that it runs: of a data directory and its \
         copy only one may run"
    )]
    IdTaken(String),
    /// The system refused something.
    #[error("{what}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task that must run ended.
    #[error("{0} ended unexpectedly")]
    TaskEnded(&'static str),
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
