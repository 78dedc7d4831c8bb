//! Who is calling, as the connection tells.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use svid_core::clock::unix_seconds;
use svid_core::entry::Entry;
use svid_core::id::SpiffeId;
use svid_daemon::net::TcpPeer;
use svid_daemon::peer::CallerProcess;
use tonic::Status;

use super::audit::Audit;
use super::table::Method;

/// The other end of a connection.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A process on the admin socket.
    Local(LocalPeer),
    /// A TLS connection.
    Tls {
        /// Where it comes from.
        address: SocketAddr,
        /// Who it is; nobody when it showed no certificate.
        identity: Option<PeerCert>,
    },
}

/// A process on the admin socket, as the kernel describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalPeer {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Executable; `None` when it cannot be told or nobody wants to know.
    pub path: Option<Arc<str>>,
    /// The kernel tied the process handle to the connection.
    pub socket_pidfd: bool,
}

/// What matters of a verified client certificate.
#[derive(Clone, Debug)]
pub struct PeerCert {
    /// The one URI SAN.
    pub id: SpiffeId,
    /// Decimal, as node rows hold it.
    pub serial: Arc<str>,
    /// Unix seconds: issued then or a moment later.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// The connection it was shown on, with the whole chain; `None` only where there is none to check.
    pub connection: Option<Arc<TcpPeer>>,
}

/// The peer of a TLS connection, from what the accept loop left with each request.
/// # Errors
/// `Internal` when the request came another way, which is a mistake of ours.
pub fn tls_peer(extensions: &http::Extensions) -> Result<Peer, Status> {
    let peer =
        extensions.get::<Arc<TcpPeer>>().ok_or_else(|| Status::internal("no peer information available"))?;
    let identity = peer.peer.as_ref().map(|leaf| PeerCert {
        id: leaf.id.clone(),
        serial: leaf.serial.as_str().into(),
        not_before: unix_seconds(leaf.not_before),
        not_after: unix_seconds(leaf.not_after),
        connection: Some(peer.clone()),
    });
    Ok(Peer::Tls { address: peer.remote_addr, identity })
}

/// The peer of a connection to the admin socket.
/// # Errors
/// As [`tls_peer`].
pub fn local_peer(extensions: &http::Extensions) -> Result<Peer, Status> {
    let caller = local_caller(extensions)?;
    Ok(Peer::Local(LocalPeer {
        uid: caller.uid(),
        gid: caller.gid(),
        path: None,
        socket_pidfd: caller.has_socket_pidfd(),
    }))
}

/// As [`local_peer`], with the executable's path for the audit log. The caller has to be alive, as in SPIRE.
/// # Errors
/// As [`tls_peer`], and `Internal` when the caller is gone.
pub fn audited_local_peer(extensions: &http::Extensions) -> Result<Peer, Status> {
    let caller = local_caller(extensions)?;
    caller.check().map_err(|error| Status::internal(format!("peertracker fails: {error}")))?;
    let path = caller.exe().ok().map(|exe| exe.path.to_string_lossy().into());
    Ok(Peer::Local(LocalPeer {
        uid: caller.uid(),
        gid: caller.gid(),
        path,
        socket_pidfd: caller.has_socket_pidfd(),
    }))
}

fn local_caller(extensions: &http::Extensions) -> Result<&Arc<CallerProcess>, Status> {
    extensions.get::<Arc<CallerProcess>>().ok_or_else(|| Status::internal("no peer information available"))
}

impl Peer {
    /// The address that limits count by.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Local(_) => None,
            Self::Tls { address, .. } => Some(address.ip()),
        }
    }

    /// Where a TLS connection comes from.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Local(_) => None,
            Self::Tls { address, .. } => Some(*address),
        }
    }

    /// The certificate's identity.
    pub fn identity(&self) -> Option<&PeerCert> {
        match self {
            Self::Local(_) => None,
            Self::Tls { identity, .. } => identity.as_ref(),
        }
    }
}

/// As what a caller was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The RPC is open to all.
    Nobody,
    /// A process on the admin socket.
    Local,
    /// In `admin_ids`, or holder of an admin entry.
    Admin,
    /// An attested agent.
    Agent,
    /// Holder of a downstream entry.
    Downstream,
}

impl Role {
    /// SPIRE's word for `authorized_as`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Local => "local",
            Self::Admin => "admin",
            Self::Agent => "agent",
            Self::Downstream => "downstream",
        }
    }
}

/// One call that was let in. Handlers find it in their request's extensions.
#[derive(Debug)]
pub struct Call {
    /// The RPC.
    pub method: &'static Method,
    /// The other end.
    pub peer: Peer,
    /// As what the caller was let in.
    pub role: Role,
    /// SPIRE's word for `authorized_via`.
    pub via: &'static str,
    /// The caller's downstream entries, if it was let in for them.
    pub downstream: Vec<Entry>,
    /// What the audit line will say.
    pub audit: Audit,
}
