//! `svidctl backup`: the whole state as the bytes of a file, on the admin socket. `svid/backup/v1/backup.proto`.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt as _};
use svid_proto::svid::backup::v1::{self as wire, backup_server::Backup};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::caller::Call;
use super::{Context, call_of};
use crate::store::BackupError;

/// Pieces that wait for the caller.
const AHEAD: usize = 2;

/// The service of this file. One backup at a time: each holds a snapshot of the database.
#[derive(Clone)]
pub struct BackupApi {
    context: Arc<Context>,
    turn: Arc<Semaphore>,
}

impl BackupApi {
    /// Over the shared context.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, turn: Arc::new(Semaphore::new(1)) }
    }
}

type Answer = Result<wire::TakeBackupResponse, Status>;

#[tonic::async_trait]
impl Backup for BackupApi {
    type TakeBackupStream = Pin<Box<dyn Stream<Item = Answer> + Send>>;

    async fn take_backup(
        &self,
        request: Request<wire::TakeBackupRequest>,
    ) -> Result<Response<Self::TakeBackupStream>, Status> {
        let call = call_of(&request)?;
        let turn = self.turn.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted("another backup is being taken: try again when it is done")
        })?;
        call.audit_later();
        let (pieces, taken) = mpsc::channel(AHEAD);
        let (end, ended) = mpsc::channel(1);
        let context = self.context.clone();
        tokio::spawn(async move {
            let outcome = context.store.backup(&context.server_id, context.now_unix(), pieces).await;
            drop(turn);
            if let Some(status) = conclude(&call, outcome) {
                // Without a caller there is nobody to tell.
                let _ = end.send(Err(status)).await;
            }
        });
        let answers = ReceiverStream::new(taken).map(|data| Ok(wire::TakeBackupResponse { data }));
        Ok(Response::new(Box::pin(answers.chain(ReceiverStream::new(ended)))))
    }
}

/// Logs how it ended; a failure is for the caller as well.
fn conclude(call: &Call, outcome: Result<(), BackupError>) -> Option<Status> {
    let error = match outcome {
        Ok(()) => {
            tracing::info!("Backup taken");
            call.audit_end(Code::Ok, "");
            return None;
        }
        Err(error) => error,
    };
    tracing::error!(error = %svid_daemon::log::chain(&error), "Backup failed");
    let status = match &error {
        BackupError::Store(error) if error.is_unavailable() => {
            Status::unavailable("the server cannot reach its database; try again")
        }
        BackupError::Store(_) => Status::internal("the state cannot be read: see the server's log"),
        BackupError::Gone => Status::cancelled(error.to_string()),
        BackupError::Slow => Status::deadline_exceeded(error.to_string()),
    };
    call.audit_end(status.code(), status.message());
    Some(status)
}
