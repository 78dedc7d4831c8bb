//! Federation: what is fetched, and the bundle endpoint.

use std::sync::Arc;

use arc_swap::ArcSwap;
use svid_daemon::tls::{TlsPolicy, https_server_config};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::tls::{DirectoryRoots, certified};
use super::{Base, RunError, parts, spawn};
use crate::api::Context;
use crate::config::ServerConfig;
use crate::federation::config::{EndpointConfig, ServingProfile};
use crate::federation::endpoint::Endpoint;
use crate::federation::serving::{self, Current};
use crate::federation::{Federation, Parts};

fn policy(config: &ServerConfig) -> TlsPolicy {
    TlsPolicy { require_pq_kem: config.require_pq_kem }
}

/// Starts to fetch the bundles of other trust domains.
pub(super) fn follow(
    config: &ServerConfig,
    base: &Base,
    roots: Arc<DirectoryRoots>,
    stop: &CancellationToken,
) -> Federation {
    let federation = Federation::new(Parts {
        store: base.store.clone(),
        directory: base.directory.clone(),
        clock: base.clock.clone(),
        metrics: base.metrics.clone(),
        bundles: roots,
        policy: policy(config),
        relationships: config.federation.relationships.clone(),
        stop: stop.clone(),
    });
    spawn("federation", stop, federation.clone().run());
    federation
}

/// Opens the bundle endpoint, if one is configured.
pub(super) async fn serve(
    config: &ServerConfig,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let Some(settings) = &config.federation.endpoint else { return Ok(()) };
    let tls = match &settings.profile {
        ServingProfile::Spiffe => own_svid(config, context, stop)?,
        ServingProfile::Files(files) => {
            let (current, watch) = serving::from_files(files.clone(), policy(config))?;
            spawn("the bundle endpoint's certificate", stop, watch);
            current
        }
    };
    let listener = listen(settings).await?;
    context.store.serve_hint(settings.refresh_hint.as_secs()).await?;
    let address = parts::address(&settings.address, settings.port);
    let hint = svid_core::hcl::duration::format_go(settings.refresh_hint);
    tracing::info!(subsystem_name = "endpoints", addr = %address, refresh_hint = %hint, "Serving bundle endpoint");
    let endpoint =
        Endpoint::new(context.directory.clone(), context.trust_domain.clone(), settings.refresh_hint);
    spawn("the bundle endpoint", stop, Arc::new(endpoint).serve(listener, tls, stop.clone()));
    Ok(())
}

async fn listen(settings: &EndpointConfig) -> Result<TcpListener, RunError> {
    let bound = TcpListener::bind((settings.address.as_str(), settings.port)).await;
    let address = parts::address(&settings.address, settings.port);
    bound.map_err(|source| RunError::Listen { address, source })
}

/// The server's SVID, replaced whenever it is.
fn own_svid(
    config: &ServerConfig,
    context: &Arc<Context>,
    stop: &CancellationToken,
) -> Result<Current, RunError> {
    let policy = policy(config);
    let mut identities = context.ca.server_identity();
    let first = identities.borrow_and_update().clone();
    let current = Arc::new(ArcSwap::new(https_server_config(&certified(&first)?, policy)?));
    let swap = current.clone();
    spawn("the bundle endpoint's SVID", stop, async move {
        while identities.changed().await.is_ok() {
            let identity = identities.borrow_and_update().clone();
            match certified(&identity).and_then(|identity| https_server_config(&identity, policy)) {
                Ok(built) => swap.store(built),
                Err(error) => tracing::error!(%error, "The bundle endpoint goes on with its last SVID"),
            }
        }
    });
    Ok(current)
}
