//! WorkloadAttestor `unix`: what the kernel says about a calling process, as selectors.
//!
//! User and groups are the credentials that the kernel pinned when the caller connected; the executable is the
//! file that [`Caller::executable`] proved to lie at its path. Nothing here is read by process ID.

mod hashes;
mod names;

use std::path::Path;

use async_trait::async_trait;
use svid_core::hcl::{self, Body, Reader, Report, Unknown};
use svid_core::selector::Selector;
use svid_plugin_api::{Caller, Executable, PluginError, WorkloadAttestor};

use crate::hashes::Hashes;
use crate::names::{Database, Names};

/// The plugin's name and the type of its selectors.
pub const NAME: &str = "unix";
/// Most supplementary groups of a caller. The kernel allows 65536, and each would be looked up and make two selectors.
const MAX_GROUPS: usize = 1024;

/// What `plugin_data` may say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixConfig {
    /// Also make `path` and, unless the limit forbids it, `sha256` selectors.
    pub discover_workload_path: bool,
    /// Largest executable to hash in bytes. 0: no limit; negative: none is hashed. A larger one fails attestation.
    pub workload_size_limit: i64,
}

impl UnixConfig {
    /// Reads a `plugin_data` block. The value is only meant to be used when the report holds no errors.
    pub fn read(body: &Body) -> (Self, Report) {
        hcl::decode(body, Self::from_reader)
    }

    fn from_reader(reader: &mut Reader) -> Self {
        let config = Self {
            discover_workload_path: reader.bool("discover_workload_path").unwrap_or_default(),
            workload_size_limit: reader.int("workload_size_limit").unwrap_or_default(),
        };
        reader.finish(Unknown::Refuse);
        config
    }

    /// The limit on hashing: `None` when nothing is hashed, `u64::MAX` when there is no limit.
    fn hash_limit(&self) -> Option<u64> {
        match u64::try_from(self.workload_size_limit) {
            Ok(0) => Some(u64::MAX),
            Ok(limit) => Some(limit),
            Err(_) => None,
        }
    }
}

/// The attestor. Its caches are bounded: names by age, hashes by number.
pub struct UnixAttestor {
    config: UnixConfig,
    users: Names,
    groups: Names,
    hashes: Hashes,
}

impl UnixAttestor {
    /// An attestor with empty caches.
    pub fn new(config: UnixConfig) -> Self {
        Self {
            config,
            users: Names::new(Database::Users),
            groups: Names::new(Database::Groups),
            hashes: Hashes::default(),
        }
    }

    async fn push_ids(&self, caller: &dyn Caller, values: &mut Vec<String>) {
        let (uid, gid, more) = (caller.uid(), caller.gid(), caller.groups());
        let users = self.users.of(std::iter::once(uid)).await;
        let groups = self.groups.of(std::iter::once(gid).chain(more.iter().copied())).await;
        let mut push = |id_kind: &str, id: u32, name_kind: &str, name: Option<&Option<String>>| {
            values.push(format!("{id_kind}:{id}"));
            values.extend(name.and_then(Option::as_ref).map(|name| format!("{name_kind}:{name}")));
        };
        push("uid", uid, "user", users.first());
        push("gid", gid, "group", groups.first());
        for (id, name) in more.iter().zip(groups.iter().skip(1)) {
            push("supplementary_gid", *id, "supplementary_group", Some(name));
        }
    }

    async fn push_executable(
        &self,
        caller: &dyn Caller,
        values: &mut Vec<String>,
    ) -> Result<(), PluginError> {
        let Executable { path, file } = caller.executable()?;
        values.push(format!("path:{}", path_text(&path)?));
        if let Some(limit) = self.config.hash_limit() {
            let hash = self.hashes.sha256(file, limit).await;
            let hash = hash
                .map_err(|err| PluginError::internal(format!("SHA256 digest: {}: {err}", path.display())))?;
            values.push(format!("sha256:{hash}"));
        }
        Ok(())
    }
}

/// A path that is not UTF-8 cannot be a selector, and a lossy one could stand for another file.
fn path_text(path: &Path) -> Result<&str, PluginError> {
    path.to_str().ok_or_else(|| PluginError::internal("path lookup: the executable's path is not UTF-8"))
}

#[async_trait]
impl WorkloadAttestor for UnixAttestor {
    fn name(&self) -> &str {
        NAME
    }

    async fn attest(&self, caller: &dyn Caller) -> Result<Vec<Selector>, PluginError> {
        let groups = caller.groups().len();
        if groups > MAX_GROUPS {
            let message =
                format!("the caller has {groups} supplementary groups; at most {MAX_GROUPS} are supported");
            return Err(PluginError::internal(message));
        }
        let mut values = Vec::with_capacity(8 + 2 * groups);
        self.push_ids(caller, &mut values).await;
        if self.config.discover_workload_path {
            self.push_executable(caller, &mut values).await?;
        }
        let selectors = values.iter().map(|value| Selector::new(NAME, value));
        selectors.collect::<Result<_, _>>().map_err(|err| PluginError::internal(err.to_string()))
    }
}

#[cfg(test)]
mod tests;
