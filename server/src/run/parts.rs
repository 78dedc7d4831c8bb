//! The parts that the wiring puts together, each from its configuration.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use svid_core::clock::Clock;
use svid_core::id::TrustDomain;
use svid_daemon::metrics::Metrics;
use svid_keymanager::{DiskKeyManager, KeyOperation, MemoryKeyManager, ObservedKeyManager};
use svid_plugin_api::{KeyManager, PluginError, ServerNodeAttestor, UpstreamAuthority};
use svid_upstream_disk::{DiskConfig, UpstreamDisk};
use svid_x509pop::X509PopServer;

use super::RunError;
use super::identity::host_name;
use crate::attest::Attestors;
use crate::ca::{CaConfig, CaSubject, SPREAD};
use crate::clock_guard::ClockGuard;
use crate::config::{KeyManagerChoice, NodeAttestorChoice, ServerConfig, UpstreamChoice};
use crate::directory::Directory;
use crate::store::{HousekeepingOptions, Store, housekeeping as sweep};

pub(super) async fn open_store(config: &ServerConfig) -> Result<Store, RunError> {
    Ok(Store::open(&config.plugins.data_store, &config.trust_domain).await?)
}

/// host:port, as addresses are written.
pub(super) fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Where others may find this server: its own name if it listens at all addresses.
pub(super) fn shown_address(config: &ServerConfig) -> String {
    let is_any = config.bind_address.parse().is_ok_and(|address: IpAddr| address.is_unspecified());
    let host = if is_any { host_name() } else { None };
    address(host.as_deref().unwrap_or(&config.bind_address), config.bind_port)
}

pub(super) fn housekeeping(
    config: &ServerConfig,
    store: &Store,
    clock: &Clock,
    guard: &ClockGuard,
) -> impl Future<Output = ()> + use<> {
    let pruning = config.node_pruning;
    let options = HousekeepingOptions {
        prune_nodes_after: pruning.map(|pruning| pruning.expired_for),
        prune_tofu_nodes: pruning.is_some_and(|pruning| pruning.tofu),
        prune_nodes_batch: pruning.map_or(0, |pruning| pruning.batch_size),
    };
    sweep(store.clone(), clock.clone(), guard.clone(), options)
}

fn plugin<T>(kind: &'static str, name: &'static str, made: Result<T, PluginError>) -> Result<T, RunError> {
    made.map_err(|source| RunError::Plugin { kind, name, source })
}

#[cfg_attr(not(feature = "aws"), expect(unused_variables))] // only that one tells the time
pub(super) async fn key_manager(
    config: &ServerConfig,
    metrics: &Metrics,
    clock: &Clock,
) -> Result<Arc<dyn KeyManager>, RunError> {
    let keys: Arc<dyn KeyManager> = match &config.plugins.key_manager {
        KeyManagerChoice::Memory => Arc::new(MemoryKeyManager::new()),
        KeyManagerChoice::Disk { keys_path } => {
            Arc::new(plugin("KeyManager", "disk", DiskKeyManager::open(keys_path))?)
        }
        #[cfg(feature = "vault")]
        KeyManagerChoice::Vault(vault) => {
            let opened = svid_vault::TransitKeyManager::open((**vault).clone()).await;
            Arc::new(plugin("KeyManager", "hashicorp_vault", opened)?)
        }
        #[cfg(feature = "aws")]
        KeyManagerChoice::AwsKms(kms) => {
            let opened = svid_aws::AwsKms::open(kms, &config.trust_domain, clock.clone()).await;
            Arc::new(plugin("KeyManager", "aws_kms", opened)?)
        }
    };
    Ok(if metrics.is_enabled() { Arc::new(measured(keys, metrics)) } else { keys })
}

