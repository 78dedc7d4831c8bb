//! TCP with mTLS under tonic: our own accept loop, the limits of a connection, and channels for clients.
//!
//! Message sizes are limited per service by tonic (`max_decoding_message_size`, 4 MiB by default); see
//! [`MAX_MESSAGE`].

mod accept;
mod client;
mod gather;
mod preface;

use std::time::Duration;

pub use accept::{TcpOptions, TcpPeer, TlsConn, incoming};
pub use client::{tls_channel, unix_channel};

/// Largest request message in bytes, the default of gRPC: 4 MiB.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

const HEADER_LIST: u32 = 16 * 1024;
const STREAMS_TCP: u32 = 100;
const STREAMS_UNIX: u32 = 1000;
/// Longer than this no connection is used for new requests, as in SPIRE, so that load spreads.
const MAX_AGE: Duration = Duration::from_secs(3 * 60);
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Streams that a peer reset before we took them, and that we reset because of the peer. Beyond that the
/// connection is an attack (CVE-2023-44487, CVE-2025-8671) and is closed.
const PENDING_RESETS: usize = 20;
const LOCAL_RESETS: usize = 256;
/// Bytes in flight per stream and per connection.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

fn limited(streams: u32) -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .max_concurrent_streams(streams)
        .http2_max_header_list_size(HEADER_LIST)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(LOCAL_RESETS))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// A tonic server with the limits of the TCP port. After three minutes a connection is told to go (GOAWAY);
/// its streams run on.
pub fn tcp_server() -> tonic::transport::Server {
    limited(STREAMS_TCP).max_connection_age(MAX_AGE)
}

/// A tonic server with the limits of a Unix socket.
pub fn unix_server() -> tonic::transport::Server {
    limited(STREAMS_UNIX)
}

#[cfg(test)]
mod tests;
