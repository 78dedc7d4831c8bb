//! `bundle show`, `list`, `count`, `set` and `delete`.

use svid_core::bundle::document::BundleDocument;
use svid_core::id::TrustDomain;
use svid_core::pem::{certs_to_pem, parse_certs_pem};
use svid_core::x509::split_der_chain;
use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::convert::{bundle_from_wire, bundle_to_wire};
use svid_proto::spire::api::server::bundle::v1::batch_delete_federated_bundle_request::Mode;
use svid_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use svid_proto::spire::api::server::bundle::v1::{
    BatchDeleteFederatedBundleRequest, BatchSetFederatedBundleRequest, CountBundlesRequest, GetBundleRequest,
    GetFederatedBundleRequest, ListFederatedBundlesRequest,
};
use svid_proto::spire::api::types::{Bundle, X509Certificate};
use tonic::transport::Channel;

use super::client::MAX_ANSWER_BYTES;
use super::session::{Session, count, item_status, rpc_context, rpc_error};
use super::{Handler, Outcome, command, flags};

const ID_HELP: &str = "SPIFFE ID of the trust domain";

/// How a bundle is written in a file or on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleFormat {
    /// X.509 roots alone.
    Pem,
    /// The SPIFFE bundle document.
    Spiffe,
}

impl BundleFormat {
    /// Reads the word of a `-format` flag; nothing means PEM.
    ///
    /// # Errors
    /// Another word.
    pub fn parse(word: &str) -> Result<Self, CliError> {
        match word.to_lowercase().as_str() {
            "" | "pem" => Ok(Self::Pem),
            "spiffe" => Ok(Self::Spiffe),
            lower => Err(CliError::new(format!("invalid format: {lower:?}"))),
        }
    }
}

pub fn commands() -> Vec<Command<Handler>> {
    let show_flags = format_flag(
        flags("bundle show"),
        "The format to show the bundle (only pretty output format supports this flag). Either \"pem\" or \"spiffe\".",
    );
    let list_flags = format_flag(
        flags("bundle list").string("id", "", ID_HELP),
        "The format to list federated bundles (only pretty output format supports this flag). Either \"pem\" or \
         \"spiffe\".",
    );
    let set_flags = format_flag(
        flags("bundle set").string("id", "", ID_HELP).string("path", "", "Path to the bundle data"),
        "The format of the bundle data. Either \"pem\" or \"spiffe\".",
    );
    let delete_flags = flags("bundle delete").string("id", "", ID_HELP).string(
        "mode",
        "restrict",
        "Deletion mode: one of restrict, delete, or dissociate",
    );
    vec![
        command("bundle show", "Prints server CA bundle to stdout", show_flags, |s, f| Box::pin(show(s, f))),
        command("bundle list", "Lists federated bundle data", list_flags, |s, f| Box::pin(list(s, f))),
        command("bundle count", "Count bundles", flags("bundle count"), |s, f| Box::pin(count_bundles(s, f))),
        command("bundle set", "Creates or updates federated bundle data", set_flags, |s, f| {
            Box::pin(set(s, f))
        }),
        command("bundle delete", "Deletes federated bundle data", delete_flags, |s, f| {
            Box::pin(delete(s, f))
        }),
    ]
}

fn format_flag(flags: FlagSet, help: &'static str) -> FlagSet {
    flags.string("format", "pem", help)
}

pub fn client(channel: Channel) -> BundleClient<Channel> {
    BundleClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)
}

async fn show(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let request = GetBundleRequest { output_mask: None };
    let bundle = client(session.server().await?).get_bundle(request).await.map_err(rpc_error)?.into_inner();
    print_one(session, flags, &bundle)
}

async fn list(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = client(session.server().await?);
    if !flags.str("id").is_empty() {
        let request = GetFederatedBundleRequest { trust_domain: flags.str("id").into(), output_mask: None };
        let bundle = client.get_federated_bundle(request).await.map_err(rpc_error)?.into_inner();
        return print_one(session, flags, &bundle);
    }
    let answer = client.list_federated_bundles(ListFederatedBundlesRequest::default()).await;
    let answer = answer.map_err(rpc_error)?.into_inner();
    let name = "spire.api.server.bundle.v1.ListFederatedBundlesResponse";
    session.print(flags, name, &answer, |session| {
        for (number, bundle) in answer.bundles.iter().enumerate() {
            if number > 0 {
                writeln!(session.out)?;
            }
            let format = BundleFormat::parse(flags.str("format"))?;
            let stars = "*".repeat(40);
            writeln!(session.out, "{stars}\n* {}\n{stars}", bundle.trust_domain)?;
            session.out.write_all(written(bundle, format)?.as_bytes())?;
        }
        Ok(())
    })
}

