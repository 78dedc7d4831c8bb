//! The journal: which authority sits in which slot. SPIRE's protobuf, so that its journals can be taken over.

use std::time::{Duration, SystemTime};

use prost::Message as _;
use svid_core::clock::unix_seconds;
use svid_core::x509::ParsedCert;
use svid_proto::spire::private::server::journal as wire;

pub(super) use wire::UpstreamRequest;

use super::slots::{AuthorityInfo, SlotId, Status};

/// Entries kept of each kind.
const CAPACITY: usize = 10;
/// Revoked upstream roots that are remembered.
const MAX_REVOKED: usize = 64;

/// A journal. Its lists are oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Journal {
    entries: wire::Entries,
}

impl Journal {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, prost::DecodeError> {
        Ok(Self { entries: wire::Entries::decode(bytes)? })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        self.entries.encode_to_vec()
    }

    pub(super) fn x509(&self) -> &[wire::X509caEntry] {
        &self.entries.x509_c_as
    }

    pub(super) fn jwt(&self) -> &[wire::JwtKeyEntry] {
        &self.entries.jwt_keys
    }

    pub(super) fn append_x509(
        &mut self,
        info: &AuthorityInfo,
        certificate: &[u8],
        upstream_chain: &[Vec<u8>],
    ) {
        self.entries.x509_c_as.push(wire::X509caEntry {
            slot_id: info.slot.name().to_owned(),
            issued_at: unix_seconds(info.issued_at),
            certificate: certificate.to_vec(),
            upstream_chain: upstream_chain.to_vec(),
            status: status(info.status) as i32,
            authority_id: info.authority_id.clone(),
            not_after: unix_seconds(info.not_after),
            upstream_authority_id: info.upstream_authority_id.clone(),
        });
        keep_last(&mut self.entries.x509_c_as);
    }

    pub(super) fn append_jwt(&mut self, info: &AuthorityInfo, public_key: &[u8]) {
        self.entries.jwt_keys.push(wire::JwtKeyEntry {
            slot_id: info.slot.name().to_owned(),
            issued_at: unix_seconds(info.issued_at),
            not_after: unix_seconds(info.not_after),
            kid: info.authority_id.clone(),
            public_key: public_key.to_vec(),
            status: status(info.status) as i32,
            authority_id: info.authority_id.clone(),
        });
        keep_last(&mut self.entries.jwt_keys);
    }

    /// The CSR whose answer is not in the journal yet.
    pub(super) fn request(&self) -> Option<&UpstreamRequest> {
        self.entries.upstream_request.as_ref()
    }

    pub(super) fn set_request(&mut self, request: UpstreamRequest) {
        self.entries.upstream_request = Some(request);
    }

    pub(super) fn clear_request(&mut self) {
        self.entries.upstream_request = None;
    }

    /// Upstream roots (subject key IDs in hex) that were revoked, and do not come back.
    pub(super) fn revoked_roots(&self) -> &[String] {
        &self.entries.revoked_roots
    }

    /// Notes a revoked upstream root. False if it was noted already.
    pub(super) fn note_revoked(&mut self, subject_key_id: &str) -> bool {
        let revoked = &mut self.entries.revoked_roots;
        if revoked.iter().any(|known| known == subject_key_id) {
            return false;
        }
        revoked.push(subject_key_id.to_owned());
        let excess = revoked.len().saturating_sub(MAX_REVOKED);
        revoked.drain(..excess);
        true
    }

    /// What signed an X.509 authority and what stands behind it, as subject key IDs in hex. Empty if it is unknown.
    pub(super) fn issuers(&self, authority_id: &str) -> Vec<String> {
        let entry = self.x509().iter().rfind(|entry| entry.authority_id == authority_id);
        entry.map(|entry| issuers(&entry.certificate, &entry.upstream_chain)).unwrap_or_default()
    }

    /// Makes one X.509 authority active and every other active one old.
    pub(super) fn activate_x509(&mut self, authority_id: &str) {
        for entry in &mut self.entries.x509_c_as {
            activate(&mut entry.status, entry.authority_id == authority_id);
        }
    }

    /// Makes one JWT authority active and every other active one old.
    pub(super) fn activate_jwt(&mut self, authority_id: &str) {
        for entry in &mut self.entries.jwt_keys {
            activate(&mut entry.status, entry.authority_id == authority_id);
        }
    }
}

