//! The file that says which keys of the engine are this server's.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use svid_plugin_api::{PluginCode, PluginError};
use uuid::Uuid;

use super::config::KeyIdentifier;
use crate::files;

/// The identifier of this server; a missing file is made with a random one.
pub(super) fn server_id(identifier: &KeyIdentifier) -> Result<String, PluginError> {
    let path = match identifier {
        KeyIdentifier::Value(value) => return Ok(value.clone()),
        KeyIdentifier::File(path) => path,
    };
    let words = |what: &str, error: &dyn std::fmt::Display| {
        PluginError::new(
            PluginCode::FailedPrecondition,
            format!("key_identifier_file {path:?}: {what}: {error}"),
        )
    };
    if !path.try_exists().map_err(|error| words("failed to read server ID from path", &error))? {
        let id = Uuid::new_v4().to_string();
        create(path, id.as_bytes()).map_err(|error| words("failed to persist server ID on path", &error))?;
        return Ok(id);
    }
    let bytes =
        files::read("key_identifier_file", path).map_err(|error| PluginError::invalid(error.to_string()))?;
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    let id = Uuid::parse_str(text).map_err(|error| words("failed to parse server ID from path", &error))?;
    Ok(id.to_string())
}

/// A new file under its name only once it is whole.
fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_and_then_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        let identifier = KeyIdentifier::File(path.clone());
        let first = server_id(&identifier).unwrap();
        assert_eq!(server_id(&identifier).unwrap(), first);
        fs::write(&path, format!("{first}\n")).unwrap();
        assert_eq!(server_id(&identifier).unwrap(), first);
        fs::write(&path, "nonsense").unwrap();
        let error = server_id(&identifier).unwrap_err();
        assert!(error.message.contains("failed to parse server ID from path"), "{error}");
        let nowhere = KeyIdentifier::File(dir.path().join("missing/id"));
        assert!(server_id(&nowhere).unwrap_err().message.contains("failed to persist"));
    }
}
