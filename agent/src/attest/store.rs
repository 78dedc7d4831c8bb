//! `agent-data.json`: what the agent remembers across restarts, in SPIRE's format.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use svid_core::clock::unix_seconds;
use svid_core::pem;
use svid_core::x509::{CertChain, X509Svid};

const FILE: &str = "agent-data.json";
/// Largest file that is read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// How Go writes the zero time.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The content is not what the agent writes.
    #[error("{path} is corrupt ({message}); move it away to attest anew", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

/// Where the agent stands in finding its first, or another, trust bundle. Numbers are SPIRE's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootstrapUse {
    /// Nothing stored yet.
    #[default]
    Unspecified,
    /// The first bundle is being looked for.
    Bootstrap,
    /// There was a bundle once.
    Rebootstrap,
}

/// What is remembered.
#[derive(Clone, Debug, Default)]
pub struct AgentData {
    /// The agent's SVID.
    pub svid: Option<X509Svid>,
    /// The trust bundle, certificates in DER; empty when none is stored.
    pub bundle: Vec<Vec<u8>>,
    /// The node may attest again at any time.
    pub reattestable: bool,
    /// State of the search for a bundle.
    pub bootstrap_use: BootstrapUse,
    /// When the search began.
    pub bootstrap_start: Option<SystemTime>,
    /// How often the source was asked in this search.
    pub connection_attempts: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Wire {
    svid: Option<Vec<String>>,
    bundle: Option<Vec<String>>,
    reattestable: bool,
    bootstrap_use: i64,
    bootstrap_start_time: String,
    connection_attempts: i64,
}

impl Default for Wire {
    fn default() -> Self {
        Self {
            svid: None,
            bundle: None,
            reattestable: false,
            bootstrap_use: 0,
            bootstrap_start_time: ZERO_TIME.into(),
            connection_attempts: 0,
        }
    }
}

/// The file and what is in it. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    data: Mutex<AgentData>,
}

impl Store {
    /// Reads the file in `dir`; an absent one is an empty one.
    /// # Errors
    /// [`StoreError`], also when the content is corrupt: going on would lose an identity that may not be had again.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let corrupt = |message| StoreError::Corrupt { path: path.clone(), message };
        let data = match read(&path)? {
            Some(text) => decode(&text).map_err(corrupt)?,
            None => AgentData::default(),
        };
        Ok(Self(Arc::new(Inner { dir: dir.to_owned(), data: Mutex::new(data) })))
    }

    /// What is remembered.
    pub fn data(&self) -> AgentData {
        self.0.data.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is remembered; it is on the disk when this returns.
    /// # Errors
    /// [`StoreError::Io`]; memory then stays as it was.
    pub fn update(&self, change: impl FnOnce(&mut AgentData)) -> Result<(), StoreError> {
        let mut data = self.0.data.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = data.clone();
        change(&mut next);
        write(&self.0.dir, &encode(&next))?;
        *data = next;
        Ok(())
    }
}

fn read(path: &Path) -> Result<Option<String>, StoreError> {
    let failed = |source| StoreError::Io { what: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE).read_to_string(&mut text).map_err(failed)?;
    Ok(Some(text))
}

/// Temporary name, fsync, rename, fsync of the directory.
fn write(dir: &Path, text: &str) -> Result<(), StoreError> {
    let temporary = dir.join(format!("{FILE}.tmp"));
    let failed = |source| StoreError::Io { what: "write", path: dir.join(FILE), source };
    let attempt = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(FILE))?;
        File::open(dir)?.sync_all()
    };
    attempt().map_err(failed)
}

fn encode(data: &AgentData) -> String {
    let certs = |ders: &[Vec<u8>]| {
        let blocks = ders.iter().map(|der| STANDARD.encode(pem::certs_to_pem([der]))).collect::<Vec<_>>();
        // Go writes nil, not an empty list, for what is not there.
        (!blocks.is_empty()).then_some(blocks)
    };
    let start = data.bootstrap_start.and_then(|at| Timestamp::try_from(at).ok());
    let wire = Wire {
        svid: certs(&data.svid.as_ref().map(|svid| svid.chain().to_ders()).unwrap_or_default()),
        bundle: certs(&data.bundle),
        reattestable: data.reattestable,
        bootstrap_use: match data.bootstrap_use {
            BootstrapUse::Unspecified => 0,
            BootstrapUse::Bootstrap => 1,
            BootstrapUse::Rebootstrap => 2,
        },
        bootstrap_start_time: start.map_or_else(|| ZERO_TIME.into(), |at| at.to_string()),
        connection_attempts: data.connection_attempts.into(),
    };
    serde_json::to_string(&wire).expect("strings and numbers always serialise")
}

