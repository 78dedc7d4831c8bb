//! Reading a backup file: every record is checked as if a stranger had sent it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message as _;
use svid_core::bundle::{Bundle, X509Authority};
use svid_core::entry::{Entry, EntryId};
use svid_core::federation::Relationship;
use svid_core::id::{SpiffeId, TrustDomain};
use svid_core::selector::{Selector, SelectorSet};
use svid_proto::backup::{Counts, Decoder, Header, Journal, Kind, Node as WireNode};
use svid_proto::convert::{EntryFields, bundle_from_wire, entry_to_wire, relationship_from_wire};
use svid_proto::spire::api::types;

use super::RestoreError;
use crate::store::backup::NodeRow;
use crate::store::{Node, Position, Serial};

/// Bytes that are read at once.
const READ_BYTES: usize = 256 * 1024;

/// Enough of an entry to compare it.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub(super) created_at: i64,
    pub(super) revision: i64,
    pub(super) expires_at: i64,
    /// Of everything but the revision.
    pub(super) digest: [u8; 16],
}

impl Mark {
    pub(super) fn of(entry: &Entry) -> Self {
        let wire = types::Entry { revision_number: 0, ..entry_to_wire(entry) };
        let mut short = [0; 16];
        short.copy_from_slice(&digest(&SHA256, &wire.encode_to_vec()).as_ref()[..16]);
        Self {
            created_at: entry.created_at,
            revision: entry.revision,
            expires_at: entry.spec.expires_at,
            digest: short,
        }
    }
}

/// A backup that was read to its end once. Entries stay in the file, since there may be a million.
pub(super) struct Dump {
    path: PathBuf,
    trust_domain: TrustDomain,
    pub(super) header: Header,
    pub(super) position: Position,
    pub(super) size: u64,
    pub(super) counts: Counts,
    pub(super) bundles: Vec<Bundle>,
    pub(super) relationships: BTreeMap<TrustDomain, Relationship>,
    pub(super) journals: BTreeMap<String, Vec<u8>>,
    pub(super) nodes: BTreeMap<String, NodeRow>,
    pub(super) entries: HashMap<Box<str>, Mark>,
}

