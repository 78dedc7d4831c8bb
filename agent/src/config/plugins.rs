//! The `plugins` section: which of SPIRE's plugins are wanted, and which of those are built.

use svid_core::hcl::{Body, Reader, Unknown, decode};

use super::types::{KeyManagerConfig, NodeAttestorConfig, Plugins, WorkloadAttestorConfig};

/// SPIRE's built-in plugins that are not built here, by type.
const NOT_BUILT: &[(&str, &[&str])] = &[
    (
        "NodeAttestor",
        &[
            "aws_iid",
            "azure_imds",
            "azure_msi",
            "gcp_iit",
            "http_challenge",
            "k8s_psat",
            "k8s_sat",
            "sshpop",
            "tpm_devid",
        ],
    ),
    ("WorkloadAttestor", &["docker", "k8s", "slurm", "systemd", "windows"]),
    ("SVIDStore", &["aws_secretsmanager", "gcp_secretmanager"]),
];

#[derive(Default)]
struct Found {
    key_managers: Vec<KeyManagerConfig>,
    node_attestors: Vec<NodeAttestorConfig>,
    workload_attestors: Vec<WorkloadAttestorConfig>,
}

/// Reads the section. `None` only together with a reported mistake.
pub(super) fn read(file: &mut Reader, has_token: bool) -> Option<Plugins> {
    if !file.has("plugins") {
        file.error("plugins", "plugins section must be configured");
        return None;
    }
    let mut found = Found::default();
    // A type whose only plugin was refused is not reported a second time as missing.
    let mut named: Vec<String> = Vec::new();
    file.blocks_labelled_twice("plugins", |kind, name, block| {
        named.push(kind.to_owned());
        read_plugin(kind, name, block, &mut found);
    });
    let count = |kind: &str| named.iter().filter(|other| *other == kind).count();
    exactly_one(file, "KeyManager", count("KeyManager"));
    if count("NodeAttestor") != 1 && !(has_token && count("NodeAttestor") == 0) {
        exactly_one(file, "NodeAttestor", count("NodeAttestor"));
    }
    if count("WorkloadAttestor") == 0 {
        file.error("plugins", "expected at least 1 WorkloadAttestor plugin but got 0");
    }
    Some(Plugins {
        key_manager: found.key_managers.pop()?,
        node_attestor: found.node_attestors.pop(),
        workload_attestors: found.workload_attestors,
    })
}

fn exactly_one(file: &mut Reader, kind: &str, count: usize) {
    if count != 1 {
        file.error("plugins", format!("expected exactly 1 {kind} plugin but got {count}"));
    }
}

fn read_plugin(kind: &str, name: &str, block: &mut Reader, found: &mut Found) {
    let enabled = block.bool("enabled").unwrap_or(true);
    let external = block.string("plugin_cmd").is_some_and(|command| !command.is_empty());
    block.ignored(&["plugin_args", "plugin_checksum"], "external plugins are not built");
    let data = data(block);
    block.finish(Unknown::Refuse);
    if !enabled {
        return;
    }
    if external {
        block.error("plugin_cmd", "external plugins are not built");
        return;
    }
    match (kind, name) {
        ("KeyManager", "memory") => found.key_managers.push(KeyManagerConfig::Memory),
        ("KeyManager", "disk") => found.key_managers.extend(disk(block, &data)),
        ("NodeAttestor", "join_token") => found.node_attestors.push(NodeAttestorConfig::JoinToken),
        ("NodeAttestor", "x509pop") => found.node_attestors.push(NodeAttestorConfig::X509Pop(data)),
        ("WorkloadAttestor", "unix") => found.workload_attestors.push(WorkloadAttestorConfig::Unix(data)),
        _ => refuse(kind, name, block),
    }
}

fn refuse(kind: &str, name: &str, block: &mut Reader) {
    let known = NOT_BUILT.iter().any(|(other, names)| *other == kind && names.contains(&name));
    let message = match kind {
        _ if known => format!("the {kind} plugin {name:?} is not built"),
        "KeyManager" | "NodeAttestor" | "WorkloadAttestor" | "SVIDStore" => {
            format!("unknown {kind} plugin {name:?}; a plugin without plugin_cmd must be a built-in one")
        }
        _ => format!("unsupported plugin type {kind:?}"),
    };
    block.error("", message);
}

/// `plugin_data`, or the file that holds it.
fn data(block: &mut Reader) -> Body {
    let inline = block.raw("plugin_data");
    let Some(path) = block.string("plugin_data_file").filter(|path| !path.is_empty()) else {
        return inline.unwrap_or_default();
    };
    if inline.is_some() {
        block.error("plugin_data_file", "only one of [plugin_data, plugin_data_file] can be used");
    }
    let text = std::fs::read_to_string(&path).map_err(|error| error.to_string());
    let body = text.and_then(|text| svid_core::hcl::parse(&text).map_err(|error| error.to_string()));
    body.unwrap_or_else(|error| {
        block.error("plugin_data_file", format!("{path:?}: {error}"));
        Body::default()
    })
}

fn disk(block: &mut Reader, data: &Body) -> Option<KeyManagerConfig> {
    let (directory, report) = decode(data, |data| {
        let directory = data.string("directory").filter(|directory| !directory.is_empty());
        if directory.is_none() {
            data.error("directory", "directory must be configured");
        }
        data.finish(Unknown::Refuse);
        directory
    });
    let failed = !report.errors.is_empty();
    for problem in report.errors {
        block.error("plugin_data", problem.to_string());
    }
    directory.filter(|_| !failed).map(|directory| KeyManagerConfig::Disk(directory.into()))
}
