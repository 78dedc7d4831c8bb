//! Background work: keys that were replaced are deleted, keys in use are stamped, and what servers that are gone left
//! behind is swept away. Times are SPIRE's.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_sdk_kms::Client;
use aws_sdk_kms::error::SdkError;
use aws_sdk_kms::operation::schedule_key_deletion::ScheduleKeyDeletionError;
use aws_sdk_kms::primitives::DateTime;
use svid_core::clock::unix_seconds;
use svid_plugin_api::PluginError;
use tokio::sync::mpsc;

use super::discover::tag_of;
use super::manager::Kms;
use super::service::enqueue;
use super::tags;
use crate::errors::Call;

const STAMP_EVERY: Duration = Duration::from_secs(6 * 3600);
/// In stamps: aliases left behind are looked for each day, keys every other.
const ALIASES_EVERY: u32 = 4;
const KEYS_EVERY: u32 = 8;
/// A server that did not stamp for so long is gone.
const GONE_AFTER: Duration = Duration::from_secs(14 * 24 * 3600);
/// A key without an alias for so long was left behind by a crash.
const ORPHANED_AFTER: Duration = Duration::from_secs(48 * 3600);
/// The shortest that KMS allows.
const PENDING_DAYS: i32 = 7;
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// By how much the wall clock may have moved against the monotonic one since the start.
const MAX_DRIFT: Duration = Duration::from_secs(300);
const KEYS_A_PAGE: i32 = 1000;
const ALIASES_A_PAGE: i32 = 100;

