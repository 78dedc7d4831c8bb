//! The way to the server's admin socket.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use svid_daemon::cli::CliError;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::config::DEFAULT_SOCKET_PATH;

/// Largest answer that a command accepts: listings outgrow gRPC's 4 MiB.
pub const MAX_ANSWER_BYTES: usize = 256 * 1024 * 1024;

const TEMPLATE_ENV: &str = "SPIRE_SERVER_PRIVATE_SOCKET_TEMPLATE";
const SOCKET_ENV: &str = "SPIRE_SERVER_PRIVATE_SOCKET";

/// The socket's path: the flag when it is not the default, then the instance, then the environment.
///
/// # Errors
/// An instance without a template that has a place for it.
pub fn socket_path(
    flag: &str,
    instance: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<PathBuf, CliError> {
    let template = env(TEMPLATE_ENV).unwrap_or_default();
    if !instance.is_empty() && template.is_empty() {
        return Err(CliError::new(format!("you must define {TEMPLATE_ENV} to use the instance flag")));
    }
    if !instance.is_empty() && !template.contains("%i") {
        return Err(CliError::new(format!("failed to find %i in {TEMPLATE_ENV}")));
    }
    if flag != DEFAULT_SOCKET_PATH {
        return Ok(flag.into());
    }
    if !instance.is_empty() {
        return Ok(template.replace("%i", instance).into());
    }
    Ok(env(SOCKET_ENV).filter(|path| !path.is_empty()).unwrap_or_else(|| flag.into()).into())
}

/// Connects to the server that listens at `path`.
///
/// # Errors
/// SPIRE's text for it, and a line that says what to do.
pub async fn connect(path: &Path) -> Result<Channel, CliError> {
    let stream = UnixStream::connect(path).await.map_err(|error| refused(path, &error))?;
    // The connector is called once: a command that loses its connection ends.
    let mut stream = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.map_err(|error| {
        CliError::new(format!("connection error: {error}; is {} the socket of a server?", path.display()))
    })
}

fn refused(path: &Path, error: &io::Error) -> CliError {
    CliError::new(format!(
        "rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix \
         {}: connect: {}\"\n{}",
        path.display(),
        system_words(error),
        advice(path, error)
    ))
}

fn advice(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!(
            "Nothing is there. Is the server running? Name its socket (socket_path in its configuration) with \
             -socketPath or {SOCKET_ENV}."
        ),
        io::ErrorKind::ConnectionRefused => {
            "The socket is there, but nobody listens: the server has stopped, or is not ready yet.".into()
        }
        io::ErrorKind::PermissionDenied => match std::fs::metadata(path) {
            Ok(facts) => {
                format!(
                    "The socket belongs to uid {} and gid {}: run this as that user.",
                    facts.uid(),
                    facts.gid()
                )
            }
            Err(_) => "The socket's directory is closed to this user: run this as the server's user.".into(),
        },
        _ => "Check the path given with -socketPath.".into(),
    }
}

/// The system's words for an error, in lower case and without the number, as Go prints them.
pub fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}
