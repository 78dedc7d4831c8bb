//! `svid fetch`: asks the Workload API once. Also what `watch` is made of.

use std::path::Path;

use serde::Serialize;
use svid_core::x509::split_der_chain;
use svid_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use svid_proto::workload::{X509svidRequest, X509svidResponse};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Streaming};

use super::facts::CertFacts;
use crate::connect::{self, Failure, MAX_ANSWER_BYTES, Who};
use crate::render::{self, Paint, Screen, count};

/// What the socket gives this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Given {
    pub svids: Vec<GivenSvid>,
    pub federated_trust_domains: Vec<String>,
}

/// One X509-SVID. Its private key was thrown away unread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GivenSvid {
    pub spiffe_id: String,
    pub hint: String,
    /// The SVID first.
    pub chain: Vec<CertFacts>,
    /// Roots of its trust domain.
    pub bundle: Vec<CertFacts>,
}

pub async fn run(socket: &Path, screen: &mut Screen) -> Result<(), Failure> {
    let mut stream = open(socket).await?;
    let answer = stream.message().await.map_err(|status| explain(&status))?;
    let answer = answer.ok_or_else(|| Failure::new("the agent closed the stream without an answer"))?;
    let now = render::now();
    let given = read(answer, now)?;
    screen.print(&given, |given, paint| text(given, now, paint))
}

/// Opens the stream of updates.
///
/// # Errors
/// Explained for people.
pub async fn open(socket: &Path) -> Result<Streaming<X509svidResponse>, Failure> {
    let channel = connect::dial(Who::Agent, socket).await?;
    let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let mut request = Request::new(X509svidRequest {});
    // WEND-07: proves that this request was not forged through a browser or proxy.
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    let answer = client.fetch_x509svid(request).await.map_err(|status| explain(&status))?;
    Ok(answer.into_inner())
}

/// An answer of the Workload API for people.
pub fn explain(status: &tonic::Status) -> Failure {
    let failure = connect::rpc(Who::Agent, status);
    match status.code() {
        Code::PermissionDenied => {
            Failure::new(format!("the agent gives this process nothing: {}", status.message()))
                .advise(no_identity())
        }
        Code::InvalidArgument => failure.advise("Is it a Workload API socket? --agent-socket names another."),
        _ => failure,
    }
}

/// No entry matches this process. Which selectors it has only the agent knows for certain; these are likely.
fn no_identity() -> String {
    let (uid, gid) = (nix_uid(), nix_gid());
    let path = std::env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    format!(
        "No entry below the agent matches this process, which most likely has the selectors\n  unix:uid:{uid}\n  \
         unix:gid:{gid}\n  unix:path:{path} (if the agent has discover_workload_path)\nOn the server, `svidctl agent \
         show AGENT-ID` shows what the agent can obtain and for which selectors, and\n  svid-server entry create \
         -parentID AGENT-ID -spiffeID spiffe://TRUST-DOMAIN/NAME -selector unix:uid:{uid}\nmakes an entry for this \
         user."
    )
}

/// Ids as the kernel shows them to others: `/proc/self` belongs to the effective ones.
fn nix_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map(|facts| facts.uid()).unwrap_or_default()
}

fn nix_gid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map(|facts| facts.gid()).unwrap_or_default()
}

/// Reads an answer. Keys are wiped with it.
///
/// # Errors
/// A certificate that cannot be read.
pub fn read(answer: X509svidResponse, now: i64) -> Result<Given, Failure> {
    let certs = |bytes: &[u8]| -> Result<Vec<CertFacts>, Failure> {
        let ders = split_der_chain(bytes).map_err(Failure::new)?;
        ders.iter().map(|der| CertFacts::from_der(der, now)).collect()
    };
    let mut federated_trust_domains: Vec<_> = answer.federated_bundles.keys().cloned().collect();
    federated_trust_domains.sort();
    let svids = (answer.svids.iter())
        .map(|svid| {
            Ok(GivenSvid {
                spiffe_id: svid.spiffe_id.clone(),
                hint: svid.hint.clone(),
                chain: certs(&svid.x509_svid)?,
                bundle: certs(&svid.bundle)?,
            })
        })
        .collect::<Result<_, Failure>>()?;
    Ok(Given { svids, federated_trust_domains })
}

/// All SVIDs below each other.
pub fn text(given: &Given, now: i64, paint: Paint) -> String {
    let mut text = format!("{}\n", count(given.svids.len() as u64, "X509-SVID", "X509-SVIDs"));
    for svid in &given.svids {
        text += &format!("\n{}\n", paint.bold(&svid.spiffe_id));
        if !svid.hint.is_empty() {
            text += &format!("  Hint: {}\n", svid.hint);
        }
        for (number, cert) in svid.chain.iter().enumerate() {
            let name = if number == 0 { "SVID".to_owned() } else { format!("Intermediate {number}") };
            text += &format!("  {name}\n{}", cert.text("    ", now));
        }
        text += &format!("  Trusts {}\n", count(svid.bundle.len() as u64, "root", "roots"));
        for root in &svid.bundle {
            let end = render::left(root.not_after, now);
            text += &format!("    {}, key id {}, {end}\n", root.subject, root.subject_key_id);
        }
    }
    if !given.federated_trust_domains.is_empty() {
        text += &format!("\nAlso trusts {}\n", given.federated_trust_domains.join(", "));
    }
    text
}
