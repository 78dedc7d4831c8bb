//! What the two bundle streams share: when to send, and what to whom.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use svid_core::bundle::Bundle;
use svid_core::selector::SelectorSet;
use tonic::Status;

use super::gate::Gate;
use super::open::OpenStream;
use super::source::Updates;
use super::{Responses, WorkloadApi};
use crate::cache::WorkloadUpdate;
use crate::caller::Connection;

/// Bundles in one form, by trust domain ID.
pub(super) type ByTrustDomain = BTreeMap<String, Vec<u8>>;

/// One open stream of bundles.
pub(super) struct BundleStream {
    gate: Arc<Gate>,
    caller: Arc<Connection>,
    selectors: Arc<SelectorSet>,
    updates: Box<dyn Updates>,
    anyone: bool,
    form: fn(&Bundle) -> Vec<u8>,
    sent: Option<ByTrustDomain>,
    _open: OpenStream,
}

impl BundleStream {
    pub(super) async fn open(
        api: &WorkloadApi,
        caller: Arc<Connection>,
        method: &'static str,
        form: fn(&Bundle) -> Vec<u8>,
    ) -> Result<Self, Status> {
        let selectors = api.gate.admit(&caller, method).await?;
        Ok(Self {
            gate: Arc::clone(&api.gate),
            caller,
            updates: api.gate.source.subscribe(Arc::clone(&selectors)),
            selectors,
            anyone: api.options.allow_unauthenticated_verifiers,
            form,
            sent: None,
            _open: OpenStream::new(),
        })
    }

    pub(super) fn into_responses<T: Send + 'static>(
        self,
        response: impl Fn(ByTrustDomain) -> T + Send + Copy + 'static,
    ) -> Responses<T> {
        stream::unfold(Some(self), move |stream| async move {
            let mut stream = stream?;
            match stream.next().await {
                Ok(bundles) => Some((Ok(response(bundles)), Some(stream))),
                Err(status) => Some((Err(status), None)),
            }
        })
        .boxed()
    }

    /// The next set that differs from the last.
    async fn next(&mut self) -> Result<ByTrustDomain, Status> {
        loop {
            let update = self.updates.next().await;
            if update.identities.is_empty() && !self.anyone {
                return Err(self.gate.no_identity(&self.caller, &self.selectors));
            }
            let bundles = self.compose(&update);
            if self.sent.as_ref() != Some(&bundles) {
                self.gate.recheck(&self.caller)?;
                self.sent = Some(bundles.clone());
                return Ok(bundles);
            }
        }
    }

    /// A caller without identity gets at most the own trust domain's bundle.
    fn compose(&self, update: &WorkloadUpdate) -> ByTrustDomain {
        let foreign = update.federated.values().filter(|_| !update.identities.is_empty());
        let all = std::iter::once(&update.bundle).chain(foreign);
        all.map(|bundle| (bundle.trust_domain.id().to_string(), (self.form)(bundle))).collect()
    }
}
