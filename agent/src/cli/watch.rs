//! `api watch`.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use svid_daemon::flags::Parsed;
use svid_proto::workload::X509svidRequest;
use tonic::Code;

use super::api::{CallError, block_on, request, workload};
use super::x509_text::{ReceivedSet, Style};
use super::{Env, socket};

const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Prints each update until interrupted. A broken stream is opened again, as client libraries do.
pub(super) fn run(flags: &Parsed, env: &mut Env<'_>) -> i32 {
    let socket = match socket::resolve(flags, env) {
        Ok(socket) => socket,
        Err(text) => return env.fail(text),
    };
    let watched = block_on(async {
        tokio::select! {
            end = watch(&socket, env) => end,
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    });
    match watched {
        Ok(()) => 0,
        Err(err) => env.fail(err),
    }
}

async fn watch(socket: &Path, env: &mut Env<'_>) -> Result<(), CallError> {
    let (mut pause, mut last) = (Duration::ZERO, Instant::now());
    loop {
        let ended = follow(socket, env, &mut pause, &mut last).await;
        if let Err(err) = ended {
            if matches!(&err, CallError::Status(status) if matches!(status.code(), Code::Cancelled | Code::InvalidArgument))
            {
                return Err(err);
            }
            env.fail(err);
        }
        pause = (pause + Duration::from_secs(1)).min(MAX_PAUSE);
        tokio::time::sleep(pause).await;
    }
}

async fn follow(
    socket: &Path,
    env: &mut Env<'_>,
    pause: &mut Duration,
    last: &mut Instant,
) -> Result<(), CallError> {
    let mut client = workload(socket).await?;
    let mut stream = client.fetch_x509svid(request(X509svidRequest::default())).await?.into_inner();
    while let Some(response) = stream.message().await? {
        *pause = Duration::ZERO;
        match ReceivedSet::parse(response).and_then(|set| set.verify(SystemTime::now()).map(|()| set)) {
            Ok(set) => set
                .print(last.elapsed(), Style::Watch, env.out)
                .map_err(|err| CallError::Local(err.to_string()))?,
            Err(text) => {
                env.fail(text);
            }
        }
        *last = Instant::now();
    }
    Ok(())
}
