//! The `federation` section. Source: `spire-server.md`, section 7.

use std::time::Duration;

use svid_core::federation::{EndpointProfile, EndpointUrl, Relationship};
use svid_core::hcl::{Reader, Unknown, duration};
use svid_core::id::{SpiffeId, TrustDomain};

use crate::federation::config::{EndpointConfig, FederationConfig, ServingFiles, ServingProfile};

const DEFAULT_HINT: Duration = Duration::from_secs(300);
/// Partners do not look more often. Source: SPIRE.
const MIN_HINT: Duration = Duration::from_secs(60);
const HIGH_HINT: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_SYNC: Duration = Duration::from_secs(3600);
const NO_ACME: &str = "is not built into this server: let an ACME client (certbot, lego, acme.sh) keep the certificate in \
                       files, and name them in profile \"https_web\" { serving_cert_file { cert_file_path, key_file_path } }";

/// Reads the section. `own` is the server's trust domain, which is not federated with.
pub(super) fn read(r: &mut Reader, own: Option<&TrustDomain>) -> FederationConfig {
    let endpoint = r.block("bundle_endpoint", bundle_endpoint).flatten();
    let mut relationships: Vec<Relationship> = Vec::new();
    for (line, found) in
        r.blocks_labelled("federates_with", |name, body| (body.line(), federates_with(name, body, own)))
    {
        let Some(found) = found else { continue };
        if relationships.iter().any(|known| known.trust_domain == found.trust_domain) {
            let name = &found.trust_domain;
            r.error("federates_with", format!("trust domain \"{name}\" is configured again in line {line}"));
        }
        relationships.push(found);
    }
    r.finish(Unknown::Warn);
    FederationConfig { endpoint, relationships }
}

fn bundle_endpoint(r: &mut Reader) -> Option<EndpointConfig> {
    let address = r.string("address").filter(|address| !address.is_empty());
    let address = address.unwrap_or_else(|| "0.0.0.0".into());
    let port = r.port("port").filter(|port| *port != 0);
    if port.is_none() {
        r.error("port", "port must be configured: nobody would find the bundle endpoint at a random one");
    }
    let refresh_hint = refresh_hint(r);
    let profile = serving_profile(r);
    r.finish(Unknown::Refuse);
    let address = address.trim_matches(['[', ']']).to_owned();
    Some(EndpointConfig { address, port: port?, refresh_hint, profile: profile? })
}

fn refresh_hint(r: &mut Reader) -> Duration {
    let Some(text) = r.string("refresh_hint").filter(|text| !text.is_empty()) else { return DEFAULT_HINT };
    let hint = match duration::parse_go(&text) {
        Ok(hint) => hint,
        Err(error) => {
            r.error("refresh_hint", format!("could not parse refresh_hint {text:?}: {error}"));
            return DEFAULT_HINT;
        }
    };
    if hint >= HIGH_HINT {
        r.warn(
            "refresh_hint",
            "Bundle endpoint refresh hint set to a high value. To cover the case of unscheduled trust bundle updates, \
             it's recommended to have a smaller value, e.g. 5m",
        );
    }
    if hint < MIN_HINT {
        r.warn(
            "refresh_hint",
            "Bundle endpoint refresh hint set too low. SPIRE will not refresh more often than 1 minute",
        );
    }
    hint
}

/// `None` only together with a recorded mistake.
fn serving_profile(r: &mut Reader) -> Option<ServingProfile> {
    if r.has("acme") {
        let both = r.has("profile");
        r.block("acme", acme);
        if both {
            r.error("acme", "either bundle endpoint 'acme' or 'profile' can be set, but not both");
        }
        r.error("acme", NO_ACME);
        r.raw("profile");
        return None;
    }
    if !r.has("profile") {
        r.warn(
            "profile",
            "Bundle endpoint is configured but has no profile set, using https_spiffe as default; please configure a \
             profile explicitly. This will be fatal in a future release.",
        );
        return Some(ServingProfile::Spiffe);
    }
    let mut profiles = r.blocks_labelled("profile", |name, body| match name {
        "https_spiffe" => {
            body.finish(Unknown::Warn);
            Some(ServingProfile::Spiffe)
        }
        "https_web" => https_web(body),
        _ => {
            body.error(
                "",
                "unknown bundle endpoint profile configured; current supported profiles are \"https_spiffe\" and \
                 \"https_web\"",
            );
            None
        }
    });
    if profiles.len() != 1 {
        r.error("profile", "exactly one bundle endpoint profile is expected");
        return None;
    }
    profiles.pop().flatten()
}

