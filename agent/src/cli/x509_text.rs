//! X509-SVIDs from a response: parsed, verified and printed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use svid_core::hcl::duration::format_go;
use svid_core::id::SpiffeId;
use svid_core::key::{LocalKey, PrivateKeyDer};
use svid_core::x509::{self, CertChain, ParsedCert, Roots, split_der_chain};
use svid_daemon::log::chain;
use svid_proto::workload::{X509svid, X509svidResponse};

use super::text::time;

/// The two commands that print a set differ in small things that scripts may have learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// With hints, and foreign trust domains as SPIFFE IDs.
    Fetch,
    /// Without hints, and foreign trust domains by name.
    Watch,
}

/// One identity as it came.
pub(super) struct Received {
    pub id: String,
    pub hint: String,
    pub chain: CertChain,
    pub key: PrivateKeyDer,
    pub bundle: Vec<Vec<u8>>,
}

/// A whole response.
pub(super) struct ReceivedSet {
    pub svids: Vec<Received>,
    /// By trust domain as the response names it.
    pub federated: BTreeMap<String, Vec<Vec<u8>>>,
}

impl ReceivedSet {
    /// Takes a response apart. Keys are moved, not copied.
    pub(super) fn parse(response: X509svidResponse) -> Result<Self, String> {
        if response.svids.is_empty() {
            return Err("workload response contains no svids".into());
        }
        let mut federated = BTreeMap::new();
        for (name, der) in response.federated_bundles {
            let certs = split_der_chain(&der)
                .map_err(|err| format!("failed to parse bundle for federated domain {name:?}: {err}"))?;
            if certs.is_empty() {
                return Err(format!("no certificates in bundle for federated domain {name:?}"));
            }
            federated.insert(name, certs);
        }
        let svids = response.svids.into_iter().enumerate().map(|(at, svid)| {
            let id = svid.spiffe_id.clone();
            parse_one(svid)
                .map_err(|err| format!("failed to parse svid entry {at} for spiffe id {id:?}: {err}"))
        });
        Ok(Self { svids: svids.collect::<Result<_, _>>()?, federated })
    }

    /// Verifies each identity with the bundle that came with it.
    pub(super) fn verify(&self, now: SystemTime) -> Result<(), String> {
        self.svids.iter().try_for_each(|svid| {
            verify_one(svid, now)
                .map_err(|err| format!("{:?} SVID failed verification against bundle: {err}", svid.id))
        })
    }

    /// Prints what the response holds, and how long it took to come.
    pub(super) fn print(&self, after: Duration, style: Style, out: &mut dyn Write) -> io::Result<()> {
        let plural = if self.svids.len() == 1 { "" } else { "s" };
        writeln!(out, "Received {} svid{plural} after {}", self.svids.len(), format_go(after))?;
        for svid in &self.svids {
            writeln!(out)?;
            print_one(svid, style, out)?;
            for (name, certs) in &self.federated {
                let name = match style {
                    Style::Fetch => name,
                    Style::Watch => name.strip_prefix("spiffe://").unwrap_or(name),
                };
                print_certs(&format!("[{name}] CA"), certs, out)?;
            }
        }
        writeln!(out)
    }
}

fn parse_one(svid: X509svid) -> Result<Received, String> {
    let chain = CertChain::from_concatenated_der(&svid.x509_svid).map_err(|err| err.to_string())?;
    let failed = |err| format!("failed to parse private key: {err}");
    let key = PrivateKeyDer::from_pkcs8(svid.x509_svid_key);
    LocalKey::from_pkcs8(PrivateKeyDer::from_pkcs8(key.secret_bytes().to_vec())).map_err(failed)?;
    let bundle =
        split_der_chain(&svid.bundle).map_err(|err| format!("failed to parse trust bundle: {err}"))?;
    if bundle.is_empty() {
        return Err("no certificates in trust bundle".into());
    }
    Ok(Received { id: svid.spiffe_id, hint: svid.hint, chain, key, bundle })
}

fn verify_one(svid: &Received, now: SystemTime) -> Result<(), String> {
    let id: SpiffeId = svid.id.parse().map_err(|err: svid_core::id::IdError| err.to_string())?;
    let roots =
        Roots::for_trust_domain(&id.trust_domain(), svid.bundle.iter()).map_err(|err| err.to_string())?;
    let certs: Vec<&[u8]> = svid.chain.iter().collect();
    x509::verify(&certs, &roots, now).map(|_| ()).map_err(|err| chain(&err).to_string())
}

fn print_one(svid: &Received, style: Style, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "SPIFFE ID:\t\t{}", svid.id)?;
    if style == Style::Fetch && !svid.hint.is_empty() {
        writeln!(out, "Hint:\t\t\t{}", svid.hint)?;
    }
    let leaf = life(svid.chain.leaf())?;
    writeln!(out, "SVID Valid After:\t{}", time(leaf.not_before))?;
    writeln!(out, "SVID Valid Until:\t{}", time(leaf.not_after))?;
    print_certs("Intermediate", svid.chain.rest(), out)?;
    print_certs("CA", &svid.bundle, out)
}

fn print_certs(what: &str, certs: &[Vec<u8>], out: &mut dyn Write) -> io::Result<()> {
    for (at, der) in certs.iter().enumerate() {
        let (life, number) = (life(der)?, at + 1);
        writeln!(out, "{what} #{number} Valid After:\t{}", time(life.not_before))?;
        writeln!(out, "{what} #{number} Valid Until:\t{}", time(life.not_after))?;
    }
    Ok(())
}

fn life(der: &[u8]) -> io::Result<svid_core::rotation::Life> {
    ParsedCert::from_der(der).map(|cert| cert.life()).map_err(io::Error::other)
}
