//! `api fetch jwt` and `api validate jwt`.

use std::collections::BTreeMap;
use std::io::Write;

use svid_daemon::cli::Format;
use svid_daemon::cli::Printer;
use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::json;
use svid_proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse,
};
use tonic::Code;

use super::api::{CallError, block_on, first, request, within, workload};
use super::{Env, socket};

pub(super) fn fetch_flags() -> FlagSet {
    socket::flags(FlagSet::new("fetch jwt"))
        .duration("timeout", "5s", "Time to wait for a response")
        .string("audience", "", "comma separated list of audience values")
        .string("spiffeID", "", "SPIFFE ID subject (optional)")
        .output()
        .flag(
            "format",
            svid_daemon::flags::FlagKind::Choice(&["pretty", "json"]),
            "pretty",
            "deprecated; use -output",
        )
}

pub(super) fn validate_flags() -> FlagSet {
    socket::flags(FlagSet::new("validate jwt"))
        .duration("timeout", "5s", "Time to wait for a response")
        .string("audience", "", "expected audience value")
        .string("svid", "", "JWT SVID")
        .output()
}

/// `api fetch jwt`
pub(super) fn fetch(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    match try_fetch(flags, env) {
        Ok(()) => 0,
        Err(text) => env.fail(text),
    }
}

fn try_fetch(flags: &Parsed, env: &mut Env<'_>) -> Result<(), String> {
    let audience: Vec<String> = flags
        .str("audience")
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect();
    if audience.is_empty() {
        return Err("audience must be specified".into());
    }
    let (socket, timeout) = (socket::resolve(flags, env)?, flags.duration("timeout"));
    let wanted = JwtsvidRequest { audience, spiffe_id: flags.str("spiffeID").into() };
    let bundles = async {
        let mut client = workload(&socket).await?;
        first(client.fetch_jwt_bundles(request(JwtBundlesRequest::default())).await).await
    };
    let bundles =
        block_on(within(timeout, bundles)).map_err(|err| format!("failed to receive JWT bundles: {err}"))?;
    let svids = async {
        let mut client = workload(&socket).await?;
        Ok(client.fetch_jwtsvid(request(wanted)).await?.into_inner())
    };
    let svids = block_on(within(timeout, svids)).map_err(|err| err.to_string())?;
    let print = if wants_json(flags) {
        print_json(&svids, &bundles, env.out)
    } else {
        print_pretty(&svids, bundles, env.out)
    };
    print.map_err(|err| err.to_string())
}

fn wants_json(flags: &Parsed) -> bool {
    let by_old_name = !flags.is_set("output") && flags.str("format") == "json";
    flags.str("output") == "json" || by_old_name
}

fn print_json(
    svids: &JwtsvidResponse,
    bundles: &JwtBundlesResponse,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let values = [json::to_json("JWTSVIDResponse", svids), json::to_json("JWTBundlesResponse", bundles)];
    let values: Vec<_> = values.into_iter().collect::<Result<_, _>>().map_err(std::io::Error::other)?;
    out.write_all(json::print(&values).as_bytes())
}

fn print_pretty(
    svids: &JwtsvidResponse,
    bundles: JwtBundlesResponse,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    for svid in &svids.svids {
        writeln!(out, "token({}):\n\t{}", svid.spiffe_id, svid.svid)?;
        if !svid.hint.is_empty() {
            writeln!(out, "hint({}):\n\t{}", svid.spiffe_id, svid.hint)?;
        }
    }
    let sorted: BTreeMap<_, _> = bundles.bundles.into_iter().collect();
    for (trust_domain, jwks) in sorted {
        writeln!(out, "bundle({trust_domain}):\n\t{}", String::from_utf8_lossy(&jwks))?;
    }
    Ok(())
}

/// `api validate jwt`
pub(super) fn validate(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    match try_validate(flags, env) {
        Ok(()) => 0,
        Err(text) => env.fail(text),
    }
}

fn try_validate(flags: &Parsed, env: &mut Env<'_>) -> Result<(), String> {
    let (audience, svid) = (flags.str("audience").to_owned(), flags.str("svid").to_owned());
    if audience.is_empty() {
        return Err("audience must be specified".into());
    }
    if svid.is_empty() {
        return Err("svid must be specified".into());
    }
    let socket = socket::resolve(flags, env)?;
    let call = within(flags.duration("timeout"), async {
        let mut client = workload(&socket).await?;
        Ok(client.validate_jwtsvid(request(ValidateJwtsvidRequest { audience, svid })).await?.into_inner())
    });
    let answer = block_on(call).map_err(|err| match err {
        CallError::Status(status) if status.code() == Code::InvalidArgument => {
            format!("SVID is not valid: {}", status.message())
        }
        err => format!("unable to validate JWT SVID: {err}"),
    })?;
    print_validated(&answer, flags, env.out).map_err(|err| err.to_string())
}

fn print_validated(
    answer: &ValidateJwtsvidResponse,
    flags: &Parsed,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let whole = json::to_json("ValidateJWTSVIDResponse", answer).map_err(std::io::Error::other)?;
    if Printer::new(flags, out).format() == Format::Json {
        return out.write_all(json::print(&[whole]).as_bytes());
    }
    let claims = whole.get("claims").cloned().unwrap_or_default();
    writeln!(out, "SVID is valid.")?;
    writeln!(out, "SPIFFE ID : {}", answer.spiffe_id)?;
    writeln!(out, "Claims    : {}", json::print(&[claims]).trim_end())
}