fn acme(r: &mut Reader) {
    for key in ["domain_name", "email"] {
        if r.string(key).unwrap_or_default().is_empty() {
            r.error(key, format!("federation.bundle_endpoint.acme.{key} must be configured"));
        }
    }
    r.string("directory_url");
    r.bool("tos_accepted");
    r.finish(Unknown::Refuse);
}

fn https_web(r: &mut Reader) -> Option<ServingProfile> {
    if r.has("acme") {
        r.raw("acme");
        r.error("acme", NO_ACME);
        return None;
    }
    if !r.has("serving_cert_file") {
        r.error("", "malformed https_web profile configuration: 'acme' or 'serving_cert_file' is required");
        return None;
    }
    let files = r.block("serving_cert_file", serving_files).flatten();
    r.finish(Unknown::Warn);
    files.map(ServingProfile::Files)
}

fn serving_files(r: &mut Reader) -> Option<ServingFiles> {
    let mut path = |key: &str| {
        let path = r.string(key).filter(|path| !path.is_empty());
        if path.is_none() {
            r.error(key, format!("{key} must name a PEM file"));
        }
        path
    };
    let (cert, key) = (path("cert_file_path"), path("key_file_path"));
    let interval = match r.has("file_sync_interval") {
        true => r.duration("file_sync_interval").filter(|interval| !interval.is_zero()),
        false => None,
    };
    r.finish(Unknown::Warn);
    Some(ServingFiles { cert: cert?.into(), key: key?.into(), interval: interval.unwrap_or(DEFAULT_SYNC) })
}

/// `None` only together with a recorded mistake.
fn federates_with(name: &str, r: &mut Reader, own: Option<&TrustDomain>) -> Option<Relationship> {
    let trust_domain = match TrustDomain::from_name_or_id(name) {
        Ok(trust_domain) if Some(&trust_domain) == own => {
            r.error("", format!("{name:?} is the server's own trust domain: federate with others only"));
            None
        }
        Ok(trust_domain) => Some(trust_domain),
        Err(error) => {
            r.error("", format!("invalid trust domain {name:?}: {error}"));
            None
        }
    };
    let url = endpoint_url(name, r);
    let mut profiles = r.blocks_labelled("bundle_endpoint_profile", endpoint_profile);
    if profiles.len() != 1 {
        r.error("bundle_endpoint_profile", "exactly one bundle endpoint profile is expected");
        profiles.clear();
    }
    r.finish(Unknown::Warn);
    Some(Relationship { trust_domain: trust_domain?, url: url?, profile: profiles.pop().flatten()? })
}

fn endpoint_url(name: &str, r: &mut Reader) -> Option<EndpointUrl> {
    let text = r.string("bundle_endpoint_url").unwrap_or_default();
    let key = format!("federation.federates_with[{name:?}].bundle_endpoint_url");
    if text.is_empty() {
        r.error("bundle_endpoint_url", format!("{key} must be configured"));
        return None;
    }
    if !text.to_lowercase().starts_with("https://") {
        r.error("bundle_endpoint_url", format!("{key} must use the HTTPS protocol; URL found: {text:?}"));
        return None;
    }
    let url = text.parse();
    url.map_err(|error| r.error("bundle_endpoint_url", format!("{key}: {error}; URL found: {text:?}"))).ok()
}

fn endpoint_profile(name: &str, r: &mut Reader) -> Option<EndpointProfile> {
    match name {
        "https_web" => {
            r.finish(Unknown::Warn);
            Some(EndpointProfile::Web)
        }
        "https_spiffe" => {
            let id = r.string("endpoint_spiffe_id").unwrap_or_default();
            r.finish(Unknown::Warn);
            let parsed = id.parse::<SpiffeId>().map(EndpointProfile::Spiffe);
            let bad =
                |error| r.error("endpoint_spiffe_id", format!("could not get endpoint SPIFFE ID: {error}"));
            parsed.map_err(bad).ok()
        }
        _ => {
            r.error(
                "",
                "no bundle endpoint profile defined; current supported profiles are \"https_spiffe\" and \"https_web\"",
            );
            None
        }
    }
}
