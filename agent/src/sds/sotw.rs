//! The state-of-the-world protocol of one stream, as a pure function of requests and updates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use svid_proto::envoy::config::core::v3::Node;
use svid_proto::envoy::service::discovery::v3::DiscoveryRequest;

use super::resources::{Form, Found, Resource, Wanted, resolve};
use super::respond::Reply;
use super::{MAX_NAMES, MAX_REFUSALS, SdsError, new_nonce};
use crate::cache::WorkloadUpdate;
use crate::config::SdsConfig;

/// What a client asked for last.
struct Asked {
    names: BTreeSet<String>,
    type_url: String,
}

/// What was sent last.
struct Sent {
    nonce: String,
    version_info: String,
    /// Version of each resource as the client has it.
    versions: BTreeMap<String, String>,
}

/// One stream. Versions count cache updates from 1, so a client sees them grow.
pub(crate) struct Sotw {
    config: Arc<SdsConfig>,
    update: Option<Arc<WorkloadUpdate>>,
    updates: u64,
    node: Option<Node>,
    asked: Option<Asked>,
    sent: Option<Sent>,
    refusals: u32,
}

impl Sotw {
    pub(crate) fn new(config: Arc<SdsConfig>) -> Self {
        Self { config, update: None, updates: 0, node: None, asked: None, sent: None, refusals: 0 }
    }

    /// Takes a request; answers it unless it is stale, a mere acknowledgement, or nothing is known yet.
    /// # Errors
    /// [`SdsError`] ends the stream.
    pub(crate) fn on_request(&mut self, request: DiscoveryRequest) -> Result<Option<Reply>, SdsError> {
        let names: BTreeSet<String> =
            request.resource_names.into_iter().filter(|name| !name.is_empty()).collect();
        if names.len() > MAX_NAMES {
            return Err(SdsError::TooManyNames);
        }
        if let Some(detail) = &request.error_detail {
            tracing::error!(resource_names = ?names, error = %detail.message, "Envoy reported errors applying secrets");
        }
        if !self.is_current(&request.response_nonce) {
            return Ok(None);
        }
        self.note_verdict(&request.version_info);
        if request.node.is_some() {
            self.node = request.node;
        }
        let changed = self.asked.as_ref().is_none_or(|asked| asked.names != names);
        self.asked = Some(Asked { names, type_url: request.type_url });
        if !changed || self.refusals > MAX_REFUSALS {
            return Ok(None);
        }
        self.answer_all()
    }

    /// Takes an update; answers the last request if anything in the answer is new.
    /// # Errors
    /// [`SdsError`] ends the stream.
    pub(crate) fn on_update(&mut self, update: Arc<WorkloadUpdate>) -> Result<Option<Reply>, SdsError> {
        self.updates += 1;
        self.refusals = 0;
        self.update = Some(update);
        let Some(sent) = &self.sent else { return self.answer_all() };
        let Some(found) = self.look_up()? else { return Ok(None) };
        let is_new = |resource: &Resource| sent.versions.get(&resource.name) != Some(&resource.version);
        let vanished = || found.resources.len() < sent.versions.len();
        if !found.resources.iter().any(is_new) && !vanished() {
            return Ok(None);
        }
        // A client that asked for everything learns from absence what it lost. One that named its resources keeps
        // what is not in the response, so it gets only what is new.
        let everything = self.asked.as_ref().is_some_and(|asked| asked.names.is_empty());
        let resources =
            found.resources.into_iter().filter(|resource| everything || is_new(resource)).collect();
        Ok(Some(self.reply(resources, everything)))
    }

    /// True for a first request and for one that refers to the last response; others were overtaken.
    fn is_current(&self, nonce: &str) -> bool {
        let Some(sent) = self.sent.as_ref().filter(|sent| sent.nonce != nonce) else { return true };
        tracing::warn!(nonce, expect = sent.nonce, "Received unexpected nonce; ignoring request");
        false
    }

    fn note_verdict(&mut self, version_info: &str) {
        let Some(sent) = &self.sent else { return };
        if version_info == sent.version_info {
            self.refusals = 0;
            return;
        }
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals <= MAX_REFUSALS {
            tracing::error!(
                version_info,
                expect = sent.version_info,
                "Client rejected expected version and rolled back"
            );
        }
    }

    fn look_up(&self) -> Result<Option<Found>, SdsError> {
        let (Some(asked), Some(update)) = (&self.asked, &self.update) else { return Ok(None) };
        let wanted = if asked.names.is_empty() { Wanted::All } else { Wanted::Named(&asked.names) };
        let form = Form::of(&self.config, self.node.as_ref());
        let mut found = resolve(&self.config, update, wanted, form)?;
        let had = |name: &str| self.sent.as_ref().is_some_and(|sent| sent.versions.contains_key(name));
        found.withdraw(had, form);
        match found.missing.is_empty() {
            true => Ok(Some(found)),
            false => Err(SdsError::NotAuthorized(found.missing)),
        }
    }

    fn answer_all(&mut self) -> Result<Option<Reply>, SdsError> {
        let Some(found) = self.look_up()? else { return Ok(None) };
        Ok(Some(self.reply(found.resources, true)))
    }

    /// `whole`: the response is all that the client will have.
    fn reply(&mut self, resources: Vec<Resource>, whole: bool) -> Reply {
        let (nonce, version_info) = (new_nonce(), self.updates.to_string());
        let mut versions = self.sent.take().map(|sent| sent.versions).filter(|_| !whole).unwrap_or_default();
        versions.extend(resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())));
        self.sent = Some(Sent { nonce: nonce.clone(), version_info: version_info.clone(), versions });
        let type_url = self.asked.as_ref().map(|asked| asked.type_url.clone()).unwrap_or_default();
        Reply { version_info, nonce, type_url, resources }
    }
}
