//! The database's calls under SPIRE's names.

use std::time::{Duration, Instant};

use svid_daemon::metrics::{Call, Metrics};

use super::{Store, StoreError};

macro_rules! operations {
    ($($name:ident $key:literal,)*) => {
        /// What the database is asked to do, as far as SPIRE has a name for it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Operation {
            $($name,)*
        }

        /// Keys behind `datastore`, in the enum's order.
        const KEYS: &[&str] = &[$($key,)*];
    };
}

operations! {
    BundleAppend "bundle.append",
    BundleCreate "bundle.create",
    BundleDelete "bundle.delete",
    BundleFetch "bundle.fetch",
    BundlePrune "bundle.prune",
    BundleSet "bundle.set",
    BundleUpdate "bundle.update",
    X509Taint "bundle.x509.taint",
    X509Revoke "bundle.x509.revoke",
    JwtTaint "bundle.jwt.taint",
    JwtRevoke "bundle.jwt.revoke",
    RelationshipCreate "federation_relationship.create",
    RelationshipDelete "federation_relationship.delete",
    RelationshipUpdate "federation_relationship.update",
    JournalFetch "ca_journal.fetch",
    JournalSet "ca_journal.set",
    TokenCreate "join_token.create",
    TokenDelete "join_token.delete",
    TokenPrune "join_token.prune",
    NodeCreate "node.create",
    NodeDelete "node.delete",
    NodeFetch "node.fetch",
    NodePrune "node.prune",
    NodeUpdate "node.update",
    EntryCreate "registration_entry.create",
    EntryDelete "registration_entry.delete",
    EntryPrune "registration_entry.prune",
    EntryUpdate "registration_entry.update",
}

/// One call counter for each [`Operation`].
#[derive(Debug)]
pub(super) struct StoreMetrics {
    calls: Vec<Call>,
    /// `registration_entry.manager.prune` and `node.manager.prune`.
    pub(super) prune_entries: Call,
    pub(super) prune_nodes: Call,
}

impl StoreMetrics {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let call = |key: &&str| {
            let parts: Vec<&str> = ["datastore"].into_iter().chain(key.split('.')).collect();
            metrics.call(&parts)
        };
        Self {
            calls: KEYS.iter().map(call).collect(),
            prune_entries: metrics.call(&["registration_entry", "manager", "prune"]),
            prune_nodes: metrics.call(&["node", "manager", "prune"]),
        }
    }

    pub(super) fn done(&self, operation: Operation, status: &'static str, elapsed: Duration) {
        if let Some(call) = self.calls.get(operation as usize) {
            call.done(status, elapsed);
        }
    }
}

impl Store {
    /// Counts calls into `metrics` from now on; the first time counts.
    pub fn count_into(&self, metrics: &Metrics) {
        if metrics.is_enabled() {
            let _ = self.0.metrics.set(StoreMetrics::new(metrics));
        }
    }

    pub(super) fn metrics(&self) -> Option<&StoreMetrics> {
        self.0.metrics.get()
    }

    /// Does `work`, and counts it.
    pub(super) async fn counted<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let Some(metrics) = self.metrics() else { return work.await };
        let begun = Instant::now();
        let result = work.await;
        metrics.done(operation, outcome(&result), begun.elapsed());
        result
    }

    /// Counts each item of a batch.
    pub(super) async fn counted_each<T>(
        &self,
        operation: Operation,
        work: impl Future<Output = Vec<Result<T, StoreError>>>,
    ) -> Vec<Result<T, StoreError>> {
        let Some(metrics) = self.metrics() else { return work.await };
        let begun = Instant::now();
        let results = work.await;
        let elapsed = begun.elapsed();
        results.iter().for_each(|result| metrics.done(operation, outcome(result), elapsed));
        results
    }
}

/// The `status` of a call's metric: the name of the gRPC code that SPIRE's store answers with.
pub(super) fn outcome<T>(result: &Result<T, StoreError>) -> &'static str {
    match result {
        Ok(_) => "OK",
        Err(StoreError::NotFound(_)) => "NotFound",
        Err(StoreError::AlreadyExists(_)) => "AlreadyExists",
        Err(StoreError::Invalid(_) | StoreError::TokenUnknown | StoreError::TokenExpired) => {
            "InvalidArgument"
        }
        Err(StoreError::BundleInUse(_)) => "FailedPrecondition",
        Err(StoreError::Banned) => "PermissionDenied",
        Err(StoreError::Unavailable(_) | StoreError::Closed | StoreError::Overtaken) => "Unavailable",
        Err(_) => "Internal",
    }
}