impl Dump {
    /// Reads and checks all of the file.
    /// # Errors
    /// [`RestoreError`] for a file that is damaged, altered, or of another trust domain.
    pub(super) fn read(path: &Path, trust_domain: &TrustDomain) -> Result<Self, RestoreError> {
        let mut dump = Self {
            path: path.to_owned(),
            trust_domain: trust_domain.clone(),
            header: Header::default(),
            position: Position { epoch: [0; 16], seq: 0 },
            size: 0,
            counts: Counts::default(),
            bundles: Vec::new(),
            relationships: BTreeMap::new(),
            journals: BTreeMap::new(),
            nodes: BTreeMap::new(),
            entries: HashMap::new(),
        };
        let mut size = 0;
        dump.counts = records(path, &mut size, &mut |kind| dump.take(kind))?;
        dump.size = size;
        Ok(dump)
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn take(&mut self, kind: Kind) -> Result<(), RestoreError> {
        match kind {
            Kind::Header(header) => self.take_header(header),
            Kind::Bundle(wire) => {
                let bundle = bundle(&wire)?;
                let known = self.bundles.iter().any(|other| other.trust_domain == bundle.trust_domain);
                self.bundles.push(bundle);
                once(!known, format_args!("the bundle of {}", wire.trust_domain))
            }
            Kind::Relationship(wire) => {
                let what = format_args!("the relationship with {:?}", wire.trust_domain).to_string();
                let (one, _) =
                    relationship_from_wire(&wire).map_err(|why| RestoreError::content(&what, why))?;
                if one.trust_domain == self.trust_domain {
                    return Err(RestoreError::content(&what, "it is the backup's own trust domain"));
                }
                let new = self.relationships.insert(one.trust_domain.clone(), one).is_none();
                once(new, format_args!("{what}"))
            }
            Kind::Journal(Journal { server_id, data }) => {
                let id = uuid::Uuid::parse_str(&server_id);
                let id = id.map_err(|why| RestoreError::content("a journal", why))?.to_string();
                let new = self.journals.insert(id, data).is_none();
                once(new, format_args!("the journal of {server_id}"))
            }
            Kind::Node(wire) => {
                let row = node(wire, &self.trust_domain)?;
                let id = row.node.id.to_string();
                let new = self.nodes.insert(id.clone(), row).is_none();
                once(new, format_args!("agent {id}"))
            }
            Kind::Entry(wire) => {
                let entry = entry(&wire, &self.trust_domain)?;
                let new = self.entries.insert(entry.id.as_str().into(), Mark::of(&entry)).is_none();
                once(new, format_args!("entry {}", entry.id))
            }
            Kind::Trailer(_) => Ok(()),
        }
    }

    fn take_header(&mut self, header: Header) -> Result<(), RestoreError> {
        if header.trust_domain != self.trust_domain.as_str() {
            let wanted = self.trust_domain.clone();
            return Err(RestoreError::TrustDomain { found: header.trust_domain, wanted });
        }
        let position = header.position.clone().unwrap_or_default();
        let epoch = position.epoch.as_slice().try_into();
        let epoch = epoch.map_err(|why| RestoreError::content("a position", why))?;
        if i64::try_from(position.seq).is_err() || position.seq > i64::MAX as u64 / 2 {
            return Err(RestoreError::content("a position", "its number is too large"));
        }
        self.position = Position { epoch, seq: position.seq };
        self.header = header;
        Ok(())
    }

    /// Gives every entry, reading the file a second time: `keep` gets them in batches.
    /// # Errors
    /// Those of reading, and [`RestoreError::Changed`] if an entry is not the one that was read first.
    pub(super) fn batches(&self, size: usize) -> Result<Batches<'_>, RestoreError> {
        Ok(Batches {
            dump: self,
            file: open(&self.path)?,
            decoder: Decoder::new(),
            size,
            seen: 0,
            ended: false,
        })
    }
}

/// The entries of a file, a batch at a time.
pub(super) struct Batches<'d> {
    dump: &'d Dump,
    file: File,
    decoder: Decoder,
    size: usize,
    seen: u64,
    ended: bool,
}

impl Batches<'_> {
    /// The next entries; none at the end of the file.
    pub(super) fn next_batch(&mut self) -> Result<Vec<Entry>, RestoreError> {
        let mut batch = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        while batch.len() < self.size && !self.ended {
            while batch.len() < self.size
                && let Some(kind) = self.decoder.next_record()?
            {
                if let Kind::Entry(wire) = kind {
                    batch.push(self.same(&wire)?);
                }
            }
            if batch.len() < self.size {
                self.feed(&mut buffer)?;
            }
        }
        Ok(batch)
    }

    fn same(&mut self, wire: &types::Entry) -> Result<Entry, RestoreError> {
        let entry = entry(wire, &self.dump.trust_domain)?;
        let first = self.dump.entries.get(entry.id.as_str()).ok_or(RestoreError::Changed)?;
        if first.digest != Mark::of(&entry).digest || first.revision != entry.revision {
            return Err(RestoreError::Changed);
        }
        self.seen += 1;
        Ok(entry)
    }

    fn feed(&mut self, buffer: &mut [u8]) -> Result<(), RestoreError> {
        let length = read(&mut self.file, buffer, &self.dump.path)?;
        if length > 0 {
            self.decoder.feed(&buffer[..length]);
            return Ok(());
        }
        self.ended = true;
        let counts = self.decoder.finish()?;
        if counts == self.dump.counts && self.seen == counts.entries {
            Ok(())
        } else {
            Err(RestoreError::Changed)
        }
    }
}

fn open(path: &Path) -> Result<File, RestoreError> {
    File::open(path).map_err(|source| RestoreError::Read { path: path.into(), source })
}