fn decode(text: &str) -> Result<AgentData, String> {
    let wire: Wire = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let chain = decode_certs(wire.svid.unwrap_or_default()).map_err(|error| format!("svid: {error}"))?;
    let svid = match chain.is_empty() {
        true => None,
        false => {
            let chain = CertChain::from_certs(chain).map_err(|error| format!("svid: {error}"))?;
            Some(X509Svid::parse(chain).map_err(|error| format!("svid: {error}"))?)
        }
    };
    Ok(AgentData {
        svid,
        bundle: decode_certs(wire.bundle.unwrap_or_default()).map_err(|error| format!("bundle: {error}"))?,
        reattestable: wire.reattestable,
        bootstrap_use: match wire.bootstrap_use {
            1 => BootstrapUse::Bootstrap,
            2 => BootstrapUse::Rebootstrap,
            _ => BootstrapUse::Unspecified,
        },
        bootstrap_start: decode_time(&wire.bootstrap_start_time)?,
        connection_attempts: u32::try_from(wire.connection_attempts).unwrap_or_default(),
    })
}

fn decode_certs(blocks: Vec<String>) -> Result<Vec<Vec<u8>>, String> {
    let mut ders = Vec::new();
    for block in blocks {
        let text = STANDARD.decode(block).map_err(|error| error.to_string())?;
        ders.extend(pem::parse_certs_pem(text).map_err(|error| error.to_string())?);
    }
    Ok(ders)
}

fn decode_time(text: &str) -> Result<Option<SystemTime>, String> {
    if text.is_empty() || text.starts_with("0001-01-01") {
        return Ok(None);
    }
    let at: Timestamp = text.parse().map_err(|error| format!("bootstrap_start_time: {error}"))?;
    let at = SystemTime::from(at);
    Ok((unix_seconds(at) > 0).then_some(at))
}

/// Time since `start`; zero if the clock went back.
pub(super) fn since(start: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(start).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn round_trip_in_spires_format() {
        let dir = tempfile::tempdir().unwrap();
        let ca = TestCa::new("example.org");
        let id = "spiffe://example.org/spire/agent/x".parse().unwrap();
        let svid = ca.identity(&id, Duration::from_secs(60), SystemTime::now()).svid;
        let store = Store::open(dir.path()).unwrap();
        assert!(store.data().svid.is_none());
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        store
            .update(|data| {
                data.svid = Some(svid.clone());
                data.bundle = vec![ca.authority.cert_der().to_vec()];
                data.reattestable = true;
                data.bootstrap_use = BootstrapUse::Rebootstrap;
                data.bootstrap_start = Some(start);
            })
            .unwrap();
        let again = Store::open(dir.path()).unwrap().data();
        assert_eq!(again.svid.unwrap().chain(), svid.chain());
        assert_eq!(again.bundle, [ca.authority.cert_der()]);
        assert_eq!(again.bootstrap_start, Some(start));
        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(dir.path().join(FILE)).unwrap()).unwrap();
        let block = STANDARD.decode(json["svid"][0].as_str().unwrap()).unwrap();
        assert!(block.starts_with(b"-----BEGIN CERTIFICATE-----\n"));
        assert_eq!((json["bootstrap_use"].as_i64(), json["reattestable"].as_bool()), (Some(2), Some(true)));
        assert_eq!(json["bootstrap_start_time"], "2023-11-14T22:13:20Z");
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn old_files_and_corrupt_ones() {
        let old = decode(r#"{"svid":null,"bundle":null,"reattestable":false}"#).unwrap();
        assert!(old.svid.is_none() && old.bootstrap_start.is_none());
        assert_eq!(old.bootstrap_use, BootstrapUse::Unspecified);
        assert!(decode(r#"{"svid":["AAAA"]}"#).is_err());
        assert!(decode("{").is_err());
        assert!(encode(&AgentData::default()).contains(r#""svid":null,"bundle":null"#));
    }
}
