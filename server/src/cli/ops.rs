//! `healthcheck` and `debug getinfo`.

use std::time::Duration;

use svid_core::hcl::duration::format_go;
use svid_daemon::cli::{CliError, Command};
use svid_daemon::flags::Parsed;
use svid_proto::grpc::health::v1::HealthCheckRequest;
use svid_proto::grpc::health::v1::health_check_response::ServingStatus;
use svid_proto::grpc::health::v1::health_client::HealthClient;
use svid_proto::spire::api::server::debug::v1::debug_client::DebugClient;
use svid_proto::spire::api::server::debug::v1::{GetInfoRequest, GetInfoResponse};

use super::session::{Session, id_text, rfc3339, rpc_error};
use super::{Handler, Outcome, bare_flags, command, flags};

pub fn commands() -> Vec<Command<Handler>> {
    let health_flags = bare_flags("healthcheck")
        .bool("shallow", "Perform a less stringent health check")
        .bool("verbose", "Print verbose information");
    vec![
        command("healthcheck", "Determines server health status", health_flags, |s, f| {
            Box::pin(health(s, f))
        }),
        command(
            "debug getinfo",
            "Prints debug information about the server",
            flags("debug getinfo"),
            |s, f| Box::pin(info(s, f)),
        ),
    ]
}

async fn health(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let verbose = flags.bool("verbose");
    if verbose {
        writeln!(session.out, "Checking server health...")?;
    }
    let status = match check(session).await {
        Ok(status) => status,
        Err(error) => {
            if verbose {
                writeln!(session.err, "Failed to check health: {error}")?;
            }
            return Err(CliError::new("server is unhealthy: unable to determine health"));
        }
    };
    if status != ServingStatus::Serving {
        let name = status.as_str_name();
        return Err(CliError::new(format!("server is unhealthy: server returned status {name:?}")));
    }
    Ok(writeln!(session.out, "Server is healthy.")?)
}

async fn check(session: &Session<'_>) -> Result<ServingStatus, CliError> {
    let mut client = HealthClient::new(session.server().await?);
    let request = HealthCheckRequest { service: String::new() };
    Ok(client.check(request).await.map_err(rpc_error)?.into_inner().status())
}

async fn info(session: &mut Session<'_>, flags: &Parsed) -> Outcome {
    let mut client = DebugClient::new(session.server().await?);
    let answer = client.get_info(GetInfoRequest {}).await.map_err(rpc_error)?.into_inner();
    session.print(flags, "spire.api.server.debug.v1.GetInfoResponse", &answer, |session| {
        print_info(session, &answer)
    })
}

fn print_info(session: &mut Session<'_>, info: &GetInfoResponse) -> Outcome {
    let out = &mut *session.out;
    let uptime = Duration::from_secs(u64::try_from(info.uptime).unwrap_or_default());
    writeln!(out, "Server Debug Info:")?;
    writeln!(out, "  Uptime:                  {}", format_go(uptime))?;
    writeln!(out, "  Registered Agents:       {}", info.agents_count)?;
    writeln!(out, "  Registration Entries:    {}", info.entries_count)?;
    writeln!(out, "  Federated Bundles:       {}", info.federated_bundles_count)?;
    if !info.svid_chain.is_empty() {
        writeln!(out, "  SVID Chain:")?;
    }
    for (number, cert) in info.svid_chain.iter().enumerate() {
        let id = if cert.id.is_some() { id_text(cert.id.as_ref()) } else { "(none)".into() };
        writeln!(out, "    [{number}] SPIFFE ID:  {id}")?;
        writeln!(out, "        Subject:    {}", cert.subject)?;
        writeln!(out, "        Expires At: {}", rfc3339(cert.expires_at))?;
    }
    Ok(())
}
