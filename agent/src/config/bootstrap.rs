//! Where the first trust bundle comes from, and when it is asked for again.

use std::time::Duration;

use svid_core::hcl::{Reader, duration};

use super::Overlay;
use super::agent::text;
use super::types::{Bootstrap, BundleFormat, Rebootstrap, RebootstrapMode};

const DEFAULT_DELAY: Duration = Duration::from_secs(600);

struct Sources {
    insecure: bool,
    path: Option<String>,
    url: Option<String>,
    socket: Option<String>,
    workload_api: Option<String>,
}

/// Reads the `trust_bundle_*` keys. `None` only together with a reported mistake.
pub(super) fn read(block: &mut Reader, overlay: &Overlay) -> Option<Bootstrap> {
    let sources = Sources {
        insecure: overlay.insecure_bootstrap | block.bool("insecure_bootstrap").unwrap_or_default(),
        path: text(block, "trust_bundle_path", overlay.trust_bundle_path.as_ref()),
        url: text(block, "trust_bundle_url", overlay.trust_bundle_url.as_ref()),
        socket: text(block, "trust_bundle_unix_socket", None),
        workload_api: text(block, "trust_bundle_spiffe_workload_api", None),
    };
    let format = format(block, overlay);
    let verdict = exclusive(&sources)
        .and_then(|()| sources.url.as_deref().map_or(Ok(()), |url| check_url(url, sources.socket.is_some())));
    if let Err((key, message)) = verdict {
        block.error(key, message);
        return None;
    }
    let format = format?;
    match sources {
        Sources { path: Some(path), .. } => Some(Bootstrap::File { path: path.into(), format }),
        Sources { url: Some(url), socket, .. } => {
            Some(Bootstrap::Url { url, unix_socket: socket.map(Into::into), format })
        }
        Sources { workload_api: Some(_), .. } => {
            block.error("trust_bundle_spiffe_workload_api", "bootstrapping from a Workload API is not built");
            None
        }
        _ => Some(Bootstrap::Insecure),
    }
}

fn format(block: &mut Reader, overlay: &Overlay) -> Option<BundleFormat> {
    let name = text(block, "trust_bundle_format", overlay.trust_bundle_format.as_ref());
    match name.as_deref() {
        None | Some("pem") => Some(BundleFormat::Pem),
        Some("spiffe") => Some(BundleFormat::Spiffe),
        Some(_) => {
            block.error(
                "trust_bundle_format",
                "invalid value for trust_bundle_format, expected \"pem\" or \"spiffe\"",
            );
            None
        }
    }
}

/// Which sources exclude each other, in SPIRE's order and words.
fn exclusive(sources: &Sources) -> Result<(), (&'static str, &'static str)> {
    let (url, path) = (sources.url.is_some(), sources.path.is_some());
    if sources.workload_api.is_some() {
        const KEY: &str = "trust_bundle_spiffe_workload_api";
        if sources.insecure {
            return Err((
                KEY,
                "only one of insecure_bootstrap or trust_bundle_spiffe_workload_api can be specified, not both",
            ));
        }
        if url {
            return Err((
                KEY,
                "only one of trust_bundle_url or trust_bundle_spiffe_workload_api can be specified, not both",
            ));
        }
        if path {
            return Err((
                KEY,
                "only one of trust_bundle_path or trust_bundle_spiffe_workload_api can be specified, not both",
            ));
        }
        if sources.socket.is_some() {
            return Err((
                KEY,
                "trust_bundle_unix_socket can not be used with trust_bundle_spiffe_workload_api",
            ));
        }
    }
    match (sources.insecure, url, path) {
        (true, true, true) => Err((
            "insecure_bootstrap",
            "only one of insecure_bootstrap, trust_bundle_url, or trust_bundle_path can be specified, not the three options",
        )),
        (true, true, false) => Err((
            "insecure_bootstrap",
            "only one of insecure_bootstrap or trust_bundle_url can be specified, not both",
        )),
        (true, false, true) => Err((
            "insecure_bootstrap",
            "only one of insecure_bootstrap or trust_bundle_path can be specified, not both",
        )),
        (false, true, true) => Err((
            "trust_bundle_url",
            "only one of trust_bundle_url or trust_bundle_path can be specified, not both",
        )),
        (false, false, false) if sources.workload_api.is_none() => Err((
            "trust_bundle_path",
            "trust_bundle_path, trust_bundle_url, or trust_bundle_spiffe_workload_api must be configured unless insecure_bootstrap is set",
        )),
        (_, false, _) if sources.socket.is_some() => Err((
            "trust_bundle_unix_socket",
            "if trust_bundle_unix_socket is specified, so must be trust_bundle_url",
        )),
        _ => Ok(()),
    }
}

fn check_url(url: &str, over_socket: bool) -> Result<(), (&'static str, &'static str)> {
    const KEY: &str = "trust_bundle_url";
    let Ok(uri) = url.parse::<http::Uri>() else { return Err((KEY, "unable to parse trust bundle URL")) };
    if !over_socket {
        return match uri.scheme_str() {
            Some("https") => Ok(()),
            _ => Err((KEY, "trust bundle URL must start with https://")),
        };
    }
    if uri.scheme_str() != Some("http") {
        return Err((
            KEY,
            "trust bundle URL must start with http:// when used with trust bundle unix socket",
        ));
    }
    let names =
        || uri.query().unwrap_or_default().split('&').map(|pair| pair.split('=').next().unwrap_or(pair));
    if names().any(|name| name.starts_with("spiffe-")) {
        return Err((KEY, "trust_bundle_url query params can not start with spiffe-"));
    }
    if names().any(|name| name.starts_with("spire-")) {
        return Err((KEY, "trust_bundle_url query params can not start with spire-"));
    }
    Ok(())
}

/// Reads `rebootstrap_mode` and `rebootstrap_delay`.
pub(super) fn read_rebootstrap(block: &mut Reader, overlay: &Overlay) -> Rebootstrap {
    let mode = text(block, "rebootstrap_mode", overlay.rebootstrap_mode.as_ref());
    let mode = match mode.as_deref() {
        None | Some("never") => RebootstrapMode::Never,
        Some("auto") => RebootstrapMode::Auto,
        Some("always") => RebootstrapMode::Always,
        Some(other) => {
            block.error("rebootstrap_mode", format!("unknown rebootstrap mode specified: {other}"));
            RebootstrapMode::Never
        }
    };
    let insecure = overlay.insecure_bootstrap | block.bool("insecure_bootstrap").unwrap_or_default();
    if mode != RebootstrapMode::Never && insecure {
        block.error("rebootstrap_mode", "insecure_bootstrap option can not be used with rebootstrapping");
    }
    let delay = text(block, "rebootstrap_delay", overlay.rebootstrap_delay.as_ref());
    let delay = delay.map_or(Ok(DEFAULT_DELAY), |text| duration::parse_go(&text)).unwrap_or_else(|error| {
        block.error("rebootstrap_delay", format!("error parsing rebootstrap delay duration: {error}"));
        DEFAULT_DELAY
    });
    Rebootstrap { mode, delay }
}
