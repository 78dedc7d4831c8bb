//! `federation create`, `update`, `list`, `show`, `delete` and `refresh`.

use serde::Deserialize;
use serde_json::Value;
use svid_core::id::SpiffeId;
use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::spire::api::server::trustdomain::v1 as wire;
use svid_proto::spire::api::types::{
    Bundle, FederationRelationship, HttpsWebProfile, HttpsspiffeProfile, Status,
    federation_relationship::BundleEndpointProfile,
};
use tonic::Code;
use tonic::transport::Channel;
use wire::trust_domain_client::TrustDomainClient;

use super::bundle::{self, BundleFormat};
use super::client::MAX_ANSWER_BYTES;
use super::session::{Session, code_name, count, item_status, rpc, rpc_context};
use super::{Handler, Outcome, command, flags};

const DATA_HELP: &str = "Path to a file containing federation relationships in JSON format (optional). If set to '-', \
                         read the JSON from stdin.";
const ID_HELP: &str = "SPIFFE ID of the trust domain";

pub fn commands() -> Vec<Command<Handler>> {
    let show_flags = flags("federation show").string(
        "trustDomain",
        "",
        "The trust domain name of the federation relationship to show",
    );
    vec![
        command(
            "federation create",
            "Creates a dynamic federation relationship with a foreign trust domain",
            write_flags("federation create"),
            |s, f| Box::pin(create(s, f)),
        ),
        command(
            "federation update",
            "Updates a dynamic federation relationship with a foreign trust domain",
            write_flags("federation update"),
            |s, f| Box::pin(update(s, f)),
        ),
        command(
            "federation list",
            "Lists all dynamic federation relationships",
            flags("federation list"),
            |s, f| Box::pin(list(s, f)),
        ),
        command("federation show", "Shows a dynamic federation relationship", show_flags, |s, f| {
            Box::pin(show(s, f))
        }),
        command(
            "federation delete",
            "Deletes a dynamic federation relationship",
            flags("federation delete").string("id", "", ID_HELP),
            |s, f| Box::pin(delete(s, f)),
        ),
        command(
            "federation refresh",
            "Refreshes the bundle from the specified federated trust domain",
            flags("federation refresh").string("id", "", ID_HELP),
            |s, f| Box::pin(refresh(s, f)),
        ),
    ]
}

