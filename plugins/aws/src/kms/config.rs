//! The plugin's section.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use svid_core::hcl::{Kind, Reader};
use svid_plugin_api::PluginError;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::tags;
use crate::session::AccessKey;

const MAX_IDENTIFIER_CHARS: usize = 256;

/// Who this server is among those whose keys lie in the same account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyIdentifier {
    /// A file that holds a UUID; it is made when it is missing.
    File(PathBuf),
    /// The identifier itself.
    Value(String),
}

/// The plugin's configuration, checked. Field names are SPIRE's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsConfig {
    /// `region`.
    pub region: String,
    /// `access_key_id` and `secret_access_key`; the SDK's chain finds credentials without them.
    pub access_key: Option<AccessKey>,
    /// `key_identifier_file` or `key_identifier_value`.
    pub identifier: KeyIdentifier,
    /// `key_policy_file`.
    pub key_policy_file: Option<PathBuf>,
    /// `key_tags`.
    pub key_tags: BTreeMap<String, String>,
    /// `enable_tag_based_key_discovery`.
    pub by_tags: bool,
}

impl KmsConfig {
    /// Reads the plugin's section. `None` only together with a recorded mistake.
    pub fn read(r: &mut Reader) -> Option<Self> {
        let given = |r: &mut Reader, key: &str| r.string(key).filter(|text| !text.is_empty());
        let region = given(r, "region");
        if region.is_none() {
            r.error("region", "configuration is missing a region");
        }
        let access_key = access_key(r);
        let identifier = identifier(r);
        let key_policy_file = given(r, "key_policy_file").map(PathBuf::from);
        let key_tags = key_tags(r);
        let by_tags = r.bool("enable_tag_based_key_discovery").unwrap_or_default();
        if !by_tags {
            r.warn(
                "enable_tag_based_key_discovery",
                "keys are found by their aliases; SPIRE will give that up in favour of tags",
            );
        }
        let (region, identifier, key_tags) = (region?, identifier?, key_tags?);
        Some(Self { region, access_key, identifier, key_policy_file, key_tags, by_tags })
    }
}

/// Both halves or nothing. SPIRE takes no notice of half a key; here a warning says so.
fn access_key(r: &mut Reader) -> Option<AccessKey> {
    let id = r.string("access_key_id").filter(|id| !id.is_empty());
    let secret = r.string("secret_access_key").map(Zeroizing::new).filter(|secret| !secret.is_empty());
    match (id, secret) {
        (Some(id), Some(secret)) => Some(AccessKey { id, secret }),
        (None, None) => None,
        (id, _) => {
            let (here, missing) = match id {
                Some(_) => ("access_key_id", "secret_access_key"),
                None => ("secret_access_key", "access_key_id"),
            };
            r.warn(here, format!("{here} does nothing without {missing}"));
            None
        }
    }
}

fn identifier(r: &mut Reader) -> Option<KeyIdentifier> {
    let file = r.string("key_identifier_file").filter(|path| !path.is_empty());
    let value = r.string("key_identifier_value").filter(|value| !value.is_empty());
    match (file, value) {
        (Some(file), None) => Some(KeyIdentifier::File(file.into())),
        (None, Some(value)) => {
            let mistakes = value_mistakes(&value);
            for mistake in &mistakes {
                r.error("key_identifier_value", format!("{mistake}; found {value:?}"));
            }
            mistakes.is_empty().then_some(KeyIdentifier::Value(value))
        }
        (None, None) => {
            let text = "configuration requires a key identifier file or a key identifier value";
            r.error("key_identifier_file", text);
            None
        }
        (Some(_), Some(_)) => {
            let text =
                "configuration can't have a key identifier file and a key identifier value at the same time";
            r.error("key_identifier_value", text);
            None
        }
    }
}

fn value_mistakes(value: &str) -> Vec<&'static str> {
    let mut mistakes = Vec::new();
    // What stands between Z and a in ASCII passes SPIRE, but not AWS.
    if !value.chars().all(|c| c.is_ascii_alphanumeric() || "/_-".contains(c)) {
        mistakes.push(
            "Key identifier must contain only alphanumeric characters, forward slashes (/), underscores (_), and dashes \
             (-)",
        );
    }
    if value.starts_with("alias/aws/") {
        mistakes.push("Key identifier must not start with alias/aws/");
    }
    if value.len() > MAX_IDENTIFIER_CHARS {
        mistakes.push("Key identifier must not be longer than 256 characters");
    }
    mistakes
}