/// What signed `certificate` and the certificates of its chain, as subject key IDs in hex.
pub(super) fn issuers(certificate: &[u8], chain: &[Vec<u8>]) -> Vec<String> {
    let certs = std::iter::once(certificate).chain(chain.iter().map(Vec::as_slice));
    let mut ids: Vec<String> = certs
        .filter_map(|der| ParsedCert::from_der(der).ok())
        .filter_map(|cert| cert.authority_key_id_hex())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn activate(status: &mut i32, this: bool) {
    if this {
        *status = wire::Status::Active as i32;
    } else if *status == wire::Status::Active as i32 {
        *status = wire::Status::Old as i32;
    }
}

fn keep_last<T>(list: &mut Vec<T>) {
    let excess = list.len().saturating_sub(CAPACITY);
    list.drain(..excess);
}

fn status(status: Status) -> wire::Status {
    match status {
        Status::Prepared => wire::Status::Prepared,
        Status::Active => wire::Status::Active,
        Status::Old => wire::Status::Old,
    }
}

/// The facts of a journal entry, whatever its kind.
pub(super) struct EntryFacts<'a> {
    pub(super) slot_id: &'a str,
    pub(super) issued_at: i64,
    pub(super) not_after: i64,
    pub(super) status: i32,
    pub(super) authority_id: &'a str,
    pub(super) upstream_authority_id: &'a str,
}

impl<'a> From<&'a wire::X509caEntry> for EntryFacts<'a> {
    fn from(entry: &'a wire::X509caEntry) -> Self {
        Self {
            slot_id: &entry.slot_id,
            issued_at: entry.issued_at,
            not_after: entry.not_after,
            status: entry.status,
            authority_id: &entry.authority_id,
            upstream_authority_id: &entry.upstream_authority_id,
        }
    }
}

impl<'a> From<&'a wire::JwtKeyEntry> for EntryFacts<'a> {
    fn from(entry: &'a wire::JwtKeyEntry) -> Self {
        Self {
            slot_id: &entry.slot_id,
            issued_at: entry.issued_at,
            not_after: entry.not_after,
            status: entry.status,
            authority_id: &entry.authority_id,
            upstream_authority_id: "",
        }
    }
}

impl EntryFacts<'_> {
    /// The facts as the slots hold them. None without a slot. A status of the time before SPIRE wrote any is old.
    pub(super) fn info(&self) -> Option<AuthorityInfo> {
        let status = match wire::Status::try_from(self.status) {
            Ok(wire::Status::Prepared) => Status::Prepared,
            Ok(wire::Status::Active) => Status::Active,
            Ok(wire::Status::Old | wire::Status::Unknown) | Err(_) => Status::Old,
        };
        Some(AuthorityInfo {
            slot: self.slot_id.parse::<SlotId>().ok()?,
            status,
            issued_at: time(self.issued_at),
            not_after: time(self.not_after),
            authority_id: self.authority_id.to_owned(),
            upstream_authority_id: self.upstream_authority_id.to_owned(),
        })
    }
}

fn time(unix: i64) -> SystemTime {
    let since = Duration::from_secs(u64::try_from(unix).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(id: &str) -> AuthorityInfo {
        AuthorityInfo {
            slot: SlotId::A,
            status: Status::Prepared,
            issued_at: time(1),
            not_after: time(2),
            authority_id: id.to_owned(),
            upstream_authority_id: "up".to_owned(),
        }
    }

    #[test]
    fn round_trips_and_keeps_ten() {
        let mut journal = Journal::default();
        for n in 0..12 {
            journal.append_x509(&info(&n.to_string()), b"cert", &[b"up".to_vec()]);
            journal.append_jwt(&info(&n.to_string()), b"key");
        }
        assert_eq!((journal.x509().len(), journal.jwt().len()), (10, 10));
        assert_eq!(journal.x509()[0].authority_id, "2");
        assert_eq!(Journal::decode(&journal.encode()).expect("decode"), journal);
        assert!(Journal::decode(b"\xff\xff").is_err());
        assert_eq!(EntryFacts::from(&journal.x509()[9]).info(), Some(info("11")));
    }

    #[test]
    fn what_is_ours_alone_is_skipped_by_others() {
        let mut journal = Journal::default();
        journal.append_x509(&info("1"), b"cert", &[]);
        let shared = journal.encode();
        journal.set_request(UpstreamRequest { csr: b"csr".to_vec(), ..UpstreamRequest::default() });
        assert!(journal.note_revoked("aa") && !journal.note_revoked("aa"));
        let bytes = journal.encode();
        assert!(bytes.starts_with(&shared), "fields of SPIRE come first, unchanged");
        assert_eq!(Journal::decode(&bytes).expect("decode"), journal);
        for n in 0..MAX_REVOKED {
            journal.note_revoked(&n.to_string());
        }
        assert_eq!((journal.revoked_roots().len(), journal.revoked_roots()[0].as_str()), (MAX_REVOKED, "0"));
        journal.clear_request();
        assert_eq!(journal.request(), None);
    }

    #[test]
    fn one_is_active() {
        let mut journal = Journal::default();
        for id in ["a", "b"] {
            journal.append_x509(&info(id), b"cert", &[]);
            journal.append_jwt(&info(id), b"key");
            journal.activate_x509(id);
            journal.activate_jwt(id);
        }
        let want = [wire::Status::Old as i32, wire::Status::Active as i32];
        assert_eq!(journal.jwt().iter().map(|entry| entry.status).collect::<Vec<_>>(), want);
        assert_eq!(journal.x509().iter().map(|entry| entry.status).collect::<Vec<_>>(), want);
    }
}