fn client(channel: Channel) -> TrustDomainClient<Channel> {
    TrustDomainClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

fn write_flags(name: &'static str) -> FlagSet {
    flags(name)
        .string("data", "", DATA_HELP)
        .string("trustDomain", "", "Name of the trust domain to federate with (e.g., example.org)")
        .string(
            "bundleEndpointURL",
            "",
            "URL of the SPIFFE bundle endpoint that provides the trust bundle (must use the HTTPS protocol)",
        )
        .string(
            "bundleEndpointProfile",
            "",
            "Endpoint profile type (either \"https_web\" or \"https_spiffe\")",
        )
        .string(
            "endpointSpiffeID",
            "",
            "SPIFFE ID of the SPIFFE bundle endpoint server. Only used for 'spiffe' profile.",
        )
        .string("trustDomainBundlePath", "", "Path to the trust domain bundle data (optional).")
        .string(
            "trustDomainBundleFormat",
            "pem",
            "The format of the bundle data (optional). Either \"pem\" or \"spiffe\".",
        )
}

/// A relationship as an operator writes it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wanted {
    trust_domain: String,
    #[serde(rename = "bundleEndpointURL")]
    bundle_endpoint_url: String,
    bundle_endpoint_profile: String,
    #[serde(rename = "endpointSPIFFEID")]
    endpoint_spiffe_id: String,
    trust_domain_bundle: Option<Value>,
    trust_domain_bundle_format: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct WantedFile {
    federation_relationships: Vec<Wanted>,
}

fn wanted(session: &mut Session<'_>, flags: &Parsed) -> Result<Vec<FederationRelationship>, CliError> {
    let path = flags.str("data");
    if path.is_empty() {
        return Ok(vec![from_flags(session, flags)?]);
    }
    let others = [
        "trustDomain",
        "bundleEndpointURL",
        "bundleEndpointProfile",
        "endpointSpiffeID",
        "trustDomainBundlePath",
    ];
    if others.iter().any(|name| !flags.str(name).is_empty()) || flags.str("trustDomainBundleFormat") != "pem"
    {
        return Err(CliError::new(
            "cannot use other flags to specify relationship fields when 'data' flag is set",
        ));
    }
    let text = session.read_text(path)?;
    let file: WantedFile = serde_json::from_str(&text)
        .map_err(|error| CliError::new(format!("failed to parse JSON: {error}")))?;
    (file.federation_relationships.iter().enumerate())
        .map(|(number, wanted)| {
            from_file(wanted)
                .map_err(|error| CliError::new(format!("could not parse item {number}: {error}")))
        })
        .collect()
}

fn from_flags(session: &mut Session<'_>, flags: &Parsed) -> Result<FederationRelationship, CliError> {
    let wanted = Wanted {
        trust_domain: flags.str("trustDomain").into(),
        bundle_endpoint_url: flags.str("bundleEndpointURL").into(),
        bundle_endpoint_profile: flags.str("bundleEndpointProfile").into(),
        endpoint_spiffe_id: flags.str("endpointSpiffeID").into(),
        trust_domain_bundle: None,
        trust_domain_bundle_format: flags.str("trustDomainBundleFormat").into(),
    };
    let (mut relationship, bundle_domain) = without_bundle(&wanted)?;
    let path = flags.str("trustDomainBundlePath");
    if !path.is_empty() {
        let bytes =
            session.read(path).map_err(|error| CliError::new(format!("cannot read bundle file: {error}")))?;
        let format = bundle_format(&wanted)?;
        let bundle = bundle::parse(&bytes, format, &bundle_domain)
            .map_err(|error| CliError::new(format!("cannot parse bundle file: {error}")))?;
        relationship.trust_domain_bundle = Some(bundle);
    }
    Ok(relationship)
}

fn from_file(wanted: &Wanted) -> Result<FederationRelationship, CliError> {
    let (mut relationship, bundle_domain) = without_bundle(wanted)?;
    if let Some(value) = &wanted.trust_domain_bundle {
        let bundle = embedded_bundle(value, wanted, &bundle_domain)
            .map_err(|error| CliError::new(format!("cannot parse bundle raw message: {error}")))?;
        relationship.trust_domain_bundle = Some(bundle);
    }
    Ok(relationship)
}

/// PEM stands in a JSON string, a bundle document as itself.
fn embedded_bundle(value: &Value, wanted: &Wanted, trust_domain: &str) -> Result<Bundle, CliError> {
    match (bundle_format(wanted)?, value) {
        (BundleFormat::Pem, Value::String(pem)) => {
            bundle::parse(pem.as_bytes(), BundleFormat::Pem, trust_domain)
        }
        (BundleFormat::Pem, _) => Err(CliError::new("failed to unmarshal json: a string is needed for PEM")),
        (BundleFormat::Spiffe, document) => {
            bundle::parse(document.to_string().as_bytes(), BundleFormat::Spiffe, trust_domain)
        }
    }
}

fn bundle_format(wanted: &Wanted) -> Result<BundleFormat, CliError> {
    match wanted.trust_domain_bundle_format.as_str() {
        "pem" => Ok(BundleFormat::Pem),
        "spiffe" => Ok(BundleFormat::Spiffe),
        other => Err(CliError::new(format!("bundle format {other:?} is unsupported"))),
    }
}

/// The relationship, and the trust domain that a bundle given with it is of: that of the endpoint's server.
fn without_bundle(wanted: &Wanted) -> Result<(FederationRelationship, String), CliError> {
    if wanted.trust_domain.is_empty() {
        return Err(CliError::new("trust domain is required"));
    }
    if wanted.bundle_endpoint_url.is_empty() {
        return Err(CliError::new("bundle endpoint URL is required"));
    }
    let mut bundle_domain = wanted.trust_domain.clone();
    let profile = match wanted.bundle_endpoint_profile.as_str() {
        "https_web" => BundleEndpointProfile::HttpsWeb(HttpsWebProfile {}),
        "https_spiffe" if wanted.endpoint_spiffe_id.is_empty() => {
            return Err(CliError::new(
                "endpoint SPIFFE ID is required if 'https_spiffe' endpoint profile is set",
            ));
        }
        "https_spiffe" => {
            let id: SpiffeId = wanted
                .endpoint_spiffe_id
                .parse()
                .map_err(|error| CliError::new(format!("cannot parse bundle endpoint SPIFFE ID: {error}")))?;
            bundle_domain = id.trust_domain_name().into();
            let endpoint_spiffe_id = wanted.endpoint_spiffe_id.clone();
            BundleEndpointProfile::HttpsSpiffe(HttpsspiffeProfile { endpoint_spiffe_id })
        }
        other => return Err(CliError::new(format!("unknown bundle endpoint profile type: {other:?}"))),
    };
    let relationship = FederationRelationship {
        trust_domain: wanted.trust_domain.clone(),
        bundle_endpoint_url: wanted.bundle_endpoint_url.clone(),
        bundle_endpoint_profile: Some(profile),
        trust_domain_bundle: None,
    };
    Ok((relationship, bundle_domain))
}

fn written(relationship: &FederationRelationship) -> String {
    let mut text = format!(
        "Trust domain              : {}\nBundle endpoint URL       : {}\n",
        relationship.trust_domain, relationship.bundle_endpoint_url
    );
    match &relationship.bundle_endpoint_profile {
        Some(BundleEndpointProfile::HttpsWeb(_)) => text += "Bundle endpoint profile   : https_web\n",
        Some(BundleEndpointProfile::HttpsSpiffe(profile)) => {
            text += "Bundle endpoint profile   : https_spiffe\nEndpoint SPIFFE ID        : ";
            text += &profile.endpoint_spiffe_id;
            text.push('\n');
        }
        None => {}
    }
    text
}

/// The server leaves refused relationships out of its answer, so those of the request are printed.
fn print_results(
    session: &mut Session<'_>,
    verb: &str,
    results: &[(Option<&Status>, Option<&FederationRelationship>)],
    asked: &[FederationRelationship],
) -> Outcome {
    let absent = FederationRelationship::default();
    let mut failed = false;
    for (status, relationship) in results {
        if item_status(*status).0 == 0 {
            write!(session.out, "\n{}", written(relationship.unwrap_or(&absent)))?;
        }
    }
    for ((status, _), asked) in results.iter().zip(asked) {
        let (code, message) = item_status(*status);
        if code != 0 {
            failed = true;
            let code = code_name(code);
            writeln!(session.out)?;
            write!(
                session.err,
                "Failed to {verb} the following federation relationship (code: {code}, msg: {message:?}):\n{}",
                written(asked)
            )?;
        }
    }
    match failed {
        true => Err(CliError::new(format!("failed to {verb} one or more federation relationships"))),
        false => Ok(()),
    }
}

async fn create(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let asked = wanted(session, flags)?;
    let mut client = client(session.server().await?);
    let request = wire::BatchCreateFederationRelationshipRequest {
        federation_relationships: asked.clone(),
        output_mask: None,
    };
    let answer = client.batch_create_federation_relationship(request).await;
    let answer = answer.map_err(rpc_context("request failed"))?.into_inner();
    let name = "spire.api.server.trustdomain.v1.BatchCreateFederationRelationshipResponse";
    session.print(flags, name, &answer, |session| {
        let results: Vec<_> = (answer.results.iter())
            .map(|one| (one.status.as_ref(), one.federation_relationship.as_ref()))
            .collect();
        print_results(session, "create", &results, &asked)
    })
}

async fn update(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let asked = wanted(session, flags)?;
    let mut client = client(session.server().await?);
    let request = wire::BatchUpdateFederationRelationshipRequest {
        federation_relationships: asked.clone(),
        input_mask: None,
        output_mask: None,
    };
    let answer = client.batch_update_federation_relationship(request).await;
    let answer = answer.map_err(rpc_context("request failed"))?.into_inner();
    let name = "spire.api.server.trustdomain.v1.BatchUpdateFederationRelationshipResponse";
    session.print(flags, name, &answer, |session| {
        let results: Vec<_> = (answer.results.iter())
            .map(|one| (one.status.as_ref(), one.federation_relationship.as_ref()))
            .collect();
        print_results(session, "update", &results, &asked)
    })
}

async fn list(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = client(session.server().await?);
    let answer =
        client.list_federation_relationships(wire::ListFederationRelationshipsRequest::default()).await;
    let answer = answer.map_err(rpc_context("error listing federation relationship"))?.into_inner();
    let name = "spire.api.server.trustdomain.v1.ListFederationRelationshipsResponse";
    session.print(flags, name, &answer, |session| {
        let all = &answer.federation_relationships;
        let number = count(all.len(), "federation relationship", "federation relationships");
        writeln!(session.out, "Found {number}")?;
        for one in all {
            write!(session.out, "\n{}", written(one))?;
        }
        Ok(())
    })
}

async fn show(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let trust_domain = flags.str("trustDomain");
    if trust_domain.is_empty() {
        return Err(CliError::new("a trust domain name is required"));
    }
    let request =
        wire::GetFederationRelationshipRequest { trust_domain: trust_domain.into(), output_mask: None };
    let answer = client(session.server().await?).get_federation_relationship(request).await;
    let answer = answer.map_err(rpc_context("error showing federation relationship"))?.into_inner();
    session.print(flags, "spire.api.types.FederationRelationship", &answer, |session| {
        write!(
            session.out,
            "Found a federation relationship with trust domain {trust_domain}:\n\n{}",
            written(&answer)
        )?;
        Ok(())
    })
}

fn required_id(flags: &Parsed) -> Result<&str, CliError> {
    match flags.str("id") {
        "" => Err(CliError::new("id is required")),
        id => Ok(id),
    }
}

async fn delete(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let id = required_id(flags)?;
    let request = wire::BatchDeleteFederationRelationshipRequest { trust_domains: vec![id.into()] };
    let answer = client(session.server().await?).batch_delete_federation_relationship(request).await;
    let answer = answer.map_err(rpc_context("failed to delete federation relationship"))?.into_inner();
    let name = "spire.api.server.trustdomain.v1.BatchDeleteFederationRelationshipResponse";
    session.print(flags, name, &answer, |session| {
        let result = answer.results.first();
        match item_status(result.and_then(|one| one.status.as_ref())) {
            (0, _) => Ok(writeln!(session.out, "federation relationship deleted.")?),
            (_, message) => {
                let name = result.map_or(id, |one| &one.trust_domain);
                Err(CliError::new(format!("failed to delete federation relationship {name:?}: {message}")))
            }
        }
    })
}

async fn refresh(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let id = required_id(flags)?;
    let request = wire::RefreshBundleRequest { trust_domain: id.into() };
    match client(session.server().await?).refresh_bundle(request).await {
        Ok(_) => {}
        Err(status) if status.code() == Code::NotFound => {
            return Err(CliError::new(format!(
                "there is no federation relationship with trust domain {id:?}"
            )));
        }
        Err(status) => return Err(CliError::new(format!("failed to refresh bundle: {}", rpc(&status)))),
    }
    let done = Status { code: 0, message: "OK".into() };
    session.print(flags, "spire.api.types.Status", &done, |session| {
        Ok(writeln!(session.out, "Bundle refreshed")?)
    })
}