fn print_one(session: &mut Session<'_>, flags: &Parsed, bundle: &Bundle) -> Outcome {
    session.print(flags, "spire.api.types.Bundle", bundle, |session| {
        let format = BundleFormat::parse(flags.str("format"))?;
        Ok(session.out.write_all(written(bundle, format)?.as_bytes())?)
    })
}

/// The bundle as text that ends with a line feed.
fn written(bundle: &Bundle, format: BundleFormat) -> Result<String, CliError> {
    if format == BundleFormat::Spiffe {
        let document = bundle_from_wire(bundle).map_err(CliError::new)?.to_document();
        return Ok(document.trim_end().to_owned() + "\n");
    }
    let mut text = String::new();
    for authority in &bundle.x509_authorities {
        let certs = split_der_chain(&authority.asn1).map_err(|error| {
            CliError::new(format!("unable to parse certificates ASN.1 DER data: {error}"))
        })?;
        text += &certs_to_pem(certs);
    }
    Ok(text)
}

async fn count_bundles(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let answer = client(session.server().await?).count_bundles(CountBundlesRequest {}).await;
    let answer = answer.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.server.bundle.v1.CountBundlesResponse", &answer, |session| {
        let number = usize::try_from(answer.count).unwrap_or_default();
        Ok(writeln!(session.out, "{}", count(number, "bundle", "bundles"))?)
    })
}

async fn set(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let id = flags.str("id");
    if id.is_empty() {
        return Err(CliError::new("id flag is required"));
    }
    let format = BundleFormat::parse(flags.str("format"))?;
    let path = if flags.str("path").is_empty() { "-" } else { flags.str("path") };
    let bytes =
        session.read(path).map_err(|error| CliError::new(format!("unable to load bundle data: {error}")))?;
    let bundle = parse(&bytes, format, id)?;
    let request = BatchSetFederatedBundleRequest { bundle: vec![bundle], output_mask: None };
    let answer = client(session.server().await?).batch_set_federated_bundle(request).await;
    let answer = answer.map_err(rpc_context("failed to set federated bundle"))?.into_inner();
    let name = "spire.api.server.bundle.v1.BatchSetFederatedBundleResponse";
    session.print(flags, name, &answer, |session| {
        match item_status(answer.results.first().and_then(|one| one.status.as_ref())) {
            (0, _) => Ok(writeln!(session.out, "bundle set.")?),
            (_, message) => Err(CliError::new(format!("failed to set federated bundle: {message}"))),
        }
    })
}

/// Reads a bundle of the trust domain `id` as an operator gives it.
///
/// # Errors
/// What is wrong with the bytes or the name.
pub fn parse(bytes: &[u8], format: BundleFormat, id: &str) -> Result<Bundle, CliError> {
    if format == BundleFormat::Pem {
        let certs = parse_certs_pem(bytes)
            .map_err(|error| CliError::new(format!("unable to parse bundle data: {error}")))?;
        let x509_authorities =
            certs.into_iter().map(|asn1| X509Certificate { asn1, tainted: false }).collect();
        return Ok(Bundle { trust_domain: id.into(), x509_authorities, ..Bundle::default() });
    }
    let trust_domain = TrustDomain::from_name_or_id(id).map_err(CliError::new)?;
    let document = BundleDocument::parse(&trust_domain, bytes)
        .map_err(|error| CliError::new(format!("unable to parse to spiffe bundle: {error}")))?;
    Ok(bundle_to_wire(&document.bundle))
}

async fn delete(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let id = flags.str("id");
    if id.is_empty() {
        return Err(CliError::new("id is required"));
    }
    let mode = match flags.str("mode") {
        "" | "restrict" => Mode::Restrict,
        "dissociate" => Mode::Dissociate,
        "delete" => Mode::Delete,
        other => return Err(CliError::new(format!("unsupported mode {other:?}"))),
    };
    let request = BatchDeleteFederatedBundleRequest { trust_domains: vec![id.into()], mode: mode as i32 };
    let answer = client(session.server().await?).batch_delete_federated_bundle(request).await;
    let answer = answer.map_err(rpc_context("failed to delete federated bundle"))?.into_inner();
    let name = "spire.api.server.bundle.v1.BatchDeleteFederatedBundleResponse";
    session.print(flags, name, &answer, |session| {
        let result = answer.results.first();
        match item_status(result.and_then(|one| one.status.as_ref())) {
            (0, _) => Ok(writeln!(session.out, "bundle deleted.")?),
            (_, message) => {
                let name = result.map_or(id, |one| &one.trust_domain);
                Err(CliError::new(format!("failed to delete federated bundle {name:?}: {message}")))
            }
        }
    })
}
