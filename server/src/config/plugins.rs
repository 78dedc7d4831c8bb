//! The `plugins` section: which implementation stands behind each plugin type.

use std::path::PathBuf;

use svid_core::hcl::{Body, Reader, Unknown, decode};

use super::data_store;
use crate::store::StoreConfig;

/// The plugins, by type.
#[derive(Clone, Debug)]
pub struct Plugins {
    /// Where state is kept.
    pub data_store: StoreConfig,
    /// Where private keys are kept.
    pub key_manager: KeyManagerChoice,
    /// Who signs this server's CA; it signs itself when absent.
    pub upstream: Option<UpstreamChoice>,
    /// How nodes prove what they are, in the file's order.
    pub node_attestors: Vec<NodeAttestorChoice>,
}

/// Where private keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyManagerChoice {
    /// In this process only.
    Memory,
    /// In a file.
    Disk {
        /// The file.
        keys_path: PathBuf,
    },
    /// In the transit engine of a Vault or OpenBao.
    #[cfg(feature = "vault")]
    Vault(Box<svid_vault::KeyManagerConfig>),
    /// In AWS KMS.
    #[cfg(feature = "aws")]
    AwsKms(svid_aws::KmsConfig),
}

impl KeyManagerChoice {
    /// The plugin's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk { .. } => "disk",
            #[cfg(feature = "vault")]
            Self::Vault(_) => "hashicorp_vault",
            #[cfg(feature = "aws")]
            Self::AwsKms(_) => "aws_kms",
        }
    }
}

/// Who signs this server's CA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamChoice {
    /// A CA whose key lies on disk.
    Disk {
        /// The CA's certificate, with intermediates behind it.
        cert_file_path: PathBuf,
        /// Its key.
        key_file_path: PathBuf,
        /// The roots, where the certificate is not one itself.
        bundle_file_path: Option<PathBuf>,
    },
    /// The PKI engine of a Vault or OpenBao.
    #[cfg(feature = "vault")]
    Vault(svid_vault::UpstreamConfig),
    /// A CA of AWS Private CA.
    #[cfg(feature = "aws")]
    AwsPca(svid_aws::PcaConfig),
}

/// How nodes prove what they are.
#[derive(Clone, Debug)]
pub enum NodeAttestorChoice {
    /// One-time tokens.
    JoinToken,
    /// Possession of an X.509 key.
    X509Pop(svid_x509pop::ServerConfig),
}

const SERVER_PLUGINS: &[(&str, &[&str])] = &[
    ("DataStore", &["sql"]),
    ("KeyManager", &["disk", "memory", "aws_kms", "azure_key_vault", "gcp_kms", "hashicorp_vault"]),
    (
        "NodeAttestor",
        &[
            "join_token",
            "x509pop",
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "k8s_psat",
            "sshpop",
            "tpm_devid",
        ],
    ),
    (
        "UpstreamAuthority",
        &["disk", "aws_pca", "awssecret", "cert-manager", "ejbca", "gcp_cas", "spire", "vault"],
    ),
    ("Notifier", &["gcs_bundle", "k8sbundle"]),
    (
        "BundlePublisher",
        &["aws_s3", "aws_rolesanywhere_trustanchor", "azure_blob", "gcp_cloudstorage", "k8s_configmap"],
    ),
    ("CredentialComposer", &["uniqueid"]),
];

struct Block {
    kind: String,
    name: String,
    data: Body,
}

#[derive(Default)]
struct Found {
    data_store: Vec<StoreConfig>,
    key_managers: Vec<KeyManagerChoice>,
    upstreams: Vec<UpstreamChoice>,
    node_attestors: Vec<NodeAttestorChoice>,
}

/// `None` only together with a recorded mistake.
pub(super) fn read(file: &mut Reader) -> Option<Plugins> {
    let mut found = Found::default();
    file.blocks_labelled_twice("plugins", |kind, name, r| {
        if let Some(block) = read_block(kind, name, r) {
            choose(r, &block, &mut found);
        }
    });
    one(file, "DataStore", found.data_store.len(), true);
    one(file, "KeyManager", found.key_managers.len(), true);
    one(file, "UpstreamAuthority", found.upstreams.len(), false);
    Some(Plugins {
        data_store: found.data_store.pop()?,
        key_manager: found.key_managers.pop()?,
        upstream: found.upstreams.pop(),
        node_attestors: found.node_attestors,
    })
}

fn one(file: &mut Reader, kind: &str, count: usize, required: bool) {
    if count > 1 {
        file.error("plugins", format!("plugin type {kind:?}: expected at most 1 plugin, found {count}"));
    }
    if count == 0 && required {
        file.error("plugins", format!("plugin type {kind:?}: expected exactly 1 usable plugin, found 0"));
    }
}

/// The block's own keys. `None` when it is switched off, cannot be used, or is wrong.
fn read_block(kind: &str, name: &str, r: &mut Reader) -> Option<Block> {
    let enabled = r.bool("enabled").unwrap_or(true);
    let external = r.string("plugin_cmd").filter(|cmd| !cmd.is_empty()).is_some();
    r.strings("plugin_args");
    r.string("plugin_checksum");
    let file = r.string("plugin_data_file").filter(|file| !file.is_empty());
    let data = r.raw("plugin_data");
    r.finish(Unknown::Warn);
    if !enabled {
        return None;
    }
    let Some((_, names)) = SERVER_PLUGINS.iter().find(|(known, _)| *known == kind) else {
        r.error("", format!("unknown plugin type {kind:?}"));
        return None;
    };
    if external {
        r.error("plugin_cmd", "external plugins are not built yet");
        return None;
    }
    if !names.contains(&name) {
        r.error("", format!("no built-in plugin {name:?} for type {kind:?}"));
        return None;
    }
    if data.is_some() && file.is_some() {
        r.error("plugin_data_file", "only one of [plugin_data, plugin_data_file] can be used");
        return None;
    }
    let data = match file {
        Some(file) => read_data_file(r, &file)?,
        None => data.unwrap_or_default(),
    };
    Some(Block { kind: kind.into(), name: name.into(), data })
}

