//! `debug getinfo` and `logger get|set|reset`: calls to the admin socket.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use svid_core::hcl::duration::format_go;
use svid_daemon::flags::{FlagSet, Parsed};
use svid_daemon::log::LogLevel;
use svid_proto::json;
use svid_proto::spire::agent::debug::v1::debug_client::DebugClient;
use svid_proto::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse};
use svid_proto::spire::api::agent::logger::v1::logger_client::LoggerClient;
use svid_proto::spire::api::agent::logger::v1::{GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest};
use svid_proto::spire::api::types::{self, Logger};
use tonic::Status;
use tonic::transport::Channel;

use super::Env;
use super::api::{CallError, block_on, channel};
use super::socket::DEFAULT_ADMIN_SOCKET;
use super::text::rfc3339;
use crate::admin::logger::{from_wire, to_wire};

pub(super) fn flags(command: &'static str) -> FlagSet {
    FlagSet::new(command)
        .string("socketPath", DEFAULT_ADMIN_SOCKET, "Path to the SPIRE Agent admin API socket")
        .output()
}

pub(super) fn set_flags() -> FlagSet {
    let help = "The new log level, one of (panic, fatal, error, warn, info, debug, trace)";
    flags("logger set").string("level", "", help)
}

/// An error with SPIRE's prefix for these commands.
fn fail(env: &mut Env<'_>, text: impl std::fmt::Display) -> i32 {
    env.fail(format!("Error: {text}"))
}

/// Calls and prints.
fn call<T: prost::Message>(
    flags: &Parsed,
    env: &mut Env<'_>,
    (message, failed): (&str, &str),
    rpc: impl AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
    pretty: impl FnOnce(&T, &mut dyn Write) -> io::Result<()>,
) -> i32 {
    let path = match flags.str("socketPath") {
        "" => DEFAULT_ADMIN_SOCKET,
        path => path,
    };
    let answer = block_on(async {
        let channel = channel(Path::new(path)).await?;
        Ok::<_, CallError>(rpc(channel).await?.into_inner())
    });
    let answer = match answer {
        Ok(answer) => answer,
        Err(err) => return fail(env, format!("{failed}{err}")),
    };
    let printed = match flags.str("output") {
        "json" => json::to_json(message, &answer)
            .map_err(io::Error::other)
            .and_then(|value| env.out.write_all(json::print(&[value]).as_bytes())),
        _ => pretty(&answer, env.out),
    };
    match printed {
        Ok(()) => 0,
        Err(err) => fail(env, err),
    }
}

/// `debug getinfo`
pub(super) fn get_info(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    let rpc = async |channel| DebugClient::new(channel).get_info(GetInfoRequest {}).await;
    call(flags, env, ("spire.agent.debug.v1.GetInfoResponse", ""), rpc, print_info)
}

fn print_info(info: &GetInfoResponse, out: &mut dyn Write) -> io::Result<()> {
    let uptime = format_go(Duration::from_secs(info.uptime.try_into().unwrap_or_default()));
    let last_sync = match info.last_sync_success {
        0 => "(never)".to_owned(),
        at => rfc3339(at),
    };
    writeln!(out, "Agent Debug Info:")?;
    writeln!(out, "  Uptime:                          {uptime}")?;
    writeln!(out, "  Last Sync Success:               {last_sync}")?;
    writeln!(out, "  Cached X.509 SVIDs:              {}", info.cached_x509_svids_count)?;
    writeln!(out, "  Cached JWT SVIDs:                {}", info.cached_jwt_svids_count)?;
    writeln!(out, "  Cached SVID Store X.509 SVIDs:   {}", info.cached_svidstore_x509_svids_count)?;
    if !info.svid_chain.is_empty() {
        writeln!(out, "  SVID Chain:")?;
    }
    for (at, cert) in info.svid_chain.iter().enumerate() {
        let id = cert
            .id
            .as_ref()
            .map_or("(none)".to_owned(), |id| format!("spiffe://{}{}", id.trust_domain, id.path));
        writeln!(out, "    [{at}] SPIFFE ID:  {id}")?;
        writeln!(out, "        Subject:    {}", cert.subject)?;
        writeln!(out, "        Expires At: {}", rfc3339(cert.expires_at))?;
    }
    Ok(())
}

const LOGGER: &str = "spire.api.types.Logger";

/// `logger get`
pub(super) fn logger_get(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    let rpc = async |channel| LoggerClient::new(channel).get_logger(GetLoggerRequest {}).await;
    call(flags, env, (LOGGER, "error fetching logger: "), rpc, print_logger)
}

/// `logger set`
pub(super) fn logger_set(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    let wanted = flags.str("level");
    if wanted.is_empty() {
        return fail(env, "a value (-level) must be set");
    }
    let Ok(level) = wanted.parse::<LogLevel>() else {
        return fail(env, format!("the value {wanted:?} is not a valid setting"));
    };
    let request = SetLogLevelRequest { new_level: to_wire(level).into() };
    let rpc = async |channel| LoggerClient::new(channel).set_log_level(request).await;
    call(flags, env, (LOGGER, "failed to set log level: "), rpc, print_logger)
}

/// `logger reset`
pub(super) fn logger_reset(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    let rpc = async |channel| LoggerClient::new(channel).reset_log_level(ResetLogLevelRequest {}).await;
    call(flags, env, (LOGGER, "failed to reset logger: "), rpc, print_logger)
}

fn print_logger(logger: &Logger, out: &mut dyn Write) -> io::Result<()> {
    let name = |number: i32, which: &str| {
        let level = types::LogLevel::try_from(number).ok().and_then(from_wire);
        level.ok_or_else(|| {
            io::Error::other(format!(
                "internal error: returned {which} log level is undefined; please report this as a bug"
            ))
        })
    };
    let (current, launch) = (name(logger.current_level, "current")?, name(logger.launch_level, "launch")?);
    write!(out, "Logger Level : {current}\nLaunch Level : {launch}\n\n")
}
