//! The incremental protocol of one stream, as a pure function of requests and updates.
//!
//! The client's state is known from what was sent to it, whether it liked that or not: a resource that it refused is
//! sent again only when it changes or is subscribed to anew. So refusals cannot go round in circles.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use svid_proto::envoy::config::core::v3::Node;
use svid_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::resources::{Form, Found, Resource, Wanted, resolve};
use super::respond::DeltaReply;
use super::{MAX_NAMES, SdsError, new_nonce};
use crate::cache::WorkloadUpdate;
use crate::config::SdsConfig;

const WILDCARD: &str = "*";

/// One stream.
pub(crate) struct Delta {
    config: Arc<SdsConfig>,
    update: Option<Arc<WorkloadUpdate>>,
    updates: u64,
    node: Option<Node>,
    type_url: String,
    started: bool,
    wildcard: bool,
    subscribed: BTreeSet<String>,
    /// What the client has: a version, or `None` where it was told that there is nothing.
    has: BTreeMap<String, Option<String>>,
    /// A subscription waits for its answer, even an empty one.
    owes_answer: bool,
}

impl Delta {
    pub(crate) fn new(config: Arc<SdsConfig>) -> Self {
        Self {
            config,
            update: None,
            updates: 0,
            node: None,
            type_url: String::new(),
            started: false,
            wildcard: false,
            subscribed: BTreeSet::new(),
            has: BTreeMap::new(),
            owes_answer: false,
        }
    }

    /// Takes a request. Changes of the subscription count even when its nonce is stale.
    /// # Errors
    /// [`SdsError`] ends the stream.
    pub(crate) fn on_request(
        &mut self,
        request: DeltaDiscoveryRequest,
    ) -> Result<Option<DeltaReply>, SdsError> {
        if let Some(detail) = &request.error_detail {
            tracing::error!(error = %detail.message, "Envoy reported errors applying secrets");
        }
        if request.initial_resource_versions.len() > MAX_NAMES {
            return Err(SdsError::TooManyNames);
        }
        let first = !std::mem::replace(&mut self.started, true);
        if first {
            self.has = request
                .initial_resource_versions
                .into_iter()
                .map(|(name, version)| (name, Some(version)))
                .collect();
            // A first request that names nothing subscribes to everything.
            self.wildcard = request.resource_names_subscribe.is_empty();
            self.owes_answer = self.wildcard;
        }
        if request.node.is_some() {
            self.node = request.node;
        }
        if !request.type_url.is_empty() {
            self.type_url = request.type_url;
        }
        self.subscribe(request.resource_names_subscribe, first)?;
        self.unsubscribe(&request.resource_names_unsubscribe);
        self.answer()
    }

    /// Takes an update.
    /// # Errors
    /// [`SdsError`] ends the stream.
    pub(crate) fn on_update(&mut self, update: Arc<WorkloadUpdate>) -> Result<Option<DeltaReply>, SdsError> {
        self.updates += 1;
        self.update = Some(update);
        self.answer()
    }

    /// A name that is subscribed to anew is sent again even if the client should have it: it may have forgotten.
    fn subscribe(&mut self, names: Vec<String>, first: bool) -> Result<(), SdsError> {
        for name in names {
            if name == WILDCARD {
                self.owes_answer |= !std::mem::replace(&mut self.wildcard, true);
                continue;
            }
            if !first {
                self.has.remove(&name);
            }
            self.subscribed.insert(name);
        }
        match self.subscribed.len() > MAX_NAMES {
            true => Err(SdsError::TooManyNames),
            false => Ok(()),
        }
    }

    /// Under a wildcard the resource stays wanted, and is sent once more so that the client knows.
    fn unsubscribe(&mut self, names: &[String]) {
        for name in names {
            if name == WILDCARD {
                self.wildcard = false;
                let subscribed = &self.subscribed;
                self.has.retain(|name, _| subscribed.contains(name));
                continue;
            }
            self.subscribed.remove(name);
            self.has.remove(name);
        }
    }

    fn look_up(&self) -> Result<Option<Found>, SdsError> {
        let Some(update) = self.update.as_ref().filter(|_| self.started) else { return Ok(None) };
        let form = Form::of(&self.config, self.node.as_ref());
        let mut found = match self.wildcard {
            true => resolve(&self.config, update, Wanted::All, form)?,
            false => Found::default(),
        };
        let extra: BTreeSet<String> = self
            .subscribed
            .iter()
            .filter(|name| !found.resources.iter().any(|r| r.name == **name))
            .cloned()
            .collect();
        if !extra.is_empty() {
            let mut named = resolve(&self.config, update, Wanted::Named(&extra), form)?;
            named.withdraw(|name| matches!(self.has.get(name), Some(Some(_))), form);
            found.resources.extend(named.resources);
            found.missing = named.missing;
        }
        Ok(Some(found))
    }

    fn answer(&mut self) -> Result<Option<DeltaReply>, SdsError> {
        let Some(found) = self.look_up()? else { return Ok(None) };
        let removed = self.removed(&found);
        let is_new =
            |resource: &Resource| self.has.get(&resource.name) != Some(&Some(resource.version.clone()));
        let resources: Vec<Resource> = found.resources.into_iter().filter(is_new).collect();
        if resources.is_empty() && removed.is_empty() && !self.owes_answer {
            return Ok(None);
        }
        self.owes_answer = false;
        self.has
            .extend(resources.iter().map(|resource| (resource.name.clone(), Some(resource.version.clone()))));
        self.forget(&removed);
        Ok(Some(DeltaReply {
            system_version_info: self.updates.to_string(),
            nonce: new_nonce(),
            type_url: self.type_url.clone(),
            resources,
            removed,
        }))
    }

    /// What the client has, or waits for, and cannot have (any more).
    fn removed(&self, found: &Found) -> Vec<String> {
        let exists = |name: &str| found.resources.iter().any(|resource| resource.name == name);
        let lost = self
            .has
            .iter()
            .filter(|(name, version)| version.is_some() && !exists(name))
            .map(|(name, _)| name);
        let never_there = found.missing.iter().filter(|name| !self.has.contains_key(*name));
        let names: BTreeSet<&String> = lost.chain(never_there).collect();
        names.into_iter().cloned().collect()
    }

    fn forget(&mut self, removed: &[String]) {
        for name in removed {
            match self.subscribed.contains(name) {
                true => self.has.insert(name.clone(), None),
                false => self.has.remove(name),
            };
        }
    }
}