fn key_tags(r: &mut Reader) -> Option<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for item in r.raw("key_tags").unwrap_or_default().items {
        let value = match item.value.kind {
            Kind::String(text) => text,
            Kind::Int(number) => number.to_string(),
            other => {
                r.error(
                    "key_tags",
                    format!("the value of {:?} must be a string, found {}", item.key, other.name()),
                );
                return None;
            }
        };
        found.insert(item.key, value);
    }
    if let Err(rule) = tags::check(&found) {
        r.error("key_tags", format!("invalid configuration for key tags: {rule}"));
        return None;
    }
    Some(found)
}

impl KeyIdentifier {
    /// True if this server has no identifier yet, and so no keys.
    pub fn is_new(&self) -> bool {
        matches!(self, Self::File(path) if !path.exists())
    }

    /// The identifier, which a missing file gets now.
    /// # Errors
    /// The file cannot be read or written, or does not hold a UUID.
    pub(super) fn load(&self) -> Result<String, PluginError> {
        let path = match self {
            Self::Value(value) => return Ok(value.clone()),
            Self::File(path) => path,
        };
        match fs::read_to_string(path) {
            Ok(text) => {
                let id = Uuid::parse_str(text.trim()).map_err(|error| {
                    let path = path.display();
                    PluginError::internal(format!(
                        "failed to parse server id from path: {path} has to hold a UUID: {error}"
                    ))
                })?;
                Ok(id.to_string())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = Uuid::new_v4().to_string();
                let failed = |error: io::Error| {
                    let path = path.display();
                    PluginError::internal(format!("failed to persist server id on path: {path}: {error}"))
                };
                write(path, &id).map_err(failed)?;
                Ok(id)
            }
            Err(error) => {
                let path = path.display();
                Err(PluginError::internal(format!("failed to read server id from path: {path}: {error}")))
            }
        }
    }
}

/// Whole and durable before anybody reads it.
fn write(path: &Path, id: &str) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(id.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use svid_core::hcl::{Unknown, decode, parse};

    use super::*;

    fn read(text: &str) -> Result<KmsConfig, Vec<String>> {
        let (config, report) = decode(&parse(text).unwrap(), |r| {
            let config = KmsConfig::read(r);
            r.finish(Unknown::Refuse);
            config
        });
        match report.errors.as_slice() {
            [] => Ok(config.unwrap()),
            errors => Err(errors.iter().map(ToString::to_string).collect()),
        }
    }

    #[test]
    fn a_whole_section() {
        let config = read(
            r#"region = "eu-west-1"
            access_key_id = "AKID"
            secret_access_key = "very secret"
            key_identifier_value = "server-1"
            key_policy_file = "/etc/policy.json"
            key_tags { Team = "trust" Cost = 7 }
            enable_tag_based_key_discovery = true"#,
        )
        .unwrap();
        assert_eq!(config.identifier.load().unwrap(), "server-1");
        assert_eq!(config.key_tags["Cost"], "7");
        assert!(config.by_tags);
        let shown = format!("{config:?}");
        assert!(!shown.contains("very secret") && !shown.contains("AKID"), "{shown}");
    }

    #[test]
    fn all_mistakes_at_once() {
        let errors = read("key_tags { \"aws:x\" = \"1\" }\nother = 1").unwrap_err();
        let all = errors.join("\n");
        for words in [
            "region: configuration is missing a region",
            "configuration requires a key identifier file or a key identifier value",
            "invalid configuration for key tags: tag key \"aws:x\" uses reserved prefix 'aws:'",
            "other: unknown configuration key",
        ] {
            assert!(all.contains(words), "{words} in {all}");
        }
        let identifiers = |text: &str| read(&format!("region = \"r\"\n{text}")).unwrap_err().join("\n");
        assert!(
            identifiers("key_identifier_file = \"a\"\nkey_identifier_value = \"b\"")
                .contains("at the same time")
        );
        assert!(identifiers("key_identifier_value = \"a b\"").contains("only alphanumeric"));
        assert!(identifiers("key_identifier_value = \"alias/aws/x\"").contains("alias/aws/"));
        let long = format!("key_identifier_value = \"{}\"", "a".repeat(257));
        assert!(identifiers(&long).contains("longer than 256"));
    }

    #[test]
    fn a_missing_identifier_file_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let identifier = KeyIdentifier::File(path.clone());
        let id = identifier.load().unwrap();
        assert_eq!(identifier.load().unwrap(), id);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "no uuid").unwrap();
        let error = identifier.load().unwrap_err();
        assert!(error.message.starts_with("failed to parse server id from path"), "{error}");
        let nowhere = KeyIdentifier::File(dir.path().join("missing/id"));
        assert!(nowhere.load().unwrap_err().message.starts_with("failed to persist server id on path"));
    }
}
