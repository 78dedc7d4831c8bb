//! Keys that outlive the process, in one file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use svid_core::key::{KeyType, Signer};
use svid_plugin_api::{KeyManager, PluginError};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::file::{self, Keys};
use crate::{check_id, new_key, wrapping};

/// KeyManager `disk`. One process at a time: the data directory's lock sees to that.
#[derive(Debug)]
pub struct DiskKeyManager {
    path: PathBuf,
    keys: Mutex<Arc<Keys>>,
}

impl DiskKeyManager {
    /// Opens the file at `path` (the server's `keys_path`), which need not exist yet; its directory is made.
    /// # Errors
    /// The file cannot be read, is not SPIRE's JSON, is a symbolic link, or could have been written by others.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, PluginError> {
        let path = path.into();
        if path.as_os_str().is_empty() {
            return Err(PluginError::invalid("keys_path is required"));
        }
        file::create_dir(&path)?;
        let keys = file::read(&path)?;
        Ok(Self { path, keys: Mutex::new(Arc::new(keys)) })
    }

    /// Opens `keys.json` in `directory`, as agents configure it.
    /// # Errors
    /// As [`DiskKeyManager::open`].
    pub fn open_in(directory: impl AsRef<Path>) -> Result<Self, PluginError> {
        if directory.as_ref().as_os_str().is_empty() {
            return Err(PluginError::invalid("directory must be configured"));
        }
        Self::open(directory.as_ref().join("keys.json"))
    }
}

#[async_trait]
impl KeyManager for DiskKeyManager {
    async fn generate(&self, id: &str, kind: KeyType) -> Result<Arc<dyn Signer>, PluginError> {
        check_id(id)?;
        let key = Arc::new(new_key(kind).await?);
        // Held while writing, so that no write misses the key of another.
        let mut current = self.keys.lock().await;
        let mut keys = Keys::clone(&current);
        keys.insert(id.to_owned(), key.clone());
        let (path, keys) = (self.path.clone(), Arc::new(keys));
        let written = keys.clone();
        tokio::task::spawn_blocking(move || file::write(&path, &written))
            .await
            .map_err(|_| PluginError::internal("writing keys was interrupted"))??;
        *current = keys;
        Ok(key)
    }

    async fn get(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, PluginError> {
        let keys = self.keys.lock().await.clone();
        Ok(keys.get(id).map(|key| key.clone() as Arc<dyn Signer>))
    }

    async fn list(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, PluginError> {
        let keys = self.keys.lock().await.clone();
        Ok(keys.iter().map(|(id, key)| (id.clone(), key.clone() as Arc<dyn Signer>)).collect())
    }

    fn is_durable(&self) -> bool {
        true
    }

    async fn wrap_secret(&self, secret: &[u8], context: &[u8]) -> Result<Option<Vec<u8>>, PluginError> {
        // Held so that two first calls do not make two keys.
        let _turn = self.keys.lock().await;
        wrapping::wrap(&self.path, secret, context).map(Some)
    }

    async fn unwrap_secret(&self, wrapped: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, PluginError> {
        wrapping::unwrap(&self.path, wrapped, context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use svid_plugin_api::conformance;

    use super::*;

    /// The shape SPIRE writes: indented with tabs, no newline at the end. The key was made for this test.
    const SPIRE_FILE: &str = "{\n\t\"keys\": {\n\t\t\"x509-CA-A\": \"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgoSnWKmLef20T0QJqCfulu8whhqCG7sfgxZ8VIuxDun+hRANCAARuYjVLIQ4BLdrOKYQd9XBX0DaYe5tjRTxr5W6vY+4wW6iaTUtR1OBdIthhADWDYXUBMql3ykkWd7/GJ7qbcm4s\"\n\t}\n}";

    #[tokio::test]
    async fn keeps_every_promise() {
        let dir = tempfile::tempdir().unwrap();
        conformance::key_manager(&DiskKeyManager::open(dir.path().join("a/keys.json")).unwrap()).await;
        let path = dir.path().join("keys.json");
        conformance::durable_key_manager(async || {
            Arc::new(DiskKeyManager::open(&path).unwrap()) as Arc<dyn KeyManager>
        })
        .await;
    }

    #[tokio::test]
    async fn reads_and_writes_the_file_of_spire() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        fs::write(&path, SPIRE_FILE).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let keys = DiskKeyManager::open(&path).unwrap();
        let held = keys.list().await.unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!((held[0].0.as_str(), held[0].1.key_type()), ("x509-CA-A", KeyType::EcP256));
        file::write(&path, &keys.keys.lock().await.clone()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), SPIRE_FILE);
    }

    #[tokio::test]
    async fn file_and_directory_are_private_and_no_temporary_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let keys = DiskKeyManager::open_in(dir.path().join("deep/agent")).unwrap();
        fs::write(dir.path().join("deep/agent/keys.json.tmp"), "left behind").unwrap();
        keys.generate("agent-svid-A", KeyType::EcP256).await.unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("deep/agent"), mode("deep/agent/keys.json")), (0o700, 0o600));
        assert_eq!(fs::read_dir(dir.path().join("deep/agent")).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_trusted_or_read_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let check = |text: &str, mode: u32, want: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = DiskKeyManager::open(&path).unwrap_err().message;
            assert!(error.contains(want) && error.contains(path.to_str().unwrap()), "{error}");
        };
        check("", 0o600, "unable to decode keys JSON");
        check("{\"keys\": {\"a\": \"!\"}}", 0o600, "unable to parse key \"a\": not base64");
        check("{\"keys\": {\"a\": \"AAAA\"}}", 0o600, "unable to parse key \"a\": not a PKCS#8 private key");
        check("{\"keys\": [\"secret\"]}", 0o600, "unable to decode keys JSON (line 1, column ");
        check(SPIRE_FILE, 0o602, "lets everybody write it");
        fs::rename(&path, dir.path().join("real.json")).unwrap();
        symlink(dir.path().join("real.json"), &path).unwrap();
        let error = DiskKeyManager::open(&path).unwrap_err().message;
        assert!(error.contains("symbolic link"), "{error}");
        assert!(DiskKeyManager::open("").is_err());
        assert!(DiskKeyManager::open_in("").is_err());
    }

    #[test]
    fn readable_by_a_group_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        fs::write(&path, SPIRE_FILE).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o660)).unwrap();
        assert!(DiskKeyManager::open(&path).is_ok());
    }

    #[tokio::test]
    async fn a_failed_write_keeps_the_old_keys() {
        let dir = tempfile::tempdir().unwrap();
        let keys = DiskKeyManager::open(dir.path().join("gone/keys.json")).unwrap();
        fs::remove_dir_all(dir.path().join("gone")).unwrap();
        let error = keys.generate("a", KeyType::EcP256).await.unwrap_err().message;
        assert!(error.contains("unable to write keys to"), "{error}");
        assert!(keys.get("a").await.unwrap().is_none());
    }
}
