//! What a data directory knows of its server: its id, and the trust domain it served.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use svid_core::id::TrustDomain;

use super::RunError;
use crate::store::Store;

const SERVER_ID: &str = "server-id";
/// Names the trust domain whose bundle this server has committed authorities to. Not there before: a first start that
/// failed half-way is simply repeated.
const SERVED: &str = "served-trust-domain";

/// This server's name in the database: random at the first start, kept in the data directory.
pub(super) fn server_id(data_dir: &Path) -> Result<String, RunError> {
    let text = read(data_dir, SERVER_ID)?;
    match text.as_deref().map(|text| text.trim().parse::<uuid::Uuid>()) {
        Some(Ok(id)) => Ok(id.to_string()),
        Some(Err(_)) => {
            let why = std::io::Error::other("does not hold a UUID; restore it or remove it");
            Err(failed(data_dir, SERVER_ID, why))
        }
        None => {
            let id = uuid::Uuid::new_v4().to_string();
            write(data_dir, SERVER_ID, &id)?;
            Ok(id)
        }
    }
}

/// Refuses a database that does not know the trust domain which this data directory has served: a lost or wrong database
/// must not become a new authority unnoticed, since every agent and workload would have to be bootstrapped again.
/// # Errors
/// [`RunError::LostTrustDomain`], unless `new_trust_domain` says that this is meant.
pub(super) async fn check_served(
    store: &Store,
    data_dir: &Path,
    trust_domain: &TrustDomain,
    new_trust_domain: bool,
) -> Result<(), RunError> {
    let served = read(data_dir, SERVED)?.is_some_and(|name| name.trim() == trust_domain.as_str());
    if !served || store.bundle(trust_domain).await?.is_some() {
        return Ok(());
    }
    if new_trust_domain {
        tracing::warn!(trust_domain_id = %trust_domain.id(), "A new authority for a known trust domain, as -newTrustDomain says: what the old one signed is worth nothing from now on");
        return Ok(());
    }
    Err(RunError::LostTrustDomain {
        trust_domain: trust_domain.clone(),
        data_dir: data_dir.display().to_string(),
    })
}

/// Notes that the trust domain's bundle holds this server's authorities.
pub(super) fn note_served(data_dir: &Path, trust_domain: &TrustDomain) -> Result<(), RunError> {
    let served = read(data_dir, SERVED)?;
    if served.is_some_and(|name| name.trim() == trust_domain.as_str()) {
        return Ok(());
    }
    write(data_dir, SERVED, trust_domain.as_str())
}

/// What the kernel calls this machine.
pub(super) fn host_name() -> Option<String> {
    kernel("hostname")
}

fn kernel(name: &str) -> Option<String> {
    let text = fs::read_to_string(Path::new("/proc/sys/kernel").join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Where this server runs: for people, and exactly. A place is this directory on this boot of this machine, so neither a
/// copied directory nor a cloned disk is the same place.
pub(super) struct Place {
    /// Host name and data directory.
    pub(super) shown: String,
    /// Boot, device and inode.
    pub(super) exact: String,
}

impl Place {
    pub(super) fn of(data_dir: &Path) -> Self {
        let path = fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        let boot = kernel("random/boot_id").unwrap_or_default();
        let (device, inode) = fs::metadata(&path).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
        Self {
            shown: format!("{}:{}", host_name().unwrap_or_default(), path.display()),
            exact: format!("{boot}/{device}/{inode}"),
        }
    }
}

fn failed(data_dir: &Path, name: &str, source: std::io::Error) -> RunError {
    RunError::File { path: data_dir.join(name).display().to_string(), source }
}

fn read(data_dir: &Path, name: &str) -> Result<Option<String>, RunError> {
    match fs::read_to_string(data_dir.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(data_dir, name, error)),
    }
}

/// Whole or not at all.
fn write(data_dir: &Path, name: &str, text: &str) -> Result<(), RunError> {
    let fresh = data_dir.join(format!("{name}.new"));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        fs::rename(&fresh, data_dir.join(name))?;
        fs::File::open(data_dir)?.sync_all()
    };
    write().map_err(|source| failed(data_dir, name, source))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::StoreConfig;

    fn td(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    #[test]
    fn an_id_stays_and_rubbish_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let id = server_id(dir.path()).unwrap();
        assert_eq!(server_id(dir.path()).unwrap(), id);
        fs::write(dir.path().join(SERVER_ID), "x").unwrap();
        let said = svid_daemon::log::chain(&server_id(dir.path()).unwrap_err());
        assert!(said.contains("restore it or remove it"), "{said}");
    }

    #[test]
    fn a_copied_directory_is_another_place() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(Place::of(one.path()).exact, Place::of(one.path()).exact);
        assert_ne!(Place::of(one.path()).exact, Place::of(two.path()).exact);
        assert_ne!(Place::of(one.path()).shown, Place::of(two.path()).shown);
    }

    #[tokio::test]
    async fn a_database_that_lost_the_trust_domain_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::at(dir.path().join("db"));
        let store = Store::open(&config, &td("example.org")).await.unwrap();
        let check = async |new| check_served(&store, dir.path(), &td("example.org"), new).await;
        check(false).await.expect("a first start, and one that failed half-way");
        note_served(dir.path(), &td("example.org")).unwrap();
        let said = check(false).await.unwrap_err().to_string();
        assert!(said.contains("svidctl restore") && said.contains("-newTrustDomain"), "{said}");
        check(true).await.expect("told so");
        check_served(&store, dir.path(), &td("other.org"), false).await.expect("served another one");
        store.append_bundle(&td("example.org"), Vec::new(), Vec::new()).await.unwrap();
        check(false).await.expect("known");
    }
}
