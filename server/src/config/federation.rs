//! The `federation` section: checked as SPIRE checks it, though nothing here serves or fetches bundles yet.

use svid_core::hcl::{Reader, Unknown, duration};
use svid_core::id::{SpiffeId, TrustDomain};

const NOT_BUILT: &str =
    "is not built yet: bundles of other trust domains are exchanged by hand (`bundle set`)";

pub(super) fn read(r: &mut Reader) {
    if r.has("bundle_endpoint") {
        r.warn("bundle_endpoint", NOT_BUILT);
    }
    r.block("bundle_endpoint", bundle_endpoint);
    if r.has("federates_with") {
        r.warn("federates_with", NOT_BUILT);
    }
    r.blocks_labelled("federates_with", federates_with);
    r.finish(Unknown::Warn);
}

fn bundle_endpoint(r: &mut Reader) {
    r.string("address");
    r.port("port");
    if let Some(hint) = r.string("refresh_hint")
        && let Err(error) = duration::parse_go(&hint)
    {
        r.error("refresh_hint", format!("could not parse refresh_hint {hint:?}: {error}"));
    }
    if r.has("acme") && r.has("profile") {
        r.error("acme", "either bundle endpoint 'acme' or 'profile' can be set, but not both");
    }
    r.block("acme", |acme| {
        for key in ["domain_name", "email"] {
            if acme.string(key).unwrap_or_default().is_empty() {
                acme.error(key, format!("federation.bundle_endpoint.acme.{key} must be configured"));
            }
        }
        acme.string("directory_url");
        acme.bool("tos_accepted");
        acme.finish(Unknown::Refuse);
    });
    r.raw("profile");
    r.finish(Unknown::Refuse);
}

fn federates_with(name: &str, r: &mut Reader) {
    if let Err(error) = TrustDomain::from_name_or_id(name) {
        r.error("", format!("invalid trust domain {name:?}: {error}"));
    }
    let url = r.string("bundle_endpoint_url").unwrap_or_default();
    let key = format!("federation.federates_with[{name:?}].bundle_endpoint_url");
    if url.is_empty() {
        r.error("bundle_endpoint_url", format!("{key} must be configured"));
    } else if !url.to_lowercase().starts_with("https://") {
        r.error("bundle_endpoint_url", format!("{key} must use the HTTPS protocol; URL found: {url:?}"));
    }
    let profiles = r.blocks_labelled("bundle_endpoint_profile", |profile, body| match profile {
        "https_web" => {}
        "https_spiffe" => {
            let id = body.string("endpoint_spiffe_id").unwrap_or_default();
            if let Err(error) = id.parse::<SpiffeId>() {
                body.error("endpoint_spiffe_id", format!("could not get endpoint SPIFFE ID: {error}"));
            }
        }
        _ => body.error(
            "",
            "no bundle endpoint profile defined; current supported profiles are \"https_spiffe\" and \"https_web\"",
        ),
    });
    if profiles.len() != 1 {
        r.error("bundle_endpoint_profile", "exactly one bundle endpoint profile is expected");
    }
    r.finish(Unknown::Warn);
}