fn measured(keys: Arc<dyn KeyManager>, metrics: &Metrics) -> ObservedKeyManager {
    let call = |name| metrics.call(&["server_key_manager", name]);
    let (generate, get) = (call("generate_key"), call("get_public_key"));
    let (list, sign) = (call("get_public_keys"), call("sign_data"));
    let observer = move |operation, status: &'static str, elapsed: Duration| match operation {
        KeyOperation::Generate => generate.done(status, elapsed),
        KeyOperation::Get => get.done(status, elapsed),
        KeyOperation::List => list.done(status, elapsed),
        KeyOperation::Sign => sign.done(status, elapsed),
    };
    ObservedKeyManager::new(keys, Arc::new(observer))
}

pub(super) async fn upstream(
    config: &ServerConfig,
    clock: &Clock,
) -> Result<Option<Arc<dyn UpstreamAuthority>>, RunError> {
    let Some(choice) = &config.plugins.upstream else { return Ok(None) };
    Ok(Some(match choice {
        UpstreamChoice::Disk { cert_file_path, key_file_path, bundle_file_path } => {
            let disk = DiskConfig {
                cert_file_path: cert_file_path.clone(),
                key_file_path: key_file_path.clone(),
                bundle_file_path: bundle_file_path.clone(),
            };
            let opened = UpstreamDisk::open(disk, config.trust_domain.clone(), clock.clone());
            let disk = Arc::new(plugin("UpstreamAuthority", "disk", opened)?);
            tokio::spawn(disk.follow());
            disk
        }
        #[cfg(feature = "vault")]
        UpstreamChoice::Vault(vault) => {
            let opened = svid_vault::UpstreamVault::open(vault.clone());
            Arc::new(plugin("UpstreamAuthority", "vault", opened)?)
        }
        #[cfg(feature = "aws")]
        UpstreamChoice::AwsPca(pca) => {
            let opened = svid_aws::AwsPca::open(pca.clone(), clock.clone()).await;
            Arc::new(plugin("UpstreamAuthority", "aws_pca", opened)?)
        }
    }))
}

pub(super) fn attestors(config: &ServerConfig, directory: &Directory, clock: &Clock) -> Attestors {
    let mut attestors: Vec<Arc<dyn ServerNodeAttestor>> = Vec::new();
    for choice in &config.plugins.node_attestors {
        match choice {
            NodeAttestorChoice::JoinToken => {} // built into the dialogue
            NodeAttestorChoice::X509Pop(x509pop) => {
                let bundle = own_roots(directory.clone(), config.trust_domain.clone());
                attestors.push(Arc::new(X509PopServer::new(x509pop.clone(), bundle, clock.clone())));
            }
        }
    }
    Attestors::new(attestors)
}

/// The own X.509 authorities as the directory has them at each call.
fn own_roots(directory: Directory, trust_domain: TrustDomain) -> svid_x509pop::BundleSource {
    Arc::new(move || {
        let bundle = directory.bundle(&trust_domain);
        let authorities = bundle.iter().flat_map(|bundle| &bundle.x509_authorities);
        authorities.map(|authority| authority.der().to_vec()).collect()
    })
}

pub(super) fn ca_config(config: &ServerConfig, metrics: &Metrics, clock_guard: &ClockGuard) -> CaConfig {
    let ca = &config.ca;
    CaConfig {
        trust_domain: config.trust_domain.clone(),
        ca_ttl: ca.ca_ttl,
        ca_key_type: ca.ca_key_type,
        jwt_key_type: ca.jwt_key_type,
        ca_subject: CaSubject {
            country: ca.country.clone(),
            organization: ca.organization.clone(),
            common_name: ca.common_name.clone(),
        },
        jwt_issuer: ca.jwt_issuer.clone(),
        disable_jwt_svids: ca.disable_jwt_svids,
        default_x509_svid_ttl: ca.default_x509_svid_ttl,
        default_jwt_svid_ttl: ca.default_jwt_svid_ttl,
        agent_ttl: config.agent_ttl,
        spread: SPREAD,
        metrics: metrics.clone(),
        clock_guard: clock_guard.clone(),
    }
}
