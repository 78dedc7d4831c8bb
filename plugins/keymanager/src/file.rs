//! `keys.json` as SPIRE writes it: `{"keys": {"<id>": "<base64 of PKCS#8>"}}`, indented with tabs.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use nix::unistd::Uid;
use serde::Deserialize;
use svid_core::key::{LocalKey, PrivateKeyDer};
use svid_plugin_api::PluginError;
use zeroize::Zeroizing;

/// Largest file we read, in bytes. A server's six RSA-4096 keys take 20 KiB.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

pub(crate) type Keys = BTreeMap<String, Arc<LocalKey>>;

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow, default)]
    keys: BTreeMap<String, &'a str>,
}

/// Reads the keys; none if there is no file.
pub(crate) fn read(path: &Path) -> Result<Keys, PluginError> {
    let Some(bytes) = read_private(path)? else { return Ok(Keys::new()) };
    decode(&bytes).map_err(|reason| PluginError::internal(format!("{}: {reason}", path.display())))
}

pub(crate) fn read_private(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, PluginError> {
    let fail =
        |what: &str| PluginError::internal(format!("unable to read keys from {}: {what}", path.display()));
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).bits());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(nix::libc::ELOOP) => {
            return Err(fail("it is a symbolic link"));
        }
        Err(error) => return Err(fail(&error.to_string())),
    };
    let facts = file.metadata().map_err(|error| fail(&error.to_string()))?;
    check_owner_and_mode(path, &facts).map_err(|reason| fail(&reason))?;
    if facts.len() > MAX_FILE_BYTES {
        return Err(fail("it is larger than 4 MiB"));
    }
    // Reserved in full, so that growing leaves no copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(facts.len() as usize + 1));
    file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|error| fail(&error.to_string()))?;
    Ok(Some(bytes))
}

/// Who could have written the file decides whether it is believed; who can read it is only warned about, since
/// Kubernetes' `fsGroup` opens volumes to a group and the next write closes the file again.
fn check_owner_and_mode(path: &Path, facts: &fs::Metadata) -> Result<(), String> {
    if !facts.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if facts.uid() != Uid::effective().as_raw() && facts.uid() != 0 {
        return Err(format!("it belongs to uid {}, not to this process or root", facts.uid()));
    }
    let mode = facts.mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(format!(
            "its mode {mode:04o} lets everybody write it; run: chmod 0600 {}",
            path.display()
        ));
    }
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), mode = format!("{mode:04o}"), "Private keys are readable by others; the mode should be 0600");
    }
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<Keys, String> {
    // serde_json's words hold a line and a column, never the text.
    let document: Document<'_> = serde_json::from_slice(bytes).map_err(|error| {
        format!("unable to decode keys JSON (line {}, column {})", error.line(), error.column())
    })?;
    document.keys.into_iter().map(|(id, text)| decode_key(&id, text).map(|key| (id, Arc::new(key)))).collect()
}

fn decode_key(id: &str, text: &str) -> Result<LocalKey, String> {
    let bytes = STANDARD.decode(text).map_err(|_| format!("unable to parse key {id:?}: not base64"))?;
    LocalKey::from_pkcs8(PrivateKeyDer::from_pkcs8(bytes))
        .map_err(|error| format!("unable to parse key {id:?}: {error}"))
}

/// Replaces the file: whole and durable, or not at all.
pub(crate) fn write(path: &Path, keys: &Keys) -> Result<(), PluginError> {
    let text = encode(keys);
    replace(path, text.as_bytes()).map_err(|error| {
        PluginError::internal(format!("unable to write keys to {}: {error}", path.display()))
    })
}

fn encode(keys: &Keys) -> Zeroizing<String> {
    let room = keys
        .iter()
        .map(|(id, key)| id.len() * 6 + key.private_key().secret_bytes().len() * 2 + 16)
        .sum::<usize>();
    let mut text = Zeroizing::new(String::with_capacity(room + 64));
    text.push_str("{\n\t\"keys\": {");
    for (at, (id, key)) in keys.iter().enumerate() {
        text.push_str(if at == 0 { "\n\t\t" } else { ",\n\t\t" });
        text.push_str(&serde_json::Value::from(id.as_str()).to_string());
        text.push_str(": \"");
        STANDARD.encode_string(key.private_key().secret_bytes(), &mut text);
        text.push('"');
    }
    text.push_str(if keys.is_empty() { "}\n}" } else { "\n\t}\n}" });
    text
}

/// Temporary name, fsync, rename, fsync of the directory.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = parent(path);
    let temporary = temporary(path);
    // Left behind by a process that was killed here.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Makes the directory that the file lies in, for its owner only.
pub(crate) fn create_dir(path: &Path) -> Result<(), PluginError> {
    let dir = parent(path);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        PluginError::internal(format!("unable to create directory {}: {error}", dir.display()))
    })
}
