//! Which keys are this server's: those its aliases point to, or those its tags are on.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::types::{AliasListEntry, KeyMetadata};
use aws_sdk_resourcegroupstagging::types::ResourceTagMapping;
use svid_plugin_api::remote_key::key_type_of;
use svid_plugin_api::{PluginCode, PluginError};

use super::manager::Kms;
use super::service::Held;
use super::tags;
use crate::errors::Call;

const ALIASES_A_PAGE: i32 = 100;

type Found = BTreeMap<String, Held>;

impl Kms {
    /// The keys that this server's aliases point to.
    pub(super) async fn find_by_alias(&self) -> Result<Found, PluginError> {
        let mut found = Found::new();
        for (id, alias) in self.own_aliases().await? {
            let name = alias.alias_name.as_deref().unwrap_or_default();
            if alias.target_key_id.is_none() {
                let text = format!("failed to fetch aliases: found SPIRE alias without key: name={name:?}");
                return Err(PluginError::new(PluginCode::FailedPrecondition, text));
            }
            let key = self.describe(name).await?;
            let arn = key.arn.clone().ok_or_else(|| {
                PluginError::internal(format!("found SPIRE alias without key arn: {name:?}"))
            })?;
            if !key.enabled {
                let text = format!(
                    "failed to fetch aliases: found disabled SPIRE key: {arn:?}, alias: {name:?}; enable the key or \
                     cancel its deletion, or delete the alias to have another key made"
                );
                return Err(PluginError::new(PluginCode::FailedPrecondition, text));
            }
            let held = self.hold(arn).await?;
            tracing::debug!(key_arn = held.key.arn(), alias_name = name, "Key loaded");
            found.insert(id, held);
        }
        Ok(found)
    }

    async fn own_aliases(&self) -> Result<Vec<(String, AliasListEntry)>, PluginError> {
        let call = Call { failed: "failed to fetch aliases", action: "kms:ListAliases", on: "*" };
        let mut pages = self.client.list_aliases().limit(ALIASES_A_PAGE).into_paginator().send();
        let mut own = Vec::new();
        while let Some(page) = pages.next().await {
            let aliases = page.map_err(|error| call.error(&error))?.aliases.unwrap_or_default();
            tracing::debug!(num_aliases = aliases.len(), "Found aliases");
            own.extend(aliases.into_iter().filter_map(|alias| {
                let id = self.names.key_id(alias.alias_name.as_deref()?)?;
                Some((id, alias))
            }));
        }
        Ok(own)
    }

    /// The keys with this server's tags, and those of before it used tags, which get them now.
    pub(super) async fn find_by_tags(&self) -> Result<Found, PluginError> {
        let mut found = Found::new();
        for resource in self.tagged(Some(self.names.server_id())).await? {
            let Some(arn) = resource.resource_arn.clone() else { continue };
            let Some(id) = tag_of(&resource, tags::KEY_ID).map(str::to_owned) else {
                tracing::warn!(key_arn = arn, "Could not get SPIRE key ID from tags");
                continue;
            };
            if !self.describe(&arn).await?.enabled {
                tracing::warn!(key_arn = arn, "Skipping disabled SPIRE key found via tags");
                continue;
            }
            let held = self.hold(arn).await?;
            tracing::debug!(key_arn = held.key.arn(), "Key loaded");
            match found.entry(id) {
                Entry::Vacant(place) => drop(place.insert(held)),
                Entry::Occupied(mut place) => {
                    // A crash between making a key and its alias: the alias tells which one was in use. Without an
                    // alias neither was, and either will do.
                    let current = self.alias_target(&self.names.alias(place.key())).await?;
                    let other =
                        if current.as_deref() == Some(held.key.arn()) { place.insert(held) } else { held };
                    tracing::warn!(
                        key_arn = other.key.arn(),
                        "Of two keys of one ID the one without alias goes"
                    );
                    other.key.replaced();
                }
            }
        }
        self.migrate(&mut found).await?;
        Ok(found)
    }

