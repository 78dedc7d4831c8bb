//! What is stored, as bytes: a run of records, each a kind, a length and fields. Later records win.

use std::sync::Arc;
use std::time::Duration;

use svid_core::bundle::{Bundle, JwtAuthority, X509Authority};
use svid_core::entry::EntryId;
use svid_core::id::TrustDomain;
use svid_core::key::PrivateKeyDer;
use svid_core::selector::{Selector, SelectorSet};
use svid_core::x509::{CertChain, X509Svid};
use svid_proto::svid::sync::v1::Position;
use zeroize::Zeroizing;

use super::bytes::{Fields, Malformed, Writer};
use crate::cache::{AgentEntry, JwtSvid, KeptJwt, X509Identity};

const ENTRY: u8 = 1;
const ENTRY_GONE: u8 = 2;
const SVID: u8 = 3;
const SVID_GONE: u8 = 4;
const JWT: u8 = 5;
const JWT_GONE: u8 = 6;
const OWN_BUNDLE: u8 = 7;
const BUNDLE: u8 = 8;
const BUNDLE_GONE: u8 = 9;
const POSITION: u8 = 10;

/// One change of what is stored.
#[derive(Clone, Debug)]
pub enum Record {
    /// An entry came or changed.
    Entry(Arc<AgentEntry>),
    /// An entry went, and its SVID.
    EntryGone(EntryId),
    /// An entry has a new X509-SVID.
    Svid(EntryId, Arc<X509Identity>),
    /// An entry's X509-SVID went.
    SvidGone(EntryId),
    /// A JWT-SVID came or was renewed.
    Jwt(Arc<KeptJwt>),
    /// The JWT-SVID of this entry for this audience went.
    JwtGone(EntryId, Vec<String>),
    /// The own bundle.
    OwnBundle(Arc<Bundle>),
    /// The bundle of a trust domain that is federated with.
    Bundle(Arc<Bundle>),
    /// A federated bundle went.
    BundleGone(TrustDomain),
    /// How far the agent has followed the server.
    Position(Option<Position>),
}

impl Record {
    /// Appends the record.
    pub fn write(&self, out: &mut Writer) {
        match self {
            Self::Entry(entry) => out.record(ENTRY, |out| write_entry(entry, out)),
            Self::EntryGone(id) => out.record(ENTRY_GONE, |out| out.text(id.as_str())),
            Self::Svid(id, identity) => out.record(SVID, |out| {
                out.text(id.as_str());
                out.bytes(identity.key.secret_bytes());
                let chain: Vec<&[u8]> = identity.svid.chain().iter().collect();
                out.list(chain.into_iter(), |out, cert| out.bytes(cert));
            }),
            Self::SvidGone(id) => out.record(SVID_GONE, |out| out.text(id.as_str())),
            Self::Jwt(jwt) => out.record(JWT, |out| write_jwt(jwt, out)),
            Self::JwtGone(id, audience) => out.record(JWT_GONE, |out| {
                out.text(id.as_str());
                out.list(audience.iter(), |out, name| out.text(name));
            }),
            Self::OwnBundle(bundle) => out.record(OWN_BUNDLE, |out| write_bundle(bundle, out)),
            Self::Bundle(bundle) => out.record(BUNDLE, |out| write_bundle(bundle, out)),
            Self::BundleGone(name) => out.record(BUNDLE_GONE, |out| out.text(name.as_str())),
            Self::Position(position) => out.record(POSITION, |out| {
                out.list(position.iter(), |out, position| {
                    out.bytes(&position.epoch);
                    out.number(position.seq);
                });
            }),
        }
    }

    /// Reads all records of `bytes`.
    /// # Errors
    /// [`Malformed`]: nothing of it is to be used then.
    pub fn read_all(bytes: &[u8]) -> Result<Vec<Self>, Malformed> {
        let mut fields = Fields::new(bytes);
        let mut records = Vec::new();
        while !fields.is_empty() {
            let kind = fields.byte()?;
            let mut body = Fields::new(fields.bytes()?);
            records.push(Self::read(kind, &mut body)?);
            body.end()?;
        }
        Ok(records)
    }

