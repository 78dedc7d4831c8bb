//! `x509 mint` and `jwt mint`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use svid_core::id::SpiffeId;
use svid_core::key::{KeyType, LocalKey};
use svid_core::pem::{certs_to_pem, key_to_pem};
use svid_core::x509::csr::make_csr;
use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::spire::api::server::bundle::v1::GetBundleRequest;
use svid_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use svid_proto::spire::api::server::svid::v1::{MintJwtsvidRequest, MintX509svidRequest};
use zeroize::Zeroizing;

use super::bundle;
use super::session::{Session, is_json, parse_id, rfc3339, rpc_context};
use super::{Handler, Outcome, command, flags};

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

pub fn commands() -> Vec<Command<Handler>> {
    vec![
        command("x509 mint", "Mints an X509-SVID", x509_flags(), |s, f| Box::pin(x509(s, f))),
        command("jwt mint", "Mints a JWT-SVID", jwt_flags(), |s, f| Box::pin(jwt(s, f))),
    ]
}

fn x509_flags() -> FlagSet {
    flags("x509 mint")
        .string("spiffeID", "", "SPIFFE ID of the X509-SVID")
        .duration("ttl", "0s", "TTL of the X509-SVID")
        .strings("dns", "DNS name that will be included in SVID. Can be used more than once.")
        .string("write", "", "Directory to write output to instead of stdout")
}

fn jwt_flags() -> FlagSet {
    flags("jwt mint")
        .string("spiffeID", "", "SPIFFE ID of the JWT-SVID")
        .duration("ttl", "0s", "TTL of the JWT-SVID")
        .strings("audience", "Audience claim that will be included in the SVID. Can be used more than once.")
        .string("write", "", "File to write token to instead of stdout")
}

/// Whole seconds, rounded up.
fn ttl_seconds(ttl: Duration) -> Result<i32, CliError> {
    let seconds = ttl.as_nanos().div_ceil(1_000_000_000);
    i32::try_from(seconds).map_err(|_| {
        CliError::new(format!(
            "invalid value for TTL: overflow converting time.Duration({seconds}ns) to int32"
        ))
    })
}

/// What `x509 mint` hands out.
struct Minted {
    chain: Vec<Vec<u8>>,
    key: LocalKey,
    roots: Vec<Vec<u8>>,
}

async fn x509(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let id: SpiffeId = match flags.str("spiffeID") {
        "" => return Err(CliError::new("spiffeID must be specified")),
        text => text.parse().map_err(CliError::new)?,
    };
    let ttl = ttl_seconds(flags.duration("ttl"))?;
    let key = LocalKey::generate(KeyType::EcP256)
        .map_err(|error| CliError::new(format!("unable to generate key: {error}")))?;
    let csr = make_csr(&key, Some(&id), flags.strings("dns"))
        .map_err(|error| CliError::new(format!("unable to generate CSR: {error}")))?;
    let channel = session.server().await?;
    let answer = SvidClient::new(channel.clone()).mint_x509svid(MintX509svidRequest { csr, ttl }).await;
    let svid = answer.map_err(rpc_context("unable to mint SVID"))?.into_inner().svid.unwrap_or_default();
    if svid.cert_chain.is_empty() {
        return Err(CliError::new("server response missing SVID chain"));
    }
    let answer = bundle::client(channel).get_bundle(GetBundleRequest { output_mask: None }).await;
    let bundle = answer.map_err(rpc_context("unable to get bundle"))?.into_inner();
    if bundle.x509_authorities.is_empty() {
        return Err(CliError::new("server response missing X509 Authorities"));
    }
    warn_if_capped(session, "X509-SVID", svid.expires_at, flags.duration("ttl"))?;
    let roots = bundle.x509_authorities.into_iter().map(|authority| authority.asn1).collect();
    let minted = Minted { chain: svid.cert_chain, key, roots };
    match (flags.str("write"), is_json(flags)) {
        ("", true) => print_json(session, &minted),
        ("", false) => print_pem(session, &minted),
        (directory, _) => write_files(session, &minted, Path::new(directory)),
    }
}