    async fn migrate(&self, found: &mut Found) -> Result<(), PluginError> {
        for (id, held) in self.find_by_alias().await? {
            let arn = held.key.arn().to_owned();
            if found.get(&id).is_some_and(|known| known.key.arn() == arn) {
                continue;
            }
            tracing::info!(
                key_arn = arn,
                "Applying SPIRE tags to legacy key during migration to tag-based discovery"
            );
            let tags = tags::of_key(&self.names, &id, self.clock.unix())?;
            let tagged = self.client.tag_resource().key_id(&arn).set_tags(Some(tags)).send().await;
            if let Err(error) = tagged {
                let call = Call { failed: "failed to tag key", action: "kms:TagResource", on: &arn };
                let reason = call.error(&error);
                tracing::warn!(key_arn = arn, %reason, "Failed to apply SPIRE tags to legacy key during migration; key will still be available");
            }
            if let Some(other) = found.insert(id, held) {
                tracing::warn!(key_arn = other.key.arn(), "Of two keys of one ID the one without alias goes");
                other.key.replaced();
            }
        }
        Ok(())
    }

    /// Active keys of the trust domain, of one server where it is given, with their tags.
    pub(super) async fn tagged(
        &self,
        server_id: Option<&str>,
    ) -> Result<Vec<ResourceTagMapping>, PluginError> {
        let request = self.tagging.get_resources().resource_type_filters("kms:key");
        let request = request.set_tag_filters(Some(tags::filters(&self.names, server_id)));
        let mut pages = request.into_paginator().send();
        let mut resources = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| tags_refused(&error))?;
            resources.extend(page.resource_tag_mapping_list.unwrap_or_default());
        }
        Ok(resources)
    }

    pub(super) async fn describe(&self, key: &str) -> Result<KeyMetadata, PluginError> {
        let call = Call { failed: "failed to describe key", action: "kms:DescribeKey", on: key };
        let answer = self.client.describe_key().key_id(key).send().await;
        let metadata = answer.map_err(|error| call.error(&error))?.key_metadata;
        metadata.ok_or_else(|| PluginError::internal("malformed describe key response"))
    }

    /// The ARN of the key that an alias points to, if there is such an alias.
    pub(super) async fn alias_target(&self, alias: &str) -> Result<Option<String>, PluginError> {
        let call = Call { failed: "failed to describe key", action: "kms:DescribeKey", on: alias };
        let answer = match self.client.describe_key().key_id(alias).send().await {
            Err(SdkError::ServiceError(error)) if error.err().is_not_found_exception() => return Ok(None),
            answer => answer.map_err(|error| call.error(&error))?,
        };
        let arn = answer.key_metadata.and_then(|key| key.arn);
        arn.map(Some).ok_or_else(|| PluginError::internal("malformed describe key response"))
    }

    async fn hold(&self, arn: String) -> Result<Held, PluginError> {
        let public = self.public_key(&arn).await?;
        let kind = key_type_of(&public).ok_or_else(|| {
            PluginError::internal(format!(
                "unsupported key spec of {arn}: has to be ECC_NIST_P256, ECC_NIST_P384, RSA_2048 or RSA_4096"
            ))
        })?;
        Held::new(&self.client, &self.lane, &self.deletions, arn, kind, public)
    }
}

pub(super) fn tag_of<'a>(resource: &'a ResourceTagMapping, key: &str) -> Option<&'a str> {
    resource.tags().iter().find(|tag| tag.key() == key).map(|tag| tag.value())
}

fn tags_refused(
    error: &aws_sdk_resourcegroupstagging::error::SdkError<
        aws_sdk_resourcegroupstagging::operation::get_resources::GetResourcesError,
    >,
) -> PluginError {
    let call = Call { failed: "failed to fetch keys by tags", action: "tag:GetResources", on: "*" };
    let refused = call.error(error);
    if refused.code != PluginCode::PermissionDenied {
        return refused;
    }
    let text = format!(
        "tag-based key discovery requires the \"tag:GetResources\" permission in an identity-based IAM policy (it cannot be \
         granted through the KMS key policy); grant the permission or disable enable_tag_based_key_discovery: {}",
        refused.message
    );
    PluginError::new(PluginCode::FailedPrecondition, text)
}
