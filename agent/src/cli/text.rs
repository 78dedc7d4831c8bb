//! Texts as Go prints them.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use svid_daemon::metrics::code_name;
use tonic::Status;

/// `2006-01-02 15:04:05 +0000 UTC`.
pub(crate) fn time(at: SystemTime) -> String {
    stamp(at, "%Y-%m-%d %H:%M:%S +0000 UTC")
}

/// RFC 3339 in UTC, whole seconds.
pub(crate) fn rfc3339(unix_seconds: i64) -> String {
    jiff::Timestamp::from_second(unix_seconds)
        .map(|at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
        .unwrap_or_else(|_| unix_seconds.to_string())
}

fn stamp(at: SystemTime, format: &str) -> String {
    let Ok(at) = jiff::Timestamp::try_from(at) else { return "(out of range)".into() };
    let mut text = String::new();
    // Writing to a String cannot fail, and the formats are fixed.
    let _ = write!(text, "{}", at.strftime(format));
    text
}

/// An RPC's error as gRPC for Go prints it; scripts look for these words.
pub(crate) fn rpc_error(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code_name(status.code()), status.message())
}

/// The system's error as Go words it: lower case, without the number.
pub(crate) fn go_io(err: &io::Error) -> String {
    let text = err.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

/// A failed connection in the form of [`rpc_error`].
pub(crate) fn dial_error(socket: &Path, err: &io::Error) -> String {
    let text = go_io(err);
    format!(
        "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix {}: connect: {text}\"",
        socket.display()
    )
}