/// Schedules the deletion of what comes through the queue.
pub(super) async fn delete(
    client: Client,
    again: mpsc::WeakSender<String>,
    mut queue: mpsc::Receiver<String>,
) {
    let mut backoff = MIN_BACKOFF;
    while let Some(arn) = queue.recv().await {
        let Err(error) = schedule(&client, &arn).await else {
            tracing::debug!(key_arn = arn, "Key deleted");
            backoff = MIN_BACKOFF;
            continue;
        };
        let reason = deletion_refused(&arn, &error);
        if is_final(&error) {
            tracing::error!(key_arn = arn, %reason, "Failed to schedule key deletion");
            continue;
        }
        tracing::error!(key_arn = arn, %reason, "It was not possible to schedule key for deletion");
        if let Some(again) = again.upgrade() {
            enqueue(&again, arn);
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
        tokio::time::sleep(backoff).await;
    }
}

async fn schedule(client: &Client, arn: &str) -> Result<(), SdkError<ScheduleKeyDeletionError>> {
    let request = client.schedule_key_deletion().key_id(arn).pending_window_in_days(PENDING_DAYS);
    request.send().await.map(drop)
}

fn deletion_refused(arn: &str, error: &SdkError<ScheduleKeyDeletionError>) -> PluginError {
    let call = Call { failed: "failed to schedule key deletion", action: "kms:ScheduleKeyDeletion", on: arn };
    call.error(error)
}

/// True if trying again does not help: no such key, or it is being deleted already.
fn is_final(error: &SdkError<ScheduleKeyDeletionError>) -> bool {
    let SdkError::ServiceError(error) = error else { return false };
    let error = error.err();
    error.is_not_found_exception()
        || error.is_invalid_arn_exception()
        || error.is_kms_invalid_state_exception()
}

/// Stamps and sweeps until dropped.
pub(super) async fn run(kms: Arc<Kms>) {
    let begun = (Instant::now(), kms.clock.now());
    for turn in 1u32.. {
        tokio::time::sleep(STAMP_EVERY).await;
        kms.stamp().await;
        let now = kms.clock.now();
        if !agrees(begun, now) {
            tracing::warn!(
                "The clock was moved since the start: nothing is deleted that only its age calls left behind"
            );
            continue;
        }
        let swept = match kms.by_tags {
            true if turn.is_multiple_of(KEYS_EVERY) => kms.sweep_tagged(now).await,
            false if turn.is_multiple_of(ALIASES_EVERY) => {
                let aliases = kms.sweep_aliases(now).await;
                let keys = if turn.is_multiple_of(KEYS_EVERY) { kms.sweep_keys(now).await } else { Ok(()) };
                aliases.and(keys)
            }
            _ => Ok(()),
        };
        if let Err(reason) = swept {
            tracing::error!(%reason, "Failed to look for keys that were left behind");
        }
    }
}

/// True if the wall clock went on as the monotonic one did.
fn agrees((instant, time): (Instant, SystemTime), now: SystemTime) -> bool {
    let expected = time + instant.elapsed();
    let drift = now.duration_since(expected).unwrap_or_else(|error| error.duration());
    drift <= MAX_DRIFT
}

fn age(at: Option<&DateTime>, now: SystemTime) -> Duration {
    let at = at.and_then(|at| u64::try_from(at.secs()).ok()).map(Duration::from_secs);
    let at = at.map(|at| SystemTime::UNIX_EPOCH + at);
    at.and_then(|at| now.duration_since(at).ok()).unwrap_or_default()
}

impl Kms {
    /// Shows that this server's keys are in use: its aliases are set to what they are, and in tag mode its keys get the
    /// time of now.
    pub(super) async fn stamp(&self) {
        let keys: Vec<(String, String)> =
            self.keys().iter().map(|(id, held)| (self.names.alias(id), held.key.arn().to_owned())).collect();
        for (alias, arn) in keys {
            if let Err(reason) = self.stamp_alias(&alias, &arn).await {
                tracing::error!(alias_name = alias, key_arn = arn, %reason, "Failed to refresh alias");
            }
            if !self.by_tags {
                continue;
            }
            if let Err(reason) = self.set_tag(&arn, tags::LAST_UPDATE, &self.clock.unix().to_string()).await {
                tracing::error!(key_arn = arn, %reason, "Failed to update last-update tag");
            }
        }
    }

    async fn stamp_alias(&self, alias: &str, arn: &str) -> Result<(), PluginError> {
        let current = self.describe(alias).await?.arn.unwrap_or_default();
        if current != arn {
            // Another server of the same identifier has rotated: that must not be undone.
            tracing::warn!(
                alias_name = alias,
                cached_arn = arn,
                current_arn = current,
                "Alias target differs from cache, skipping refresh to avoid reverting a rotation"
            );
            return Ok(());
        }
        let call = Call { failed: "failed to update alias", action: "kms:UpdateAlias", on: alias };
        let updated = self.client.update_alias().alias_name(alias).target_key_id(arn).send().await;
        updated.map(drop).map_err(|error| call.error(&error))
    }

    async fn set_tag(&self, arn: &str, key: &str, value: &str) -> Result<(), PluginError> {
        let call = Call { failed: "failed to tag key", action: "kms:TagResource", on: arn };
        let tagged = self.client.tag_resource().key_id(arn).tags(tags::tag(key, value)?).send().await;
        tagged.map(drop).map_err(|error| call.error(&error))
    }

    /// Aliases of other servers of the trust domain that nobody has stamped for long, and their keys.
    pub(super) async fn sweep_aliases(&self, now: SystemTime) -> Result<(), PluginError> {
        let call = Call { failed: "failed to fetch aliases to dispose", action: "kms:ListAliases", on: "*" };
        let (domain, own) = (self.names.domain_aliases(), self.names.server_aliases());
        let mut pages = self.client.list_aliases().limit(ALIASES_A_PAGE).into_paginator().send();
        while let Some(page) = pages.next().await {
            for alias in page.map_err(|error| call.error(&error))?.aliases.unwrap_or_default() {
                let name = alias.alias_name.as_deref().unwrap_or_default();
                let is_others = name.starts_with(&domain) && !name.starts_with(&own);
                if !is_others || age(alias.last_updated_date.as_ref(), now) < GONE_AFTER {
                    continue;
                }
                if let Err(reason) = self.dispose_alias(name).await {
                    tracing::error!(alias_name = name, %reason, "Failed to clean up old KMS keys.");
                }
            }
        }
        Ok(())
    }

    async fn dispose_alias(&self, alias: &str) -> Result<(), PluginError> {
        tracing::debug!(alias_name = alias, "Found alias in trust domain beyond threshold");
        let key = self.describe(alias).await?;
        let Some(arn) = key.arn.filter(|_| key.enabled) else { return Ok(()) };
        let call = Call { failed: "failed to delete alias", action: "kms:DeleteAlias", on: alias };
        let deleted = self.client.delete_alias().alias_name(alias).send().await;
        deleted.map_err(|error| call.error(&error))?;
        enqueue(&self.deletions, arn);
        Ok(())
    }

    /// Keys of the trust domain that never got their alias.
    pub(super) async fn sweep_keys(&self, now: SystemTime) -> Result<(), PluginError> {
        let call = Call { failed: "failed to fetch keys to dispose", action: "kms:ListKeys", on: "*" };
        let mut pages = self.client.list_keys().limit(KEYS_A_PAGE).into_paginator().send();
        while let Some(page) = pages.next().await {
            for key in page.map_err(|error| call.error(&error))?.keys.unwrap_or_default() {
                let Some(arn) = key.key_arn else { continue };
                match self.is_orphan(&arn, now).await {
                    Ok(true) => enqueue(&self.deletions, arn),
                    Ok(false) => {}
                    Err(reason) => {
                        tracing::error!(key_arn = arn, %reason, "Failed to describe key to dispose")
                    }
                }
            }
        }
        Ok(())
    }

    async fn is_orphan(&self, arn: &str, now: SystemTime) -> Result<bool, PluginError> {
        let key = self.describe(arn).await?;
        let is_ours = self.names.describes_ours(key.description.as_deref().unwrap_or_default());
        if !is_ours || !key.enabled || age(key.creation_date.as_ref(), now) < ORPHANED_AFTER {
            return Ok(false);
        }
        if self.keys().values().any(|held| held.key.arn() == arn) {
            return Ok(false);
        }
        let call = Call { failed: "failed to fetch alias for key", action: "kms:ListAliases", on: arn };
        let aliases = self.client.list_aliases().key_id(arn).limit(1).send().await;
        Ok(aliases.map_err(|error| call.error(&error))?.aliases.unwrap_or_default().is_empty())
    }

    /// Keys of other servers of the trust domain whose stamp is old.
    pub(super) async fn sweep_tagged(&self, now: SystemTime) -> Result<(), PluginError> {
        let limit = unix_seconds(now.checked_sub(GONE_AFTER).unwrap_or(SystemTime::UNIX_EPOCH));
        for resource in self.tagged(None).await? {
            let Some(arn) = resource.resource_arn.as_deref() else { continue };
            if tag_of(&resource, tags::SERVER_ID) == Some(self.names.server_id()) {
                continue;
            }
            // Keys without a stamp are as old as can be: each gets one when it is made.
            let stamp = tag_of(&resource, tags::LAST_UPDATE).unwrap_or("0");
            match stamp.parse::<i64>() {
                Ok(stamp) if stamp > limit => {}
                Ok(_) => self.dispose_tagged(arn).await,
                Err(_) => {
                    tracing::warn!(key_arn = arn, "Malformed spire-last-update tag value, skipping key")
                }
            }
        }
        Ok(())
    }

    /// Marked as inactive only once the deletion is scheduled: nothing else would find it again.
    async fn dispose_tagged(&self, arn: &str) {
        tracing::debug!(key_arn = arn, "Found stale key beyond threshold");
        if let Err(error) = schedule(&self.client, arn).await
            && !is_final(&error)
        {
            let reason = deletion_refused(arn, &error);
            tracing::error!(key_arn = arn, %reason, "Failed to schedule key for deletion");
            return;
        }
        if let Err(reason) = self.set_tag(arn, tags::ACTIVE, "false").await {
            tracing::error!(key_arn = arn, %reason, "Failed to mark key as inactive");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_clock_is_noticed() {
        let begun = (Instant::now(), SystemTime::UNIX_EPOCH + STAMP_EVERY);
        assert!(agrees(begun, begun.1));
        assert!(agrees(begun, begun.1 + Duration::from_secs(60)));
        assert!(!agrees(begun, begun.1 + GONE_AFTER));
        assert!(!agrees(begun, begun.1 - Duration::from_secs(3600)));
    }

    #[test]
    fn ages() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(age(Some(&DateTime::from_secs(40)), now), Duration::from_secs(60));
        assert_eq!(age(Some(&DateTime::from_secs(140)), now), Duration::ZERO);
        assert_eq!(age(None, now), Duration::ZERO, "without a date nothing is old");
    }
}
