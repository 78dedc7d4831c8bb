//! `healthcheck`.

use std::time::Duration;

use svid_daemon::flags::{FlagSet, Parsed};
use svid_proto::grpc::health::v1::HealthCheckRequest;
use svid_proto::grpc::health::v1::health_check_response::ServingStatus;
use svid_proto::grpc::health::v1::health_client::HealthClient;

use super::api::{CallError, block_on, channel, within};
use super::{Env, socket};

/// Longer than the agent itself waits.
const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) fn flags() -> FlagSet {
    socket::flags(FlagSet::new("health"))
        .bool("shallow", "Perform a less stringent health check")
        .bool("verbose", "Print verbose information")
}

pub(super) fn run(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    match check(flags, env) {
        Ok(()) => {
            // Nothing is left to do when standard output is gone.
            let _ = writeln!(env.out, "Agent is healthy.");
            0
        }
        Err(text) => env.fail(format!("Agent is unhealthy: {text}")),
    }
}

fn check(flags: &Parsed, env: &mut Env<'_>) -> Result<(), String> {
    let verbose = flags.bool("verbose");
    if verbose {
        writeln!(env.out, "Checking agent health...").map_err(|err| err.to_string())?;
    }
    let socket = socket::resolve(flags, env)?;
    let answer = block_on(within(TIMEOUT, async {
        let mut client = HealthClient::new(channel(&socket).await?);
        Ok::<_, CallError>(client.check(HealthCheckRequest::default()).await?.into_inner())
    }));
    let answer = answer.map_err(|err| {
        if verbose {
            env.fail(format!("Failed to check health: {err}"));
        }
        "unable to determine health"
    })?;
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        status => Err(format!("agent returned status {:?}", status.as_str_name())),
    }
}
