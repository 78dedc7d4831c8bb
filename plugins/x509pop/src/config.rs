//! The server half's configuration.

use std::path::PathBuf;

use svid_core::hcl::Reader;
use svid_core::pem::parse_certs_pem;

use crate::template::Template;

/// Whose certificates are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Certificates of CAs in files.
    ExternalPki,
    /// X509-SVIDs of the own trust domain.
    Spiffe,
}

/// The plugin's configuration, checked.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Whose certificates are taken.
    pub mode: Mode,
    /// Roots in DER; empty in SPIFFE mode.
    pub(crate) roots: Vec<Vec<u8>>,
    pub(crate) template: Template,
    /// What an SVID's path begins with in SPIFFE mode; ends in a slash.
    pub(crate) spiffe_prefix: String,
    pub(crate) max_intermediates: usize,
    pub(crate) max_rsa_bits: usize,
    pub(crate) verify_client_ip: bool,
}

const DEFAULT_TEMPLATE: &str = "/{{ .PluginName }}/{{ .Fingerprint }}";
const DEFAULT_SPIFFE_TEMPLATE: &str = "/{{ .PluginName }}/{{ .SVIDPathTrimmed }}";

impl ServerConfig {
    /// Reads the plugin's section. `None` only together with a recorded mistake.
    pub fn read(r: &mut Reader) -> Option<Self> {
        let mode = match r.string("mode").unwrap_or_default().as_str() {
            "" | "external_pki" => Mode::ExternalPki,
            "spiffe" => Mode::Spiffe,
            _ => {
                r.error("mode", "mode can only be either spiffe or external_pki");
                return None;
            }
        };
        let roots = roots(r, mode);
        let template = template(r, mode);
        let prefix = r.string("spiffe_prefix").unwrap_or_else(|| "/spire-exchange/".into());
        let config = Self {
            mode,
            roots: roots?,
            template: template?,
            spiffe_prefix: if prefix.ends_with('/') { prefix } else { format!("{prefix}/") },
            max_intermediates: above_zero(r, "max_intermediates", 4)?,
            max_rsa_bits: above_zero(r, "max_rsa_key_size", 8192)?.min(8192),
            verify_client_ip: r.bool("verify_client_ip").unwrap_or_default(),
        };
        Some(config)
    }
}

fn above_zero(r: &mut Reader, key: &str, default: usize) -> Option<usize> {
    let Some(value) = r.int(key) else { return Some(default) };
    let value = usize::try_from(value).ok().filter(|value| *value > 0);
    if value.is_none() {
        r.error(key, format!("{key} must be greater than 0"));
    }
    value
}

fn template(r: &mut Reader, mode: Mode) -> Option<Template> {
    let given = r.string("agent_path_template").filter(|text| !text.is_empty());
    let text = given.as_deref().unwrap_or(match mode {
        Mode::ExternalPki => DEFAULT_TEMPLATE,
        Mode::Spiffe => DEFAULT_SPIFFE_TEMPLATE,
    });
    match Template::parse(text) {
        Ok(template) => Some(template),
        Err(error) => {
            r.error("agent_path_template", format!("failed to parse agent svid template: {text:?}: {error}"));
            None
        }
    }
}

fn roots(r: &mut Reader, mode: Mode) -> Option<Vec<Vec<u8>>> {
    let one = r.string("ca_bundle_path").filter(|path| !path.is_empty());
    let many = r.strings("ca_bundle_paths").unwrap_or_default();
    if mode == Mode::Spiffe {
        if one.is_some() || !many.is_empty() {
            r.error("mode", "you can not use ca_bundle_path or ca_bundle_paths in spiffe mode");
            return None;
        }
        return Some(Vec::new());
    }
    if one.is_some() && !many.is_empty() {
        r.error(
            "ca_bundle_path",
            "only one of ca_bundle_path or ca_bundle_paths can be configured, not both",
        );
        return None;
    }
    let paths: Vec<PathBuf> = one.into_iter().chain(many).map(PathBuf::from).collect();
    if paths.is_empty() {
        r.error("ca_bundle_path", "one of ca_bundle_path or ca_bundle_paths must be configured");
        return None;
    }
    let mut roots = Vec::new();
    for path in paths {
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        match read.and_then(|text| parse_certs_pem(text).map_err(|error| error.to_string())) {
            Ok(certs) => roots.extend(certs),
            Err(error) => {
                r.error(
                    "ca_bundle_path",
                    format!("unable to load trust bundle {:?}: {error}", path.display()),
                );
                return None;
            }
        }
    }
    Some(roots)
}
