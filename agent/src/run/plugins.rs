//! From configured names to plugins. The one place in the agent that names concrete ones.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use svid_core::hcl::{Body, Report, Unknown, decode};
use svid_daemon::metrics::Metrics;
use svid_keymanager::{DiskKeyManager, KeyOperation, MemoryKeyManager, ObservedKeyManager};
use svid_plugin_api::{AgentNodeAttestor, KeyManager, WorkloadAttestor};
use svid_unix::{UnixAttestor, UnixConfig};

use crate::attest::JoinTokenAttestor;
use crate::caller::Attestors;
use crate::config::{AgentConfig, KeyManagerConfig, NodeAttestorConfig, WorkloadAttestorConfig};

pub(super) fn key_manager(
    config: &AgentConfig,
    metrics: &Metrics,
) -> Result<Arc<dyn KeyManager>, anyhow::Error> {
    let keys: Arc<dyn KeyManager> = match &config.plugins.key_manager {
        KeyManagerConfig::Memory => Arc::new(MemoryKeyManager::default()),
        KeyManagerConfig::Disk(directory) => Arc::new(
            DiskKeyManager::open_in(directory).context("failed to configure KeyManager plugin \"disk\"")?,
        ),
    };
    Ok(if metrics.is_enabled() { Arc::new(measured(keys, metrics)) } else { keys })
}

fn measured(keys: Arc<dyn KeyManager>, metrics: &Metrics) -> ObservedKeyManager {
    let call = |name| metrics.call(&["agent_key_manager", name]);
    let (generate, get, list) = (call("generate_key"), call("get_key"), call("get_keys"));
    let observer = move |operation, status: &'static str, elapsed: Duration| match operation {
        KeyOperation::Generate => generate.done(status, elapsed),
        KeyOperation::Get => get.done(status, elapsed),
        KeyOperation::List => list.done(status, elapsed),
        KeyOperation::Sign => {}
    };
    ObservedKeyManager::new(keys, Arc::new(observer))
}

/// A join token overrides the configured attestor, as in SPIRE.
pub(super) fn node_attestor(config: &AgentConfig) -> Result<Arc<dyn AgentNodeAttestor>, anyhow::Error> {
    if let Some(token) = &config.join_token {
        return Ok(Arc::new(JoinTokenAttestor::new(token.clone())));
    }
    match &config.plugins.node_attestor {
        Some(NodeAttestorConfig::X509Pop(data)) => x509pop(data),
        // Without a token only a stored SVID helps; the attestor is asked when that does not.
        Some(NodeAttestorConfig::JoinToken) | None => Ok(Arc::new(NoToken)),
    }
}

fn x509pop(data: &Body) -> Result<Arc<dyn AgentNodeAttestor>, anyhow::Error> {
    let (config, report) = decode(data, |block| {
        let config = svid_x509pop::AgentConfig::read(block);
        block.finish(Unknown::Refuse);
        config
    });
    accept("NodeAttestor plugin \"x509pop\"", &report)?;
    let config = config.ok_or_else(|| anyhow!("NodeAttestor plugin \"x509pop\" is not configured"))?;
    Ok(Arc::new(svid_x509pop::X509PopAgent::new(config)))
}

/// The `join_token` plugin without a token.
struct NoToken;

#[async_trait::async_trait]
impl AgentNodeAttestor for NoToken {
    fn name(&self) -> &str {
        "join_token"
    }

    async fn begin(&self) -> Result<Box<dyn svid_plugin_api::AttestSession>, svid_plugin_api::PluginError> {
        Err(svid_plugin_api::PluginError::new(
            svid_plugin_api::PluginCode::FailedPrecondition,
            "join token was not provided; create one with `svid-server token generate` and set join_token",
        ))
    }
}

pub(super) fn workload_attestors(config: &AgentConfig) -> Result<Attestors, anyhow::Error> {
    let mut attestors: Vec<Arc<dyn WorkloadAttestor>> = Vec::new();
    for attestor in &config.plugins.workload_attestors {
        match attestor {
            WorkloadAttestorConfig::Unix(data) => {
                let (config, report) = UnixConfig::read(data);
                accept("WorkloadAttestor plugin \"unix\"", &report)?;
                attestors.push(Arc::new(UnixAttestor::new(config)));
            }
        }
    }
    Ok(Attestors::new(attestors))
}

fn accept(plugin: &str, report: &Report) -> Result<(), anyhow::Error> {
    for warning in &report.warnings {
        tracing::warn!("{plugin}: {warning}");
    }
    match report.errors.as_slice() {
        [] => Ok(()),
        errors => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Err(anyhow!("failed to configure {plugin}: {}", errors.join("; ")))
        }
    }
}
