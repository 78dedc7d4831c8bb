//! The upstream authority's configuration.

use std::path::PathBuf;

use svid_core::hcl::Reader;
use svid_core::pem::parse_certs_pem;
use svid_core::x509::ParsedCert;

use crate::config::{Connection, Env, mount};
use crate::error::VaultError;
use crate::files;

/// Where the PKI engine is, and what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    pub(crate) connection: Connection,
    pub(crate) pki_mount_point: String,
    /// Which of the mount's issuers signs; the default one when absent.
    pub(crate) issuer_ref: Option<String>,
    /// Roots that the mount does not know itself.
    pub(crate) root_bundle_path: Option<PathBuf>,
    pub(crate) max_path_length: Option<u8>,
}

impl UpstreamConfig {
    /// Reads the plugin's section. `None` only together with a recorded mistake.
    pub fn read(r: &mut Reader, env: Env<'_>) -> Option<Self> {
        let connection = Connection::read(r, env);
        let pki_mount_point = mount(r, "pki_mount_point", "pki");
        let root_bundle_path =
            r.string("root_bundle_path").filter(|path| !path.is_empty()).map(PathBuf::from);
        let (issuer_ref, max_path_length) = (issuer_ref(r), max_path_length(r));
        let config = Self {
            connection: connection?,
            pki_mount_point: pki_mount_point?,
            issuer_ref: issuer_ref.ok()?,
            root_bundle_path,
            max_path_length: max_path_length.ok()?,
        };
        if let Err(error) = config.read_root_bundle() {
            r.error("root_bundle_path", format!("expected a PEM file with CA certificates; {error}"));
        }
        Some(config)
    }

    /// The configured roots, read anew; none if none are configured.
    pub(crate) fn read_root_bundle(&self) -> Result<Vec<Vec<u8>>, VaultError> {
        let Some(path) = &self.root_bundle_path else { return Ok(Vec::new()) };
        let words =
            |rule: &dyn std::fmt::Display| VaultError::File(format!("root_bundle_path {path:?}: {rule}"));
        let certs =
            parse_certs_pem(&*files::read("root_bundle_path", path)?).map_err(|error| words(&error))?;
        let is_ca = |der: &Vec<u8>| ParsedCert::from_der(der).is_ok_and(|cert| cert.is_ca());
        if certs.iter().all(is_ca) { Ok(certs) } else { Err(words(&"holds a certificate that is no CA")) }
    }
}

/// `Err` together with a recorded mistake.
fn issuer_ref(r: &mut Reader) -> Result<Option<String>, ()> {
    let Some(text) = r.string("issuer_ref").filter(|text| !text.is_empty()) else { return Ok(None) };
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.bytes().all(is_name_byte) || matches!(text.as_str(), "." | "..") {
        r.error("issuer_ref", format!("expected the name or id of an issuer of the mount, found {text:?}"));
        return Err(());
    }
    Ok(Some(text))
}

/// `Err` together with a recorded mistake.
fn max_path_length(r: &mut Reader) -> Result<Option<u8>, ()> {
    let Some(value) = r.int("max_path_length") else { return Ok(None) };
    let length = u8::try_from(value);
    if length.is_err() {
        r.error("max_path_length", format!("expected a number of CAs from 0 to 255, found {value}"));
    }
    length.map(Some).map_err(drop)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_core::hcl::{self, Unknown, decode};

    use super::*;

    fn read(more: &str) -> (Option<UpstreamConfig>, String) {
        let text = format!("vault_addr = \"http://127.0.0.1:8200\"\ntoken_auth {{ token = \"t\" }}\n{more}");
        let body = hcl::parse(&text).unwrap();
        let (config, report) = decode(&body, |r| {
            let config = UpstreamConfig::read(r, &|_| None);
            r.finish(Unknown::Refuse);
            config
        });
        (config, report.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn defaults_and_own_keys() {
        let config = read("").0.unwrap();
        assert_eq!(
            (config.pki_mount_point.as_str(), config.issuer_ref, config.max_path_length),
            ("pki", None, None)
        );
        let config =
            read("pki_mount_point = \"/team/pki/\" issuer_ref = \"new-root\" max_path_length = 1").0.unwrap();
        assert_eq!((config.pki_mount_point.as_str(), config.max_path_length), ("team/pki", Some(1)));
        assert_eq!(config.issuer_ref.as_deref(), Some("new-root"));
    }

    #[test]
    fn mistakes_name_key_found_and_expected() {
        for (more, key, found) in [
            ("pki_mount_point = \"a//b\"", "pki_mount_point", "a//b"),
            ("issuer_ref = \"a/b\"", "issuer_ref", "a/b"),
            ("max_path_length = -1", "max_path_length", "-1"),
            ("root_bundle_path = \"/nowhere\"", "root_bundle_path", "/nowhere"),
        ] {
            let said = read(more).1;
            assert!(said.contains(key) && said.contains(found) && said.contains("expected"), "{said}");
        }
    }
}
