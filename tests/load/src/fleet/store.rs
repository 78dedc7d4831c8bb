//! Agents on disk: a key and a chain each, so that a later run connects without attesting again.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use svid_core::key::PrivateKeyDer;
use svid_core::pem::{certs_to_pem, key_to_pem, parse_certs_pem, parse_key_pem};
use svid_core::rotation::Life;
use svid_core::x509::ParsedCert;
use svid_daemon::tls::Identity;
use zeroize::Zeroizing;

const HEADER: &str = "fleet.json";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// What a fleet has in common.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Header {
    /// Part of the IDs of its entries.
    pub tag: String,
    /// How many agents it has.
    pub agents: usize,
    /// Entries that each agent has to hear of.
    pub entries: usize,
}

/// A directory of agents.
#[derive(Debug)]
pub struct Stored {
    dir: PathBuf,
    header: Header,
}

/// A key and its certificate chain, leaf first.
pub struct AgentSvid {
    key: PrivateKeyDer,
    chain: Vec<Vec<u8>>,
}

impl AgentSvid {
    /// From what an attestation or a renewal gave.
    pub fn new(key: PrivateKeyDer, chain: Vec<Vec<u8>>) -> Self {
        Self { key, chain }
    }

    /// For TLS.
    /// # Errors
    /// If the key is not the leaf's.
    pub fn identity(&self) -> Result<Identity> {
        Ok(Identity::from_pkcs8(self.chain.iter().map(Vec::as_slice), self.key.secret_bytes())?)
    }

    fn leaf(&self) -> Result<ParsedCert> {
        Ok(ParsedCert::from_der(self.chain.first().context("an SVID without a certificate")?)?)
    }

    /// When it begins and ends.
    /// # Errors
    /// If the leaf cannot be read.
    pub fn life(&self) -> Result<Life> {
        Ok(self.leaf()?.life())
    }

    /// The agent's SPIFFE ID.
    /// # Errors
    /// If the leaf has none.
    pub fn id(&self) -> Result<svid_core::id::SpiffeId> {
        Ok(self.leaf()?.spiffe_id()?)
    }
}

impl Stored {
    /// A new directory, for the keys of its owner alone.
    /// # Errors
    /// If it exists.
    pub fn create(dir: &Path, header: Header) -> Result<Self> {
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.with_context(|| {
            format!("cannot create {}; name a directory that does not exist", dir.display())
        })?;
        Ok(Self { dir: dir.to_owned(), header })
    }

    /// Writes the header, which says that all agents are there.
    /// # Errors
    /// If that cannot be written.
    pub fn finish(&self) -> Result<()> {
        self.write(HEADER, &serde_json::to_string_pretty(&self.header)?)
    }

    /// Reads what [`Self::finish`] left.
    /// # Errors
    /// If there is no fleet.
    pub fn open(dir: &Path) -> Result<Self> {
        let text = fs::read_to_string(dir.join(HEADER));
        let text = text.with_context(|| {
            format!("no fleet in {}; make one with `svid-load fleet --dir {0}`", dir.display())
        })?;
        let header = serde_json::from_str(&text).with_context(|| format!("{}/{HEADER}", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), header })
    }

    /// What the fleet has in common.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// One agent's SVID.
    /// # Errors
    /// If it is not there, or no SVID.
    pub fn load(&self, number: usize) -> Result<AgentSvid> {
        let path = self.dir.join(file(number));
        let read = || {
            let text = Zeroizing::new(fs::read_to_string(&path)?);
            let Some(at) = text.find(CERTIFICATE) else { bail!("it has no certificate") };
            let (key, chain) = text.split_at(at);
            anyhow::Ok(AgentSvid { key: parse_key_pem(key)?, chain: parse_certs_pem(chain)? })
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    }

    /// Keeps one agent's SVID: the one it had is good until the new one is first used.
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, number: usize, svid: &AgentSvid) -> Result<()> {
        let mut text = key_to_pem(&svid.key);
        text.push_str(&certs_to_pem(&svid.chain));
        self.write(&file(number), &text)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let write = || {
            let mut options = OpenOptions::new();
            let mut file: File = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn file(number: usize) -> String {
    format!("{number}.pem")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, SystemTime};
    use svid_core::key::{KeyType, LocalKey};
    use svid_core::x509::CaSubject;
    use svid_core::x509::ca::self_signed_ca;

    #[test]
    fn what_was_saved_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("fleet");
        let key = LocalKey::generate(KeyType::EcP256).expect("a key");
        let trust_domain = "example.org".parse().expect("a name");
        let life = Duration::from_secs(3600);
        let ca = self_signed_ca(&trust_domain, &CaSubject::default(), life, &key, SystemTime::now());
        let ca = ca.expect("a certificate");
        let pkcs8 = PrivateKeyDer::from_pkcs8(key.private_key().secret_bytes().to_vec());

        let header = Header { tag: "ab".into(), agents: 1, entries: 2 };
        let stored = Stored::create(&dir, header.clone()).expect("new");
        assert!(Stored::create(&dir, header).is_err(), "it exists");
        assert!(Stored::open(&dir).is_err(), "not finished");
        stored.save(0, &AgentSvid::new(pkcs8, vec![ca])).expect("saved");
        stored.finish().expect("finished");

        let stored = Stored::open(&dir).expect("finished");
        assert_eq!((stored.header().agents, stored.header().entries), (1, 2));
        let svid = stored.load(0).expect("an SVID");
        svid.identity().expect("the key of the leaf");
        assert!(svid.life().expect("a life").length() >= life);
        assert!(stored.load(1).is_err());
        let mode = fs::metadata(dir.join("0.pem")).expect("a file").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