fn read_data_file(r: &mut Reader, path: &str) -> Option<Body> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("unable to read {path:?}: {error}"));
    let body = text.and_then(|text| svid_core::hcl::parse(&text).map_err(|error| format!("{path}: {error}")));
    body.map_err(|message| r.error("plugin_data_file", message)).ok()
}

fn choose(r: &mut Reader, block: &Block, found: &mut Found) {
    match (block.kind.as_str(), block.name.as_str()) {
        ("DataStore", "sql") => {
            let nested = data_store::nested_type(&block.data);
            found.data_store.extend(data(r, &block.data, |data| data_store::read(data, nested)));
        }
        ("KeyManager", "memory") => found.key_managers.push(KeyManagerChoice::Memory),
        ("KeyManager", "disk") => found.key_managers.extend(data(r, &block.data, disk_keys)),
        #[cfg(feature = "aws")]
        ("KeyManager", "aws_kms") => {
            let config = data(r, &block.data, svid_aws::KmsConfig::read);
            found.key_managers.extend(config.map(KeyManagerChoice::AwsKms));
        }
        #[cfg(feature = "aws")]
        ("UpstreamAuthority", "aws_pca") => {
            let config = data(r, &block.data, svid_aws::PcaConfig::read);
            found.upstreams.extend(config.map(UpstreamChoice::AwsPca));
        }
        #[cfg(not(feature = "aws"))]
        ("KeyManager", "aws_kms") | ("UpstreamAuthority", "aws_pca") => {
            r.error("", without_feature(&block.kind, &block.name, "aws"));
        }
        ("UpstreamAuthority", "disk") => found.upstreams.extend(data(r, &block.data, upstream_disk)),
        #[cfg(feature = "vault")]
        ("UpstreamAuthority", "vault") => {
            let read = |r: &mut Reader| svid_vault::UpstreamConfig::read(r, &svid_vault::process_env);
            found.upstreams.extend(data(r, &block.data, read).map(UpstreamChoice::Vault));
        }
        #[cfg(feature = "vault")]
        ("KeyManager", "hashicorp_vault") => {
            let read = |r: &mut Reader| svid_vault::KeyManagerConfig::read(r, &svid_vault::process_env);
            found.key_managers.extend(data(r, &block.data, read).map(Box::new).map(KeyManagerChoice::Vault));
        }
        #[cfg(not(feature = "vault"))]
        ("UpstreamAuthority", "vault") | ("KeyManager", "hashicorp_vault") => {
            r.error("", without_feature(&block.kind, &block.name, "vault"));
        }
        ("NodeAttestor", "join_token") => found.node_attestors.push(NodeAttestorChoice::JoinToken),
        ("NodeAttestor", "x509pop") => {
            let config = data(r, &block.data, svid_x509pop::ServerConfig::read);
            found.node_attestors.extend(config.map(NodeAttestorChoice::X509Pop));
        }
        (kind, name) => r.error("", format!("the {kind} plugin {name:?} is not built into this server")),
    }
}

/// What the configuration says of a plugin that this build left out.
#[cfg(not(all(feature = "aws", feature = "vault")))]
fn without_feature(kind: &str, name: &str, feature: &str) -> String {
    format!(
        "the {kind} plugin {name:?} is not in this build of the server: it was built without the feature {feature:?}"
    )
}

/// Reads a plugin's own section, whose mistakes are told under its path.
fn data<T>(r: &mut Reader, body: &Body, read: impl FnOnce(&mut Reader) -> Option<T>) -> Option<T> {
    let (value, report) = decode(body, |data| {
        let value = read(data);
        data.finish(Unknown::Refuse);
        value
    });
    for problem in &report.warnings {
        r.warn("plugin_data", problem.to_string());
    }
    for problem in &report.errors {
        r.error("plugin_data", problem.to_string());
    }
    value.filter(|_| report.errors.is_empty())
}

fn disk_keys(r: &mut Reader) -> Option<KeyManagerChoice> {
    let Some(path) = r.string("keys_path").filter(|path| !path.is_empty()) else {
        r.error("keys_path", "keys_path is required");
        return None;
    };
    Some(KeyManagerChoice::Disk { keys_path: path.into() })
}

fn upstream_disk(r: &mut Reader) -> Option<UpstreamChoice> {
    let required = |key: &str, r: &mut Reader| {
        let path = r.string(key).filter(|path| !path.is_empty()).map(PathBuf::from);
        if path.is_none() {
            r.error(key, "must be configured");
        }
        path
    };
    let cert_file_path = required("cert_file_path", r);
    let key_file_path = required("key_file_path", r);
    let bundle_file_path = r.string("bundle_file_path").filter(|path| !path.is_empty()).map(PathBuf::from);
    Some(UpstreamChoice::Disk {
        cert_file_path: cert_file_path?,
        key_file_path: key_file_path?,
        bundle_file_path,
    })
}
