//! The flags of `envoy bootstrap`, as text: the checks are in `plan`, so that each mistake gets a line of its own.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// Configurations for Envoy.
#[derive(Debug, Subcommand)]
pub enum EnvoyCommand {
    /// Writes a complete configuration: mTLS in, mTLS out, certificates from the agent's socket
    Bootstrap(Box<BootstrapArgs>),
}

const DETAILS: &str = "\
Inbound: each port takes mTLS only from callers that --allow names; a request of anybody else is answered 403 and stands
in the access log with the SPIFFE ID that was shown. Without --allow nobody could call, so it must be said who may; whoever
really means every workload of a trust domain says --allow-any-in-trust-domain.
  strict      mTLS only; a plaintext connection is closed
  permissive  mTLS and plaintext on one port, for a migration. A plaintext caller has no identity: --allow cannot hold for
              it, and anybody who reaches the port is served. The access log calls it \"unauthenticated (plaintext)\"
  disable     plaintext only, no identities at all
Outbound: the service speaks plaintext to a local port of Envoy, and Envoy speaks mTLS to the upstream, which must be
exactly the given SPIFFE ID, under the bundle of that ID's trust domain. There is no way back to plaintext. Whoever can
connect to the local port speaks as the service, so it is on loopback.
With --protocol tcp, permissive works only where the client speaks first.
The configuration is JSON, which Envoy reads as it is: envoy -c FILE --disable-hot-restart";

/// What Envoy is to do.
#[derive(Debug, Default, Args)]
#[command(after_long_help = DETAILS)]
pub struct BootstrapArgs {
    /// Name of the service, or the SPIFFE ID that Envoy shows. With a bare name Envoy shows the only (first) SVID that
    /// its entries give it
    #[arg(long, value_name = "NAME|ID")]
    pub service: Option<String>,
    /// With a bare --service NAME: show spiffe://TRUST-DOMAIN/NAME
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// Where callers connect: a port, or an address and a port [address: 0.0.0.0]
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub listen: Option<String>,
    /// Where the service itself listens, in plaintext
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Option<String>,
    /// strict, permissive or disable
    #[arg(long, value_name = "MODE", default_value = "strict")]
    pub mode: String,
    /// One more port with a mode of its own, to the same service unless it says another; repeatable
    #[arg(long, value_name = "[ADDRESS:]PORT=MODE[,to=HOST:PORT]")]
    pub port: Vec<String>,
    /// SPIFFE ID of a caller; repeatable
    #[arg(long, value_name = "ID")]
    pub allow: Vec<String>,
    /// Lets every workload of this trust domain call; repeatable
    #[arg(long, value_name = "NAME")]
    pub allow_any_in_trust_domain: Vec<String>,
    /// A service to call, and who it must be; repeatable [listen: 127.0.0.1:15001, 15002, ...; protocol: http]
    #[arg(long, value_name = "NAME=HOST:PORT,ID[,listen=ADDRESS:PORT][,protocol=tcp]")]
    pub upstream: Vec<String>,
    /// What the service speaks: http (HTTP/1.1; callers may use HTTP/2), http2 (also gRPC) or tcp
    #[arg(long, value_name = "PROTOCOL", default_value = "http")]
    pub protocol: String,
    /// Seconds after which a connection to an upstream is replaced, so that a rotation reaches it (HTTP only); callers'
    /// connections get twice as long
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    pub max_connection_age: String,
    /// Envoy's admin interface, a Unix socket for its own user alone [default: /run/svid-envoy/NAME/admin.sock]
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Write here instead of to standard output
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
}
