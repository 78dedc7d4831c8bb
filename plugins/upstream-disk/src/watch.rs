//! Noticing that the files changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use svid_plugin_api::PluginError;

use crate::{DiskConfig, Files, UpstreamDisk};

/// How often the files are looked at. A look costs three calls of stat: unlike a watch by the kernel it sees a symlink
/// above a file that is swapped, as Kubernetes does it, and works on every file system.
const INTERVAL: Duration = Duration::from_secs(1);

/// What changes when a file is written, replaced, or reached through another symlink. None if it cannot be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The stamps of all files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stamps(Vec<Option<Stamp>>);

impl Stamps {
    pub(crate) fn of(config: &DiskConfig) -> Self {
        let files =
            [Some(&config.cert_file_path), Some(&config.key_file_path), config.bundle_file_path.as_ref()];
        Self(files.into_iter().flatten().map(|path| stamp(path)).collect())
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let facts = fs::metadata(path).ok()?;
    Some(Stamp {
        device: facts.dev(),
        inode: facts.ino(),
        length: facts.size(),
        modified: (facts.mtime(), facts.mtime_nsec()),
        changed: (facts.ctime(), facts.ctime_nsec()),
    })
}

/// Reads the files again whenever they change, for as long as the plugin lives.
async fn follow(files: Weak<Files>) {
    let mut said: Option<PluginError> = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(files) = files.upgrade() else { return };
        // Reading and proving is a few signatures and small files; off the threads that serve requests all the same.
        let looked = tokio::task::spawn_blocking(move || files.look()).await;
        said = match looked {
            Ok(Err(error)) => {
                if said.as_ref() != Some(&error) {
                    tracing::warn!(%error, "Upstream CA files cannot be used; going on with what was read before");
                }
                Some(error)
            }
            _ => None,
        };
    }
}

impl UpstreamDisk {
    /// Follows the files: new roots are published when they change, without waiting for the next CA. To be spawned.
    pub fn follow(&self) -> impl Future<Output = ()> + Send + use<> {
        follow(Arc::downgrade(&self.0))
    }
}