fn read(file: &mut File, buffer: &mut [u8], path: &Path) -> Result<usize, RestoreError> {
    file.read(buffer).map_err(|source| RestoreError::Read { path: path.into(), source })
}

/// Hands every record to `take` and sees to it that the file is whole.
fn records(
    path: &Path,
    size: &mut u64,
    take: &mut dyn FnMut(Kind) -> Result<(), RestoreError>,
) -> Result<Counts, RestoreError> {
    let mut file = open(path)?;
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let length = read(&mut file, &mut buffer, path)?;
        if length == 0 {
            return Ok(decoder.finish()?);
        }
        *size += length as u64;
        decoder.feed(&buffer[..length]);
        while let Some(kind) = decoder.next_record()? {
            take(kind)?;
        }
    }
}

fn once(is_new: bool, what: std::fmt::Arguments<'_>) -> Result<(), RestoreError> {
    if is_new { Ok(()) } else { Err(RestoreError::content(what, "it is there twice")) }
}

/// As from a caller, but with the taints, which are the server's own here.
fn bundle(wire: &types::Bundle) -> Result<Bundle, RestoreError> {
    let bad = |why: &dyn std::fmt::Display| {
        RestoreError::content(format_args!("the bundle of {:?}", wire.trust_domain), why)
    };
    let mut bundle = bundle_from_wire(wire).map_err(|why| bad(&why))?;
    bundle.x509_authorities.clear();
    for cert in &wire.x509_authorities {
        let mut authority = X509Authority::from_der(&cert.asn1).map_err(|why| bad(&why))?;
        authority.tainted = cert.tainted;
        bundle.x509_authorities.push(authority);
    }
    for (key, wire) in bundle.jwt_authorities.iter_mut().zip(&wire.jwt_authorities) {
        key.tainted = wire.tainted;
    }
    Ok(bundle)
}

fn node(wire: WireNode, trust_domain: &TrustDomain) -> Result<NodeRow, RestoreError> {
    let id = wire.spiffe_id;
    let bad = |why: &dyn std::fmt::Display| RestoreError::content(format_args!("agent {id:?}"), why);
    let spiffe_id: SpiffeId = id.parse().map_err(|why| bad(&why))?;
    spiffe_id.require_member(trust_domain).map_err(|why| bad(&why))?;
    let selectors: Result<SelectorSet, _> =
        wire.selectors.iter().map(|text| text.parse::<Selector>()).collect();
    let serial = match wire.serial.is_empty() {
        true => Serial::Banned,
        false => {
            let next = (!wire.new_serial.is_empty()).then_some((wire.new_serial, wire.new_expires_at));
            Serial::Active { current: wire.serial, next }
        }
    };
    let alias_entry = match wire.alias_entry.as_str() {
        "" => None,
        text => Some(text.parse::<EntryId>().map_err(|why| bad(&why))?.to_string()),
    };
    Ok(NodeRow {
        node: Node {
            row: 0,
            attestation_type: wire.attestation_type,
            serial,
            expires_at: wire.expires_at,
            can_reattest: wire.can_reattest,
            agent_version: wire.agent_version,
            selectors: selectors.map_err(|why| bad(&why))?,
            used: true,
            suspected_at: 0,
            adopt_from: 0,
            id: spiffe_id,
        },
        alias_entry,
    })
}

fn entry(wire: &types::Entry, trust_domain: &TrustDomain) -> Result<Entry, RestoreError> {
    let bad = |why: &dyn std::fmt::Display| RestoreError::content(format_args!("entry {:?}", wire.id), why);
    let id: EntryId = wire.id.parse().map_err(|why| bad(&why))?;
    let spec = EntryFields::spec_from_wire(wire, trust_domain).map_err(|why| bad(&why))?;
    if wire.revision_number < 0 || wire.revision_number > i64::MAX / 2 || wire.created_at < 0 {
        return Err(bad(&"its revision or time is out of range"));
    }
    Ok(Entry { id, spec, revision: wire.revision_number, created_at: wire.created_at })
}