fn warn_if_capped(session: &mut Session<'_>, what: &str, expires_at: i64, wanted: Duration) -> Outcome {
    let left = expires_at.saturating_sub(session.clock.unix());
    let wanted = i64::try_from(wanted.as_secs()).unwrap_or(i64::MAX);
    if left < wanted {
        let end = rfc3339(expires_at);
        writeln!(session.err, "{what} lifetime was capped shorter than specified ttl; expires {end:?}")?;
    }
    Ok(())
}

fn print_json(session: &mut Session<'_>, minted: &Minted) -> Outcome {
    let list = |ders: &[Vec<u8>]| {
        let quoted: Vec<_> = ders.iter().map(|der| format!("{:?}", STANDARD.encode(der))).collect();
        quoted.join(",")
    };
    let key = Zeroizing::new(STANDARD.encode(minted.key.private_key().secret_bytes()));
    write!(session.out, "{{\"x509_svid\":[{}],\"private_key\":\"", list(&minted.chain))?;
    session.out.write_all(key.as_bytes())?;
    Ok(writeln!(session.out, "\",\"root_cas\":[{}]}}", list(&minted.roots))?)
}

fn print_pem(session: &mut Session<'_>, minted: &Minted) -> Outcome {
    writeln!(session.out, "X509-SVID:\n{}", certs_to_pem(&minted.chain))?;
    writeln!(session.out, "Private key:\n{}", key_to_pem(minted.key.private_key()).as_str())?;
    Ok(writeln!(session.out, "Root CAs:\n{}", certs_to_pem(&minted.roots))?)
}

fn write_files(session: &mut Session<'_>, minted: &Minted, directory: &Path) -> Outcome {
    let key = key_to_pem(minted.key.private_key());
    let (chain, roots) = (certs_to_pem(&minted.chain), certs_to_pem(&minted.roots));
    for (file, bytes, mode, what, said) in [
        ("svid.pem", chain.as_bytes(), PUBLIC, "SVID", "X509-SVID"),
        ("key.pem", key.as_bytes(), PRIVATE, "key", "Private key"),
        ("bundle.pem", roots.as_bytes(), PUBLIC, "bundle", "Root CAs"),
    ] {
        let path = directory.join(file);
        write_file(&path, bytes, mode)
            .map_err(|error| CliError::new(format!("unable to write {what}: {}: {error}", path.display())))?;
        writeln!(session.out, "{said} written to {}", path.display())?;
    }
    Ok(())
}

/// Writes beside the file and renames, so that a reader sees the old file or the new one, and never one that is
/// readable for a moment only because it stood there before.
fn write_file(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    // What a run that was cut short left behind may have other permissions.
    let _ = std::fs::remove_file(&beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.and_then(|()| std::fs::rename(&beside, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

async fn jwt(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    if flags.str("spiffeID").is_empty() {
        return Err(CliError::new("spiffeID must be specified"));
    }
    if flags.strings("audience").is_empty() {
        return Err(CliError::new("at least one audience must be specified"));
    }
    let request = MintJwtsvidRequest {
        id: Some(parse_id(flags.str("spiffeID")).map_err(CliError::new)?),
        audience: flags.strings("audience").to_vec(),
        ttl: ttl_seconds(flags.duration("ttl"))?,
    };
    let answer = SvidClient::new(session.server().await?).mint_jwtsvid(request).await;
    let answer = answer.map_err(rpc_context("unable to mint SVID"))?.into_inner();
    let token = answer.svid.as_ref().map(|svid| svid.token.as_str()).unwrap_or_default();
    if token.is_empty() {
        return Err(CliError::new("server response missing token"));
    }
    match expiry(token) {
        Some(end) => warn_if_capped(session, "JWT-SVID", end, flags.duration("ttl"))?,
        None => writeln!(session.err, "Unable to determine JWT-SVID lifetime: no expiry claim")?,
    }
    match flags.str("write") {
        "" => session.print(flags, "spire.api.server.svid.v1.MintJWTSVIDResponse", &answer, |session| {
            Ok(writeln!(session.out, "{token}")?)
        }),
        path => {
            write_file(Path::new(path), token.as_bytes(), PRIVATE)
                .map_err(|error| CliError::new(format!("unable to write token: {path}: {error}")))?;
            Ok(writeln!(session.out, "JWT-SVID written to {path}")?)
        }
    }
}

/// `exp` of a token that this server has just signed; only read to warn.
fn expiry(token: &str) -> Option<i64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    claims.get("exp")?.as_i64()
}