    fn read(kind: u8, body: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(match kind {
            ENTRY => Self::Entry(Arc::new(read_entry(body)?)),
            ENTRY_GONE => Self::EntryGone(body.parsed()?),
            SVID => {
                let id = body.parsed()?;
                let key = PrivateKeyDer::from_pkcs8(body.bytes()?.to_vec());
                let chain = CertChain::from_certs(body.list(|body| Ok(body.bytes()?.to_vec()))?);
                let svid = X509Svid::parse(chain.map_err(|_| Malformed)?).map_err(|_| Malformed)?;
                Self::Svid(id, Arc::new(X509Identity { svid, key }))
            }
            SVID_GONE => Self::SvidGone(body.parsed()?),
            JWT => Self::Jwt(Arc::new(read_jwt(body)?)),
            JWT_GONE => Self::JwtGone(body.parsed()?, body.list(|body| Ok(body.text()?.to_owned()))?),
            OWN_BUNDLE => Self::OwnBundle(Arc::new(read_bundle(body)?)),
            BUNDLE => Self::Bundle(Arc::new(read_bundle(body)?)),
            BUNDLE_GONE => Self::BundleGone(body.parsed()?),
            POSITION => {
                let mut found =
                    body.list(|body| Ok(Position { epoch: body.bytes()?.to_vec(), seq: body.number()? }))?;
                if found.len() > 1 {
                    return Err(Malformed);
                }
                Self::Position(found.pop())
            }
            _ => return Err(Malformed),
        })
    }
}

fn write_entry(entry: &AgentEntry, out: &mut Writer) {
    out.text(entry.id.as_str());
    out.text(entry.spiffe_id.as_str());
    out.list(entry.selectors.iter(), |out, selector| {
        out.text(selector.kind());
        out.text(selector.value());
    });
    out.list(entry.federates_with.iter(), |out, name| out.text(name.as_str()));
    let flags = [entry.admin, entry.downstream, entry.store_svid, entry.disable_x509_svid_prefetch];
    flags.into_iter().for_each(|flag| out.flag(flag));
    out.text(&entry.hint);
    out.signed(entry.revision);
    out.signed(entry.created_at);
}

fn read_entry(body: &mut Fields<'_>) -> Result<AgentEntry, Malformed> {
    let entry = AgentEntry {
        id: body.parsed()?,
        spiffe_id: body.parsed()?,
        selectors: body
            .list(|body| Selector::new(body.text()?, body.text()?).map_err(|_| Malformed))?
            .into_iter()
            .collect::<SelectorSet>(),
        federates_with: body.list(Fields::parsed)?,
        admin: body.flag()?,
        downstream: body.flag()?,
        store_svid: body.flag()?,
        disable_x509_svid_prefetch: body.flag()?,
        hint: body.text()?.to_owned(),
        revision: body.signed()?,
        created_at: body.signed()?,
    };
    // Without selectors it would apply to every caller.
    if entry.selectors.is_empty() { Err(Malformed) } else { Ok(entry) }
}

fn write_jwt(jwt: &KeptJwt, out: &mut Writer) {
    out.text(jwt.entry.as_str());
    out.list(jwt.audience.iter(), |out, name| out.text(name));
    out.text(&jwt.svid.token);
    out.text(jwt.svid.id.as_str());
    out.signed(jwt.svid.issued_at);
    out.signed(jwt.svid.expires_at);
}

fn read_jwt(body: &mut Fields<'_>) -> Result<KeptJwt, Malformed> {
    Ok(KeptJwt {
        entry: body.parsed()?,
        audience: body.list(|body| Ok(body.text()?.to_owned()))?,
        svid: JwtSvid {
            token: Zeroizing::new(body.text()?.to_owned()),
            id: body.parsed()?,
            issued_at: body.signed()?,
            expires_at: body.signed()?,
        },
    })
}

fn write_bundle(bundle: &Bundle, out: &mut Writer) {
    out.text(bundle.trust_domain.as_str());
    out.list(bundle.x509_authorities.iter(), |out, authority| {
        out.bytes(authority.der());
        out.flag(authority.tainted);
    });
    out.list(bundle.jwt_authorities.iter(), |out, authority| {
        out.text(&authority.key_id);
        out.bytes(&authority.public_key);
        out.signed(authority.expires_at);
        out.flag(authority.tainted);
    });
    out.number(bundle.refresh_hint.as_secs());
    out.number(bundle.sequence_number);
}

fn read_bundle(body: &mut Fields<'_>) -> Result<Bundle, Malformed> {
    Ok(Bundle {
        trust_domain: body.parsed()?,
        x509_authorities: body.list(|body| {
            let mut authority = X509Authority::from_der(body.bytes()?).map_err(|_| Malformed)?;
            authority.tainted = body.flag()?;
            Ok(authority)
        })?,
        jwt_authorities: body.list(|body| {
            Ok(JwtAuthority {
                key_id: body.text()?.to_owned(),
                public_key: body.bytes()?.into(),
                expires_at: body.signed()?,
                tainted: body.flag()?,
            })
        })?,
        refresh_hint: Duration::from_secs(body.number()?),
        sequence_number: body.number()?,
    })
}
