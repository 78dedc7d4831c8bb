//! The key manager's configuration.

use std::path::PathBuf;

use svid_core::hcl::Reader;

use crate::config::{Connection, Env, mount_or_env};

/// Where the transit engine is, and which of its keys are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyManagerConfig {
    pub(crate) connection: Connection,
    pub(crate) transit_engine_path: String,
    pub(crate) key_identifier: KeyIdentifier,
}

/// What the names of this server's keys begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeyIdentifier {
    Value(String),
    /// A file that is made with a random identifier where it is missing.
    File(PathBuf),
}

impl KeyManagerConfig {
    /// Reads the plugin's section. `None` only together with a recorded mistake.
    pub fn read(r: &mut Reader, env: Env<'_>) -> Option<Self> {
        let connection = Connection::read(r, env);
        let transit_engine_path =
            mount_or_env(r, env, "transit_engine_path", "VAULT_TRANSIT_ENGINE_PATH", "transit");
        let key_identifier = key_identifier(r);
        Some(Self {
            connection: connection?,
            transit_engine_path: transit_engine_path?,
            key_identifier: key_identifier?,
        })
    }
}

fn key_identifier(r: &mut Reader) -> Option<KeyIdentifier> {
    let file = r.string("key_identifier_file").filter(|path| !path.is_empty());
    let value = r.string("key_identifier_value").filter(|value| !value.is_empty());
    match (file, value) {
        (Some(_), Some(_)) => {
            r.error(
                "key_identifier_value",
                "only one of 'key_identifier_file' or 'key_identifier_value' should be provided",
            );
            None
        }
        (None, None) => {
            r.error("", "one of 'key_identifier_file' or 'key_identifier_value' must be provided");
            None
        }
        (Some(file), None) => Some(KeyIdentifier::File(file.into())),
        (None, Some(value)) if !is_key_name(&value) => {
            r.error(
                "key_identifier_value",
                format!("expected letters, digits, '-', '_' and '.', as Vault has them in key names, found {value:?}"),
            );
            None
        }
        (None, Some(value)) => Some(KeyIdentifier::Value(value)),
    }
}

/// What Vault takes for the name of a key.
pub(super) fn is_key_name(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let ends_in_words = name.as_bytes().first().is_some_and(|byte| is_word(*byte))
        && name.bytes().last().is_some_and(is_word);
    ends_in_words && name.len() <= 128 && name.bytes().all(|byte| is_word(byte) || b"-.".contains(&byte))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use svid_core::hcl::{self, Unknown, decode};

    use super::*;

    fn read(more: &str, env: &[(&str, &str)]) -> (Option<KeyManagerConfig>, String) {
        let text = format!("vault_addr = \"http://127.0.0.1:8200\"\ntoken_auth {{ token = \"t\" }}\n{more}");
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let (config, report) = decode(&hcl::parse(&text).unwrap(), |r| {
            let config = KeyManagerConfig::read(r, &env);
            r.finish(Unknown::Refuse);
            config
        });
        (config, report.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn defaults_and_the_environment() {
        let config = read("key_identifier_file = \"/x\"", &[]).0.unwrap();
        assert_eq!(config.transit_engine_path, "transit");
        assert_eq!(config.key_identifier, KeyIdentifier::File("/x".into()));
        let text = "transit_engine_path = \"file\" key_identifier_value = \"a-1\"";
        assert_eq!(read(text, &[]).0.unwrap().transit_engine_path, "file");
        let config = read(text, &[("VAULT_TRANSIT_ENGINE_PATH", "team/keys/")]).0.unwrap();
        assert_eq!(config.transit_engine_path, "team/keys");
    }

    #[test]
    fn mistakes_have_spires_words() {
        let both = "key_identifier_file = \"/x\" key_identifier_value = \"a\"";
        assert!(read(both, &[]).1.contains("only one of 'key_identifier_file'"));
        assert!(
            read("", &[])
                .1
                .contains("one of 'key_identifier_file' or 'key_identifier_value' must be provided")
        );
        for bad in ["a/b", "-a", "a b", "a-"] {
            let said = read(&format!("key_identifier_value = \"{bad}\""), &[]).1;
            assert!(said.contains("key_identifier_value") && said.contains(bad), "{said}");
        }
    }
}
